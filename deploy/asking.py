"""What a question to the policy is made of: the window in rows, the goal, the seeds, and what is left of the executing chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Float

from kineflow.contracts import ActionChunk, CommittedPrefix, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.chunks import ChunkBuffer
from kineflow.deploy.executor_config import PREFIXED, ExecutorConfig
from kineflow.policies.prefix import committed_prefix


class FollowsGoal(Protocol):
    """What the policy is told of its goal and what it answers to that: `kineflow.policies.told.Told` on a robot with torch."""

    instruction: str

    def goal(self) -> Mapping[str, np.ndarray]: ...

    def answered(self, chunk: ActionChunk, row: int) -> None: ...

    def executed(self) -> None: ...

    @property
    def has_arrived(self) -> bool: ...


class RollsForward(Protocol):
    """States `[T, S]` observed, and actions `[d, A]` of `step_s` that will follow: the states `[T, S]` after those."""

    def __call__(
        self, state: Float[np.ndarray, "T S"], actions: Float[np.ndarray, "d A"], step_s: float
    ) -> Float[np.ndarray, "T S"]: ...


@dataclass(frozen=True)
class Question:
    """To the policy: `observation` and `request` have as many rows as chunks are wanted. The rest is for the answer."""

    observation: Observation
    request: SamplingRequest
    epoch: int
    number: int
    asked_s: float
    begin: int  # number of the action with which the chunk begins, in actions consumed
    delay: int  # actions that were expected to pass
    plan: CommittedPrefix | None = None  # what is left of the old chunk, for choosing among candidates


def in_rows(window: Observation, rows: int, goal: Mapping[str, np.ndarray], words: str) -> Observation:
    """One window without a batch axis as `rows` equal rows, with the goal."""

    def batch(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.repeat(np.asarray(value)[None], rows, axis=0) for name, value in values.items()}

    both = batch({"state": window.state, "stamp_s": window.stamp_s})
    return Observation(both["state"], both["stamp_s"], batch(window.images), batch(goal), (words,) * rows if words else ())


def blank_window(contract: PolicyContract) -> Observation:
    """Zeros in the shapes of a window, every goal included: for warm-up calls."""
    interface, length = contract.interface, contract.horizons.observation
    size = sum(spec.vector.size for spec in interface.features.values())
    images = {name: np.zeros((length, *c.frame_shape), np.uint8) for name, c in interface.cameras.items()}
    goals = {
        name: np.zeros(spec.shape, np.uint8 if spec.kind in ("image", "video") else np.float32)
        for name, spec in interface.goals.items()
        if spec.kind != "instruction"
    }
    words = ("go",) if any(spec.kind == "instruction" for spec in interface.goals.values()) else ()
    return Observation(np.zeros((length, size), np.float32), np.zeros(length), images, goals, words)


def blank_prefix(contract: PolicyContract, config: ExecutorConfig, execution: int, delay: int) -> CommittedPrefix | None:
    """A prefix of zeros, where the mode will ask with one: for warm-up calls, which then go the whole way."""
    if config.mode not in PREFIXED:
        return None
    shape = (config.rows, contract.horizons.prediction, contract.interface.action.vector.size)
    zeros = ActionChunk(np.zeros(shape, np.float32), 1 / contract.interface.action.rate_hz, np.zeros(config.rows))
    return committed_prefix(zeros, 0, delay, execution, config.mask, PREFIXED[config.mode])


def rest_of_plan(
    config: ExecutorConfig, chunks: ChunkBuffer, position: int, execution: int, delay: int, step_s: float
) -> CommittedPrefix | None:
    """What the newest chunk has from the action numbered `position` on, where the mode continues it: `delay` of it will be
    executed before the answer comes."""
    newest, mode = chunks.newest, config.mode
    if newest is None or (mode not in PREFIXED and mode != "bid"):
        return None
    gone = position - newest.begin
    if not 0 <= gone < len(newest.actions):
        return None
    method = PREFIXED.get(mode, "guided")
    shape = "zeros" if method == "start" else config.mask
    delay = min(delay, len(newest.actions) - gone)
    previous = ActionChunk(np.repeat(newest.actions[None], config.rows, axis=0), step_s, np.zeros(config.rows))
    return committed_prefix(previous, gone, delay, max(execution, delay), shape, method)


def rolled(
    roll: RollsForward, window: Observation, chunks: ChunkBuffer, position: int, delay: int, step_s: float
) -> tuple[Observation, int]:
    """The window with the state to which the next `delay` actions lead, and how many of them the plan has."""
    coming = [chunks.at(position + k) for k in range(delay)]
    actions = [found[0] for found in coming if found is not None]
    if not actions:
        return window, 0
    state = roll(window.state, np.stack(actions), step_s)
    return replace(window, state=state.astype(np.float32)), len(actions)


def nearest_to_plan(actions: Float[np.ndarray, "N H A"], plan: CommittedPrefix | None) -> int:
    """Of several candidates the one nearest to the old plan: backward coherence of bidirectional decoding (Liu et al. 2024),
    as `kineflow.policies.search.rewards.BackwardCoherence`. Without a plan the first."""
    if plan is None or len(actions) != len(plan.actions) or len(actions) == 1:
        return 0
    gap = np.square(actions - np.where(plan.soft_mask[..., None] > 0, plan.actions, 0)).mean(axis=-1)
    return int((gap * plan.soft_mask).sum(axis=-1).argmin())
