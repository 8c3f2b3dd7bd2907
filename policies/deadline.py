"""How many steps and samples fit before a deadline: a table measured on the machine that will run, and a choice from it.

NumPy only: robots choose without torch. Latencies belong to one machine under its real load; measure there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import KineflowError, Observation, Policy, SamplingRequest, to_json

Percentile = Literal["p50", "p99"]


@dataclass(frozen=True)
class Latency:
    """Wall time of one policy call with `steps` solver steps and `batch` rows."""

    steps: int
    batch: int
    p50_s: float
    p99_s: float
    calls: int  # measured; of fewer than 100, p99 is about the slowest


@dataclass(frozen=True)
class LatencyTable:
    """What was measured. A choice takes only what is in it: nothing is interpolated."""

    rows: tuple[Latency, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise KineflowError("a latency table needs at least one row; measure some steps and batches")
        for row in self.rows:
            if min(row.steps, row.batch, row.calls) < 1 or not 0 < row.p50_s <= row.p99_s < np.inf:
                raise KineflowError(f"{row} is no measurement: counts are at least 1 and 0 < p50_s <= p99_s")

    def choose(self, deadline_s: float, prefer: Literal["steps", "batch"] = "steps", percentile: Percentile = "p99") -> Latency:
        """The best row that meets the deadline: most steps, then most rows in the batch; or the other way round.

        Raises:
            KineflowError: nothing measured is fast enough; names the fastest.
        """
        meets = [row for row in self.rows if _seconds(row, percentile) <= deadline_s]
        if not meets:
            fastest = min(self.rows, key=lambda row: _seconds(row, percentile))
            raise KineflowError(
                f"nothing measured meets a deadline of {1e3 * deadline_s:.3g} ms: the fastest is steps {fastest.steps}, batch "
                f"{fastest.batch} with {percentile} {1e3 * _seconds(fastest, percentile):.3g} ms; relax the deadline, "
                "measure fewer steps, or take a smaller or distilled head"
            )
        return max(meets, key=lambda r: (r.steps, r.batch) if prefer == "steps" else (r.batch, r.steps))

    def save(self, file: Path) -> None:
        file.write_text(to_json(self))

    @classmethod
    def load(cls, file: Path) -> LatencyTable:
        try:
            table: LatencyTable = from_plain(cls, json.loads(file.read_text()), str(file))
        except (OSError, json.JSONDecodeError, ConfigError) as error:
            raise KineflowError(f"{file}: no latency table ({error}); measure again on this machine") from error
        return table


def measure(
    policy: Policy,
    observation: Observation,
    steps: Sequence[int],
    batches: Sequence[int],
    calls: int = 100,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyTable:
    """Time `policy` on copies of the one-row `observation`, for every pair of steps and batch.

    The pairs take turns, so that a busy minute of the machine falls on all of them. `clock` in seconds.
    """
    pairs = [(n, batch) for n in steps for batch in batches]
    taken: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for turn in range(-warmup, calls):
        for n, batch in pairs:
            rows, request = _repeated(observation, batch), SamplingRequest(np.arange(batch, dtype=np.int64), steps=n)
            started = clock()
            policy.predict(rows, request)
            if turn >= 0:
                taken[n, batch].append(clock() - started)
    return LatencyTable(tuple(_summary(*pair, np.array(seconds)) for pair, seconds in taken.items()))


def _summary(steps: int, batch: int, seconds: np.ndarray) -> Latency:
    # "higher" is a latency that was really seen: p99 of few calls is the slowest of them.
    p50, p99 = (float(np.percentile(seconds, q, method="higher")) for q in (50, 99))
    return Latency(steps, batch, p50, p99, len(seconds))


def _seconds(row: Latency, percentile: Percentile) -> float:
    return row.p99_s if percentile == "p99" else row.p50_s


def _repeated(observation: Observation, batch: int) -> Observation:
    if len(observation.state) != 1:
        raise KineflowError(f"latency is measured on copies of one observation, got {len(observation.state)} rows; pass one row")

    def copies(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, batch, axis=0)

    return replace(
        observation,
        state=copies(observation.state),
        stamp_s=copies(observation.stamp_s),
        images={name: copies(image) for name, image in observation.images.items()},
        goal={name: copies(goal) for name, goal in observation.goal.items()},
        instruction=observation.instruction * batch,
    )
