"""What must hold before and while anything moves: e-stop source heard and released, operator's reset, no fault, heartbeat.

A software stop is not a safety function: the hardware e-stop stays mandatory. Calls may come from other threads than the
output thread; each one ends in single assignments, in an order that errs on the side of standing still.
"""

from __future__ import annotations

import math

from kineflow.deploy.robot_profile import Watchdogs
from kineflow.interface import KineflowError


class Interlocks:
    """Starts closed: inactive, e-stop unheard, supervisor unheard."""

    def __init__(self, watchdogs: Watchdogs) -> None:
        self._watchdogs = watchdogs
        self.active = False
        self.estop_heard = not watchdogs.estop
        self.estop_pressed = False
        self.estop_latched = False
        self.fault = ""
        self._beats: dict[str, float] = {}  # when each supervisor was heard last, by its name

    @property
    def supervisor_s(self) -> float:
        """When the supervisor that has been silent longest was heard; -inf before the first."""
        return min(self._beats.values(), default=-math.inf)

    def beat(self, supervisor: str, now_s: float) -> None:
        """Each one that was ever heard is watched from then on: a guard that lives does not stand in for a person who left."""
        self._beats = {**self._beats, supervisor: now_s}  # replaced as a whole: another thread may be reading

    def estop(self, pressed: bool) -> None:
        """What the e-stop source says. A press latches and deactivates; a release only makes the reset possible."""
        self.estop_pressed = pressed
        if pressed:
            self.estop_latched = True
            self.active = False
        self.estop_heard = True

    def reset_estop(self) -> str:
        """The operator's reset; the robot stays still until it is activated again. Why the latch stays, or ""."""
        if self.estop_pressed:
            return "the e-stop is still pressed; release it, then reset, then activate"
        self.estop_latched = False
        return ""

    def trip(self, fault: str) -> None:
        """Latch a fault (the first one is kept) and deactivate."""
        self.fault = self.fault or fault
        self.active = False

    def reset_fault(self) -> None:
        self.fault = ""

    def activate(self) -> None:
        """Raises:
        KineflowError: an e-stop or a fault is latched."""
        if self.estop_latched:
            raise KineflowError("the e-stop is latched; release it and reset it before activating")
        if self.fault:
            raise KineflowError(f"fault '{self.fault}' is latched; find its cause and reset it before activating")
        self.active = True

    def why_still(self, now_s: float) -> str:
        """Why the robot must not move although no e-stop is latched, or ""."""
        if self.fault:
            return self.fault
        if not self.active:
            return "not active"
        if not self.estop_heard:
            return "e-stop source not heard"
        for name, heard_s in (self._beats or {"": -math.inf}).items():
            if not now_s - heard_s <= self._watchdogs.supervisor_s:
                return f"supervisor lost: {name}" if name else "supervisor lost"
        return ""
