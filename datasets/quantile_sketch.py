"""Quantiles that merge without the data: a few order statistics of each episode, kept while writing.

Of n sorted samples those at ranks round(g_j (n - 1)) are kept, g_j = (1 - cos(pi j / K)) / 2 for j = 0 .. K: K + 1 numbers per
dimension, dense at both ends, minimum and maximum among them, all samples when n <= 20. Sketches merge by lying side by side,
so the order and grouping of merges cannot matter, and nothing is lost by merging.

Samples between two kept ones are hidden; half of them count as the lower, half as the upper one. An estimate so misses its
rank by at most half of the hidden samples around it in every episode, and one kept sample with what it stands for:

    error <= sum_i h_i / 2 + max_i h_i / 2 + 1 samples,      h_i <= pi (n_i - 1) / (2 K) hidden samples in a row

which is 2.5 % of all samples for many episodes and 4.9 % for one (K = 32), and a fifth of that around the 1 % and 99 %
quantiles of episodes that are alike; `rank_error` gives the number. Found on the 206 episodes of PushT: 0.13 % at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

K = 32
_LEVELS = (1 - np.cos(np.pi * np.arange(K + 1) / K)) / 2


@dataclass(frozen=True)
class QuantileSketch:
    """Kept samples of one stream, one row per episode."""

    count: Int64[np.ndarray, "E"]
    points: Float[np.ndarray, "E P D"]  # P = K + 1, ascending

    def quantiles(self, levels: Sequence[float]) -> Float[np.ndarray, "Q D"]:
        """Estimates over all episodes; exact (linear between neighbours, as `np.quantile`) when no sample is hidden."""
        weights = np.concatenate([_weights(n) for n in self.count.tolist()])
        values = self.points.reshape(len(weights), -1)
        values, weights = values[weights > 0], weights[weights > 0]
        order = np.argsort(values, axis=0, kind="stable")
        ranked, weight = np.take_along_axis(values, order, 0), weights[order]
        centre = np.cumsum(weight, axis=0) - (weight + 1) / 2
        wanted = np.asarray(levels) * (self.count.sum() - 1)
        return np.stack([np.interp(wanted, centre[:, d], ranked[:, d]) for d in range(values.shape[1])], axis=1)

    def rank_error(self) -> float:
        """No estimate misses its rank by more samples than this."""
        hidden = np.array([max(int(np.diff(_ranks(n)).max()) - 1, 0) for n in self.count.tolist()])
        return float(hidden.sum() / 2 + hidden.max() / 2 + 1)


def sketch(values: Float[np.ndarray, "T D"]) -> QuantileSketch:
    """The sketch of one episode, T >= 1."""
    return QuantileSketch(
        np.array([len(values)], np.int64), np.sort(values.astype(np.float64), axis=0)[_ranks(len(values))][None]
    )


def side_by_side(parts: Sequence[QuantileSketch]) -> QuantileSketch:
    """The episodes of all parts: the merge."""
    return QuantileSketch(np.concatenate([p.count for p in parts]), np.concatenate([p.points for p in parts]))


def _ranks(n: int) -> np.ndarray:
    return np.rint(_LEVELS * (n - 1)).astype(np.int64)


def _weights(n: int) -> np.ndarray:
    """Samples that each point stands for, `n` in all; 0 for a repeated one."""
    steps = np.diff(_ranks(n))
    weights = np.concatenate([[1.0], (steps > 0).astype(np.float64)])
    hidden = np.maximum(steps - 1, 0) / 2
    weights[:-1] += hidden
    weights[1:] += hidden
    assert math.isclose(weights.sum(), n)
    return weights
