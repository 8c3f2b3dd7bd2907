"""Windows of the training and validation episodes, with the statistics and the interface that the policy takes from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kineflow.contracts import FeatureStatistics, Interface
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.windows import WindowReader, split_episodes
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.policy_statistics import narrowed


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
        interface = narrowed(store.interface, policy.features, policy.cameras)
        chosen, held_out = (split.tolist() for split in split_episodes(store.num_episodes, validation_fraction, seed))
        training, validation = (
            WindowReader(store, policy.features, policy.horizons, split, policy.cameras) for split in (chosen, held_out)
        )
        whole, raw = training.read(np.arange(len(training)), images=False), store.statistics(chosen)
        kept = {name: raw[name] for name in (*policy.features, "action")}
        statistics = policy.statistics(interface, kept, whole.state, whole.action)
        return cls(training, validation, interface, statistics, store.fingerprint())
