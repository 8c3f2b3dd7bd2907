"""A tiny data set and the smallest policy on it, for everything that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import Episode, FeatureSpec, Horizons, Interface, Stream, VectorSpec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.policies.encoders.state import PlanarBody, State
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.train import TrainConfig

STATE = VectorSpec(("x", "y", "angle"), ("m", "m", "rad"), "odom", (-9.0, -9.0, 0.0), (9.0, 9.0, 6.2832))
ACTION = VectorSpec(("goal_x", "goal_y"), ("m", "m"), "odom", (-9.0, -9.0), (9.0, 9.0))
INTERFACE = Interface({"state": FeatureSpec(STATE, 10.0)}, FeatureSpec(ACTION, 10.0))


def make_store(path: Path, interface: Interface = INTERFACE, episodes: int = 8, seed: int = 0) -> Path:
    """Circles driven at different radii; the action is where the point will be in two steps."""
    store = EpisodeStore.create(path, interface, clock="nominal_10hz")
    rng = np.random.default_rng(seed)
    with store.writer() as writer:
        for index in range(episodes):
            angle = rng.uniform(0, 6) + 0.1 * np.arange(32)
            radius = 1 + index / episodes
            circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
            state = np.concatenate([circle[:-2], (angle[:-2] % (2 * np.pi))[:, None]], 1).astype(np.float32)
            stamps = np.arange(30, dtype=np.int64) * 100_000_000
            writer.add(Episode({"state": Stream(state, stamps), "action": Stream(circle[2:], stamps)}, clock="nominal_10hz"))
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "circles.eps")


POLICY = PolicyConfig(
    horizons=Horizons(2, 8, 4),
    head=MLP(width=32, depth=1),
    objective=FlowMatching(steps=4),
    encoder=State(width=32, depth=1, token=16, bodies=(PlanarBody("x", "y", "angle", ((1.0, 0.0), (0.0, 0.5))),)),
    relative_to=("x", "y"),
)


@pytest.fixture
def config(store_path: Path) -> TrainConfig:
    return TrainConfig(
        policy=POLICY,
        store=store_path,
        steps=60,
        batch_size=32,
        optimiser=Optimiser(warmup_steps=5),
        validation_fraction=0.25,
        validate_every=20,
        checkpoint_every=10,
        log_every=1,
        threads=1,
    )


@pytest.fixture(scope="session")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests must not change it."""
    from kineflow.policies.train import train

    run = tmp_path_factory.mktemp("run") / "circles"
    base = TrainConfig(
        policy=POLICY,
        store=store_path,
        steps=300,
        batch_size=64,
        optimiser=Optimiser(learning_rate=3e-3, warmup_steps=20, ema_decay=0.98),
    )
    train(replace(base, validate_every=100, checkpoint_every=150, log_every=10, validation_fraction=0.25, threads=1), run)
    return run
