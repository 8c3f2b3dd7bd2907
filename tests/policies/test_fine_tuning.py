"""A run that begins with another one's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.contracts import (
    Episode,
    FeatureSpec,
    Interface,
    KineflowError,
    Observation,
    SamplingRequest,
    Stream,
    VectorSpec,
)
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.train import Trainer, train
from kineflow.policies.train_config import TrainConfig
from tests.policies.conftest import POLICY

SEEN = Observation(np.random.default_rng(5).uniform(-1, 1, (2, 2, 3)).astype(np.float32), np.zeros((2, 2)))
SPEC = VectorSpec(("x", "y", "angle"), ("m", "m", "rad"), "world", (-9.0,) * 3, (9.0,) * 3)
ACTION = VectorSpec(("x", "y"), ("m", "m"), "world", (-9.0,) * 2, (9.0,) * 2)
SMALL = replace(
    POLICY,
    head=MLP(width=32, depth=1),
    encoder=State(width=16, depth=1, token=16),
    objective=FlowMatching(steps=2),
    relative_to=(),
)


def stored(path: Path, scale: float) -> EpisodeStore:
    """Actions that are `scale` times the state."""
    offered = Interface({"state": FeatureSpec(SPEC, 10.0)}, FeatureSpec(ACTION, 10.0))
    store, rng, stamps = EpisodeStore.create(path, offered), np.random.default_rng(0), np.arange(20, dtype=np.int64) * 10**8
    with store.writer() as writer:
        for _ in range(6):
            state = rng.uniform(-1, 1, (20, 3)).astype(np.float32)
            writer.add(Episode({"state": Stream(state, stamps), "action": Stream(scale * state[:, :2], stamps)}))
    return store


def configured(store: EpisodeStore, steps: int, start_from: Path | str = "") -> TrainConfig:
    return TrainConfig(SMALL, store=store.path, start_from=str(start_from), steps=steps, batch_size=16, threads=1, data_threads=0)


def test_it_starts_as_what_it_starts_from_and_learns_on(tmp_path: Path) -> None:
    many, few = stored(tmp_path / "many.eps", 1.0), stored(tmp_path / "few.eps", 3.0)
    parent = train(configured(many, 30), tmp_path / "parent")
    trainer = Trainer(configured(few, 20, tmp_path / "parent"), tmp_path / "child")
    seeds = SamplingRequest(np.arange(2))
    np.testing.assert_array_equal(trainer.policy().predict(SEEN, seeds).actions, parent.predict(SEEN, seeds).actions)
    assert trainer.policy().contract.statistics == parent.contract.statistics  # 3 x the actions, the same units
    assert trainer.data.dataset_hash == few.fingerprint()
    before = trainer.validation_loss()
    trainer.start()
    for _ in trainer.steps():
        pass
    assert trainer.validation_loss() < before
    child = trainer.policy().predict(SEEN, seeds).actions
    assert np.abs(child - parent.predict(SEEN, seeds).actions).max() > 1e-3  # the average of the weights moves slowly


def test_fresh_weights_differ(tmp_path: Path) -> None:
    many = stored(tmp_path / "many.eps", 1.0)
    train(configured(many, 5), tmp_path / "parent")
    fresh, going_on = (Trainer(configured(many, 5, start), tmp_path / "child") for start in ("", tmp_path / "parent"))
    states = [trainer.network.state_dict() for trainer in (fresh, going_on)]
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_network_is_refused(tmp_path: Path) -> None:
    many = stored(tmp_path / "many.eps", 1.0)
    train(configured(many, 2), tmp_path / "parent")
    config = configured(many, 2, tmp_path / "parent")
    with pytest.raises(KineflowError, match=r"policy.head is MLP\(width=32.* there and MLP\(width=64.* here; weights only fit"):
        Trainer(replace(config, policy=replace(SMALL, head=MLP(width=64, depth=1))), tmp_path / "child")
    with pytest.raises(KineflowError, match="nowhere"):
        Trainer(replace(config, start_from=str(tmp_path / "nowhere")), tmp_path / "child")
