"""A demonstrator that knows the map: pure pursuit on a planned path, braking to rest at its end. Never part of a policy.

    TURN     the path begins (or goes on) more than TURN_RAD to the side: turn on the spot
    FOLLOW   drive at the path's speed profile towards the point one lookahead further along
    ALIGN    at the end: turn to the wanted heading, where there is one
    REST     done: zeros, for as long as it is asked

Its command is a function of where the body is and of few memories (how far along it has come, which phase), so that it can be
asked at any state, also one that it did not drive to: what it then says is how to come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.embodiment import Embodiment
from kineflow.envs.navigation.planner import NoPath, Path, Planner

CRUISE = {"wheeled": 0.8, "drone": 1.0, "humanoid": 0.6}  # m/s
APPROACH = {"wheeled": 1.5, "drone": 1.2, "humanoid": 0.8}  # m/s per metre left, at the very end: a walker takes a step to stop
BRAKING = 0.45  # m/s^2: a third of what the bodies can, so that delays do not carry them past the end
ARRIVED_M = 0.05
PAST_M = 0.2  # beyond the end by less than this is there, too: turning back would be the longer way
LEFT_M = 0.3  # so far from the end, a body that had arrived has been pushed away and drives again
TURN_RAD, TURNED_RAD, ALIGNED_RAD = 1.0, 0.3, 0.06
TURN_GAIN = 2.0  # rad/s per rad: with up to 0.3 s between a command and its effect it does not overshoot
HEIGHT_GAIN = 1.0  # 1/s
STUCK_STEPS, BACKING_STEPS, BACKING_MPS = 12, 10, 0.25
PATIENCE_STEPS = 15  # of waiting for a walker before going around it
AHEAD_M = 1.5  # how far ahead on the path walkers count
BESIDE_M = 0.1  # free space between a walker and the body that passes it

Walker = tuple[float, float, float]  # x, y, radius (m)


class Expert:
    """Drives one body along one path; `goal_yaw` (rad) is the heading to end with, None: as it comes."""

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment,
        planner: Planner,
        goal_yaw: float | None = None,
        height_m: float = 0.0,
        cruise: float | None = None,
    ) -> None:
        self.embodiment, self.planner, self.goal_yaw, self.height_m = embodiment, planner, goal_yaw, height_m
        self.cruise = cruise if cruise is not None else CRUISE.get(embodiment.name, 0.6)
        limits = embodiment.limits
        self._turning = 0.8 * limits.high[3]
        self._along = 0.0
        self._phase: Literal["turn", "follow", "align", "rest"] = "turn"
        self._climb = 0.5 * limits.high[2] if limits.high[2] > 1e-3 else 0.0
        if not 0 < self.cruise <= limits.high[0]:
            raise KineflowError(f"cruise is {self.cruise} m/s; a {embodiment.name} drives at up to {limits.high[0]}")
        self._follow(path)
        self.replanned = 0

    @property
    def is_resting(self) -> bool:
        """Whether it has arrived, is turned as wanted and commands zeros."""
        return self._phase == "rest"

    @property
    def along(self) -> float:
        """Metres of its path that it has behind it."""
        return self._along

    def command(
        self, x: float, y: float, z: float, yaw: float, velocity: Float[np.ndarray, "4"], walkers: Sequence[Walker] = ()
    ) -> Float[np.ndarray, "4"]:
        """What to do at this pose (m, rad) and measured velocity, float32 [4]: vx, vy, vz, yaw rate."""
        self._along = max(self._along, self.path.project(x, y, self._along))
        vx, yaw_rate = self._planar(x, y, yaw, walkers)
        vx = self._unstick(x, y, yaw, vx, float(velocity[0]), walkers)
        vz = float(np.clip(HEIGHT_GAIN * (self.height_m - z), -self._climb, self._climb)) if self._climb else 0.0
        return np.array([vx, 0.0, vz, yaw_rate], dtype=np.float32)

    def _follow(self, path: Path) -> None:
        self.path, self._along, self._phase = path, 0.0, "turn"
        self._profile = speed_profile(path, self.planner, self.cruise, self._turning, APPROACH.get(self.embodiment.name, 1.0))
        self._stuck = self._backing = self._waited = 0

    def _planar(self, x: float, y: float, yaw: float, walkers: Sequence[Walker]) -> tuple[float, float]:
        end_x, end_y = self.path.points[-1]
        gap = math.hypot(end_x - x, end_y - y)
        remaining = self.path.length - self._along
        if self._phase in ("align", "rest") and gap > LEFT_M:
            self._along, self._phase = self.path.project(x, y, self.path.length, back=1.5), "turn"
        elif (
            self._phase in ("turn", "follow") and remaining < 0.3 and (gap < ARRIVED_M or (gap < PAST_M and self._is_past(x, y)))
        ):
            self._phase = "align"
        if self._phase in ("align", "rest"):
            return 0.0, self._align(yaw)
        if remaining < 0.6 and gap > remaining + 0.15:
            # Beside or beyond the end: there is no path to follow any more, only a place to go to.
            (aim_x, aim_y), speed = (end_x, end_y), min(0.4, 0.8 * gap)
        else:
            speed = float(np.interp(self._along, self.path.along, self._profile))
            aim_x, aim_y = self.path.at(self._along + min(max(0.3 + 0.45 * speed, 0.3), 0.75))
        alpha = _wrapped(math.atan2(aim_y - y, aim_x - x) - yaw)
        if abs(alpha) > TURN_RAD:
            self._phase = "turn"
        elif abs(alpha) < TURNED_RAD:
            self._phase = "follow"
        if self._phase == "turn":
            return 0.0, self._clipped(TURN_GAIN * alpha)
        speed = min(speed * max(math.cos(alpha), 0.2), self._room_ahead(walkers))
        # The circle through the body, tangent to its heading, and through the point aimed at.
        curvature = 2 * math.sin(alpha) / max(math.hypot(aim_x - x, aim_y - y), 0.2)
        if abs(curvature) * speed > self._turning:
            speed = self._turning / abs(curvature)
        return speed, self._clipped(curvature * speed)

    def _align(self, yaw: float) -> float:
        error = 0.0 if self.goal_yaw is None else _wrapped(self.goal_yaw - yaw)
        if self._phase == "rest" and abs(error) < 3 * ALIGNED_RAD:
            return 0.0
        self._phase = "rest" if abs(error) < ALIGNED_RAD else "align"
        return 0.0 if self._phase == "rest" else self._clipped(TURN_GAIN * error)

    def _is_past(self, x: float, y: float) -> bool:
        """Beyond the line across the path's end."""
        end_x, end_y = self.path.points[-1]
        heading = float(self.path.headings[-1])
        beyond: float = (x - end_x) * math.cos(heading) + (y - end_y) * math.sin(heading)
        return beyond > 0

    def _room_ahead(self, walkers: Sequence[Walker]) -> float:
        """Speed (m/s) that stops before the first point of the path ahead where the body would touch a walker."""
        if not walkers:
            return math.inf
        along = self.path.along
        first, last = np.searchsorted(along, [self._along, self._along + AHEAD_M])
        ahead, allowed = self.path.points[first:last], math.inf
        for x, y, radius in walkers:
            hit = np.flatnonzero(np.hypot(ahead[:, 0] - x, ahead[:, 1] - y) < radius + self.planner.radius_m + BESIDE_M)
            if len(hit):
                allowed = min(allowed, max(0.0, 0.8 * (float(along[first + hit[0]]) - self._along - 0.2)))
        return allowed

    def _unstick(self, x: float, y: float, yaw: float, vx: float, measured: float, walkers: Sequence[Walker]) -> float:
        """Back off and plan anew when pushing does not move the body; plan around walkers that do not go away."""
        if self._backing > 0:
            self._backing -= 1
            if self._backing == 0:
                self._replan(x, y, yaw, walkers)
            return -BACKING_MPS
        is_waiting = self._phase == "follow" and vx < 0.02
        self._waited = self._waited + 1 if is_waiting else 0
        self._stuck = self._stuck + 1 if vx > 0.1 and measured < 0.02 else 0
        if self._waited > PATIENCE_STEPS:
            self._replan(x, y, yaw, walkers)
        if self._stuck > STUCK_STEPS:
            self._backing, self._stuck = BACKING_STEPS, 0
        return vx

    def _replan(self, x: float, y: float, yaw: float, walkers: Sequence[Walker]) -> None:
        self.replanned += 1
        self._waited = 0
        end = self.path.points[-1].tolist()
        try:
            self._follow(self.planner.plan((x, y), end, discs=[(a, b, r + BESIDE_M) for a, b, r in walkers]))
        except NoPath:
            # Somebody comes along the only way: make room if there is any behind, else wait on.
            behind = (x - 0.4 * math.cos(yaw), y - 0.4 * math.sin(yaw))
            self._backing = BACKING_STEPS if self.planner.free_at(*behind) > 0.05 else 0

    def _clipped(self, yaw_rate: float) -> float:
        return min(max(yaw_rate, -self._turning), self._turning)


