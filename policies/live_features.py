"""What a robot's policy sees of its own camera, each frame looked at once: the backbone runs on the newest frame alone.

    frame [H, W, 3] --backbone--> features [P, F]; with those of the frames before, [T, P, F]: for `Observation.images[camera]`

The goal's clip is looked at once too (policies/told.py). Both are memory, so they are beside the policy, which stays pure.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float16, UInt8

from kineflow.policies.encoders.window_features import Looker


class LiveFeatures:
    """Features of the last `observation` frames of one camera."""

    def __init__(self, look: Looker, observation: int) -> None:
        self._look, self._length = look, observation
        self.reset()

    def reset(self) -> None:
        """Another episode begins."""
        self._frame: np.ndarray | None = None
        self._known: list[np.ndarray] = []

    def sees(self, frame: UInt8[np.ndarray, "H W 3"]) -> Float16[np.ndarray, "T P F"]:
        """Features with those of the frames before, oldest first; before the first frame there is that frame, as in windows.

        Motion is that from the frame before. As in windows the oldest frame's counts as nothing (`GoalVisionEncoder.features`).
        """
        if self._look.flow is None or self._frame is None:
            newest = self._look(frame[None])[-1]
        else:
            newest = self._look(np.stack([self._frame, frame]))[-1]
        self._frame = frame.copy()
        self._known = [*(self._known or [newest] * (self._length - 1)), newest][-self._length :]
        return np.stack(self._known)
