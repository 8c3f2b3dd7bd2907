"""At which rate each input arrives while the node runs: what was right at configure may get slower. No ROS here."""

from __future__ import annotations

from collections.abc import Mapping

SPAN_S = 2.0
FEWEST_SHARE = 0.5  # of the expected rate, as the check of wiring


class Rates:
    """Of the counts of received messages, over the last `SPAN_S`; `expected` Hz by input."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = dict(expected)
        self._before: tuple[dict[str, int], float] | None = None
        self.hz: dict[str, float] = {}

    def look(self, received: Mapping[str, int], now_s: float) -> None:
        """Call it now and then with the counts so far."""
        if self._before is not None and now_s - self._before[1] < SPAN_S:
            return
        if self._before is not None:
            before, then_s = self._before
            self.hz = {name: (received.get(name, 0) - before.get(name, 0)) / (now_s - then_s) for name in self._expected}
        self._before = dict(received), now_s

    @property
    def slow(self) -> str:
        """The first input that arrives at less than half of its rate, in words, or ""."""
        for name, hz in self.hz.items():
            if hz < FEWEST_SHARE * self._expected[name]:
                return f"{name} arrives at {hz:.1f} Hz, expected are {self._expected[name]:g}"
        return ""
