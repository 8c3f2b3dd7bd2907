"""Untrained tiny policies on the circles data: what composes does not depend on how good they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kineflow.contracts import FeatureSpec, Horizons, Interface, Observation, PolicyContract, SamplingRequest
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.state import State
from kineflow.policies.golden import golden_pair
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.policy import PolicyConfig, PolicyNetwork
from kineflow.policies.train_config import TrainConfig
from kineflow.policies.training_data import TrainingData

Make = Callable[..., ChunkPolicy]

BASE = PolicyConfig(
    horizons=Horizons(2, 8, 4),
    head=MLP(width=32, depth=1),
    objective=FlowMatching(steps=4),
    encoder=State(width=32, depth=1, token=16),
    action_scaling="isotropic",
)
DIFFUSION = Diffusion(steps=4, clip=4.0)


@pytest.fixture(scope="session")
def make(store_path: Path) -> Make:
    """make(seed, rate_hz=..., interface=..., **changes of BASE): a policy with random weights and real statistics."""

    def build(seed: int = 0, rate_hz: float | None = None, interface: Interface | None = None, **changes: Any) -> ChunkPolicy:
        config = replace(BASE, **changes)
        data = TrainingData.load(EpisodeStore.open(store_path), TrainConfig(config, validation_fraction=0.25))
        offered = interface or data.interface
        if rate_hz:  # as if it had been trained on resampled data
            features = {k: FeatureSpec(v.vector, rate_hz) for k, v in offered.features.items()}
            offered = Interface(features, FeatureSpec(offered.action.vector, rate_hz), offered.cameras)
        torch.manual_seed(seed)
        network = PolicyNetwork(config, offered, data.statistics).eval()
        for parameter in network.head.parameters():  # heads start at zero: give every policy an opinion
            torch.nn.init.normal_(parameter, std=0.15)
        spec, golden = config.objective.sampler_spec(), golden_pair(network)
        return ChunkPolicy(
            network, PolicyContract(network.interface, config.horizons, spec, data.statistics, "hash", {"kineflow": "0"}, golden)
        )

    return build


@pytest.fixture
def observation() -> Observation:
    return look(2)


def look(steps: int, rows: int = 5, seed: int = 0) -> Observation:
    """`rows` observations of `steps` steps."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1, 1, (rows, steps, 3)).astype(np.float32) + np.array([0, 0, 2], np.float32)
    return Observation(state, np.tile(0.1 * np.arange(steps), (rows, 1)))


def ask(rows: int = 5, **options: Any) -> SamplingRequest:
    return SamplingRequest(np.arange(rows, dtype=np.int64) + 100, **options)
