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

ZERO = 1e-9  # on the curve to zero, the rest is zero but for rounding: that is no motion through zero


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

    @property
    def is_moving(self) -> bool:
        return any(self.rate) or (self._velocity and any(self.value))

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
        rates = self._together(target, dt) if self._common else [self._reach(i, target[i], dt) for i in self.axes]
        for i, want in zip(self.axes, rates):
            slack = self._change[i] * dt
            rate[i] = min(rate[i] + slack, max(rate[i] - slack, want))
            value[i] += rate[i] * dt

    def _reach(self, i: int, target: float, dt: float) -> float:
        """The rate toward the target that the curve and the bounds of speeding up and slowing down allow."""
        way = target - self.value[i]
        up, down = self._bounds(i, target)
        if self._lands(i, way, target, dt):
            return min(up, max(-down, way / dt))
        return min(up, max(-down, way * _curve(self._change[i], abs(way), dt)))

    def _lands(self, i: int, way: float, target: float, dt: float) -> bool:
        """Whether the target may be taken exactly: so close that the rate is zero again one tick later, so that a slow
        target passes unchanged. Should that tick come sooner, the limits hold all the same; zero is never crossed for this."""
        change = self._change[i]
        if abs(way) > change * dt * dt or target == 0:
            return False
        over = way * abs(way) / (2 * change * dt * dt)
        return self.low[i] <= target + over <= self.high[i]

    def _together(self, target: Sequence[float], dt: float) -> list[float]:
        """Rates that keep the values on the straight line to the target: the same share of the way, per second, for all.

        Along the line, jerk is what the tightest axis allows. Where rates still point elsewhere (the target turned), each
        axis comes round within its own jerk.
        """
        ways = [target[i] - self.value[i] for i in self.axes]
        tightest = min((self._change[i] / abs(way) for i, way in zip(self.axes, ways) if way), default=math.inf)
        if tightest == math.inf:
            return [0.0] * len(ways)
        lands = all(self._lands(i, way, target[i], dt) for i, way in zip(self.axes, ways) if way)
        share = 1 / dt if lands else _curve(tightest, 1.0, dt)
        for i, way in zip(self.axes, ways):
            if way:
                up, down = self._bounds(i, target[i])
                slack = self._change[i] * dt
                fastest = min(up, self.rate[i] + slack) if way > 0 else max(-down, self.rate[i] - slack)
                share = min(share, max(0.0, fastest / way))
        return [share * way for way in ways]

    def _bounds(self, i: int, target: float) -> tuple[float, float]:
        """Greatest rates up and down: of a velocity, speeding up and slowing down; the smaller of both through zero."""
        up, down = self._faster[i], self._slower[i]
        if up == down:
            return up, down
        value, rate = self.value[i], self.rate[i]
        rest = value + rate * abs(rate) / (2 * self._change[i])
        if not (value < -ZERO or rest < -ZERO or target < -ZERO):
            return up, down
        if value > ZERO or rest > ZERO or target > ZERO:
            return min(up, down), min(up, down)
        return down, up


def _curve(change: float, way: float, dt: float) -> float:
    """The curve's rate for a `way` >= 0, divided by it."""
    slack = change * dt
    return 2 * change / (slack + math.sqrt(slack * slack + 2 * change * way))
