"""What an episode's policy is told of its goal, and the memory beside it: where in its clip it is, and whether it has arrived.

    environment.goal()   whole clip, picture or words
        video            backbone once for the whole clip --> window from where the robot is believed to be, at each replan
        image, words     the same at each replan
    answer               how far ahead of the window it is: the belief moves (policies/progress.py); done, several in a row: halt

Nothing here knows the goal's place, nor the robot's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, GoalSpec, PolicyContract
from kineflow.datasets.clips import with_rest
from kineflow.policies.clip_follower import ClipFollower, halted

Look = Callable[[np.ndarray], np.ndarray]  # uint8 [T, H, W, 3] -> what the policy takes in their place: float16 [T, P, D]


class Told:
    """See the module: one episode's goal for a policy of that `contract`.

    `look` turns pictures into features of the policy's frozen backbone; None: the policy is given the pictures themselves.
    """

    def __init__(
        self,
        goal: Mapping[str, Any],
        clip_rate_hz: float,
        contract: PolicyContract,
        look: Look | None = None,
        stop: tuple[float, int] = (0.5, 3),
    ) -> None:
        """`stop`: threshold and number of answers in a row. Raises ContractError when the policy takes none of the goals."""
        takes = contract.interface.goals
        self.specs: dict[str, GoalSpec] = {name: takes[name] for name in goal if name in takes}
        if not self.specs:
            raise ContractError(
                f"the policy takes the goals {sorted(takes)}, the environment tells {sorted(goal)}; name one of both"
            )
        self._look, self._stop, self._probabilities = look or (lambda frames: frames), stop, list[float]()
        self._step_s = 1 / contract.interface.action.rate_hz
        self.instruction = next((goal[n] for n, spec in self.specs.items() if spec.kind == "instruction"), "")
        self._values = {n: self._seen(goal[n], spec) for n, spec in self.specs.items() if spec.kind != "instruction"}
        self._rate_hz, self.frames = clip_rate_hz, next((goal[n] for n, s in self.specs.items() if s.kind == "video"), None)
        self.follower = None if self.frames is None else ClipFollower(len(self.frames), clip_rate_hz)

    def goal(self) -> dict[str, np.ndarray]:
        """Arrays for `Observation.goal`, without rows."""
        return {name: self._window(values, self.specs[name]) for name, values in self._values.items()}

    @property
    def cursor(self) -> int:
        """The frame of the clip that comes first in what it is told now; 0 without a clip."""
        return self.follower.frame if self.follower else 0

    def believe(self, frame: int) -> None:
        """It is at that frame of the clip: an episode is taken up where it was."""
        if self.follower:
            self.follower.begin_at(frame)

    def answered(self, chunk: ActionChunk, row: int) -> None:
        """The policy's answer to the last `goal()` is row `row` of `chunk`."""
        if self.follower and chunk.ahead_s is not None:
            self.follower.answered(float(chunk.ahead_s[row]))
        if chunk.stop_probability is not None:
            self._probabilities.append(float(chunk.stop_probability[row]))

    def executed(self) -> None:
        """One action was carried out."""
        if self.follower:
            self.follower.passed(self._step_s)

    def sees(self, observation: Mapping[str, Any], action: np.ndarray) -> Mapping[str, Any]:
        """What the policy gets to see of `observation`, made after `action` was carried out."""
        return observation

    @property
    def has_arrived(self) -> bool:
        """The policy said so several times in a row."""
        return bool(halted(np.array(self._probabilities), *self._stop))

    def _seen(self, pictures: np.ndarray, spec: GoalSpec) -> np.ndarray:
        if spec.kind not in ("image", "video"):
            return np.asarray(pictures, np.float32)
        return self._look(with_rest(pictures) if spec.kind == "video" else pictures[None])

    def _window(self, values: np.ndarray, spec: GoalSpec) -> np.ndarray:
        if spec.kind == "image":
            return values[0]  # type: ignore[no-any-return]
        if spec.kind != "video":
            return values
        ahead = np.rint(self._rate_hz / spec.rate_hz * np.arange(spec.frames)).astype(np.int64)
        return values[np.minimum(self.cursor + ahead, len(values) - 1)]  # type: ignore[no-any-return]


class ToldBlindly(Told):
    """Open loop: the belief goes with time, what it is told of the camera is the clip, and of its motion its own commands."""

    def answered(self, chunk: ActionChunk, row: int) -> None:
        """Where it is in the clip it cannot see; that the clip ends it can."""
        super().answered(replace(chunk, ahead_s=None), row)

    def sees(self, observation: Mapping[str, Any], action: np.ndarray) -> Mapping[str, Any]:
        """The clip where it is believed to be; for the measured velocity the commanded one, which is as long."""
        assert self.frames is not None  # NavigationTrial: open loop only with a video
        own = {name: self.frames[self.cursor] for name, value in observation.items() if value.ndim == 3}
        return {**observation, **own, "velocity": action.astype(np.float32)}
