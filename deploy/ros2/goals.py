"""Goals by topics: words, a picture, a clip, a pose. The newest of each is kept; together they are what the policy is told.

Clips are followed by what the policy was evaluated with (`kineflow.policies.told`), which needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, PolicyContract
from kineflow.deploy.asking import FollowsGoal
from kineflow.deploy.ros2.images import PictureError, fitted
from kineflow.interface import CameraSpec, GoalKind, GoalSpec
from kineflow.policies.told import Told

LONGEST_CLIP = 3000  # pictures, ten minutes at 5 Hz
STOP_THRESHOLD, STOP_ANSWERS = 0.5, 3  # as policies/told.py


class StillGoal:
    """A goal that stays the same: words, picture, pose or point. Arrived: the policy says so three times in a row."""

    def __init__(self, values: Mapping[str, np.ndarray], instruction: str = "") -> None:
        self._values, self.instruction, self._sure = dict(values), instruction, 0

    def goal(self) -> Mapping[str, np.ndarray]:
        return self._values

    def answered(self, chunk: ActionChunk, row: int) -> None:
        if chunk.stop_probability is not None:
            is_sure = float(chunk.stop_probability[row]) >= STOP_THRESHOLD
            self._sure = self._sure + 1 if is_sure else 0

    def executed(self) -> None:
        """Nothing here moves with the robot."""

    @property
    def has_arrived(self) -> bool:
        return self._sure >= STOP_ANSWERS


class GoalInbox:
    """Collects goal messages for a policy of `contract`; each method returns the goal to follow now, or None while incomplete."""

    def __init__(self, contract: PolicyContract, video_rate_hz: float) -> None:
        self._contract, self._rate_hz = contract, video_rate_hz
        self._specs = contract.interface.goals
        self._values: dict[str, Any] = {}
        self._clip, self._clip_length = dict[int, np.ndarray](), 0

    @property
    def values(self) -> Mapping[str, Any]:
        """What was told so far, by the goal's name."""
        return dict(self._values)

    def kind_of(self, name: str) -> GoalKind:
        return self._specs[name].kind

    def kinds(self) -> set[str]:
        return {spec.kind for spec in self._specs.values()}

    def name_of(self, kind: str) -> str:
        return next(name for name, spec in self._specs.items() if spec.kind == kind)

    def words(self, text: str) -> FollowsGoal | None:
        """An empty text takes the words back."""
        return self._told("instruction", text) if text else self._forget("instruction")

    def picture(self, picture: np.ndarray) -> FollowsGoal | None:
        return self._told("image", fitted(picture, _camera(self._specs[self.name_of("image")])))

    def pose(self, x: float, y: float, z: float, quaternion: tuple[float, float, float, float]) -> FollowsGoal | None:
        """In metres and x y z w; given to the policy as pose `[7]` or point `[3]`, as it takes it."""
        told = None
        if "pose" in self.kinds():
            told = self._told("pose", np.array([x, y, z, *quaternion], np.float32))
        if "point" in self.kinds():
            told = self._told("point", np.array([x, y, z], np.float32))
        return told

    def clip_picture(self, picture: np.ndarray, place: str) -> FollowsGoal | None:
        """One picture of a clip; `place` is "i/n", from 0. Complete with the n-th, in any order; another n is another clip.

        Raises:
            PictureError: `place` is not of that form.
        """
        number, _, count = place.partition("/")
        if not (place.isascii() and number.isdigit() and count.isdigit() and int(number) < int(count) <= LONGEST_CLIP):
            raise PictureError(
                f"a clip's picture has frame_id '{place}'; number them '0/24' to '23/24', at most {LONGEST_CLIP} of them"
            )
        if int(count) != self._clip_length or (int(number) == 0 and 0 in self._clip):
            self._clip.clear()  # another clip begins
        self._clip_length = int(count)
        self._clip[int(number)] = fitted(picture, _camera(self._specs[self.name_of("video")]))
        if len(self._clip) < int(count):
            return None
        frames = np.stack([self._clip[i] for i in range(int(count))])
        self._clip.clear()
        return self._told("video", frames)

    def _forget(self, kind: str) -> FollowsGoal | None:
        self._values.pop(self.name_of(kind), None)
        return self._now()

    def _told(self, kind: str, value: Any) -> FollowsGoal | None:
        self._values[self.name_of(kind)] = value
        return self._now()

    def _now(self) -> FollowsGoal | None:
        if not self._values:
            return None
        kinds = {self._specs[name].kind for name in self._values}
        if "video" in kinds:
            return Told(self._values, self._rate_hz, self._contract)
        arrays = {name: value for name, value in self._values.items() if self._specs[name].kind != "instruction"}
        return StillGoal(arrays, next((v for n, v in self._values.items() if self._specs[n].kind == "instruction"), ""))


def _camera(spec: GoalSpec) -> CameraSpec:
    return CameraSpec(spec.height, spec.width, 1.0)
