"""What the doctor says: one thing that is wrong or odd, where it is, how large, from where on it counts, and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kineflow.contracts import KineflowError

MOST_SPANS = 60  # kept of one finding


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`: data lost or not trustworthy) or odd (`warning`).

    `spans_s` are the places in the episode, from and to in seconds since its first sample of any stream; `step` is the index of
    the first sample concerned, in `stream`. `value` is what was measured, `threshold` from where on it is found.
    """

    severity: Literal["error", "warning"]
    where: str
    problem: str
    remedy: str
    kind: str = "integrity"
    episode: int | None = None
    stream: str = ""
    step: int | None = None
    spans_s: tuple[tuple[float, float], ...] = ()
    value: float | None = None
    threshold: float | None = None

    @property
    def weight(self) -> float:
        """How many times the threshold; the worst of many is shown first."""
        return self.value / self.threshold if self.value is not None and self.threshold else 0.0


@dataclass(frozen=True)
class DoctorConfig:
    """From where on something is a finding. Shares and tolerances are fractions of one."""

    min_samples: int = 20  # intervals or values that a judgement on rates, jitter or distributions needs
    rate_tolerance: float = 0.02  # measured against nominal rate, beyond three standard errors
    jitter: float = 0.25  # 99th percentile of |interval - period|, in periods
    dropped_from: float = 1.5  # an interval of so many periods has lost samples
    clock_jump_s: float = 1.0  # a stream's clock against those of the others
    edge_s: float = 0.5  # a stream that starts so much later or ends so much earlier than others (and two periods)
    duplicate_motion: float = 0.01  # of a value's 5 to 95 % range: so much moves while a picture stays the same
    idle_s: float = 5.0  # nothing changes for so long
    idle_motion: float = 0.005  # of a value's 5 to 95 % range: less is standing still
    outlier_z: float = 15.0  # robust standard deviations from the median
    outlier_steps: float = 8.0  # of the 95 % quantile of a dimension's changes: so far from the samples before and after
    outlier_share: float = 0.01  # of a dimension's samples: what is more often there is no outlier
    saturated_share: float = 0.05  # of the samples of a dimension at a limit or at its own extreme
    swap_margin: float = 0.3  # how much nearer pictures must be to the other camera's than to their own: 0 to 1
    expect_splits: tuple[str, ...] = ()  # names of splits that must have episodes

    def __post_init__(self) -> None:
        for name in ("rate_tolerance", "jitter", "clock_jump_s", "edge_s", "idle_s", "idle_motion", "outlier_z", "outlier_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise KineflowError(f"doctor: {name} is {getattr(self, name)}; it must be a finite number above 0")
        for name in ("outlier_share", "saturated_share", "swap_margin", "duplicate_motion"):
            if not 0 < getattr(self, name) < 1:
                raise KineflowError(f"doctor: {name} is {getattr(self, name)}; it is a share between 0 and 1")
        if self.min_samples < 4 or self.dropped_from <= 1:
            raise KineflowError(
                f"doctor: min_samples {self.min_samples} must be at least 4, dropped_from {self.dropped_from} above 1 period"
            )
