"""What a policy is told of its goal that finds its place on a map of pictures: the map around it (policies/subgoal_policy.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, GoalSpec, PolicyContract
from kineflow.policies.told import Look, Told
from kineflow.policies.topological_goal import Following, TopologicalFollower


class ToldByMap(Told):
    """The window of the map around the node that was closest at the last answer; arrived: the last node is, and it is near.

    `contract` and `following` are those of a `SubgoalPolicy`. A stop head is not asked: like ViNT and NoMaD it stops by distance.
    """

    def __init__(
        self,
        goal: Mapping[str, Any],
        clip_rate_hz: float,
        contract: PolicyContract,
        look: Look | None = None,
        stop: tuple[float, int] = (0.5, 3),
        following: Following | None = None,
    ) -> None:
        super().__init__(goal, clip_rate_hz, contract, look, (stop[0], 1))  # as theirs: the next answer may be past the end
        length = 1 if self.frames is None else len(self.frames)  # a goal image is a map of one node
        self.place, self.follower = TopologicalFollower(length, clip_rate_hz, following), None

    @property
    def cursor(self) -> int:
        """The frame of the closest node."""
        return self.place.frame

    def believe(self, frame: int) -> None:
        """The node nearest to that frame of the clip is the closest one."""
        self.place.begin_at(frame)

    def answered(self, chunk: ActionChunk, row: int) -> None:
        """The `SubgoalPolicy`'s answer to the last `goal()` is row `row` of `chunk`."""
        assert chunk.ahead_s is not None
        assert chunk.distance is not None
        closest = round(float(chunk.ahead_s[row]) / self.place.following.spacing_s)
        self.place.answered(closest, float(chunk.distance[row]))
        self._probabilities.append(float(self.place.has_arrived))

    def _window(self, values: np.ndarray, spec: GoalSpec) -> np.ndarray:
        if spec.kind != "video":
            return super()._window(values, spec)
        return values[self.place.frames_of(self.place.window())]  # type: ignore[no-any-return]
