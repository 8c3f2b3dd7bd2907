"""The shipped baselines of navigation train on what `kineflow collect` writes, by three steps each, and answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kineflow.config import load_config
from kineflow.contracts import ContractError, Observation, SamplingRequest
from kineflow.policies.collect import CollectConfig, collect
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.topological_goal import Following
from kineflow.policies.train import Trainer
from kineflow.policies.train_config import TrainConfig

BASELINES = ("navigation_vint", "navigation_nomad", "navigation_odometry")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baselines") / "data.eps"
    collect(CollectConfig(worlds=1, trips_per_world=1, runs_per_trip=1, world="indoor"), path, 1)
    return path


def shipped(name: str, store: Path, run: Path) -> Trainer:
    """With colours for the backbone that is fetched."""
    config = load_config(TrainConfig, f"train/{name}")
    small = replace(config.policy.encoder, frames=Colours(96, 4))  # type: ignore[type-var, call-arg]
    config = replace(
        config, policy=replace(config.policy, encoder=small), store=store, steps=3, batch_size=4, validation_fraction=0.5
    )
    config = replace(config, validation_block=1, threads=1, data_threads=0, checkpoint_every=100, validate_every=100)
    return Trainer(config, run)


@pytest.mark.parametrize("name", BASELINES)
def test_it_trains_and_answers(name: str, store: Path, tmp_path: Path) -> None:
    trainer = shipped(name, store, tmp_path / "run")
    weights = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    assert 1e6 < weights <= 5e6
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters() if p.requires_grad}
    losses = [trainer._update(trainer._batch(np.arange(4) + 20 * step, trainer.data.training), 1e-3) for step in range(3)]
    assert np.isfinite(losses).all()
    still = {n for n, p in trainer.network.named_parameters() if n in before and torch.equal(p, before[n])}
    sleeping = {"encoder.null.video"}  # a goal is always told; what follows a head's zero output layer needs more steps
    assert {n for n in still if not n.startswith("head.")} <= sleeping, "every part learns"
    assert {n.split(".")[0] for n in set(before) - still} >= {"encoder", "head"}
    policy = trainer.network.eval()
    interface, steps = policy.interface, policy.config.horizons.observation
    assert set(interface.cameras) == (set() if "odometry" in name else {"front"})
    state = np.zeros((1, steps, sum(f.vector.size for f in interface.features.values())), np.float32)
    images = {"front": np.zeros((1, steps, 96, 96, 3), np.uint8)} if interface.cameras else {}
    goal = {n: np.zeros((1, *spec.shape), np.uint8) for n, spec in interface.goals.items()}
    asked, ask = Observation(state, np.zeros((1, steps)), images, goal), SamplingRequest(np.array([3]))
    chunk = policy.predict(asked, ask)
    assert chunk.actions.shape == (1, 8, 4)
    assert (chunk.distance is None) == ("odometry" in name)
    assert (chunk.stop_probability is None) == ("odometry" not in name)
    bare = replace(asked, goal={})
    if "nomad" in name:
        assert policy.predict(bare, ask).distance is None, "it explores"
    else:
        with pytest.raises(ContractError, match="needs a goal"):
            policy.predict(bare, ask)


@pytest.mark.parametrize("name", ["navigation_vint", "navigation_nomad"])
def test_who_follows_a_map_has_learned_of_the_pictures_behind_it(name: str) -> None:
    """A map is asked about pictures that the robot has passed. Who never learned of any may believe that one of them is near."""
    goals, asked = load_config(TrainConfig, f"train/{name}").goals, Following()
    assert goals.slack[0] >= asked.radius * asked.spacing_s * goals.rate_hz


def test_odometry_sees_the_clip_s_motion_and_no_live_frame(store: Path, tmp_path: Path) -> None:
    network = shipped("navigation_odometry", store, tmp_path / "run").network.eval()
    rng = np.random.default_rng(0)
    clip: Any = rng.integers(0, 255, (1, 8, 96, 96, 3), np.uint8)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.abs().max() == 0 else None

    def answer(video: np.ndarray) -> np.ndarray:
        state = np.array([[[1.0, 0, 0]]], np.float32)
        chunk = network.predict(Observation(state, np.zeros((1, 1)), {}, {"video": video}), SamplingRequest(np.array([0])))
        return chunk.actions

    backwards = clip[:, ::-1].copy()
    assert np.abs(answer(clip) - answer(backwards)).max() > 1e-3
    seeing = Observation(np.zeros((1, 1, 3), np.float32), np.zeros((1, 1)), {"front": clip[:, :1]}, {"video": clip})
    ignored = network.predict(seeing, SamplingRequest(np.array([0]))).actions
    other = network.predict(replace(seeing, images={"front": 255 - clip[:, :1]}), SamplingRequest(np.array([0]))).actions
    np.testing.assert_array_equal(ignored, other)
