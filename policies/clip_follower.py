"""The memory beside a policy that follows a clip, and the rule by which answers end in a halt. No torch: robots do this, too."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from kineflow.interface import KineflowError


class ClipFollower:
    """The belief where in a clip of `length` frames at `rate_hz` a robot is; `frame` is the one its next video begins with.

    `gain`: share of each answer that is believed. `reach_s`: farthest that one answer moves the belief, back and ahead.
    """

    def __init__(self, length: int, rate_hz: float, gain: float = 0.6, reach_s: tuple[float, float] = (0.4, 1.2)) -> None:
        if length < 1 or not rate_hz > 0 or not 0 <= gain <= 1 or min(reach_s) < 0:
            raise KineflowError(
                f"a clip of {length} frames at {rate_hz:g} Hz, gain {gain:g}, reach {reach_s}: frames and rate must be positive, "
                "the gain a share, reaches not negative"
            )
        self._last, self._rate_hz, self._gain, self._reach = length - 1, rate_hz, gain, reach_s
        self._place = 0.0

    @property
    def frame(self) -> int:
        return round(self._place)

    def begin_at(self, frame: int) -> None:
        """Believe that it is there."""
        self._place = min(max(float(frame), 0.0), float(self._last))

    @property
    def at_end(self) -> bool:
        """Nothing of the clip lies ahead."""
        return self.frame >= self._last

    def answered(self, ahead_s: float) -> None:
        """The policy's answer for the video that began at `frame`. NaN moves nothing."""
        if np.isfinite(ahead_s):
            moved = min(max(ahead_s, -self._reach[0]), self._reach[1]) * self._rate_hz
            # The answer counts from the frame shown, the belief is between frames.
            self._move(self._gain * (self.frame + moved - self._place))

    def passed(self, seconds: float) -> None:
        """So long the robot drove as the clip does."""
        self._move(seconds * self._rate_hz)

    def _move(self, frames: float) -> None:
        self._place = min(max(self._place + frames, 0.0), float(self._last))


def halted(probability: Float[np.ndarray, "*B K"], threshold: float = 0.5, consecutive: int = 3) -> Bool[np.ndarray, "*B"]:
    """Halt where the last `consecutive` of the answers so far (oldest first) all exceed `threshold`.

    One confident mistake does not end an episode. Too few answers, or NaN among the last, do not halt.
    """
    if consecutive < 1:
        raise KineflowError(f"consecutive is {consecutive}; it counts answers and is at least 1")
    last = probability[..., -consecutive:]
    done: np.ndarray = (last > threshold).all(axis=-1) & (last.shape[-1] == consecutive)
    return done
