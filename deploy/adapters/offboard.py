"""What an autopilot is told, tick by tick: proof of life only while the policy is healthy, motion only in offboard mode.

An autopilot has a failsafe of its own (hold, land, return) that acts when the companion computer falls silent: after a fault
silence is the message. Two kinds of link:

    a proof of life beside the setpoints (PX4's OffboardControlMode): after a fault it ends at once; setpoints go on, braking,
        until the autopilot leaves the mode
    setpoints that are the proof of life (MAVLink, MAVROS): after a fault the governor's braking is passed on, the last word is
        zero, and from `silent_s` after the last healthy tick on there is silence

Outside the mode nothing moves and the governor is held at rest (`waits`), so that motion begins at rest when a pilot switches.
No clock, no socket: see mavlink.py and deploy/ros2/robots.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kineflow.deploy.adapters.settings import OffboardSettings
from kineflow.deploy.governor import Command

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float


LATEST_S = 0.23  # after the last healthy tick: from then on not even zero is said, so that 0.25 s hold on the wire


@dataclass(frozen=True)
class Mode:
    """What the autopilot said of itself, and when it was received."""

    name: str = "not heard"
    obeys: bool = False
    armed: bool = False
    heard_s: float = -math.inf


@dataclass(frozen=True)
class Told:
    """`beat`: prove life now. `setpoint` `[A]`: fly this velocity now; None: say none."""

    beat: bool
    setpoint: Float[np.ndarray, "A"] | None


class Offboard:
    """`hear` may be called from another thread than the rest: it assigns one value."""

    def __init__(self, settings: OffboardSettings, rate_hz: float, *, setpoints_prove_life: bool) -> None:
        self._settings, self._proving, self._period_s = settings, setpoints_prove_life, 1 / rate_hz
        self._mode = Mode()
        self._healthy_s = self._rested_s = -math.inf
        self._beat_due_s = -math.inf
        self._said_zero = False
        self.counts = {"beats": 0, "setpoints": 0}

    def hear(self, mode: Mode) -> None:
        self._mode = mode

    def waits(self, now_s: float) -> str:
        mode = self._mode
        if now_s - mode.heard_s > self._settings.heard_s:  # heard by another thread: maybe after this tick began
            return "the autopilot is not heard"
        if not mode.obeys:
            return f"the autopilot is in mode {mode.name}"
        return "" if mode.armed else "the autopilot is not armed"

    def tick(self, command: Command, now_s: float) -> Told:
        """What to say at this tick."""
        healthy = self._is_healthy(command, now_s)
        if healthy:
            self._healthy_s = now_s
        beat = healthy and self._is_due(now_s)
        setpoint = None if self.waits(now_s) else self._setpoint(command, healthy, now_s)
        self.counts["beats"] += beat
        if setpoint is not None:
            self.counts["setpoints"] += 1
        return Told(beat, setpoint)

    def may_say_stop(self, now_s: float) -> bool:
        """Whether a last zero is heard as one: in the mode, and not after the silence of a fault."""
        return not self.waits(now_s) and not self._silent(now_s)

    def state(self, now_s: float) -> dict[str, Any]:
        mode = self._mode
        return {
            "mode": mode.name,
            "armed": mode.armed,
            "autopilot_age_s": now_s - mode.heard_s,
            "proves_life": now_s - self._healthy_s <= self._settings.silent_s,
            **self.counts,
        }

    def _is_healthy(self, command: Command, now_s: float) -> bool:
        """A plan is followed, or rest is wanted; or it was until a moment ago, and the first plan is being thought about."""
        if command.health == "rests":
            self._rested_s = now_s
        elif command.health == "follows":
            self._rested_s = -math.inf
        waits_from_rest = command.health == "waits" and now_s - self._rested_s <= self._settings.first_plan_s
        return command.health in ("follows", "rests") or waits_from_rest

    def _is_due(self, now_s: float) -> bool:
        """At absolute times, so that ticks of another rate give the right mean."""
        period = 1 / self._settings.heartbeat_hz
        if now_s < self._beat_due_s - 0.002:
            return False
        self._beat_due_s = max(self._beat_due_s + period, now_s - period) if self._beat_due_s > -math.inf else now_s + period
        return True

    def _silent(self, now_s: float) -> bool:
        return now_s - self._healthy_s > self._settings.silent_s

    def _setpoint(self, command: Command, healthy: bool, now_s: float) -> np.ndarray | None:
        if not self._proving or healthy:
            self._said_zero = False
            return command.values
        since = now_s - self._healthy_s
        if since > LATEST_S or (self._silent(now_s) and self._said_zero):
            return None
        if since <= self._settings.silent_s - 1.5 * self._period_s:
            return command.values
        self._said_zero = True  # also when this tick is late, but never beyond the promise
        return np.zeros_like(command.values)
