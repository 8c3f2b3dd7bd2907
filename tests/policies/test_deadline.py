"""Latency tables under a fake clock: what is measured, what is chosen, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import ActionChunk, KineflowError, Observation, SamplingRequest
from kineflow.policies.deadline import Latency, LatencyTable, measure

OBSERVATION = Observation(
    np.ones((1, 2, 3), np.float32),
    np.zeros((1, 2)),
    images={"top": np.zeros((1, 2, 4, 4, 3), np.uint8)},
    goal={"point": np.zeros((1, 2))},
    instruction=("push",),
)


@dataclass
class Clocked:
    """A policy whose every call takes 2 ms per step and 1 ms per row, on a clock that only it moves; call 7 is slow."""

    now: float = 0.0
    calls: list[tuple[int, int]] = field(default_factory=list)
    slow: int = -1

    @property
    def contract(self) -> None: ...

    def clock(self) -> float:
        return self.now

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        rows = len(request.seeds)
        assert request.steps is not None
        assert {len(observation.state), len(observation.stamp_s), len(observation.images["top"])} == {rows}
        assert {len(observation.goal["point"]), len(observation.instruction)} == {rows}
        self.now += 0.002 * request.steps + 0.001 * rows + (0.5 if len(self.calls) == self.slow else 0)
        self.calls.append((request.steps, rows))
        return ActionChunk(np.zeros((rows, 4, 2), np.float32), 0.1, observation.stamp_s[:, -1])


def table() -> LatencyTable:
    policy = Clocked()
    return measure(policy, OBSERVATION, [2, 5, 10], [1, 4, 16], calls=5, clock=policy.clock)


def test_every_pair_is_measured_on_the_given_clock() -> None:
    rows = {(r.steps, r.batch): r for r in table().rows}
    assert set(rows) == {(n, b) for n in (2, 5, 10) for b in (1, 4, 16)}
    assert rows[5, 4].p50_s == pytest.approx(0.014)
    assert rows[10, 16].p99_s == pytest.approx(0.036)
    assert rows[2, 1].calls == 5


def test_pairs_take_turns_after_the_warm_up() -> None:
    policy = Clocked()
    measure(policy, OBSERVATION, [1, 2], [1], calls=3, warmup=2, clock=policy.clock)
    assert policy.calls == [(1, 1), (2, 1)] * 5


def test_slow_calls_show_in_p99_unless_they_are_warm_up() -> None:
    for slow, expected in ((0, 0.003), (7, 0.503)):
        policy = Clocked(slow=slow)
        [row] = measure(policy, OBSERVATION, [1], [1], calls=9, warmup=3, clock=policy.clock).rows
        assert row.p50_s == pytest.approx(0.003)
        assert row.p99_s == pytest.approx(expected)


@pytest.mark.parametrize(
    ("deadline_ms", "prefer", "chosen"),
    [(36.5, "steps", (10, 16)), (30, "steps", (10, 4)), (30, "batch", (5, 16)), (12, "steps", (5, 1)), (5.5, "batch", (2, 1))],
)
def test_choice_meets_the_deadline_and_is_the_best_of_those(deadline_ms: float, prefer: str, chosen: tuple[int, int]) -> None:
    row = table().choose(deadline_ms / 1000, prefer)  # type: ignore[arg-type]
    assert (row.steps, row.batch) == chosen
    assert row.p99_s <= deadline_ms / 1000


def test_percentile_decides() -> None:
    jittery = LatencyTable((Latency(2, 1, 0.01, 0.02, 100), Latency(10, 1, 0.02, 0.09, 100)))
    assert jittery.choose(0.03).steps == 2
    assert jittery.choose(0.03, percentile="p50").steps == 10


def test_impossible_deadline_names_the_fastest() -> None:
    with pytest.raises(KineflowError, match=r"deadline of 4 ms: the fastest is steps 2, batch 1 with p99 5 ms"):
        table().choose(0.004)


def test_table_survives_its_file(tmp_path: Path) -> None:
    measured = table()
    measured.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == measured


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{"steps": 1}]}', '{"rows": []}'])
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(KineflowError):
        LatencyTable.load(tmp_path / "latency.json")
    with pytest.raises(KineflowError, match="measure again"):
        LatencyTable.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "row", [(0, 1, 0.1, 0.2, 1), (1, 1, 0.2, 0.1, 1), (1, 1, float("nan"), 0.1, 1), (1, 1, 0.1, float("inf"), 1)]
)
def test_rows_that_are_no_measurement_are_refused(row: tuple[int, int, float, float, int]) -> None:
    with pytest.raises(KineflowError, match="no measurement"):
        LatencyTable((Latency(*row),))


def test_one_row_is_repeated_not_a_batch() -> None:
    two = Observation(np.ones((2, 2, 3), np.float32), np.zeros((2, 2)))
    with pytest.raises(KineflowError, match="one observation, got 2 rows"):
        measure(Clocked(), two, [1], [1])


def test_robots_need_no_torch() -> None:
    code = "import sys, kineflow.policies.deadline, kineflow.policies.similarity_filter; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
