"""Statistics as LeRobot keeps them, per episode and over all: minimum, maximum, mean, standard deviation, count, quantiles.

Frames are summarised by a histogram of their values per channel, from which all of these are exact; as LeRobot does, from a
sample of evenly spaced frames, thinned where they are large, and scaled to 0..1 unless they are depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LARGE, _THIN_TO = 300, 150  # pixels
_SMALL_SAMPLE, _LARGE_SAMPLE = 100, 10_000  # frames

Stats: TypeAlias = "dict[str, Any]"  # statistic -> nested lists as in stats.json


def vector_stats(values: np.ndarray) -> Stats:
    """Of the rows of `[T, D]` (or `[T]`: D = 1); quantiles are exact, linear between neighbours."""
    x = values.reshape(len(values), -1).astype(np.float64)
    rows: dict[str, np.ndarray] = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    found: Stats = {name: row.tolist() for name, row in rows.items()}
    found["count"] = [len(x)]
    levels = np.quantile(x, list(QUANTILES.values()), axis=0)
    return found | {name: level.tolist() for name, level in zip(QUANTILES, levels)}


class FrameCounts:
    """How often each value occurs in each channel of sampled frames; histograms of episodes add up."""

    def __init__(self, frames: np.ndarray) -> None:
        """Of one episode: uint8 [T, H, W, 3], or uint16 [T, H, W]."""
        sample = frames[sampled(len(frames))]
        sample = _thinned(sample.reshape(*sample.shape[:3], -1))
        levels = int(np.iinfo(frames.dtype).max) + 1
        channels = [sample[..., channel].reshape(-1) for channel in range(sample.shape[3])]
        self.count = len(sample)
        self.histogram: Int64[np.ndarray, "C L"] = np.stack([np.bincount(c, minlength=levels) for c in channels])

    def add(self, other: FrameCounts) -> None:
        self.count += other.count
        self.histogram = self.histogram + other.histogram

    def stats(self) -> Stats:
        """Each statistic as [C, 1, 1]; RGB in 0..1, depth in its own unit."""
        scale = 255.0 if self.histogram.shape[1] == 256 else 1.0
        columns = [self._channel(counts) for counts in self.histogram]
        found: Stats = {name: [[[column[name] / scale]] for column in columns] for name in columns[0]}
        return found | {"count": [self.count]}

    def _channel(self, counts: Int64[np.ndarray, "L"]) -> dict[str, float]:
        values, present = np.arange(len(counts), dtype=np.float64), np.flatnonzero(counts)
        total, cumulative = int(counts.sum()), np.cumsum(counts)
        mean = float((values * counts).sum() / total)
        std = float(np.sqrt((counts * (values - mean) ** 2).sum() / total))
        found = {"min": float(present[0]), "max": float(present[-1]), "mean": mean, "std": std}
        for name, level in QUANTILES.items():
            place = level * (total - 1)
            low, high = (np.searchsorted(cumulative, np.floor(place) + n, side="right") for n in (0, 1))
            high = min(int(high), int(present[-1]))
            found[name] = float(low + (place - np.floor(place)) * (high - low))
        return found


def sampled(frames: int) -> Int64[np.ndarray, "K"]:
    """Which frames of an episode are looked at: all of up to 100, then frames ** 0.75 of them, evenly spaced."""
    wanted = max(min(_SMALL_SAMPLE, frames), min(int(frames**0.75), _LARGE_SAMPLE))
    return np.round(np.linspace(0, frames - 1, wanted)).astype(np.int64)


def _thinned(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    if max(height, width) < _LARGE:
        return frames
    every = int(width / _THIN_TO) if width > height else int(height / _THIN_TO)
    return frames[:, ::every, ::every]


def merged(parts: Mapping[str, Sequence[np.ndarray | FrameCounts]]) -> dict[str, Stats]:
    """Statistics of each feature over all episodes, from its values or histograms an episode."""
    found = {}
    for key, episodes in parts.items():
        if isinstance(episodes[0], FrameCounts):
            total = FrameCounts.__new__(FrameCounts)
            total.count, total.histogram = 0, np.zeros_like(episodes[0].histogram)
            for counts in episodes:
                assert isinstance(counts, FrameCounts)
                total.add(counts)
            found[key] = total.stats()
        else:
            found[key] = vector_stats(np.concatenate([np.asarray(e) for e in episodes]))
    return found
