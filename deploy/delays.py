"""How many actions pass while the policy thinks, and how many solver steps it may take: forecasts from what was measured.

What breaks a robot is the slowest answer, not the average one: the forecast is the worst of the last few. With a latency table of
this machine (policies/deadline.py), an answer that took k solver steps tells about n of them too: t_n = t_k p99(n) / p99(k).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.policies.deadline import LatencyTable


@dataclass(frozen=True)
class Pace:
    """How to ask: solver `steps` (None: as the policy is configured) and the `delay` to expect, in actions."""

    steps: int | None
    delay: int
    is_too_slow: bool = False  # even so the chunk would come too late


class DelayForecast:
    """Answers measured in seconds, forecast in actions of `step_s`. Warm-up calls are not recorded: they are never asked here."""

    def __init__(
        self, step_s: float, window: int = 10, initial: int = 1, table: LatencyTable | None = None, batch: int = 1
    ) -> None:
        """`initial`: actions that are expected to pass before anything was measured, where no table says it.

        Raises:
            KineflowError: a window below 1, or a table without rows of that batch.
        """
        if window < 1 or initial < 0 or step_s <= 0:
            raise KineflowError(
                f"delays: window {window} must be at least 1, initial {initial} at least 0, step {step_s:g} s above"
            )
        self._step_s, self._initial = step_s, initial
        self._recent: deque[tuple[float, int | None]] = deque(maxlen=window)
        self._all: deque[float] = deque(maxlen=1000)
        rows = [] if table is None else [row for row in table.rows if row.batch == batch]
        if table is not None and not rows:
            have = sorted({row.batch for row in table.rows})
            raise KineflowError(f"the latency table has batches {have}, this executor asks {batch} rows; measure that batch")
        self._p99 = {row.steps: row.p99_s for row in rows}

    @property
    def known_steps(self) -> tuple[int, ...]:
        """Those of the table."""
        return tuple(sorted(self._p99))

    def record(self, seconds: float, steps: int | None) -> None:
        """An answer that was asked with `steps` came after `seconds`."""
        self._recent.append((seconds, steps))
        self._all.append(seconds)

    def actions(self, seconds: float) -> int:
        """Actions that begin within `seconds`, the first at once."""
        return math.ceil(seconds / self._step_s - 1e-9)

    def choose(self, longest: int) -> Pace:
        """The most solver steps whose chunk comes after at most `longest` actions; without a table, as the policy is set."""
        if not self._p99:
            delay = self._delay(None)
            return Pace(None, delay, delay > longest)
        for steps in sorted(self._p99, reverse=True):
            if (delay := self._delay(steps)) <= longest:
                return Pace(steps, delay)
        fewest = min(self._p99)
        return Pace(fewest, self._delay(fewest), is_too_slow=True)

    def _delay(self, steps: int | None) -> int:
        if steps is None:
            worst = max((seconds for seconds, _ in self._recent), default=None)
            return self._initial if worst is None else self.actions(worst)
        known = self._p99[steps]
        return self.actions(max([s * known / self._p99.get(k or steps, known) for s, k in self._recent], default=known))

    def percentiles_s(self) -> tuple[float, float]:
        """p50 and p95 of the last thousand answers; zeros before the first."""
        if not self._all:
            return 0.0, 0.0
        p50, p95 = np.percentile(np.array(self._all), [50, 95])
        return float(p50), float(p95)
