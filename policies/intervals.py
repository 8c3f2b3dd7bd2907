"""Numbers with their uncertainty: Wilson for rates, percentile bootstrap for means, percentiles for latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from kineflow.contracts import KineflowError

CONFIDENCE = 0.95
_RESAMPLED_VALUES_AT_ONCE = 4_000_000  # 32 MB of indices


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % confidence interval, from n observations."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Percentiles:
    """Distribution of a duration in milliseconds over n measurements."""

    p50: float
    p99: float
    max: float
    n: int


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """Rate of `successes` among `n` with Wilson's score interval (Wilson 1927, eq. 3); honest at 0 and at n.

    Raises:
        KineflowError: n < 1 or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise KineflowError(f"a success rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    # The formula touches 0 and 1 exactly in theory; keep rounding from crossing the rate itself.
    return Estimate(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate), n)


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, "n"], seed: int, confidence: float = CONFIDENCE, resamples: int = 10_000
) -> Estimate:
    """Mean of `values` with the percentile bootstrap interval (Efron 1979); the same seed gives the same interval.

    Raises:
        KineflowError: no values, or a value that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise KineflowError(f"a bootstrap interval needs one finite value or more, got {sample.size}: {sample[:5]}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLED_VALUES_AT_ONCE // sample.size)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([sample[generator.integers(sample.size, size=(k, sample.size))].mean(axis=1) for k in sizes])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(sample.mean()), float(low), float(high), int(sample.size))


def latency_percentiles(seconds: Sequence[float]) -> Percentiles:
    """p50, p99 and maximum in milliseconds; p99 is a measured value ("higher"), never interpolated below a slow call."""
    if not seconds:
        raise KineflowError("latency percentiles need at least one measurement")
    ms = np.asarray(seconds, dtype=np.float64) * 1e3
    p99 = np.quantile(ms, 0.99, method="higher")
    return Percentiles(float(np.median(ms)), float(p99), float(ms.max()), int(ms.size))
