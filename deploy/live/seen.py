"""What a person watching a robot is shown, as values; who shows it is a `Sink`.

simulation, replay --Feed--> Seen --> terminal, Foxglove, rerun          ROS diagnostics --diagnosed.py--> Seen --> terminal
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Seen:
    """One look at a robot under control.

    `at_s` grows over all episodes of a run. `ages_s`: since each stream was heard. `counts`: ticks by the governor's outcome
    (pass, clamp, reject, stop, estop). `asked`: questions, chunks and what went wrong with them. `wanted` `[A]`: the command
    before the governor, None where nothing is wanted; `commanded` `[A]`: after it; both in the units of `axes`, within `low`
    and `high`. `plan` `[N, A]`: from now on, one action every `step_s`. `pictures` by name, uint8 `[H, W, 3]` or uint16 depth
    `[H, W]` in mm: those that are new. `goal`: pictures of it, `words` of it: where they are new.
    """

    at_s: float
    robot: str
    state: str
    outcome: str
    why: str
    episode: int = 0
    ages_s: Mapping[str, float] = field(default_factory=dict)
    latency_p50_s: float = math.nan
    latency_p95_s: float = math.nan
    delay_actions: int = 0
    actions_left: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    wanted: np.ndarray | None = None
    commanded: np.ndarray | None = None
    plan: np.ndarray | None = None
    step_s: float = 0.0
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    goal: Mapping[str, np.ndarray] = field(default_factory=dict)
    words: str = ""


class Sink(Protocol):
    """Shows what it is given, as it comes; from one thread."""

    shows_pictures: bool

    def show(self, seen: Seen) -> None: ...

    def close(self) -> None: ...
