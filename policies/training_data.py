"""Windows of the training and validation episodes, with the statistics and the interface that the policy takes from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kineflow.contracts import FeatureStatistics, Interface
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.windows import WindowReader, split_episodes
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.policy_statistics import state_spec


@dataclass(frozen=True)
class TrainingData:
    """Statistics are those of the training episodes alone: the held-out ones stay unseen."""

    training: WindowReader
    validation: WindowReader
    interface: Interface
    statistics: dict[str, FeatureStatistics]
    dataset_hash: str

    @classmethod
    def load(cls, store: EpisodeStore, policy: PolicyConfig, validation_fraction: float, seed: int) -> TrainingData:
        """Split the episodes of `store` by `seed`; raises KineflowError when a feature is missing or not finite."""
        interface = needed_interface(policy, store.interface)
        chosen, held_out = (split.tolist() for split in split_episodes(store.num_episodes, validation_fraction, seed))
        training = WindowReader(store, policy.features, policy.horizons, chosen)
        validation = WindowReader(store, policy.features, policy.horizons, held_out)
        whole, raw = training.read(np.arange(len(training))), store.statistics(chosen)
        kept = {name: raw[name] for name in (*policy.features, "action")}
        statistics = policy.statistics(interface, kept, whole.state, whole.action)
        return cls(training, validation, interface, statistics, store.fingerprint())


def needed_interface(policy: PolicyConfig, offered: Interface) -> Interface:
    """What the policy takes of what the store offers: this, not the store, is what a robot must provide."""
    state_spec(offered, policy.features)
    return Interface({name: offered.features[name] for name in policy.features}, offered.action)
