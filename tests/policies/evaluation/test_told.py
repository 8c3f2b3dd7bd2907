"""Goals in the control loop, on a street of numbered houses: the camera shows the number of the house in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kineflow.contracts import (
    ActionChunk,
    CameraSpec,
    ContractError,
    FeatureSpec,
    GoalSpec,
    GoldenPair,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
    VectorSpec,
)
from kineflow.envs.navigation.metrics import trip_metrics
from kineflow.policies.navigation_trial import NavigationTrial, trip_estimates
from kineflow.policies.rollout import Rollout
from kineflow.policies.told import Told, ToldBlindly
from tests.policies.evaluation.conftest import statistics

RATE_HZ, CLIP_HZ, LAST = 10.0, 5.0, 40  # houses 0 .. LAST; the clip passes one a frame, so five a second
SPEED = FeatureSpec(VectorSpec(("v",), ("house/s",), "street", (-20.0,), (20.0,)), RATE_HZ)
GOALS = {"video": GoalSpec("video", 2, 2, frames=4, rate_hz=CLIP_HZ), "words": GoalSpec("instruction")}
STREET = Interface({"velocity": SPEED}, SPEED, {"front": CameraSpec(2, 2, RATE_HZ)}, GOALS)
Info = dict[str, Any]


def house(number: float) -> np.ndarray:
    return np.full((2, 2, 3), round(number), np.uint8)


class Street:
    """Starts at house 0; the goal is the last house. Wind slows the drive: `pace` of what is commanded."""

    interface, clip_rate_hz = STREET, CLIP_HZ

    def __init__(self, pace: float = 1.0, told: tuple[str, ...] = ("video",)) -> None:
        self.pace, self.told, self.shown = pace, told, list[int]()

    def reset(self, *, seed: int | None = None) -> tuple[Mapping[str, np.ndarray], Info]:
        self.place, self.steps, self.stopping = 0.0, 0, False
        self.track = [0.0]
        return self._observation(0.0), self._info(False)

    def step(self, action: np.ndarray) -> tuple[Mapping[str, np.ndarray], float, bool, bool, Info]:
        self.steps += 1
        moved = 0.0 if self.stopping else self.pace * float(action[0]) / RATE_HZ
        self.place = min(self.place + moved, 60.0)
        self.track.append(self.place)
        ends = self.stopping or self.steps == 400
        return self._observation(moved * RATE_HZ), 0.0, self.stopping, self.steps == 400, self._info(ends)

    def goal(self) -> Mapping[str, Any]:
        known = {"video": np.stack([house(i) for i in range(LAST + 1)]), "words": f"go to house {LAST}"}
        return {name: known[name] for name in self.told}

    def declare_stop(self) -> None:
        self.stopping = True

    def metrics(self) -> Any:
        positions = np.stack([self.track, np.zeros(len(self.track))], axis=1)
        velocities = np.zeros((len(self.track), 4))
        velocities[1:, 0] = np.diff(self.track) * RATE_HZ
        return trip_metrics(positions, velocities, np.zeros(len(self.track), bool), np.array([[0.0, 0.0], [LAST, 0.0]]))

    def frame(self, size: int, plans: np.ndarray | None = None, target: np.ndarray | None = None) -> np.ndarray:
        return np.zeros((size, size, 3), np.uint8)

    def _observation(self, speed: float) -> Mapping[str, np.ndarray]:
        return {"velocity": np.array([speed], np.float32), "front": house(self.place)}

    def _info(self, ends: bool) -> Info:
        distance = abs(LAST - self.place)
        return {"coverage": self.place / LAST, "distance": distance, "is_success": ends and distance <= 1.0}


class Reader:
    """Reads house numbers: drives towards those that come, says where in the clip it is, and stops before the last house."""

    def __init__(self, biased: float = 0.0) -> None:
        needed = Interface(STREET.features, STREET.action, STREET.cameras, GOALS)
        known = {"velocity": statistics(1), "action": statistics(1)}
        sampler = SamplerSpec("CondOT", "velocity", "euler", 1)
        self.contract = PolicyContract(needed, Horizons(1, 8, 4), sampler, known, "0" * 16, {}, GoldenPair((), 0, ()))
        self.biased, self.asked = biased, list[Observation]()

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        self.asked.append(observation)
        here = observation.images["front"][:, -1, 0, 0, 0].astype(float)
        ahead = observation.goal["video"][:, :, 0, 0, 0].astype(float)
        speed = np.clip(1.7 * (ahead[:, -1] - here), 0.0, CLIP_HZ)
        actions = np.repeat(speed[:, None, None], 8, axis=1)
        done = 0.9 * (here >= ahead[:, -1] - 0.5)
        return ActionChunk(actions, 0.1, observation.stamp_s[:, -1], done, (here - ahead[:, 0]) / CLIP_HZ + self.biased)


def told(env: Any, kind: type[Told] = Told) -> Told:
    return kind(env.goal(), env.clip_rate_hz, Reader().contract)


def drive(policy: Reader, env: Street, kind: type[Told] = Told) -> Any:
    (result,) = Rollout(policy, lambda: env, 1, batch=2, tell=lambda there: told(there, kind)).run([7])
    return result


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.4])
def test_who_sees_where_it_is_arrives_at_any_pace(pace: float) -> None:
    env, policy = Street(pace), Reader()
    result = drive(policy, env)
    assert (result.success, result.outcome) == (True, "success")
    trajectory = result.trajectory
    assert trajectory.stopped_at is not None
    assert not trajectory.actions[trajectory.stopped_at :].any()
    assert len(trajectory.cursor) == len(trajectory.stop_probability) == len(trajectory.chunks) == len(policy.asked)
    for cursor, observation in zip(trajectory.cursor, policy.asked):
        np.testing.assert_array_equal(observation.goal["video"][0, :, 0, 0, 0], np.minimum(cursor + np.arange(4), LAST))
        assert abs(int(observation.images["front"][0, -1, 0, 0, 0]) - cursor) <= 3, "it is near where it believes to be"
    assert trajectory.distance[-1] <= 1.0
    assert result.metrics.stop_ok


def test_one_answer_alone_stops_nobody() -> None:
    env, policy = Street(), Reader()
    goal = told(env)
    answer = policy.predict(
        Observation(
            np.zeros((1, 1, 1)),
            np.zeros((1, 1)),
            {"front": house(LAST)[None, None]},
            {"video": np.stack([house(LAST)] * 4)[None]},
        ),
        SamplingRequest(np.zeros(1, np.int64)),
    )
    heard = []
    for _ in range(3):
        goal.answered(answer, 0)
        heard.append(goal.has_arrived)
    assert heard == [False, False, True]


def test_open_loop_sees_the_clip_and_its_own_commands_alone() -> None:
    env, policy = Street(pace=0.5), Reader()
    result = drive(policy, env, ToldBlindly)
    shown = [int(o.images["front"][0, -1, 0, 0, 0]) for o in policy.asked]
    np.testing.assert_array_equal(shown, np.minimum(np.arange(len(shown)) * 2, LAST)), "the clip's pace, whatever the robot's"
    assert max(o.state[0, -1, 0] for o in policy.asked) == CLIP_HZ, "what it commanded, not the half of it that was driven"
    assert (result.success, result.outcome) == (False, "stopped elsewhere"), "half as fast: it got half as far"
    assert result.metrics.goal_error == pytest.approx(LAST / 2, abs=2)
    assert drive(Reader(), Street(pace=1.0), ToldBlindly).success


def test_goals_reach_the_policy_as_it_takes_them() -> None:
    words = told(Street(told=("words",)))
    assert (words.instruction, words.goal()) == (f"go to house {LAST}", {})
    with pytest.raises(ContractError, match=r"takes the goals \['video', 'words'\], the environment tells \['point'\]"):
        Told({"point": np.zeros(3)}, CLIP_HZ, Reader().contract)
    looked = Told(Street().goal(), CLIP_HZ, Reader().contract, look=lambda f: f.reshape(len(f), 1, -1).astype(np.float16))
    assert looked.goal()["video"].shape == (4, 1, 12)
    assert looked.goal()["video"].dtype == np.float16


def test_what_a_trial_cannot_be() -> None:
    with pytest.raises(KineflowError, match="loop is open with goal image"):
        NavigationTrial(goal="image", loop="open")
    with pytest.raises(KineflowError, match="stop_consecutive 0 at least 1"):
        NavigationTrial(stop_consecutive=0)


def test_estimates_count_what_they_say() -> None:
    trips = [drive(Reader(), Street(pace)).metrics for pace in (1.0, 1.0)] + [drive(Reader(), Street(0.5), ToldBlindly).metrics]
    found = trip_estimates(trips, [True, True, False], seed=0)
    assert found["stop_accuracy"].n == 2
    assert found["stop_accuracy"].value == 1.0
    assert found["false_stops"].value == pytest.approx(1 / 3)
    assert found["spl"].value == pytest.approx(2 / 3, abs=0.03)
    assert trip_estimates([None], [True], seed=0) == {}
