"""The similarity filter: what is skipped, that drift and caps end it, and that streams do not share a memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kineflow.contracts import (
    ActionChunk,
    CommittedPrefix,
    ContractError,
    FeatureStatistics,
    KineflowError,
    Observation,
    Policy,
    SamplingRequest,
)
from kineflow.policies.similarity_filter import SimilarityFilter


def statistics(*std: float) -> FeatureStatistics:
    return FeatureStatistics(9, *([(0.0,) * len(std)] + [std] + [(0.0,) * len(std)] * 4))


@dataclass
class Counter:
    """A policy whose chunks carry the number of the call, and the state that it saw."""

    calls: list[int] = field(default_factory=list)
    contract: Any = field(
        default_factory=lambda: SimpleNamespace(
            interface=SimpleNamespace(features={"state": None}), statistics={"state": statistics(1.0, 10.0)}
        )
    )

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        if not np.isfinite(observation.state).all():
            raise ContractError("not finite")
        self.calls.append(len(request.seeds))
        seen = observation.state[:, -1, 0]
        actions = np.stack([np.full(len(seen), len(self.calls)), seen], axis=-1)[:, None]
        return ActionChunk(actions.astype(np.float32), 0.1, observation.stamp_s[:, -1])


def asked(*first: float, second: float = 0.0, stamp: float = 0.0, **more: Any) -> tuple[Observation, SamplingRequest]:
    state = np.array([[[x, second]] for x in first], np.float32)
    rows = len(first)
    return Observation(state, np.full((rows, 1), stamp), **more), SamplingRequest(np.arange(rows))


def test_a_still_scene_repeats_the_chunk_with_the_new_stamp() -> None:
    policy = Counter()
    filtered = SimilarityFilter(policy, state_threshold=0.1)
    first = filtered.predict(*asked(1.0, stamp=3.0))
    second = filtered.predict(*asked(1.05, stamp=4.0))
    assert np.array_equal(first.actions, second.actions)
    assert (first.stamp_s.tolist(), second.stamp_s.tolist()) == ([3.0], [4.0])
    assert policy.calls == [1]
    assert isinstance(filtered, Policy)


def test_thresholds_count_in_standard_deviations() -> None:
    filtered = SimilarityFilter(policy := Counter(), state_threshold=0.1)
    filtered.predict(*asked(0.0, second=0.0))
    filtered.predict(*asked(0.0, second=0.9))  # 0.09 of std 10
    assert len(policy.calls) == 1
    filtered.predict(*asked(0.0, second=1.1))
    assert len(policy.calls) == 2


def test_slow_drift_is_noticed() -> None:
    """Against the observation that the chunk answers; against the previous one (0.06 < 0.1 each) it never would be."""
    filtered = SimilarityFilter(policy := Counter(), state_threshold=0.1, max_skips=100)
    for k in range(10):
        chunk = filtered.predict(*asked(0.06 * k))
        assert abs(chunk.actions[0, 0, 1] - 0.06 * k) <= 0.1
    assert len(policy.calls) == 5


@pytest.mark.parametrize("cap", [0, 1, 3])
def test_hard_cap(cap: int) -> None:
    filtered = SimilarityFilter(policy := Counter(), max_skips=cap)
    numbers = [int(filtered.predict(*asked(1.0)).actions[0, 0, 0]) for _ in range(9)]
    assert numbers == [1 + k // (cap + 1) for k in range(9)]
    assert filtered.calls == len(policy.calls)


def test_streams_are_on_their_own() -> None:
    filtered = SimilarityFilter(policy := Counter(), state_threshold=0.1)
    filtered.predict(*asked(0.0, 5.0, 9.0))
    chunk = filtered.predict(*asked(0.0, 7.0, 9.0))
    assert policy.calls == [3, 1]
    assert chunk.actions[:, 0].tolist() == [[1, 0], [2, 7], [1, 9]]
    with pytest.raises(ContractError, match="3 streams, got 1 rows"):
        filtered.predict(*asked(0.0))
    filtered.reset()
    assert filtered.predict(*asked(0.0)).actions[0, 0, 0] == 3


def test_images_count() -> None:
    image = np.full((1, 1, 4, 4, 3), 100, np.uint8)
    filtered = SimilarityFilter(policy := Counter(), image_threshold=0.02)
    filtered.predict(*asked(0.0, images={"top": image}))
    filtered.predict(*asked(0.0, images={"top": image + 4}))
    assert len(policy.calls) == 1
    filtered.predict(*asked(0.0, images={"top": image - 6}))
    assert len(policy.calls) == 2
    image[:] = 0  # a caller that reuses its buffer does not change what is remembered
    filtered.predict(*asked(0.0, images={"top": np.full((1, 1, 4, 4, 3), 94, np.uint8)}))
    assert len(policy.calls) == 2


def test_another_question_is_another_answer() -> None:
    base, request = asked(0.0)
    for other in (
        (replace(base, goal={"point": np.ones((1, 2))}), request),
        (replace(base, instruction=("left",)), request),
        (base, replace(request, steps=3)),
        (base, replace(request, guidance_scale=2.0)),
        (base, replace(request, prefix=CommittedPrefix(np.zeros((1, 4, 2)), np.zeros((1, 4)), 1))),
    ):
        filtered = SimilarityFilter(policy := Counter())
        filtered.predict(base, request)
        filtered.predict(*other)
        assert len(policy.calls) == 2, other


def test_broken_observations_are_refused_not_skipped() -> None:
    filtered = SimilarityFilter(Counter())
    filtered.predict(*asked(0.0))
    with pytest.raises(ContractError, match="not finite"):
        filtered.predict(*asked(float("nan")))
    assert filtered.predict(*asked(0.0)).actions[0, 0, 0] == 1


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"max_skips": -1}, {"state_threshold": -0.1}, {"image_threshold": -1.0}):
        with pytest.raises(KineflowError, match="at least 0"):
            SimilarityFilter(Counter(), **wrong)
