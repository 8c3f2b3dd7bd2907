"""Merged statistics against numpy on all samples at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from kineflow.datasets.statistics import extend, feature_statistics, join, measure, totals


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 3.0, -1e4, 1e6]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_merging_equals_numpy_on_everything(lengths: list[int], offset: float, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(offset + scale * rng.standard_normal((n, 3))).astype(np.float32) for n in lengths]
    samples = np.concatenate(parts)
    found = feature_statistics(join([measure(p) for p in parts]), samples)
    exact = samples.astype(np.float64)
    assert found.count == len(samples)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.std, exact.std(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.min, exact.min(0))
    np.testing.assert_array_equal(found.max, exact.max(0))
    np.testing.assert_allclose([found.q01, found.q99], np.quantile(exact, [0.01, 0.99], axis=0), rtol=1e-15)


def test_a_large_offset_does_not_cancel() -> None:
    # mean(x^2) - mean(x)^2 loses all digits here: x^2 is 1e12 and float64 has 16 digits, the variance is 1e-2 ** 2.
    parts = [np.array([[1e6 - 0.0625], [1e6 + 0.0625]], np.float32) for _ in range(50)]
    found = feature_statistics(join([measure(p) for p in parts]), np.concatenate(parts))
    assert found.std == (0.0625,)
    assert found.mean == (1e6,)


def test_a_constant_stream_has_exactly_zero_deviation() -> None:
    parts = [np.full((n, 1), 0.1, np.float32) for n in (1, 3, 7)]
    assert feature_statistics(join([measure(p) for p in parts]), np.concatenate(parts)).std == (0.0,)


def test_extending_equals_starting_over() -> None:
    parts = [measure(np.random.default_rng(i).standard_normal((i + 1, 2))) for i in range(6)]
    grown = extend(extend(None, parts[:2]), parts[2:])
    at_once = totals(join(parts))
    np.testing.assert_allclose(grown.m2, at_once.m2, rtol=1e-12)
    assert (grown.count, grown.min, grown.max) == (at_once.count, at_once.min, at_once.max)
