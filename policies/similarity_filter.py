"""Skips calls while nothing changes: StreamDiffusion's stochastic similarity filter, made deterministic (Kodaira et al. 2023).

A row is a stream: row b of every call is the same robot. Each is compared with the observation that its standing chunk
answers, not with the previous one: slow drift adds up and is noticed. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, KineflowError, Observation, Policy, PolicyContract, SamplingRequest


@dataclass
class SimilarityFilter:
    """A Policy with a memory: call `reset` before a new episode, and between streams.

    The standing chunk is given again, with the new stamp, while state and images both stay within their thresholds, at most
    `max_skips` times in a row. What is asked beside the observation (steps, scale, goal, prefix) must stay the same too.
    """

    policy: Policy
    state_threshold: float = 0.02  # largest change of any dimension, in standard deviations of the training data
    image_threshold: float = 0.02  # root mean square change of any camera, of 0 ... 1
    max_skips: int = 10
    calls: int = 0  # rows asked of the policy so far
    _standing: list[_Answer | None] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.max_skips < 0 or min(self.state_threshold, self.image_threshold) < 0:
            raise KineflowError(f"thresholds and max_skips of a similarity filter must be at least 0, got {self}")
        statistics = [self.policy.contract.statistics[name] for name in self.policy.contract.interface.features]
        std = np.concatenate([np.asarray(s.std, dtype=np.float64) for s in statistics]) if statistics else np.zeros(0)
        self._scale = np.where(std > 0, std, 1.0)

    @property
    def contract(self) -> PolicyContract:
        return self.policy.contract

    def reset(self) -> None:
        """Forget all streams."""
        self._standing = []

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """As the policy's, but rows whose scene stands still repeat their chunk; only the others are asked."""
        rows = len(request.seeds)
        if self._standing and len(self._standing) != rows:
            raise ContractError(f"the filter follows {len(self._standing)} streams, got {rows} rows; reset() between")
        if len(observation.state) != rows or not np.isfinite(observation.state).all():
            return self.policy.predict(observation, request)  # which refuses it with the reason
        standing = self._standing or [None] * rows
        singles = [_row(observation, request, b) for b in range(rows)]
        ask = [b for b in range(rows) if not self._is_similar(standing[b], *singles[b])]
        if ask:
            chunk = self.policy.predict(*_rows(observation, request, np.array(ask)))
            for place, b in enumerate(ask):
                stop = None if chunk.stop_probability is None else chunk.stop_probability[place]
                standing[b] = _Answer(*singles[b], chunk.actions[place], chunk.step_s, stop)
        self.calls += len(ask)
        answers = [a for a in standing if a is not None]
        for b in set(range(rows)) - set(ask):
            answers[b].skips += 1
        self._standing = standing
        stops = [a.stop for a in answers if a.stop is not None]
        return ActionChunk(
            np.stack([a.actions for a in answers]),
            answers[0].step_s,
            np.asarray(observation.stamp_s)[:, -1],
            np.array(stops) if len(stops) == rows else None,
        )

    def _is_similar(self, before: _Answer | None, now: Observation, request: SamplingRequest) -> bool:
        if before is None or before.skips >= self.max_skips:
            return False
        then = before.observation
        same = (then.instruction, before.request.steps, before.request.guidance_scale) == (
            now.instruction,
            request.steps,
            request.guidance_scale,
        )
        # A prefix is different at every call, so with one there is nothing to repeat.
        if not same or request.prefix is not None or not _equal(then.goal, now.goal) or then.images.keys() != now.images.keys():
            return False
        moved = np.abs(now.state.astype(np.float64) - then.state) / self._scale
        flickered = [_root_mean_square(now.images[name], then.images[name]) for name in now.images]
        return moved.max(initial=0) <= self.state_threshold and max(flickered, default=0) <= self.image_threshold


@dataclass
class _Answer:
    """The chunk in force, what it answers, and how often it was repeated."""

    observation: Observation
    request: SamplingRequest
    actions: np.ndarray
    step_s: float
    stop: np.ndarray | None
    skips: int = 0


def _rows(observation: Observation, request: SamplingRequest, index: np.ndarray) -> tuple[Observation, SamplingRequest]:
    prefix = request.prefix
    if prefix is not None:
        prefix = replace(prefix, actions=prefix.actions[index], soft_mask=prefix.soft_mask[index])
    chosen = replace(
        observation,
        state=observation.state[index],
        stamp_s=observation.stamp_s[index],
        images={name: image[index] for name, image in observation.images.items()},
        goal={name: goal[index] for name, goal in observation.goal.items()},
        instruction=tuple(observation.instruction[b] for b in index) if observation.instruction else (),
    )
    return chosen, replace(request, seeds=request.seeds[index], prefix=prefix)


def _row(observation: Observation, request: SamplingRequest, b: int) -> tuple[Observation, SamplingRequest]:
    chosen, asked = _rows(observation, request, np.array([b]))  # indexing copies: callers may reuse their arrays
    return chosen, asked


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _root_mean_square(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2))) / 255
