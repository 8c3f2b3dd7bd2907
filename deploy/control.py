"""One robot's control: executor and governor, joined the same way in simulation, in bag replay and on the robot.

answer ---check---> executor <--- observations          tick(now): executor's intent --governor--> command
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kineflow.contracts import ActionChunk
from kineflow.deploy.asking import Question, nearest_to_plan
from kineflow.deploy.executor import Executor
from kineflow.deploy.governor import Command, Intent


class Governs(Protocol):
    """What control needs of `deploy.governor.Governor`."""

    def govern(self, intent: Intent, now_s: float) -> Command: ...

    def check_chunk(self, actions: np.ndarray, stamp_s: float, now_s: float) -> str: ...


@dataclass(frozen=True)
class Ungoverned:
    """No limits: for simulated worlds that bound their actions themselves. Where nothing is wanted, `rest` is commanded."""

    rest: Callable[[], np.ndarray]

    def govern(self, intent: Intent, now_s: float) -> Command:
        if intent.action is None:
            return Command(self.rest(), "stop", (intent.reason,), None)
        return Command(intent.action, "pass", (), intent.action)

    def check_chunk(self, actions: np.ndarray, stamp_s: float, now_s: float) -> str:
        return ""


@dataclass(frozen=True)
class Ticked:
    """One tick: what was wanted and what was commanded."""

    now_s: float
    intent: Intent
    command: Command


class Control:
    """Not thread-safe, as its parts are not; see `deploy/runner.py`."""

    def __init__(self, executor: Executor, governor: Governs) -> None:
        self.executor, self.governor = executor, governor
        self.limited_jumps: deque[float] = deque(maxlen=1000)  # of the command, at the ticks where a new chunk took over
        self._seams, self._last = 0, None

    _last: np.ndarray | None

    def tick(self, now_s: float) -> Ticked:
        intent = self.executor.tick(now_s)
        command = self.governor.govern(intent, now_s)
        if self.executor.seams != self._seams and self._last is not None:
            self.limited_jumps.append(float(np.linalg.norm(command.values - self._last)))
        self._seams, self._last = self.executor.seams, command.values
        return Ticked(now_s, intent, command)

    def hear(self, question: Question, chunk: ActionChunk, now_s: float) -> str:
        """The policy's answer; why it was not taken, or ""."""
        row = nearest_to_plan(chunk.actions, question.plan)
        stamp_s = float(np.asarray(question.observation.stamp_s)[row, -1])
        if reason := self.governor.check_chunk(chunk.actions[row], stamp_s, now_s):
            self.executor.reject(question, reason, now_s)
            return reason
        return self.executor.answer(question, chunk, now_s)

    def diagnostics(self, now_s: float) -> dict[str, Any]:
        limited = float(np.percentile(np.array(self.limited_jumps), 99)) if self.limited_jumps else 0.0
        return {**self.executor.diagnostics(now_s), "limited_jump_p99": limited}
