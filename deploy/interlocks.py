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
        self.supervisor_s = -math.inf

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
        if not now_s - self.supervisor_s <= self._watchdogs.supervisor_s:
            return "supervisor lost"
        return ""
