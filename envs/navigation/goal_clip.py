"""The clip of a way: what a body's camera sees when the expert drives it. Its last frame is the goal image.

    clean run at 10 Hz   0    1    2    3    4    5    6 ..  arrived      (rest)
    clip at 5 Hz         c0        c1        c2        c3 ..  c[T-1]

A cursor says at which frame of the clip a body is that drives the same way later: the frame whose pose is nearest to its own,
never an earlier one than before. Frames of turning on the spot have one place and many headings, so headings count too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.expert import Expert
from kineflow.envs.navigation.randomise import Randomisation
from kineflow.envs.navigation.stage import Stage
from kineflow.envs.navigation.tasks import Trip
from kineflow.envs.navigation.values import CONTROL_HZ

METRES_PER_RAD = 0.6  # of heading, against metres of place, in what is near
AHEAD_S = 2.5  # how far ahead in the clip a cursor looks: a way that crosses itself is not cut short


@dataclass(frozen=True, eq=False)
class GoalClip:
    """Frames at `rate_hz`, and where the camera's body was: `places` x, y, yaw (m, rad) of each frame."""

    frames: UInt8[np.ndarray, "T H W 3"]
    places: Float[np.ndarray, "T 3"]
    rate_hz: float

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The last frame."""
        last: UInt8[np.ndarray, "H W 3"] = self.frames[-1]
        return last


class Cursor:
    """Where in a clip a body is, told its poses one after the other."""

    def __init__(self, places: Float[np.ndarray, "T 3"], rate_hz: float) -> None:
        self._places, self._reach, self.frame = places, max(2, round(AHEAD_S * rate_hz)), 0

    def advance(self, x: float, y: float, yaw: float) -> int:
        """The frame for this pose (m, rad), never before the last one."""
        ahead = self._places[self.frame : self.frame + self._reach + 1]
        turned = np.remainder(ahead[:, 2] - yaw + math.pi, 2 * math.pi) - math.pi
        gaps = (ahead[:, 0] - x) ** 2 + (ahead[:, 1] - y) ** 2 + (METRES_PER_RAD * turned) ** 2
        self.frame += int(gaps.argmin())
        return self.frame


def expert_for(stage: Stage, trip: Trip) -> Expert:
    """The demonstrator of a trip, for the body of that stage where it stands."""
    return Expert(trip.path, stage.embodiment, stage.planner, trip.goal_yaw, height_m=stage.position[2])


def clip_frames(length: int, rate_hz: float) -> Int64[np.ndarray, "T"]:
    """Which of `length` pictures at 10 Hz a clip of `rate_hz` holds: evenly, and the last one always."""
    if not 0 < rate_hz <= CONTROL_HZ:
        raise KineflowError(f"a clip at {rate_hz} Hz; it is made of pictures at {CONTROL_HZ} Hz, choose at most that")
    kept = np.rint(np.arange(0, length, CONTROL_HZ / rate_hz)).astype(np.int64)
    kept = kept[kept < length]
    return kept if kept[-1] == length - 1 else np.append(kept, length - 1)


def film(
    stage: Stage, trip: Trip, rate_hz: float = 5.0, look: Randomisation | None = None, seed: int = 0, limit_s: float = 90.0
) -> GoalClip:
    """Drive `trip` with the expert on `stage` and film it until it rests; the stage is left at the end of the trip.

    Raises:
        KineflowError: the expert did not arrive within `limit_s`, or touched something.
    """
    stage.begin(*trip.start, look, seed)
    expert = expert_for(stage, trip)
    pictures, places = [stage.rgb()], [(*stage.position[:2], stage.yaw)]
    for _ in range(round(limit_s * CONTROL_HZ)):
        command = expert.command(*stage.position, stage.yaw, stage.robot.velocity(), stage.walkers)
        if expert.is_resting and stage.speed < 0.05:
            return cut(pictures, places, rate_hz)
        stage.drive(command)
        if stage.crashed or stage.robot.fallen():
            break
        pictures.append(stage.rgb())
        places.append((*stage.position[:2], stage.yaw))
    raise KineflowError(f"the expert did not finish the trip from {trip.start} to {trip.goal} in {limit_s} s; draw another trip")


def cut(pictures: Sequence[UInt8[np.ndarray, "H W 3"]], places: Sequence[Sequence[float]], rate_hz: float) -> GoalClip:
    """The clip of pictures taken at 10 Hz from these places x, y, yaw."""
    kept = clip_frames(len(pictures), rate_hz)
    return GoalClip(np.stack([pictures[i] for i in kept]), np.array([places[i] for i in kept]), rate_hz)
