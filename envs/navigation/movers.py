"""Moving obstacles: walkers that go to and fro on their lines, and stop for what stands in their way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from kineflow.envs.navigation.scene import Scene
from kineflow.envs.navigation.shapes import MoverPlan

YIELD_M = 0.6  # free distance ahead of a mover below which it waits


class Movers:
    """The movers of one scene. They are mocap bodies: contacts do not push them, so they must see to their own way."""

    def __init__(self, scene: Scene) -> None:
        self.plans = scene.world.movers
        self._mocap = [int(scene.model.body_mocapid[body]) for body in scene.mover_bodies]
        self._travelled = np.zeros(len(self.plans))

    def start(self, data: Any, time_s: float = 0.0) -> None:
        """Put everyone where they are `time_s` after the world's beginning. `mj_forward` shows it."""
        for number, plan in enumerate(self.plans):
            self._travelled[number] = plan.phase * 2 * math.dist(plan.start, plan.end) + plan.speed * time_s
        self._write(data)

    def advance(self, data: Any, seconds: float, robot: Sequence[float] | None = None, robot_radius_m: float = 0.3) -> None:
        """Walk on for `seconds`; one that has `robot` (x, y in metres) close ahead waits. Reads no randomness."""
        for number, plan in enumerate(self.plans):
            if robot is None or not self._is_blocked(number, plan, robot, robot_radius_m):
                self._travelled[number] += plan.speed * seconds
        self._write(data)

    def positions(self) -> Float[np.ndarray, "M 2"]:
        """x, y of each, metres."""
        return np.array([_place(p, t)[:2] for p, t in zip(self.plans, self._travelled)]).reshape(-1, 2)

    def velocities(self) -> Float[np.ndarray, "M 2"]:
        """x, y velocity of each as long as nobody stands in the way, m/s."""
        places = [_place(p, t) for p, t in zip(self.plans, self._travelled)]
        return np.array(
            [[p.speed * math.cos(yaw), p.speed * math.sin(yaw)] for p, (_, _, yaw) in zip(self.plans, places)]
        ).reshape(-1, 2)

    def _is_blocked(self, number: int, plan: MoverPlan, robot: Sequence[float], robot_radius_m: float) -> bool:
        x, y, yaw = _place(plan, self._travelled[number])
        dx, dy = robot[0] - x, robot[1] - y
        gap = math.hypot(dx, dy) - plan.radius - robot_radius_m
        return gap < YIELD_M and math.cos(yaw) * dx + math.sin(yaw) * dy > 0

    def _write(self, data: Any) -> None:
        for number, plan in enumerate(self.plans):
            x, y, yaw = _place(plan, self._travelled[number])
            data.mocap_pos[self._mocap[number]] = x, y, 0.0
            data.mocap_quat[self._mocap[number]] = math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)


def _place(plan: MoverPlan, travelled: float) -> tuple[float, float, float]:
    """x, y, yaw after so many metres of walking there and back."""
    length = math.dist(plan.start, plan.end)
    along = travelled % (2 * length)
    is_back = along >= length
    share = (2 * length - along if is_back else along) / length
    yaw = math.atan2(plan.end[1] - plan.start[1], plan.end[0] - plan.start[0]) + (math.pi if is_back else 0.0)
    x = plan.start[0] + share * (plan.end[0] - plan.start[0])
    y = plan.start[1] + share * (plan.end[1] - plan.start[1])
    return x, y, math.remainder(yaw, 2 * math.pi)
