"""Unitree G1: the balancing controller walks, velocities come through its locomotion service.

    moving    SetVelocity (7105) with a duration of 0.5 s at most, refreshed; never the SDK's continuous move of ten days
    at rest   one StopMove (velocity 0), again until it is acknowledged; then silence, so that a person's remote control works
    a fault   the governor brakes within the robot's limits, then as at rest
    damping   FSM 1 may drop a standing robot: only `damp`, which only an operator calls, after a StopMove

A node that dies or freezes refreshes nothing, and the robot stops by itself. Calls wait for their answer, so they have a thread
of their own; it sends the newest command, never one twice, and stops the robot when no new ones come.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kineflow.deploy.adapters.g1_link import Link, open_link
from kineflow.deploy.adapters.robot import axes
from kineflow.deploy.adapters.settings import G1Settings
from kineflow.deploy.governor import Command
from kineflow.deploy.robot_profile import RobotProfile

# The SDK's g1_loco_api.py
GET_FSM, SET_FSM, SET_VELOCITY = 7001, 7101, 7105
DAMPING = 1
STALE_S = 0.15  # without a new command the output thread is taken for dead
LOOK_S = 0.01
FSM_EVERY_S, FSM_OLD_S = 1.0, 3.0
FAILED_IN_A_ROW = 3
_STOP_S, _DAMP_S = 0.3, 2.0

What = Literal["move", "stop", "damp", "look"]


@dataclass(frozen=True)
class Request:
    what: What
    api: int
    parameter: str


class Words:
    """What to say next; no clock, no thread, no transport."""

    def __init__(self, settings: G1Settings) -> None:
        self._settings = settings
        self._velocity = (0.0, 0.0, 0.0)
        self._heard_s = self._moved_s = self._looked_s = self._fsm_s = -math.inf
        self._new = False
        self._damp_asked = False
        self.stopped = True  # nothing was said: whoever commands the robot now is not us
        self.damped = False
        self.fsm: int | None = None
        self.failed = 0
        self.code = 0
        self.counts = {"move": 0, "stop": 0, "damp": 0, "look": 0, "failed": 0}

    def hear(self, velocity: tuple[float, float, float], now_s: float) -> None:
        """The newest command: forward and left (m/s), turn to the left (rad/s)."""
        self._velocity, self._heard_s, self._new = velocity, now_s, True

    def damp(self) -> None:
        """The operator's decision."""
        self._damp_asked = True

    def next(self, now_s: float) -> Request | None:
        if self.damped:
            return None
        moves = any(self._velocity) and now_s - self._heard_s <= STALE_S and not self._damp_asked
        if moves:
            if self._new and now_s - self._moved_s >= 1 / self._settings.refresh_hz:
                self._new, self._moved_s, self.stopped = False, now_s, False
                return self._move(self._velocity, "move")
        elif not self.stopped:
            return self._move((0.0, 0.0, 0.0), "stop")
        elif self._damp_asked:
            return Request("damp", SET_FSM, json.dumps({"data": DAMPING}))
        if now_s - self._looked_s >= FSM_EVERY_S:
            self._looked_s = now_s
            return Request("look", GET_FSM, json.dumps({}))
        return None

    def answered(self, request: Request, code: int, data: str, now_s: float) -> None:
        self.counts[request.what] += 1
        self.counts["failed"] += code != 0
        self.failed, self.code = (0, 0) if code == 0 else (self.failed + 1, code)
        if code == 0 and request.what == "stop":
            self.stopped = True
        elif code == 0 and request.what == "damp":
            self.damped, self._damp_asked = True, False
        elif code == 0 and request.what == "look":
            self.fsm, self._fsm_s = _number(data), now_s

    def waits(self, now_s: float) -> str:
        if self.damped:
            return "the robot was damped; let it stand up and start the node anew"
        if self.failed >= FAILED_IN_A_ROW:
            return f"the robot does not answer (code {self.code})"
        if now_s - self._fsm_s > FSM_OLD_S:
            return "the robot has not said whether it walks"
        return (
            "" if self.fsm in self._settings.walking else f"the robot is in state {self.fsm}, walking is {self._settings.walking}"
        )

    def _move(self, velocity: tuple[float, float, float], what: What) -> Request:
        return Request(what, SET_VELOCITY, json.dumps({"velocity": list(velocity), "duration": self._settings.duration_s}))


class G1:
    """See the module."""

    def __init__(self, profile: RobotProfile, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        """`link` is called in a thread of ours, and closed with it."""
        self._settings, self._names = profile.g1 or G1Settings(), profile.command.names
        self._words, self._link, self._clock = Words(self._settings), link, clock
        self._lock, self._wake, self._ending = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._speak, name="kineflow-g1", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, profile: RobotProfile) -> G1:
        """Raises KineflowError: the SDK is not installed, or the address is none."""
        return cls(profile, open_link(profile.g1 or G1Settings()))

    def send(self, command: Command, now_s: float) -> None:
        self._hear(command.values, now_s)

    def stop(self, now_s: float) -> None:
        """Waits a moment for the robot's word that it has heard it."""
        self._hear(np.zeros(len(self._names)), now_s)
        self._until(lambda: self._words.stopped, _STOP_S)

    def damp(self, now_s: float) -> str:
        """The operator's decision, and nobody else's: joints yield, a standing robot may fall. Why it was not done, or ""."""
        with self._lock:
            self._words.damp()
        self._wake.set()
        done = self._until(lambda: self._words.damped, _DAMP_S)
        return "" if done else f"the robot has not acknowledged (code {self._words.code}); use its remote control"

    def waits(self, now_s: float) -> str:
        with self._lock:
            return self._words.waits(now_s)

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        with self._lock:
            words = self._words
            return {"fsm": words.fsm, "stopped": words.stopped, "damped": words.damped, "code": words.code, **words.counts}

    def close(self) -> None:
        self._ending.set()
        self._wake.set()
        self._thread.join(2 * self._settings.timeout_s + _STOP_S)
        self._link.close()

    def _hear(self, values: np.ndarray, now_s: float) -> None:
        forward, left, turn = axes(self._names, values, ("vx", "vy", "yaw_rate"))
        with self._lock:
            self._words.hear((forward, left, turn), now_s)
        self._wake.set()

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(LOOK_S / 2)
        return condition()

    def _speak(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(LOOK_S)
            self._wake.clear()
            with self._lock:
                request = self._words.next(self._clock())
            if request is None:
                continue
            try:
                code, data = self._link.call(request.api, request.parameter)
            except Exception:  # whatever a transport does: the robot was not told
                code, data = -1, ""
            with self._lock:
                self._words.answered(request, code, data, self._clock())


def _number(data: str) -> int | None:
    try:
        return int(json.loads(data)["data"])
    except (ValueError, TypeError, KeyError):
        return None
