"""Statistics kept while writing and merged exactly afterwards.

Each episode stores its count n_i, mean m_i, M2_i = sum (x - m_i)^2, minimum and maximum per dimension, in float64. Any set of
episodes merges without the data and without mean(x^2) - mean(x)^2, whose digits cancel (Chan, Golub & LeVeque 1983):

    n = sum n_i      m = sum n_i m_i / n      M2 = sum M2_i + sum n_i (m_i - m)^2      std = sqrt(M2 / n)

Quantiles have no small exact sufficient statistic: `quantiles` takes the exact ones from the samples, which training holds in
RAM anyway; statistics that must not read the data estimate them from sketches (datasets/quantile_sketch.py). In a segment the
column `<stream>_moments` holds both: float64 [E, 4 + 33, D], the rows `ROWS`, then the kept samples in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from kineflow.contracts import FeatureStatistics

ROWS = ("mean", "m2", "min", "max")  # row order of the stored array


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of one stream, one row per episode (or one row in all after `merged`)."""

    count: Int64[np.ndarray, "E"]
    rows: Float[np.ndarray, "E 4 D"]  # float64; see ROWS

    def merged(self) -> Moments:
        """One row that describes all samples, as if they had been one episode."""
        n = self.count[:, None].astype(np.float64)
        mean_i, m2_i, low, high = self.rows.transpose(1, 0, 2)
        mean = (n * mean_i).sum(0) / n.sum()
        m2 = m2_i.sum(0) + (n * (mean_i - mean) ** 2).sum(0)
        return Moments(self.count.sum(keepdims=True), np.stack([mean, m2, low.min(0), high.max(0)])[None])


@dataclass(frozen=True)
class Totals:
    """Moments of one stream over all episodes, as the manifest holds them."""

    count: int
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


def measure(values: Float[np.ndarray, "T D"]) -> Moments:
    """Moments of one episode, T >= 1, accumulated in float64."""
    x = values.astype(np.float64)
    mean = x.mean(0)
    rows = np.stack([mean, ((x - mean) ** 2).sum(0), x.min(0), x.max(0)])
    return Moments(np.array([len(x)], np.int64), rows[None])


def join(parts: Sequence[Moments]) -> Moments:
    """The episodes of all parts, in order."""
    return Moments(np.concatenate([p.count for p in parts]), np.concatenate([p.rows for p in parts]))


def totals(moments: Moments) -> Totals:
    """All episodes of `moments` as one."""
    merged = moments.merged()
    mean, m2, low, high = (tuple(row) for row in merged.rows[0].tolist())
    return Totals(int(merged.count[0]), mean, m2, low, high)


def extend(old: Totals | None, added: Sequence[Moments]) -> Totals:
    """`old` and the `added` episodes together."""
    parts = [] if old is None else [Moments(np.array([old.count]), np.array([[old.mean, old.m2, old.min, old.max]]))]
    return totals(join([*parts, *added]))


def quantiles(values: Float[np.ndarray, "N D"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact 1 % and 99 % quantiles per dimension, linear between neighbouring samples."""
    q01, q99 = np.quantile(values.astype(np.float64), [0.01, 0.99], axis=0)
    return tuple(q01.tolist()), tuple(q99.tolist())


def feature_statistics(moments: Moments, values: Float[np.ndarray, "N D"]) -> FeatureStatistics:
    """What normalisers use, from the moments of the chosen episodes and (for the quantiles) their samples."""
    total = totals(moments)
    std = tuple(np.sqrt(np.array(total.m2) / total.count).tolist())
    q01, q99 = quantiles(values)
    return FeatureStatistics(count=total.count, mean=total.mean, std=std, min=total.min, max=total.max, q01=q01, q99=q99)
