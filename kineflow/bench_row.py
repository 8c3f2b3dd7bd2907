"""One benchmark row: ours, its reference, and whether the goal holds. The format is the same for every `kineflow bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """`value` is a median over `n` measurements; `ratio` is value / reference, measured side by side in this run."""

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    reference: float | None
    reference_version: str
    ratio: float | None
    goal: str | None
    holds: bool | None
    n: int
    note: str
