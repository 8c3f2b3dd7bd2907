"""The limiter: a command follows its target as fast as acceleration and jerk allow, and never leaves its limits.

Every tick chooses the rate a' of each axis (the acceleration of a velocity, the velocity of a position) and sends
v' = v + a' dt. Two rules, for any sequence of tick times and targets:

    jerk     |a' - a| <= j dt
    curve    toward a target at distance e > 0:  a' dt + a'^2 / (2 j) <= e,  so  a' <= 2 j e / (j dt + sqrt(j^2 dt^2 + 2 j e))

The curve is the largest rate from which the ramp down to zero, however its ticks fall, ends at the target: taken exactly it
is the time-optimal S-curve up to one or two ticks, and needs no plan that a new target would make void. Why it is safe: let
c = v + a |a| / (2 j) be where the value ends when its rate is brought to zero at once. A rate under the curve puts c at or
before the target, which lies within the limits; where jerk forbids to get under the curve (the target jumped closer), the
rate falls by j dt, and c does not move outward. So c, and v with it, stays within the limits for ever.

With x for the value, this is one rule for two kinds of command (`AxisLimits`): velocities (x velocity, a acceleration, j jerk)
and positions (x position, a velocity, j acceleration). Speeding up and slowing down may have different bounds; a motion
through zero keeps the smaller of both.

Plain floats, not arrays: for a handful of axes they are several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kineflow.deploy.robot_profile import RobotProfile


class Ramp:
    """The commanded values, in the profile's order, and their rates; axes that the body lacks stay at zero."""

    def __init__(self, profile: RobotProfile) -> None:
        limits, velocity = profile.limits, profile.kind == "velocity"
        self.low = [low + limits.margin for low in limits.low]
        self.high = [high - limits.margin for high in limits.high]
        self.axes = [i for i in range(profile.command.size) if self.high[i] > self.low[i]]
        self.value = [0.0] * profile.command.size
        self.rate = [0.0] * profile.command.size
        self._velocity, self._common = velocity, profile.direction == "common"
        self._faster = limits.acceleration if velocity else limits.velocity
        self._slower = limits.deceleration if velocity else limits.velocity
        self._change = limits.jerk if velocity else limits.acceleration
        self._brake = limits.deceleration

    def start(self, value: Sequence[float]) -> None:
        """At rest at `value`."""
        self.value, self.rate = [float(v) for v in value], [0.0] * len(value)

    def halt(self) -> None:
        """Zero at once, or the position held at once: the e-stop, exempt from every rate."""
        if self._velocity:
            self.value = [0.0] * len(self.value)
        self.rate = [0.0] * len(self.rate)

    def brake(self, dt: float) -> None:
        """At the limit of deceleration from this tick on, whatever the jerk: a velocity v is zero after v / deceleration."""
        value, rate = self.value, self.rate
        if self._velocity:
            moving = [i for i in self.axes if value[i]]
            shares = [max(0.0, 1 - self._brake[i] * dt / abs(value[i])) for i in moving]
            if self._common and moving:  # the slowest decides, and the body stops on its path
                shares = [max(shares)] * len(moving)
            for i, share in zip(moving, shares):
                value[i] *= share
            self.rate = [0.0] * len(rate)  # the next ordinary tick starts level
            return
        for i in self.axes:
            rate[i] = math.copysign(max(0.0, abs(rate[i]) - self._brake[i] * dt), rate[i])
            value[i] += rate[i] * dt

    def clamp(self, wanted: Sequence[float]) -> list[float]:
        """Within the limits; with direction "common" all axes by the factor that the worst one needs."""
        if self._common:
            factor = 1.0
            for i in self.axes:
                bound = self.high[i] if wanted[i] > 0 else self.low[i]
                if abs(wanted[i]) > abs(bound):
                    factor = min(factor, bound / wanted[i])
            wanted = [factor * w for w in wanted]  # may miss the bound by rounding, hence the line below
        return [min(high, max(low, w)) for w, low, high in zip(wanted, self.low, self.high)]

    def step(self, target: Sequence[float], dt: float) -> None:
        """One ordinary tick of `dt` seconds toward `target`, which lies within the limits."""
        if dt <= 0:
            return
        value, rate = self.value, self.rate
        reach = {i: self._reach(i, target[i] - value[i], target[i], dt) for i in self.axes}
        if self._common:
            share = self._share(target, reach, dt)
            reach = {i: share * (target[i] - value[i]) for i in self.axes}
        for i, want in reach.items():
            slack = self._change[i] * dt
            rate[i] = min(rate[i] + slack, max(rate[i] - slack, want))
            value[i] += rate[i] * dt

    def _share(self, target: Sequence[float], reach: dict[int, float], dt: float) -> float:
        """The part of the way to the target, per second, that every axis can go: together they stay on the straight line."""
        share = 1 / dt
        for i, furthest in reach.items():
            way, slack = target[i] - self.value[i], self._change[i] * dt
            if way > 0:
                share = min(share, furthest / way, max(0.0, self.rate[i] + slack) / way)
            elif way < 0:
                share = min(share, furthest / way, min(0.0, self.rate[i] - slack) / way)
        return share

    def _reach(self, i: int, way: float, target: float, dt: float) -> float:
        """The rate for the `way` to the target that the curve and the bounds of speeding up and slowing down allow."""
        value, rate, change = self.value[i], self.rate[i], self._change[i]
        slack = change * dt
        reach = 2 * change * way / (slack + math.sqrt(slack * slack + 2 * change * abs(way)))
        up, down = self._faster[i], self._slower[i]
        if up != down:
            rest = value + rate * abs(rate) / (2 * change)
            if value < 0 or rest < 0 or target < 0:
                crosses = value > 0 or rest > 0 or target > 0
                up, down = (min(up, down),) * 2 if crosses else (down, up)
        return min(up, max(-down, reach))
