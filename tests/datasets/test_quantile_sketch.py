"""Merged sketches against exact quantiles: within the stated error, whatever the order and grouping of the merges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.datasets.quantile_sketch import K, QuantileSketch, side_by_side, sketch

LEVELS = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]
LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=8)


def drawn(lengths: list[int], seed: int, shape: str) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if shape == "ties":
        return [rng.integers(0, 4, (n, 2)).astype(np.float32) for n in lengths]
    if shape == "apart":  # each episode in a range of its own: all hidden samples of one quantile are in one episode
        return [(10 * i + rng.random((n, 2))).astype(np.float32) for i, n in enumerate(lengths)]
    if shape == "heavy":
        return [rng.standard_cauchy((n, 2)).astype(np.float32) for n in lengths]
    return [np.cumsum(rng.standard_normal((n, 2)), 0).astype(np.float32) for n in lengths]


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**16), shape=st.sampled_from(["ties", "apart", "heavy", "walk"]))
def test_the_rank_error_is_as_stated(lengths: list[int], seed: int, shape: str) -> None:
    parts = drawn(lengths, seed, shape)
    samples = np.sort(np.concatenate(parts).astype(np.float64), axis=0)
    merged = side_by_side([sketch(part) for part in parts])
    found, error = merged.quantiles(LEVELS), merged.rank_error()
    longest = [np.pi * (n - 1) / (2 * K) for n in lengths]
    assert error <= sum(longest) / 2 + max(longest) / 2 + 1
    for level, row in zip(LEVELS, found, strict=True):
        for d in range(2):
            below = np.searchsorted(samples[:, d], row[d], "left")
            up_to = np.searchsorted(samples[:, d], row[d], "right")
            assert below - error <= level * (len(samples) - 1) <= up_to + error
    np.testing.assert_array_equal(found[[0, -1]], samples[[0, -1]])


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_short_episodes_are_exact(lengths: list[int], seed: int) -> None:
    parts = drawn(lengths, seed, "walk")
    merged = side_by_side([sketch(part) for part in parts])
    expected = np.quantile(np.concatenate(parts).astype(np.float64), LEVELS, axis=0)
    np.testing.assert_allclose(merged.quantiles(LEVELS), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=3, max_size=6), seed=st.integers(0, 2**16), data=st.data())
def test_merging_is_associative_and_commutative(lengths: list[int], seed: int, data: st.DataObject) -> None:
    sketches = [sketch(part) for part in drawn(lengths, seed, "heavy")]
    cut = data.draw(st.integers(1, len(lengths) - 1))
    shuffled: list[QuantileSketch] = data.draw(st.permutations(sketches))
    one = side_by_side(sketches).quantiles(LEVELS)
    grouped = side_by_side([side_by_side(sketches[:cut]), side_by_side(sketches[cut:])]).quantiles(LEVELS)
    np.testing.assert_array_equal(grouped, one)
    np.testing.assert_allclose(side_by_side(shuffled).quantiles(LEVELS), one, rtol=1e-9)


def test_alike_episodes_have_accurate_tails() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((300, 1)).astype(np.float32) for _ in range(50)]
    found = side_by_side([sketch(part) for part in parts]).quantiles([0.01, 0.5, 0.99])[:, 0]
    samples = np.sort(np.concatenate(parts)[:, 0])
    ranks = np.searchsorted(samples, found) / len(samples)
    assert ranks == pytest.approx([0.01, 0.5, 0.99], abs=4e-3)


def test_neither_tail_is_favoured() -> None:
    # What is estimated of the mirrored samples is the mirror image: hidden samples count half for each neighbour.
    parts = drawn([301, 121, 51], 1, "heavy")  # odd: the middle rank is one sample
    found = side_by_side([sketch(part) for part in parts]).quantiles(LEVELS)
    mirrored = side_by_side([sketch(-part) for part in parts]).quantiles([1 - level for level in LEVELS])
    np.testing.assert_allclose(mirrored, -found, rtol=1e-6)
