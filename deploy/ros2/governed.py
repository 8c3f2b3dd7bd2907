"""The governor as a node uses it: it can be held still by a person, whatever the policy wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kineflow.deploy.governor import Command, Governor, Intent


class Governed:
    """A `Governor` that is given no intent while `paused` says why."""

    def __init__(self, governor: Governor, paused: str = "") -> None:
        self.governor, self.paused = governor, paused

    def govern(self, intent: Intent, now_s: float) -> Command:
        if self.paused:
            intent = replace(intent, action=None, reason=self.paused, rests=True)
        return self.governor.govern(intent, now_s)

    def check_chunk(self, actions: np.ndarray, stamp_s: float, now_s: float) -> str:
        return self.governor.check_chunk(actions, stamp_s, now_s)