def speed_profile(path: Path, planner: Planner, cruise: float, turning: float, approach: float = 1.5) -> Float[np.ndarray, "N"]:
    """Speed (m/s) at each point: slower in curves and narrow places, braking to (nearly) nothing at the end."""
    along, headings = path.along, path.headings
    # Heading changes over half a metre: shorter pieces would see the grid, not the curve.
    reach = 0.25
    turned = np.interp(along + reach, along, headings) - np.interp(along - reach, along, headings)
    curvature = np.abs(turned) / (2 * reach)
    room = np.array([planner.free_at(x, y) for x, y in path.points.tolist()])
    speed = np.minimum(cruise, 0.3 + 1.5 * np.clip(room - 0.05, 0.0, None))
    speed = np.minimum(speed, 0.7 * turning / np.maximum(curvature, 1e-3))
    speed[-1] = 0.0
    limited: list[float] = speed.tolist()
    gaps: list[float] = np.diff(along).tolist()
    for index in range(len(limited) - 2, -1, -1):
        limited[index] = min(limited[index], math.sqrt(limited[index + 1] ** 2 + 2 * BRAKING * gaps[index]))
    # Close to the end the root's slope is endless: a straight line instead, and enough speed to get there at all.
    left = path.length - along
    profile: Float[np.ndarray, "N"] = np.maximum(np.minimum(np.array(limited), approach * left + 0.06), 0.06)
    return profile


def _wrapped(angle: float) -> float:
    return math.remainder(angle, math.tau)
