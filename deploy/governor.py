"""The safety governor: it has the last word on every command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float

Outcome = Literal["pass", "clamp", "reject", "stop", "estop"]


@dataclass(frozen=True)
class Intent:
    """What the executor wants now: one command `[A]` in physical units of the profile's axes, or none and why.

    `observed_s` is when the newest observation was received (monotonic clock): the governor's watchdog. Its default is
    "never", so that an executor that forgets it does not move.
    """

    action: Float[np.ndarray, "A"] | None
    reason: str = ""
    observed_s: float = -math.inf
    chunk_epoch: int = 0
    chunk_index: int = 0


@dataclass(frozen=True)
class Command:
    """What is published: `values` `[A]` always keep the limits.

    `outcome`: the intent itself ("pass"), a limited one ("clamp"), a ramp to zero or a hold because the intent cannot be
    used ("reject") or is missing or must not be followed ("stop"), or the immediate zero of the e-stop ("estop").
    `braking`: this tick brakes at the limit of deceleration at once; only here, in the tick after, and in an e-stop is jerk
    not bounded. `raw` is the intent's action.
    """

    values: Float[np.ndarray, "A"]
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    raw: Float[np.ndarray, "A"] | None = None
    braking: bool = False
