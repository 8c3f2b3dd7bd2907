"""Intervals against published values, against an independent implementation, and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.policies.intervals import bootstrap_interval, latency_percentiles, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_values(successes, n, low, high):
    estimate = wilson_interval(successes, n)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)
    assert (estimate.value, estimate.n) == (successes / n, n)


@settings(deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_agrees_with_scipy(counts, confidence):
    successes, n = counts
    ours = wilson_interval(successes, n, confidence)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_is_symmetric_and_never_certain():
    all_good, all_bad = wilson_interval(50, 50), wilson_interval(0, 50)
    assert all_good.low == pytest.approx(1 - all_bad.high)
    assert all_good.high == 1.0
    assert all_good.low < 0.95


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(KineflowError, match="0 <= successes <= n"):
        wilson_interval(successes, n)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    estimate = bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 2000**0.5
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)


def test_bootstrap_agrees_with_scipy_on_skewed_values():
    values = np.random.default_rng(1).exponential(1.0, 60)
    ours = bootstrap_interval(values, seed=2, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_bootstrap_is_a_function_of_its_seed_and_not_of_memory_blocks(monkeypatch):
    values = np.random.default_rng(0).random(50)
    first = bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) == first
    assert bootstrap_interval(values, seed=5) != first
    monkeypatch.setattr("kineflow.policies.intervals._RESAMPLED_VALUES_AT_ONCE", 50 * 137)
    assert bootstrap_interval(values, seed=4) == first
    assert bootstrap_interval([0.25] * 7, seed=0) == type(first)(0.25, 0.25, 0.25, 7)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_bootstrap_refuses_nothing_and_nan(values):
    with pytest.raises(KineflowError, match="one finite value or more"):
        bootstrap_interval(values, seed=0)


def test_percentiles_are_measured_milliseconds():
    p = latency_percentiles([0.001 * (i + 1) for i in range(200)])
    assert (p.p50, p.p99, p.max, p.n) == pytest.approx((100.5, 199.0, 200.0, 200))
    # One slow call in ten: the interpolated p99 would be 91 ms, a time that nobody waited.
    assert latency_percentiles([0.001] * 9 + [0.1]).p99 == pytest.approx(100.0)
    with pytest.raises(KineflowError, match="at least one"):
        latency_percentiles([])
