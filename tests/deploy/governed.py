"""A governor with its sources alive, driven tick by tick, for tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kineflow.config import load_config
from kineflow.deploy.governor import Command, Governor, Intent
from kineflow.deploy.robot_profile import RobotProfile


def profile(name: str, **changes: Any) -> RobotProfile:
    """A shipped profile; a mapping changes fields of that part of it."""
    base = load_config(RobotProfile, f"robots/{name}")
    parts = {k: dataclasses.replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    return dataclasses.replace(base, **parts)


FAST = profile(  # 1 m/s, as promise 2 was measured
    "wheeled", limits={"low": (-1.0, 0.0, 0.0, -1.0), "high": (1.0, 0.0, 0.0, 1.0)}, keep_out=None, direction="axis"
)


STARTED_S = 100.0
AHEAD, FREE = np.zeros(1), np.array([math.inf])


class Drive:
    """Ticks a governor at 50 Hz; what is alive is heard in every tick, e-stop released and governor active at first."""

    def __init__(self, robot: RobotProfile, held: Sequence[float] | None = None) -> None:
        self.governor, self.now_s, self.robot = Governor(robot), STARTED_S, robot
        self.observed_s = self.now_s
        self.alive = {"supervisor", "observation"}
        self.times: list[float] = []
        self.commands: list[Command] = []
        self.governor.estop(False, self.now_s)
        self.governor.supervisor(self.now_s)
        self.governor.activate(self.now_s, held)

    def tick(self, action: Any, dt: float = 0.02) -> Command:
        self.now_s += dt
        if "supervisor" in self.alive:
            self.governor.supervisor(self.now_s)
        if "observation" in self.alive:
            self.observed_s = self.now_s
        if self.robot.keep_out:  # one sensor looks and sees nothing: what others see counts
            self.governor.ranges(AHEAD, FREE, self.now_s, source="free")
        wanted = np.array(action, np.float32) if isinstance(action, (list, tuple)) else action
        command = self.governor.govern(Intent(wanted, "chunk used up" if action is None else "", self.observed_s), self.now_s)
        self.times.append(self.now_s)
        self.commands.append(command)
        return command

    def run(self, action: Any, seconds: float) -> np.ndarray:
        """The values `[N, A]` of these ticks."""
        return np.array([self.tick(action).values for _ in range(round(seconds / 0.02))])


def assert_limits_hold(drive: Drive, start: Sequence[float]) -> None:
    """Velocity and acceleration of the stream always (but for the e-stop's zero), jerk wherever no tick brakes."""
    robot, limits, velocity = drive.robot, drive.robot.limits, drive.robot.kind == "velocity"
    change = limits.jerk if velocity else limits.acceleration
    low, high = np.array(limits.low) + limits.margin, np.array(limits.high) - limits.margin
    last, last_rate, last_s, last_dt, level = np.array(start, float), np.zeros(len(start)), STARTED_S, 0.02, True
    for now, command in zip(drive.times, drive.commands):
        dt, values = now - last_s, command.values
        assert np.isfinite(values).all()
        assert (np.clip(values, low - 1e-9, high + 1e-9) == values).all(), (values, low, high)
        if dt <= 0:
            assert command.outcome == "estop" or (values == last).all(), "no time passed, but the command moved"
            last, level = values, level or command.braking or command.outcome == "estop"
            continue
        rate, rounding = (values - last) / dt, 1e-13 / dt
        if command.outcome != "estop":
            for i in range(len(values)):
                assert abs(rate[i]) <= _rate_bound(robot, i, last[i], values[i]) + 1e-7 + rounding, (i, rate, command)
                if not command.braking and not level:
                    jerk_room = change[i] * dt + 1e-7 + rounding + 1e-13 / last_dt
                    assert abs(rate[i] - last_rate[i]) <= jerk_room, (i, rate, last_rate, command)
        level = command.braking or command.outcome == "estop"
        last, last_rate, last_s, last_dt = values, rate, now, dt


def _rate_bound(robot: RobotProfile, i: int, old: float, new: float) -> float:
    limits = robot.limits
    if robot.kind == "position":
        return limits.velocity[i]
    if old * new < 0 and min(abs(old), abs(new)) > 1e-8:
        return min(limits.acceleration[i], limits.deceleration[i])
    return limits.acceleration[i] if abs(new) > abs(old) else limits.deceleration[i]


def is_still(values: np.ndarray) -> bool:
    return bool((values == 0).all())


def seconds_until_still(values: np.ndarray) -> float:
    """Of values `[N, A]` at 50 Hz, the first at 0 s."""
    moving = np.flatnonzero(np.any(np.abs(values) > 1e-12, axis=1))
    return 0.02 * (moving[-1] + 1) if len(moving) else 0.0 if len(values) else math.nan
