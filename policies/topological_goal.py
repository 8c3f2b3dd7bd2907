"""A goal clip as a map of pictures: where in it the robot is, by predicted distances, and which picture it is to reach next.

    clip    c0 . . . . c5 . . . . c10 . . . . c15 . . . . c20 .. last     frames
    nodes   0          1          2           3           4 .....  K-1    one a second, and the last frame
    distances       9.1        2.3         8.7         19                 predicted steps to those around the closest so far
                               closest     subgoal

The rule of ViNT and NoMaD (Shah et al. 2023, Sridhar et al. 2023; `deployment/src/navigate.py` of their code): the node with the
least predicted distance is where the robot is; it heads for that picture, or for the next one as soon as it is close. No place,
no odometry, no time: what the policy sees is all that moves it on. The memory of one episode lives here, outside of the policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from kineflow.contracts import KineflowError


@dataclass(frozen=True)
class Following:
    """How a clip is followed. Distances are in steps of the policy's actions, as it predicts them.

    Nodes are `spacing_s` apart (create_topomap.py: 1 s). Asked are `radius` of them on each side of the closest, and one more
    ahead (at the beginning of a clip as many, all ahead). Nearer than `close_steps` to the closest, the next one is the subgoal:
    theirs are 3 steps of 0.25 s, so on its way a robot always heads for the next. Heads say 9 steps midway, give or take 4: whose
    bound is lower turns back to a picture behind it. Arrived: the closest node is the last one and nearer than `arrived_steps`.
    Theirs is content with the last node being the closest; the bound only keeps lost robots from stopping. Heads say 4
    steps, give or take 4, of a picture right here: who waits for much less drives past.
    """

    spacing_s: float = 1.0
    radius: int = 2
    close_steps: float = 12.0
    arrived_steps: float = 10.0

    def __post_init__(self) -> None:
        if not self.spacing_s > 0 or self.radius < 0 or min(self.close_steps, self.arrived_steps) < 0:
            raise KineflowError(f"{self}: spacing_s must be positive, radius and both thresholds not negative")

    @property
    def window(self) -> int:
        """How many pictures are asked about at once."""
        return 2 * self.radius + 2

    def chosen(self, distances: Float[np.ndarray, "B N"]) -> tuple[Int64[np.ndarray, "B"], Int64[np.ndarray, "B"]]:
        """Of windows with these predicted distances: the closest picture, and the one to head for."""
        closest = distances.argmin(axis=-1)
        is_close = distances.min(axis=-1) < self.close_steps
        return closest, np.minimum(closest + is_close, distances.shape[-1] - 1)


class TopologicalFollower:
    """The place of one robot in a clip of `length` frames at `rate_hz`; a goal image is a clip of one frame."""

    def __init__(self, length: int, rate_hz: float, following: Following | None = None) -> None:
        if length < 1 or not rate_hz > 0:
            raise KineflowError(f"a map of a clip of {length} frames at {rate_hz:g} Hz; both must be positive")
        self.following, self._last = following or Following(), length - 1
        self._stride = max(self.following.spacing_s * rate_hz, 1.0)
        self.closest_node, self.distance = 0, math.inf  # steps to the closest node

    @property
    def num_nodes(self) -> int:
        return 1 + math.ceil(self._last / self._stride)

    @property
    def frame(self) -> int:
        """Of the closest node."""
        return int(self.frames_of(np.array([self.closest_node]))[0])

    def frames_of(self, nodes: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "N"]:
        """Their frames of the clip."""
        frames: Int64[np.ndarray, "N"] = np.minimum(np.rint(self._stride * nodes), self._last).astype(np.int64)
        return frames

    def begin_at(self, frame: int) -> None:
        """The node nearest to that frame is the closest one."""
        self.closest_node = min(round(frame / self._stride), self.num_nodes - 1)

    def window(self) -> Int64[np.ndarray, "N"]:
        """The nodes to ask about now: at the beginning of the clip more of those ahead, beyond its end the last one again."""
        first = max(self.closest_node - self.following.radius, 0)  # a first node asked twice would be its own next one
        return np.minimum(first + np.arange(self.following.window), self.num_nodes - 1)

    def answered(self, closest: int, distance: float) -> None:
        """Of `window()`, picture number `closest` is the closest one, `distance` steps away."""
        self.closest_node, self.distance = int(self.window()[closest]), distance

    @property
    def has_arrived(self) -> bool:
        """As far as the last answer tells."""
        return self.closest_node == self.num_nodes - 1 and self.distance < self.following.arrived_steps
