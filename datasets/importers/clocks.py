"""Time stamps of somebody else's recordings: int64 ns, never reordered, never invented without a word."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import KineflowError


def seconds_to_ns(seconds: np.ndarray) -> Int64[np.ndarray, "T"]:
    return np.round(np.asarray(seconds, np.float64) * 1e9).astype(np.int64)


def nominal_ns(steps: int, rate_hz: float) -> Int64[np.ndarray, "T"]:
    """Stamps from 0 at a rate that somebody stated: for data recorded without clocks."""
    return np.round(np.arange(steps) * (1e9 / rate_hz)).astype(np.int64)


def nominal(rate_hz: float) -> str:
    return f"nominal_{rate_hz:g}hz"


def rate_of(stamp_ns: Int64[np.ndarray, "T"], default: float = 1.0) -> float:
    """Nominal rate in Hz to three digits: the inverse of the median step; `default` where there is none."""
    return float(f"{1e9 / float(np.median(np.diff(stamp_ns))):.3g}") if len(stamp_ns) > 1 else default


def increasing(stamp_ns: Int64[np.ndarray, "T"], what: str) -> Bool[np.ndarray, "T"]:
    """True for samples later than every one before them; the others are repeated or late, and to be dropped and counted.

    Raises:
        KineflowError: more than half would go, so the clock is not one clock (set back, or several senders).
    """
    keep = np.ones(len(stamp_ns), np.bool_)
    keep[1:] = stamp_ns[1:] > np.maximum.accumulate(stamp_ns)[:-1]
    if keep.sum() * 2 < len(keep):
        first = int(np.flatnonzero(~keep)[0])
        raise KineflowError(
            f"{what}: {len(keep) - keep.sum()} of {len(keep)} time stamps do not increase (first at sample {first}: "
            f"{stamp_ns[first]} ns after {stamp_ns[:first].max()} ns); "
            "the clock was set back or several senders share the topic: split the log there"
        )
    return keep
