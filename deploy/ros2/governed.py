"""The governor as a node uses it: it can be held still by a person, or by a robot that takes no motion now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kineflow.deploy.governor import Command, Governor, Intent


class Governed:
    """A `Governor` that is given no intent while `paused` says why, or the robot why it `waits` (deploy/adapters/robot.py)."""

    def __init__(self, governor: Governor, paused: str = "", waits: Callable[[float], str] = lambda now_s: "") -> None:
        self.governor, self.paused, self.waits = governor, paused, waits

    def govern(self, intent: Intent, now_s: float) -> Command:
        if self.paused:
            intent = replace(intent, action=None, reason=self.paused, rests=True)
        elif why := self.waits(now_s):  # at rest on purpose only if the policy has a plan, or wants rest itself
            has_plan = intent.action is not None and bool(np.isfinite(intent.action).all())
            intent = replace(intent, action=None, reason=why, rests=intent.rests or has_plan)
        return self.governor.govern(intent, now_s)

    def check_chunk(self, actions: np.ndarray, stamp_s: float, now_s: float) -> str:
        return self.governor.check_chunk(actions, stamp_s, now_s)
