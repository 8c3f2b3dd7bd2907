"""A dashboard for a terminal over ssh, and plain lines where the output is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kineflow.deploy.live.seen import Seen

LINE_S = 1.0  # between two plain lines; another outcome or state is said at once
OLD_S = 3.0  # of a report that comes once a second
_WIDTH = 21
_STYLE = {"pass": "green", "clamp": "yellow", "reject": "bold red", "stop": "bold yellow", "estop": "bold white on red"}


class Terminal:
    """A `Sink`. `clock`: monotonic seconds, for how old the last report is."""

    shows_pictures = False

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console or Console(), clock
        self._seen: Seen | None = None
        self._heard_s, self._said_s, self._said = clock(), -math.inf, ("", "", "")
        self._live: Live | None = None

    def show(self, seen: Seen) -> None:
        self._seen, self._heard_s = seen, self._clock()
        if self.console.is_terminal:
            self._draw()
            return
        moves = seen.outcome in ("pass", "clamp")  # these change often, and it is driven either way
        said = (seen.state, "moves" if moves else seen.outcome, "" if moves else seen.why.split(":")[0])
        if said != self._said or seen.at_s - self._said_s >= LINE_S:
            self._said, self._said_s = said, seen.at_s
            self.console.print(line(seen), soft_wrap=True, markup=False, highlight=False)

    def still(self) -> None:
        """Nothing came; say so."""
        silent_s = self._clock() - self._heard_s
        if self.console.is_terminal:
            self._draw()
        elif silent_s > OLD_S and self._said != ("silent", "", ""):
            self._said = ("silent", "", "")
            self.console.print(f"SILENT: nothing heard for {silent_s:.1f} s", markup=False, highlight=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=8, transient=False, get_renderable=self._page)
            self._live.start()

    def _page(self) -> Any:
        return page(self._seen, self._clock() - self._heard_s)


def line(seen: Seen) -> str:
    """Everything of one look in one line."""
    counts = " ".join(f"{name}={count}" for name, count in seen.counts.items())
    troubles = " ".join(f"{name.replace(' ', '_')}={count}" for name, count in seen.asked.items())
    parts = [
        f"{seen.at_s:8.2f}s {seen.robot} {seen.state} {seen.outcome}",
        f"({seen.why})" if seen.why else "",
        "age_ms " + " ".join(f"{name}={_ms(age)}" for name, age in seen.ages_s.items()),
        f"latency_ms p50={_ms(seen.latency_p50_s)} p95={_ms(seen.latency_p95_s)}",
        f"delay={seen.delay_actions} queue={seen.actions_left}",
        counts,
        troubles,
        "command " + " ".join(f"{name}={_number(value)}" for name, value in _pairs(seen, seen.commanded)),
    ]
    return "  ".join(part for part in parts if part)


def page(seen: Seen | None, silent_s: float) -> Any:
    """The dashboard as rich draws it."""
    if seen is None:
        return Text(f"waiting for the first report, {silent_s:.0f} s", "yellow")
    head = Text(f"{seen.robot}  {seen.state}  ")
    head.append(f" {seen.outcome} ", _STYLE.get(seen.outcome, "dim"))
    head.append(f" {seen.why}" if seen.why else "", "dim")
    if silent_s > OLD_S:
        head.append(f"\n SILENT: nothing heard for {silent_s:.1f} s; what is shown is old ", "bold white on red")
    numbers = Table.grid(padding=(0, 2))
    ages = "  ".join(f"{name} {_ms(age)}" for name, age in seen.ages_s.items())
    numbers.add_row("age of observations, ms", ages)
    numbers.add_row("latency, ms", f"p50 {_ms(seen.latency_p50_s)}  p95 {_ms(seen.latency_p95_s)}")
    numbers.add_row("delay forecast", f"{seen.delay_actions} actions")
    numbers.add_row("queue", f"{seen.actions_left} actions")
    numbers.add_row("governor, ticks", "  ".join(f"{name} {count}" for name, count in seen.counts.items()))
    numbers.add_row("policy", "  ".join(f"{name} {count}" for name, count in seen.asked.items()))
    bars = Table.grid(padding=(0, 2))
    bars.add_row("command", "wanted", "given", "")
    wanted = dict(_pairs(seen, seen.wanted))
    for place, (name, value) in enumerate(_pairs(seen, seen.commanded)):
        bars.add_row(name, _number(wanted.get(name, math.nan)), _number(value), bar(value, seen.low[place], seen.high[place]))
    return Group(head, numbers, Text(""), bars)


def bar(value: float, low: float, high: float) -> str:
    """`value` between `low` and `high`, from the place of zero: '····██┃·····'."""
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high) and high > low):
        return ""
    zero, here = (round((min(max(v, low), high) - low) / (high - low) * (_WIDTH - 1)) for v in (0.0, value))
    cells = ["█" if min(zero, here) <= i <= max(zero, here) else "·" for i in range(_WIDTH)]
    cells[zero] = "┃"
    return "".join(cells)


def _pairs(seen: Seen, values: np.ndarray | None) -> Iterator[tuple[str, float]]:
    return zip(seen.axes, () if values is None else np.asarray(values, np.float64).tolist())


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if math.isfinite(seconds) else "-"


def _number(value: float) -> str:
    return f"{value:+.3g}" if math.isfinite(value) else "-"
