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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt8

from kineflow.contracts import KineflowError

Look = Callable[[np.ndarray], np.ndarray]  # uint8 [K, H, W, 3] -> features [K, P, D]


@dataclass(frozen=True)
class Following:
    """How a clip is followed. Distances are in steps of the policy's actions, as it predicts them.

    Nodes are `spacing_s` apart (create_topomap.py: 1 s). Asked are `radius` of them on each side of the closest, and one more
    ahead. Nearer than `close_steps` to the closest, the next one is the subgoal (theirs: 3 steps of 0.25 s). Arrived: the closest
    node is the last one and nearer than `arrived_steps`. That is stricter than theirs, which is content with the last node being
    the closest: half a second of driving away.
    """

    spacing_s: float = 1.0
    radius: int = 2
    close_steps: float = 7.5
    arrived_steps: float = 5.0

    def __post_init__(self) -> None:
        if not self.spacing_s > 0 or self.radius < 0 or min(self.close_steps, self.arrived_steps) < 0:
            raise KineflowError(f"{self}: spacing_s must be positive, radius and both thresholds not negative")


class TopologicalFollower:
    """The place of one robot in one clip; a goal image is a clip of one frame.

    `look` turns the pictures of the nodes, all at once, into what a policy is asked with in their place.
    """

    def __init__(
        self, clip: UInt8[np.ndarray, "T H W 3"], rate_hz: float, following: Following | None = None, look: Look | None = None
    ) -> None:
        """`rate_hz`: of the clip. Raises KineflowError for a clip without frames, or a rate that is not positive."""
        if clip.ndim != 4 or len(clip) == 0 or not rate_hz > 0:
            raise KineflowError(
                f"a map of a clip {list(clip.shape)} at {rate_hz:g} frames/s; give frames [T, H, W, 3] and a rate"
            )
        self.following = following or Following()
        self.frames = nodes(len(clip), rate_hz, self.following.spacing_s)
        self._pictures = clip[self.frames]
        self._asked = self._pictures if look is None else look(self._pictures)
        self.closest_node = self.chosen = 0
        self.distance = np.inf  # predicted steps to the closest node
        self.subgoal_node = min(1, self.num_nodes - 1)

    @property
    def num_nodes(self) -> int:
        return len(self.frames)

    @property
    def window(self) -> tuple[int, int]:
        """First and last node that are asked about now."""
        radius = self.following.radius
        return max(self.closest_node - radius, 0), min(self.closest_node + radius + 1, self.num_nodes - 1)

    def pictures_to_ask(self) -> np.ndarray:
        """Those of the window, nearest to the clip's beginning first: uint8 [N, H, W, 3], or features of them [N, P, D]."""
        first, last = self.window
        return self._asked[first : last + 1]

    def update(self, distances: Float[np.ndarray, "N"]) -> None:
        """Predicted steps to each of `pictures_to_ask`. Raises KineflowError for another number of them, or one not finite."""
        first, last = self.window
        if distances.shape != (last - first + 1,) or not np.isfinite(distances).all():
            raise KineflowError(
                f"distances {np.array2string(distances, precision=2)} for nodes {first} .. {last}; give a finite one for each of "
                "pictures_to_ask()"
            )
        nearest = int(distances.argmin())
        self.closest_node, self.distance = first + nearest, float(distances[nearest])
        self.subgoal_node = min(self.closest_node + (self.distance < self.following.close_steps), last)
        self.chosen = self.subgoal_node - first

    @property
    def subgoal(self) -> UInt8[np.ndarray, "H W 3"]:
        """The picture to reach now."""
        picture: UInt8[np.ndarray, "H W 3"] = self._pictures[self.subgoal_node]
        return picture

    @property
    def has_arrived(self) -> bool:
        """As far as the last update could tell; one update may err, so ask for several in a row before stopping."""
        return self.closest_node == self.num_nodes - 1 and self.distance < self.following.arrived_steps


def nodes(frames: int, rate_hz: float, spacing_s: float) -> Int64[np.ndarray, "K"]:
    """Which frames of a clip are nodes: every `spacing_s` from the first on, and the last, which takes the place of one that is
    nearer to it than half of that."""
    chosen = np.unique(np.rint(np.arange(0, frames - 1, max(spacing_s * rate_hz, 1.0))).astype(np.int64))
    if len(chosen) > 1 and frames - 1 - chosen[-1] < 0.5 * spacing_s * rate_hz:
        chosen = chosen[:-1]
    return np.append(chosen, frames - 1)
