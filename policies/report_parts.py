"""What a report says of one kind of evaluation: its scores, columns, charts and words, without how they are laid out.

describe_pusht.py       -+
                         +-> Description -> report.py -> one HTML page
describe_navigation.py  -+
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kineflow.policies.intervals import Estimate


@dataclass(frozen=True)
class Headline:
    """A card: a score with its 95 % interval. `end`: where the track of its bar, which begins at 0, ends."""

    title: str
    score: Estimate
    hint: str
    unit: Literal["", "%", "m"] = ""  # "%": a share, shown times 100
    end: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    label: str
    is_good: bool


@dataclass(frozen=True)
class Trace:
    """A value at each of an episode's T + 1 instants, in 0..`high`, drawn below its video."""

    values: Sequence[float]
    threshold: float
    label: str
    high: float = 1.0


@dataclass(frozen=True)
class EpisodeFacts:
    """One episode for people: `facts` in a few words, beside its video."""

    outcome: Outcome
    facts: str
    trace: Trace


@dataclass(frozen=True)
class Column:
    """Of the table of episodes: a value for each, in their order. `as_meter`: with a bar of its share of 1."""

    title: str
    values: Sequence[float]
    format: str = ".3f"
    as_meter: bool = False


@dataclass(frozen=True)
class Distribution:
    """Of a value over episodes: a histogram of 0..`high`, and how many episodes reached each of `levels`."""

    heading: str
    label: str
    values: Sequence[float]
    levels: tuple[float, ...]
    threshold: float
    threshold_label: str
    high: float = 1.0
    is_lower_better: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Description:
    """All of it. In words, `{ramp}` stands for the colours of a plan from near to far. `episodes` in the order of the result's.

    `command` runs it again. `videos_hint` is shown where no videos were asked for.
    """

    task: str
    starts: str
    headlines: tuple[Headline, ...]
    episodes: tuple[EpisodeFacts, ...]
    columns: tuple[Column, ...]
    distribution: Distribution
    videos: str
    fans: str
    outcomes: str
    seeds: str
    command: str
    videos_hint: str = "No videos were asked for: `--videos 3` shows the best, median and worst episode."
