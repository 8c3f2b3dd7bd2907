"""Runs of a policy, one after another: each begins when the robot may move and ends done, cancelled or failed. No ROS here.

    begin ---> running ---> done         the policy says that it has arrived
                       \\--> cancelled    a person, another goal, or the node was deactivated
                       \\--> failed       e-stop, fault: the robot may not move any more

The node tells of it on `~/run/feedback` (five times a second) and `~/run/result` (kept for who comes late); `~/run` begins and
cancels. The recorder makes one episode of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

RunState = Literal["running", "done", "cancelled", "failed"]
NO_RUN, CANCELLED = "no run was asked for", "cancelled"
FEEDBACK_S = 0.2


@dataclass(frozen=True)
class Run:
    """`number` counts from 1; times are of the monotonic clock, `ended_s` that of the last look while it runs.

    `by_service`: begun by `~/run`, not by activation or by a goal.
    """

    number: int
    state: RunState
    began_s: float
    ended_s: float
    why: str = ""
    by_service: bool = False

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


class Runs:
    """See the module. Each method gives the run that it ended, or None."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self._told_s = 0.0

    @property
    def is_running(self) -> bool:
        return self.run is not None and self.run.state == "running"

    def begin(self, now_s: float, why_ended: str = "another run was begun", by_service: bool = False) -> Run | None:
        ended = self.end("cancelled", why_ended, now_s)
        self.run = Run((self.run.number if self.run else 0) + 1, "running", now_s, now_s, by_service=by_service)
        return ended

    def end(self, state: RunState, why: str, now_s: float) -> Run | None:
        """Nothing, where none is running."""
        if self.run is None or self.run.state != "running":
            return None
        self.run = replace(self.run, state=state, why=why, ended_s=now_s)
        return self.run

    def watch(self, now_s: float, *, may_move: bool, has_arrived: bool, why: str) -> Run | None:
        """Look after the running one. `why`: what the governor says."""
        if not self.is_running:
            return None
        if has_arrived:
            return self.end("done", "arrived", now_s)
        if not may_move:
            return self.end("failed", why or "not active", now_s)
        assert self.run is not None
        self.run = replace(self.run, ended_s=now_s)
        return None

    def is_feedback_due(self, now_s: float) -> bool:
        """At most every `FEEDBACK_S`, while one is running."""
        if not self.is_running or now_s - self._told_s < FEEDBACK_S:
            return False
        self._told_s = now_s
        return True
