"""What a run of benchmarks gives: rows (kineflow/bench_row.py), shown as a table, JSON or Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from kineflow.bench_row import Row as Row


@dataclass(frozen=True)
class BenchReport:
    """All rows of one run."""

    rows: Sequence[Row]

    @property
    def ok(self) -> bool:
        """No row with a goal misses it."""
        return all(row.holds is not False for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def print(self) -> None:
        table = Table("name", "ours", "reference", "ratio", "goal", "holds", "n", "note")
        for row in self.rows:
            reference = "" if row.reference is None else f"{row.reference:.4g} {row.unit}"
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            holds = {True: "[green]yes", False: "[red]NO", None: ""}[row.holds]
            table.add_row(row.name, f"{row.value:.4g} {row.unit}", reference, ratio, row.goal or "", holds, str(row.n), row.note)
        Console().print(table)

    def write_markdown(self, path: Path) -> None:
        lines = [
            "# Benchmarks",
            "",
            "Written by `kineflow bench all`. Medians; each ratio is ours / reference, side by side in one run.",
            "",
        ]
        lines += ["| name | ours | reference | ratio | goal | holds | n | reference is |", "|---|---|---|---|---|---|---|---|"]
        for row in self.rows:
            reference = "" if row.reference is None else f"{row.reference:.4g} {row.unit}"
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            holds = {True: "yes", False: "**no**", None: ""}[row.holds]
            lines.append(
                f"| {row.name} | {row.value:.4g} {row.unit} | {reference} | {ratio} | {row.goal or ''} | {holds} | {row.n} "
                f"| {row.reference_version}. {row.note} |"
            )
        path.write_text("\n".join(lines) + "\n")


def alternate(ours: Callable[[], object], reference: Callable[[], object], n: int) -> tuple[float, float, float]:
    """Median seconds of each and the median of the pairwise ratios; taken in turn, so that a drifting machine hits both."""
    ours(), reference()
    mine, theirs = [], []
    for _ in range(n):
        mine.append(_seconds(ours))
        theirs.append(_seconds(reference))
    return median(mine), median(theirs), median(a / b for a, b in zip(mine, theirs))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
