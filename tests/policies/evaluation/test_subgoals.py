"""Maps of subgoals: the rule that follows them, the policy that is asked with them, and a drive along one to its end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from kineflow.contracts import (
    CameraSpec,
    ContractError,
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
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.goal_fusion import GoalFusion
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.load import load_policy
from kineflow.policies.objectives import Regression
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.rollout import Rollout
from kineflow.policies.subgoal_policy import SubgoalPolicy, knows_distances
from kineflow.policies.telling import teller, with_map
from kineflow.policies.temporal_distance import TemporalDistance
from kineflow.policies.told_by_map import ToldByMap
from kineflow.policies.topological_goal import Following, TopologicalFollower
from kineflow.policies.train import train
from kineflow.policies.train_config import TrainConfig

RATE_HZ, CLIP_HZ, SIZE = 10.0, 5.0, 8
SPECS = {"image": GoalSpec("image", SIZE, SIZE), "video": GoalSpec("video", SIZE, SIZE, frames=6, rate_hz=2.5)}
DRIVE = FeatureSpec(VectorSpec(("vx",), ("m/s",), "base", (-2.0,), (2.0,)), RATE_HZ)
CURSOR = FeatureSpec(VectorSpec(("frame",), ("1",), "clip", (0.0,), (100.0,)), RATE_HZ)
STREET = Interface({"velocity": DRIVE}, DRIVE, {"front": CameraSpec(SIZE, SIZE, RATE_HZ)}, SPECS)
OFFERED = Interface({"velocity": DRIVE, "cursor": CURSOR}, DRIVE, STREET.cameras)


def house(place: float) -> np.ndarray:
    """What is seen at frame `place` (0 to 40) of any clip: it gets brighter."""
    return np.full((SIZE, SIZE, 3), np.uint8(20 + round(5 * place)))


def trip(number: int) -> Episode:
    """A drive of 5 frames a second from anywhere to anywhere ahead, and half a second of rest there."""
    first, last = sorted(np.random.default_rng([4, number]).choice(41, 2, replace=False).tolist())
    places = np.concatenate([np.arange(first, last, 0.5), np.full(6, last)])
    moving = (places < last).astype(np.float32)[:, None]
    values = {
        "velocity": np.concatenate([moving[:1], moving[:-1]]),
        "cursor": np.floor(places - first).astype(np.float32)[:, None],
        "action": moving,
        "front": np.stack([house(place) for place in places]),
    }
    clip = np.stack([house(place) for place in range(first, last + 1)])
    stamps = np.arange(len(places), dtype=np.int64) * 100_000_000 + 10**18
    return Episode({n: Stream(v, stamps) for n, v in values.items()}, goals={"video": Goal("video", clip, "front")})


def trained(folder: Path, **changes: Any) -> ChunkPolicy:
    store = EpisodeStore.create(folder / "data.eps", OFFERED)
    with store.writer() as writer:
        for number in range(16):
            writer.add(trip(number))
    policy = PolicyConfig(
        horizons=Horizons(2, 4, 2),
        head=MLP(width=32, depth=1),
        objective=Regression(),
        encoder=GoalFusion(Colours(SIZE, 0), token=32, depth=1, channels=32, state=State(width=16, depth=1, token=32)),
        features=("velocity",),
        cameras=("front",),
        goals=SPECS,
        distance=TemporalDistance(weight=3.0, furthest=30, masking=0.2),
    )
    config = TrainConfig(policy, store.path, goals=GoalWindows(cursor="cursor", rate_hz=CLIP_HZ), steps=250, batch_size=64)
    speed = {"validate_every": 10_000, "checkpoint_every": 10_000, "threads": 1, "data_threads": 0}
    train(replace(config, optimiser=Optimiser(learning_rate=5e-3, warmup_steps=20), **speed, **changes), folder / "run")
    return load_policy(folder / "run")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ChunkPolicy:
    return trained(tmp_path_factory.mktemp("subgoals"))


def asked(here: float, goal: Mapping[str, np.ndarray], speed: float = 1.0) -> Observation:
    """One row at `here`; goals without rows."""
    frames = np.stack([house(here - 0.5 * speed), house(here)])[None]
    told = {name: value[None] for name, value in goal.items()}
    return Observation(np.full((1, 2, 1), speed, np.float32), np.zeros((1, 2)), {"front": frames}, told)


ONE = SamplingRequest(np.array([0]))


def test_it_learns_how_many_steps_it_is_to_a_picture(policy: ChunkPolicy) -> None:
    """Two steps to each frame of the clip; the mean of the labels alone is off by about 8."""
    errors = []
    for here in range(2, 28, 5):
        for ahead in range(0, 11, 2):
            chunk = policy.predict(asked(here, {"image": house(here + ahead)}), ONE)
            assert chunk.distance is not None
            errors.append(abs(chunk.distance[0] - 2 * ahead))
    assert np.mean(errors) < 3


def test_told_nothing_it_explores(policy: ChunkPolicy) -> None:
    """Trained with masked goals it drives on; nothing of a goal is in the answer. Others refuse."""
    chunk = policy.predict(asked(10, {}), ONE)
    assert chunk.distance is None
    assert chunk.actions.mean() == pytest.approx(0.9, abs=0.3)  # most windows drive
    assert_array_equal(SubgoalPolicy(policy).predict(asked(10, {}), ONE).actions, chunk.actions)
    assert policy.network.distance is not None
    masks, policy.network.distance.config = policy.network.distance.config, TemporalDistance(masking=0.0)
    try:
        with pytest.raises(ContractError, match="needs a goal"):
            policy.predict(asked(10, {}), ONE)
    finally:
        policy.network.distance.config = masks


def test_nodes_and_windows() -> None:
    follower = TopologicalFollower(23, 5.0)
    assert follower.num_nodes == 6
    assert_array_equal(follower.frames_of(np.arange(6)), [0, 5, 10, 15, 20, 22])
    assert_array_equal(follower.window(), [0, 1, 2, 3, 4, 5])
    follower.begin_at(16)
    assert (follower.closest_node, follower.frame) == (3, 15)
    assert_array_equal(follower.window(), [1, 2, 3, 4, 5, 5])
    assert_array_equal(TopologicalFollower(1, 5.0).window(), np.zeros(6))
    follower.answered(4, 11.0)
    assert (follower.closest_node, follower.has_arrived) == (5, False), "the last is the closest, but not near"
    follower.answered(2, 4.0)
    assert (follower.closest_node, follower.has_arrived) == (5, True)
    with pytest.raises(KineflowError, match="a clip of 0 frames"):
        TopologicalFollower(0, 5.0)
    with pytest.raises(KineflowError, match="spacing_s must be positive"):
        Following(spacing_s=0)


def test_the_least_distance_is_where_it_is_and_a_close_picture_is_passed_over() -> None:
    closest, subgoal = Following(close_steps=5).chosen(np.array([[9.0, 6, 8, 20], [9, 4, 8, 20], [20, 9, 8, 1], [3, 3, 3, 3]]))
    assert_array_equal(closest, [1, 1, 3, 0])
    assert_array_equal(subgoal, [1, 2, 3, 1])


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("length", [1, 4, 24, 61])
def test_who_knows_distances_gets_to_the_end_and_stops_there_alone(length: int, noise: float) -> None:
    rng, follower, place = np.random.default_rng(length), TopologicalFollower(length, CLIP_HZ), 0.0
    heard = []
    for _ in range(80):
        window, before = follower.window(), follower.closest_node
        distances = 2 * np.abs(follower.frames_of(window) - place) + noise * np.abs(rng.normal(size=len(window)))
        closest, subgoal = follower.following.chosen(distances[None])
        follower.answered(int(closest[0]), float(distances[closest[0]]))
        assert -2 <= follower.closest_node - before <= max(3, 5 - before), "it never leaves its window"
        assert abs(follower.frame - place) <= 5.1 + noise, "the closest node is one of both beside it"
        heard.append(follower.has_arrived)
        assert not heard[-1] or length - 1 - place < 2.6 + noise / 2
        goal = follower.frames_of(window)[subgoal[0]]
        place = float(np.clip(goal, place - 2, place + 2))
    assert place == length - 1
    assert noise > 0 or all(heard[-10:])


def test_midway_between_two_pictures_it_does_not_turn_back_to_the_one_behind() -> None:
    """9 steps is what heads say of both, and 3 more now and then."""
    _, subgoal = Following().chosen(np.array([[18.0, 9, 9.5, 18], [20, 11.9, 12.1, 18], [40, 35, 33, 36]]))
    assert_array_equal(subgoal, [2, 2, 2])


@pytest.mark.parametrize("seed", range(5))
def test_who_does_not_slow_down_stops_near_the_end_by_distances_as_trained_heads_say_them(seed: int) -> None:
    """Measured on held-out windows (navigation_vint): 4 steps, give or take 4, for a picture taken right here, 9 for one half a
    second away. Four steps between answers, halted after three in a row; 12 steps at full speed are the radius of 1 m."""
    rng, follower, place, heard = np.random.default_rng(seed), TopologicalFollower(41, CLIP_HZ), 0.0, list[bool]()
    while not all([*heard[-3:], len(heard) >= 3]) and place < 200:
        away = 2 * follower.frames_of(follower.window()) - place
        said = np.hypot(4.0, 1.5 * away) + 2.0 * rng.normal(size=len(away))
        closest, _ = follower.following.chosen(said[None])
        follower.answered(int(closest[0]), float(said[closest[0]]))
        heard.append(follower.has_arrived)
        place += 4
    assert abs(place - 80) <= 12


def test_one_call_answers_as_if_each_picture_was_asked_about_alone(policy: ChunkPolicy) -> None:
    subgoals = SubgoalPolicy(policy)
    assert subgoals.contract.interface.goals["video"] == replace(SPECS["video"], frames=6, rate_hz=1.0)
    here = np.array([3.0, 17.0, 25.0])
    windows = np.stack([[house(max(place + 5 * k, 0)) for k in range(-1, 5)] for place in np.round(here) - 1])
    rows = [asked(place, {"video": window}) for place, window in zip(here, windows)]
    together = Observation(
        np.concatenate([r.state for r in rows]),
        np.zeros((3, 2)),
        {"front": np.concatenate([r.images["front"] for r in rows])},
        {"video": windows},
    )
    chunk = subgoals.predict(together, SamplingRequest(np.arange(3)))
    assert chunk.ahead_s is not None
    assert chunk.distance is not None
    for row, (place, window) in enumerate(zip(here, windows)):
        alone = [policy.predict(asked(place, {"image": picture}), ONE) for picture in window]
        distances = np.array([a.distance[0] for a in alone if a.distance is not None])
        closest, subgoal = subgoals.following.chosen(distances[None])
        assert_allclose(chunk.distance[row], distances.min(), atol=0.05)
        assert chunk.ahead_s[row] == closest[0]
        assert_allclose(chunk.actions[row], alone[subgoal[0]].actions[0], atol=1e-2)
    image = subgoals.predict(asked(10, {"image": house(12)}), ONE)
    assert_allclose(image.actions, policy.predict(asked(10, {"image": house(12)}), ONE).actions, atol=1e-2)


def test_features_stand_for_the_pictures_of_a_map(policy: ChunkPolicy) -> None:
    subgoals = SubgoalPolicy(policy)
    pictures = np.stack([house(5 * k) for k in range(6)])
    look = np.asarray(policy.network.encoder.frames(torch.from_numpy(pictures)).half())
    frames, features = (subgoals.predict(asked(7, {"video": shown}), ONE) for shown in (pictures, look))
    assert_allclose(features.actions, frames.actions, atol=1e-2)
    with pytest.raises(ContractError, match="a map needs 6 pictures"):
        subgoals.predict(asked(7, {"video": pictures[:4]}), ONE)
    with pytest.raises(ContractError, match="one of them"):
        subgoals.predict(asked(7, {"video": pictures, "image": pictures[0]}), ONE)


class Corridor:
    """Frames of the clip driven over, straight ahead: `vx` 1 m/s is the pace of the clips."""

    interface = replace(STREET, goals={**SPECS, "video": replace(SPECS["video"], rate_hz=1.0)})  # as NavigationTrial cuts it
    clip_rate_hz = CLIP_HZ

    def __init__(self, last: int, told: str) -> None:
        self.last, self.told = last, told

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.place, self.stopping, self.steps = 0.0, False, 0
        return self._observation(0.0), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        speed = 0.0 if self.stopping else float(action[0])
        self.place = min(max(self.place + 0.5 * speed, 0.0), 45.0)
        over = self.stopping or self.steps == 160
        return self._observation(speed), 0.0, self.stopping, over, self._info(over)

    def goal(self) -> dict[str, Any]:
        clip = np.stack([house(place) for place in range(self.last + 1)])
        return {"video": clip} if self.told == "video" else {"image": clip[-1]}

    def declare_stop(self) -> None:
        self.stopping = True

    def metrics(self) -> None:
        return None

    def frame(self, size: int, plans: Any = None, target: Any = None, **_: Any) -> np.ndarray:
        return np.zeros((size, size, 3), np.uint8)

    def _observation(self, speed: float) -> dict[str, np.ndarray]:
        return {"velocity": np.array([speed], np.float32), "front": house(self.place)}

    def _info(self, over: bool) -> dict[str, Any]:
        gap = abs(self.last - self.place)
        return {
            "coverage": self.place / self.last,
            "distance": gap,
            "is_success": over and self.stopping and gap <= 5.5,
        }  # Following.arrived_steps, and half a frame


@pytest.mark.parametrize(("last", "goal"), [(37, "video"), (23, "video"), (12, "image")])
def test_a_trained_policy_drives_along_a_map_to_its_end(policy: ChunkPolicy, last: int, goal: str) -> None:
    closed = with_map(policy, "closed")
    assert isinstance(closed, SubgoalPolicy)
    tell = teller(closed, "closed", (0.5, 3))
    (result,) = Rollout(closed, lambda: Corridor(last, goal), 1, batch=2, tell=tell).run([5])
    assert result.outcome == "success"
    trajectory = result.trajectory
    assert trajectory.cursor is not None
    assert trajectory.stopped_at is not None
    if goal == "video":
        places = trajectory.coverage[: 2 * len(trajectory.cursor) : 2] * last
        assert np.abs(trajectory.cursor[1:] - places[:-1]).max() <= 7, "it knows where it is, from what it sees"
        assert trajectory.cursor[-1] >= last - 5, "where it was before the answer that stopped it"


def test_who_tells_by_map(policy: ChunkPolicy) -> None:
    told = ToldByMap(Corridor(23, "video").goal(), CLIP_HZ, SubgoalPolicy(policy).contract)
    assert_array_equal(told.goal()["video"][:, 0, 0, 0], [house(frame)[0, 0, 0] for frame in (0, 5, 10, 15, 20, 23)])
    told.executed()
    assert told.cursor == 0, "time moves nobody on a map"
    told.believe(16)
    assert told.cursor == 15
    assert with_map(policy, "open") is policy
    assert knows_distances(policy)
    plain = replace(policy, network=replace_distance(policy))
    assert not knows_distances(plain)
    with pytest.raises(KineflowError, match="predicts no distance"):
        SubgoalPolicy(plain)


def replace_distance(policy: ChunkPolicy) -> Any:
    """The network without that head."""
    network = copy.deepcopy(policy.network)
    network.distance = None
    return network
