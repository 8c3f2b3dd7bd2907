"""Policies that need no weights, for tests of everything around a policy: `policy: kineflow.deploy.ros2.toy_policies:forward`.

All take a camera of 96 x 96 and the pose of the base, and give 16 velocities, 0.1 s apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from kineflow.contracts import (
    ActionChunk,
    CameraSpec,
    FeatureSpec,
    GoalSpec,
    GoldenPair,
    Horizons,
    Interface,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
    VectorSpec,
)
from kineflow.episode import FeatureStatistics

H, STEP_S, SPEED = 16, 0.1, 0.4
_POSE = VectorSpec(("x", "y", "z", "qx", "qy", "qz", "qw"), ("m",) * 3 + ("1",) * 4, "odom", (-math.inf,) * 7, (math.inf,) * 7)
_COMMAND = VectorSpec(
    ("vx", "vy", "vz", "yaw_rate"), ("m/s", "m/s", "m/s", "rad/s"), "base", (-0.5, -1e-6, -1e-6, -1.0), (0.5, 1e-6, 1e-6, 1.0)
)

Plan = Callable[[Observation, int], np.ndarray]  # observation of one row, number of the call -> [H, 4]


def toy_contract(goals: bool = False, step_s: float = STEP_S, execution: int = 4) -> PolicyContract:
    """Of every policy here."""
    features = {"pose": FeatureSpec(_POSE, 10.0)}
    plain = (0.0, 1.0, -1.0, 1.0, -1.0, 1.0)
    statistics = {name: FeatureStatistics(2, *((v,) * size for v in plain)) for name, size in (("pose", 7), ("action", 4))}
    return PolicyContract(
        interface=Interface(
            features,
            FeatureSpec(_COMMAND, 1 / step_s),
            {"front": CameraSpec(96, 96, 10.0)},
            {"point": GoalSpec("point")} if goals else {},
        ),
        horizons=Horizons(1, H, execution),
        sampler=SamplerSpec("linear", "velocity", "euler", 1),
        statistics=statistics,
        dataset_hash="toy",
        versions={},
        golden=GoldenPair(((0.0,) * 7,), 0, ((0.0,) * 4,) * H),
    )


@dataclass
class Toy:
    """A `Policy` from a plan."""

    plan: Plan
    contract: PolicyContract = field(default_factory=toy_contract)
    arrived: Callable[[Observation], bool] | None = None
    calls: int = 0

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        self.calls += 1
        actions = self.plan(observation, self.calls).astype(np.float32)
        rows = len(observation.state)
        stop = None if self.arrived is None else np.full(rows, float(self.arrived(observation)))
        step_s = 1 / self.contract.interface.action.rate_hz
        return ActionChunk(np.repeat(actions[None], rows, axis=0), step_s, observation.stamp_s[:, -1], stop)


def _constant(vx: float, yaw_rate: float = 0.0) -> np.ndarray:
    return np.tile([vx, 0.0, 0.0, yaw_rate], (H, 1))


def forward() -> Toy:
    """Straight ahead for ever."""
    return Toy(lambda observation, call: _constant(SPEED))


def to_point() -> Toy:
    """To the goal point in the frame of the pose, turning first, slowing down near it; within 8 cm it has arrived."""

    def near_goal(observation: Observation) -> bool:
        return bool(math.dist(observation.state[0, -1, :2].tolist(), observation.goal["point"][0, :2].tolist()) < 0.08)

    def plan(observation: Observation, call: int) -> np.ndarray:
        x, y, _, _, _, qz, qw = observation.state[0, -1].tolist()
        yaw, actions = 2 * math.atan2(qz, qw), []
        goal = observation.goal["point"][0]
        for _ in range(H):  # where its own commands will lead
            bearing = math.remainder(math.atan2(goal[1] - y, goal[0] - x) - yaw, math.tau)
            far = math.dist((x, y), (goal[0], goal[1]))
            near = far < 0.05
            yaw_rate = 0.0 if near else max(-0.8, min(0.8, 1.5 * bearing))
            vx = 0.0 if near else min(SPEED, far) * max(0.0, math.cos(bearing)) ** 3
            actions.append([vx, 0.0, 0.0, yaw_rate])
            yaw += STEP_S * yaw_rate
            x, y = x + STEP_S * vx * math.cos(yaw), y + STEP_S * vx * math.sin(yaw)
        return np.array(actions)

    return Toy(plan, toy_contract(goals=True), near_goal)


def echo() -> Toy:
    """As fast as its x says, asked anew for each command: what is sensed is commanded, for measuring how long that takes. It has
    no camera, which the state would be aligned with."""
    contract = toy_contract(step_s=0.02, execution=1)
    contract = replace(contract, interface=replace(contract.interface, cameras={}))
    return Toy(lambda observation, call: _constant(float(observation.state[0, -1, 0])), contract)


def wild() -> Toy:
    """Anything within twice the limits, anew at each action: for the limits of the output stream."""
    rng = np.random.default_rng(0)
    return Toy(lambda observation, call: rng.uniform(-1, 1, (H, 4)) * [1.0, 0.0, 0.0, 2.0])


def bimodal() -> Toy:
    """Left and right in turn: every new chunk is a jump at its seam."""
    return Toy(lambda observation, call: _constant(0.3, 0.9 if call % 2 else -0.9))


def broken() -> Toy:
    """Good for two seconds, then NaN for ever."""

    begin = time.monotonic()
    return Toy(lambda observation, call: _constant(SPEED if call < 12 or time.monotonic() - begin < 2 else math.nan))


def stuck() -> Toy:
    """Good for 12 calls; then one call takes 5 s."""

    def plan(observation: Observation, call: int) -> np.ndarray:
        if call == 12:
            time.sleep(5.0)
        return _constant(SPEED)

    return Toy(plan)


def slow() -> Toy:
    """Each call takes longer than the one before, up to 1.5 s: beyond what a chunk can bridge."""

    def plan(observation: Observation, call: int) -> np.ndarray:
        time.sleep(min(0.02 * call, 1.5))
        return _constant(SPEED)

    return Toy(plan)


def arm() -> Toy:
    """Joint 1 goes to 0.4 rad at 0.3 rad/s, the others stay; commands are positions, and there is no camera."""
    names = tuple(f"joint_{i}" for i in range(1, 7))
    joints = VectorSpec(names, ("rad",) * 6, "joints", (-3.14,) * 6, (3.14,) * 6)
    statistics = {
        name: FeatureStatistics(2, *((v,) * 6 for v in (0.0, 1.0, -1.0, 1.0, -1.0, 1.0))) for name in ("joints", "action")
    }
    contract = PolicyContract(
        interface=Interface({"joints": FeatureSpec(joints, 10.0)}, FeatureSpec(joints, 1 / STEP_S), {}, {}),
        horizons=Horizons(1, H, 4),
        sampler=SamplerSpec("linear", "velocity", "euler", 1),
        statistics=statistics,
        dataset_hash="toy",
        versions={},
        golden=GoldenPair(((0.0,) * 6,), 0, ((0.0,) * 6,) * H),
    )

    def plan(observation: Observation, call: int) -> np.ndarray:
        actions = np.tile(observation.state[0, -1], (H, 1))
        actions[:, 0] = np.minimum(actions[0, 0] + 0.3 * STEP_S * np.arange(1, H + 1), 0.4)
        return actions

    return Toy(plan, contract)
