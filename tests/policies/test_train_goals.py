"""From episodes with goals to a policy that is told one: windows, cached features, training, checkpoint, prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.contracts import (
    CameraSpec,
    Episode,
    FeatureSpec,
    Goal,
    GoalSpec,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    SamplingRequest,
    Stream,
    VectorSpec,
)
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.window_goals import GoalWindows
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.flow_features import LucasKanade
from kineflow.policies.encoders.goal import GoalVision, GoalVisionEncoder
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.load import load_policy
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.train import Trainer, resume_run, train
from kineflow.policies.train_config import TrainConfig

BODIES = ("wheeled", "drone")
SPECS = {"video": GoalSpec("video", 16, 16, frames=3, rate_hz=10.0), "instruction": GoalSpec("instruction")}
COMMAND = FeatureSpec(VectorSpec(("vx", "yaw_rate"), ("m/s", "rad/s"), "body", (-1.0, -1.0), (1.0, 1.0)), 10.0)
OFFERED = Interface(
    {
        "embodiment": FeatureSpec(VectorSpec(BODIES, ("1", "1"), "", (0.0, 0.0), (1.0, 1.0)), 10.0),
        "cursor": FeatureSpec(VectorSpec(("frame",), ("1",), "clip", (0.0,), (100.0,)), 10.0),
        "stop": FeatureSpec(VectorSpec(("stop",), ("1",), "", (0.0,), (1.0,)), 10.0),
    },
    COMMAND,
    {"front": CameraSpec(16, 16, 10.0)},
)
POLICY = PolicyConfig(
    horizons=Horizons(2, 4, 2),
    head=FlowDiT(width=32, depth=2, embodiments=2),
    objective=FlowMatching(steps=4),
    encoder=GoalVision(
        frames=Colours(size=16, grid=2),
        embodiments=BODIES,
        token=32,
        queries=2,
        depth=1,
        state=State(width=16, depth=1, token=32),
    ),
    features=("embodiment",),
    cameras=("front",),
    goals=SPECS,
    stop="stop",
)


def episode(number: int) -> Episode:
    """Grey pictures; the goal video is as much brighter as the robot is to drive fast; the last steps are dark: done there."""
    rng, steps = np.random.default_rng([3, number]), 12
    speed, stamps = rng.uniform(-1, 1), np.arange(steps, dtype=np.int64) * 100_000_000 + 10**18
    frames = np.full((steps, 16, 16, 3), 128, np.uint8)
    frames[9:] = 10
    clip = np.full((6, 16, 16, 3), round(128 + 100 * speed), np.uint8)
    values = {
        "embodiment": np.tile(np.eye(2, dtype=np.float32)[number % 2], (steps, 1)),
        "cursor": np.minimum(np.arange(steps), 5).astype(np.float32)[:, None],
        "stop": (np.arange(steps) >= 9).astype(np.float32)[:, None],
        "action": np.tile(np.float32([speed, speed if number % 2 else -speed]), (steps, 1)),
        "front": frames,
    }
    words = "go fast" if speed > 0 else "go back"
    return Episode({n: Stream(v, stamps) for n, v in values.items()}, words, goals={"video": Goal("video", clip, "front")})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    made = EpisodeStore.create(tmp_path_factory.mktemp("goals") / "data.eps", OFFERED)
    with made.writer() as writer:
        for number in range(24):
            writer.add(episode(number))
    return made


def configured(store: EpisodeStore, policy: PolicyConfig = POLICY, steps: int = 250) -> TrainConfig:
    config = TrainConfig(
        policy, store.path, goals=GoalWindows(cursor="cursor"), steps=steps, batch_size=32, validation_fraction=0.1
    )
    optimiser = Optimiser(learning_rate=3e-3, warmup_steps=10)
    return replace(config, optimiser=optimiser, threads=1, data_threads=0, checkpoint_every=10_000, validate_every=10_000)


def asked(number: int, *, done: bool = False) -> Observation:
    made, rows = episode(number), (9, 10) if done else (3, 4)
    seen = {name: made.streams[name].values[list(rows)][None] for name in ("embodiment", "front")}
    goal = {"video": made.goals["video"].value[None, 3:6]}
    return Observation(seen["embodiment"], np.zeros((1, 2)), {"front": seen["front"]}, goal, (made.instruction,))


def test_a_policy_learns_what_its_goal_means_for_each_body(store: EpisodeStore, tmp_path: Path) -> None:
    train(configured(store), tmp_path / "run")
    policy = load_policy(tmp_path / "run")  # replays the golden pair
    assert policy.contract.interface.goals == SPECS
    seeds = SamplingRequest(np.array([0]))
    for number in (100, 101, 102, 103):  # episodes never seen
        expected = episode(number).streams["action"].values[0]
        going, there = policy.predict(asked(number), seeds), policy.predict(asked(number, done=True), seeds)
        assert np.abs(going.actions[0] - expected).max() < 0.35
        assert going.stop_probability is not None
        assert there.stop_probability is not None
        assert going.stop_probability[0] < 0.5 < there.stop_probability[0]


@pytest.mark.parametrize("flow", [None, LucasKanade(size=8)], ids=["looks", "looks and motion"])
def test_features_kept_beside_the_store_are_those_of_the_frames(
    store: EpisodeStore, tmp_path: Path, flow: LucasKanade | None
) -> None:
    policy = replace(POLICY, encoder=replace(POLICY.encoder, flow=flow))
    trainer = Trainer(configured(store, policy=policy), tmp_path / "run")
    network, reader = trainer.network.eval(), trainer.data.training
    assert isinstance(network.encoder, GoalVisionEncoder)
    rows = np.array([0, 5, 40, len(reader) - 1])
    window = reader.read(rows)
    assert window.goals is not None
    assert window.images["front"].dtype == window.goals.values["video"].dtype == np.float16
    kept = trainer._batch(rows, reader).observed
    frames, clips, starts = [], [], np.cumsum(store.lengths) - store.lengths
    for row in rows:
        first = reader.episodes[row]
        step = int(np.searchsorted(np.flatnonzero(reader.episodes == first), row))
        made = store.episode(int(np.searchsorted(starts, first)))
        frames.append(made.streams["front"].values[[max(step - 1, 0), step]])
        clips.append(made.goals["video"].value[np.minimum(min(step, 5) + np.arange(3), 5)])
    plain = replace(
        kept, images={"front": torch.from_numpy(np.stack(frames))}, goals={"video": torch.from_numpy(np.stack(clips))}
    )
    with torch.no_grad():
        assert (network.encoder(kept) - network.encoder(plain)).abs().max() < 2e-2
        moved = replace(plain, goals={"video": plain.goals["video"].flip(0)})
        assert (network.encoder(kept) - network.encoder(moved)).abs().max() > 0.1  # so that the test can fail


def test_a_run_with_goals_resumes(store: EpisodeStore, tmp_path: Path) -> None:
    config = configured(store, steps=6)
    whole = train(config, tmp_path / "whole").predict(asked(0), SamplingRequest(np.array([1])))
    half = replace(config, checkpoint_every=3)
    trainer = Trainer(half, tmp_path / "half")
    trainer.start()
    for _ in zip(range(3), trainer.steps()):
        pass
    trainer.save()
    again = resume_run(tmp_path / "half").predict(asked(0), SamplingRequest(np.array([1])))
    np.testing.assert_array_equal(again.actions, whole.actions)


def test_motion_needs_neighbouring_frames(store: EpisodeStore, tmp_path: Path) -> None:
    goals = {"video": GoalSpec("video", 16, 16, frames=3, rate_hz=5.0)}
    policy = replace(POLICY, goals=goals, encoder=replace(POLICY.encoder, flow=LucasKanade(size=8)))
    with pytest.raises(KineflowError, match="goal 'video' has 5 frames/s of clips with 10, but motion is seen"):
        Trainer(configured(store, policy=policy), tmp_path / "run")


def test_a_stop_feature_is_one_number(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match=r"policy\.stop names 'embodiment', which has more than one dimension"):
        Trainer(configured(store, policy=replace(POLICY, stop="embodiment")), tmp_path / "run")
