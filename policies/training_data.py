"""Windows of the training and validation episodes, with the statistics and the interface that the policy takes from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kineflow.contracts import FeatureStatistics, Interface, KineflowError, VectorSpec, Window
from kineflow.datasets.episode_split import split_episodes
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.loader import StreamLoader
from kineflow.datasets.shuffle import PoolSampler
from kineflow.datasets.window_sampler import WindowSampler
from kineflow.datasets.window_streams import interface_of_windows
from kineflow.datasets.windows import WindowReader
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.goal_fusion import GoalFusion
from kineflow.policies.encoders.state import StateFeatures
from kineflow.policies.encoders.vision import Vision
from kineflow.policies.encoders.window_features import Looker, encoded_cameras, encoded_goals
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.policy_statistics import narrowed, state_spec, statistics_of
from kineflow.policies.train_config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Statistics are those of the training episodes alone: the held-out ones stay unseen."""

    training: WindowReader
    validation: WindowReader
    interface: Interface
    statistics: dict[str, FeatureStatistics]
    dataset_hash: str
    state: VectorSpec  # of the windows: the policy's features, then the privileged ones
    privileged: StateFeatures | None  # geometry of the privileged features

    @classmethod
    def load(cls, store: EpisodeStore, config: TrainConfig) -> TrainingData:
        """Split the episodes of `store` by the seed; raises KineflowError when a feature is missing or not finite."""
        policy = config.policy
        interface = narrowed(interface_of_windows(store, config.resample), policy.features, policy.cameras, policy.goals)
        chosen, held_out = (
            split.tolist()
            for split in split_episodes(store.num_episodes, config.validation_fraction, config.seed, config.validation_block)
        )
        read = (*policy.features, *policy.privileged, *stop_feature(policy, store.interface))
        looker = Looker.of(policy.encoder) if isinstance(policy.encoder, GoalVision | GoalFusion) else None
        goals = encoded_goals(store, policy.goals, config.goals, looker) if policy.goals else None
        training, validation = (
            WindowReader(
                store,
                read,
                policy.horizons,
                split,
                policy.cameras,
                config.resample,
                config.images,
                encoded_cameras(store, policy.cameras, split, looker) if looker else None,
                goals,
            )
            for split in (chosen, held_out)
        )
        whole, raw = training.read(np.arange(len(training)), images=False), store.statistics(chosen)
        kept = {name: raw[name] for name in (*policy.features, "action", *read[len(policy.features) + len(policy.privileged) :])}
        size = state_spec(interface, policy.features).size
        statistics = policy.statistics(interface, kept, whole.state[..., :size], whole.action)
        geometry = _privileged_geometry(policy, store.interface)
        if geometry:
            hidden = whole.state[..., size:-1] if policy.stop else whole.state[..., size:]
            known = geometry(torch.from_numpy(hidden).double())
            statistics["privileged_state"] = statistics_of(known.numpy())
        return cls(training, validation, interface, statistics, store.fingerprint(), state_spec(store.interface, read), geometry)

    @property
    def left_out(self) -> dict[str, int]:
        """How many windows there are not, because they would observe a gap of this stream."""
        parts = (self.training.dropped, self.validation.dropped)
        return {name: sum(part.get(name, 0) for part in parts) for name in sorted({*parts[0], *parts[1]})}

    def loader(self, config: TrainConfig) -> StreamLoader[Window]:
        """Endless shuffled batches of the training windows."""
        sampler: WindowSampler = (
            PoolSampler(self.training.episodes, config.batch_size, config.seed, config.images.pool_episodes)
            if config.images.where == "pool"
            else WindowSampler(len(self.training), config.batch_size, config.seed)
        )
        return StreamLoader(self.training, sampler, config.data_threads)


def stop_feature(policy: PolicyConfig, offered: Interface) -> tuple[str, ...]:
    """The name of the feature that says when to stop, if any; windows read it last. ContractError when it is not one number."""
    if policy.stop and state_spec(offered, (policy.stop,)).size != 1:
        raise KineflowError(f"policy.stop names '{policy.stop}', which has more than one dimension; it must be 0 or 1")
    return (policy.stop,) if policy.stop else ()


def _privileged_geometry(policy: PolicyConfig, offered: Interface) -> StateFeatures | None:
    if not policy.privileged:
        return None
    if not isinstance(policy.encoder, Vision):
        raise KineflowError(
            f"policy.privileged names {policy.privileged}, which supervise a Vision encoder; "
            f"the encoder is a {type(policy.encoder).__name__}: make them features, or leave them out"
        )
    return policy.encoder.state.geometry(state_spec(offered, policy.privileged), policy.horizons.observation)
