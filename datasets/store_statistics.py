"""Statistics of a store on request: all episodes, some or one split; quantiles, each step of the horizon, image channels.

A result carries its `StatisticsKey`. One that was kept in `<store>/statistics/` (derived data; remove it when you like) or in
a file of yours is taken only for the key that is asked for: other segments, episodes, splits or options give another key.

Step h of the horizon is the action h steps after the one at which a window stands. With `padded="excluded"` windows that reach
beyond their episode at step h do not count; with "clamped" they count with the episode's last action, as `WindowReader` gives it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import FeatureStatistics, to_plain
from kineflow.datasets.checksums import crc32c
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError, new_ulid, segments_hash
from kineflow.datasets.segment import ACTION, vector_streams
from kineflow.datasets.statistics import Moments, measure, totals
from kineflow.datasets.store_error import room_for

LEVELS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
FOLDER = "statistics"


@dataclass(frozen=True)
class StatisticsRequest:
    """What to measure. `episodes` or `split` choose (default: all episodes); `frames`: sampled per camera, 0 for none.

    `quantiles`: "exact" reads the samples into RAM; "sketch" reads only what each episode's writer kept, and its error is
    that of `datasets/quantile_sketch.py`.
    """

    split: str | None = None
    episodes: tuple[int, ...] | None = None
    horizon: int = 0
    padded: Literal["excluded", "clamped"] = "excluded"
    quantiles: Literal["exact", "sketch"] = "exact"
    frames: int = 0

    def __post_init__(self) -> None:
        if self.split is not None and self.episodes is not None:
            raise StoreError(f"statistics of split '{self.split}' and of {len(self.episodes)} episodes: give one of the two")
        if min(self.horizon, self.frames) < 0:
            raise StoreError(f"horizon {self.horizon} and frames {self.frames} must be at least 0")


@dataclass(frozen=True)
class StatisticsKey:
    """What statistics are of: the hash of the segment list, the split asked for, the hash of the episodes' digests, options."""

    segments: str
    split: str | None
    episodes: str
    horizon: int
    padded: str
    quantiles: str
    frames: int

    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Summary:
    """One stream, one value per dimension; `quantiles` maps "q01", "q10", "q50", "q90" and "q99"."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    quantiles: Mapping[str, tuple[float, ...]]

    def for_policy(self) -> FeatureStatistics:
        """The part that normalisers use."""
        q01, q99 = self.quantiles["q01"], self.quantiles["q99"]
        return FeatureStatistics(self.count, self.mean, self.std, self.min, self.max, q01, q99)


@dataclass(frozen=True)
class ChannelSummary:
    """Mean and standard deviation per channel over the pixels of `frames` frames: 0 to 255, or mm where depth was measured."""

    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class StoreStatistics:
    """`horizon[h]` is the action h steps after a window's own."""

    key: StatisticsKey
    streams: Mapping[str, Summary]
    horizon: tuple[Summary, ...] = ()
    cameras: Mapping[str, ChannelSummary] = field(default_factory=dict)


def store_statistics(store: EpisodeStore, request: StatisticsRequest | None = None) -> StoreStatistics:
    """Measure what `request` asks for.

    Raises:
        StoreError: an unknown split or episode, no episode, or no episode as long as the horizon.
    """
    request = request or StatisticsRequest()
    chosen = _chosen(store, request)
    streams = {name: _stream(store, name, chosen, request.quantiles) for name in vector_streams(store.interface)}
    actions = store.low_dim(ACTION) if request.horizon else np.zeros((0, 0), np.float32)
    horizon = tuple(_step(store, actions, chosen, step, request.padded) for step in range(request.horizon))
    cameras = {name: _channels(store, name, chosen, request.frames) for name in store.interface.cameras if request.frames}
    return StoreStatistics(statistics_key(store, request), streams, horizon, cameras)


def statistics_key(store: EpisodeStore, request: StatisticsRequest) -> StatisticsKey:
    """The key that statistics of `store` for `request` must have."""
    digests = sorted(row.tobytes() for row in store.digests()[_chosen(store, request)])
    episodes = hashlib.sha256(b"".join(digests)).hexdigest()
    options = (request.horizon, request.padded, request.quantiles, request.frames)
    return StatisticsKey(segments_hash(store.manifest.segments), request.split, episodes, *options)


def kept_statistics(store: EpisodeStore, request: StatisticsRequest | None = None) -> StoreStatistics:
    """As `store_statistics`, but taken from `<store>/statistics/` where they are there and of the same key; else kept there,
    if that can be written."""
    request = request or StatisticsRequest()
    key = statistics_key(store, request)
    file = store.path / FOLDER / f"{key.hash()}.json"
    try:
        return read_statistics(file, key)
    except StoreError:
        found = store_statistics(store, request)
        with suppress(StoreError):
            write_statistics(file, found)
        return found


def write_statistics(file: Path, statistics: StoreStatistics) -> None:
    """Write as JSON with a checksum, complete or not at all; StoreError where the disk is full or read-only."""
    data = to_plain(statistics)
    data["checksum"] = crc32c(_canonical(data))
    temporary = file.with_name(f".{file.name}.{new_ulid()}")
    with room_for("statistics", file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(_canonical(data) + b"\n")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def read_statistics(file: Path, key: StatisticsKey) -> StoreStatistics:
    """The statistics in `file`, which must be those of `key`.

    Raises:
        StoreError: no such file, damaged, or statistics of other segments, episodes or options.
    """
    try:
        data = json.loads(file.read_bytes())
        checksum = data.pop("checksum")
        found: StoreStatistics = from_plain(StoreStatistics, data, str(file))
    except (OSError, ValueError, LookupError, AttributeError, ConfigError) as error:
        raise StoreError(f"{file}: cannot be read as statistics ({error}); measure them again") from error
    if checksum != crc32c(_canonical(data)):
        raise StoreError(f"{file} is damaged (its checksum does not match its contents); remove it and measure again")
    if found.key != key:
        differ = [name for name, value in asdict(key).items() if getattr(found.key, name) != value]
        raise StoreError(f"{file}: statistics of other data or options ({', '.join(differ)} differ); measure them again")
    return found


def _chosen(store: EpisodeStore, request: StatisticsRequest) -> np.ndarray:
    if request.split is not None:
        return store.split(request.split)
    return store.distinct(range(store.num_episodes) if request.episodes is None else request.episodes)


def _stream(store: EpisodeStore, name: str, chosen: np.ndarray, quantiles: str) -> Summary:
    moments = store.moments(name)
    moments = Moments(moments.count[chosen], moments.rows[chosen])
    levels = list(LEVELS.values())
    if quantiles == "sketch":
        return _summary(moments, store.sketch(name, chosen).quantiles(levels))
    values = store.low_dim(name)[np.isin(np.repeat(np.arange(store.num_episodes), store.stream_lengths(name)), chosen)]
    return _summary(moments, np.quantile(values.astype(np.float64), levels, axis=0))


def _step(store: EpisodeStore, actions: np.ndarray, chosen: np.ndarray, step: int, padded: str) -> Summary:
    lengths = store.lengths
    first, length = (np.cumsum(lengths) - lengths)[chosen], lengths[chosen]
    now = [start + np.arange(step, size + step) for start, size in zip(first.tolist(), length.tolist(), strict=True)]
    last = (first + length - 1).tolist()
    if padded == "clamped":
        rows = np.concatenate([np.minimum(part, end) for part, end in zip(now, last, strict=True)])
    else:
        rows = np.concatenate([part[part <= end] for part, end in zip(now, last, strict=True)])
    if len(rows) == 0:
        raise StoreError(
            f"{store.path}: no action {step} steps after another: the longest of the chosen episodes has {length.max()} steps; "
            "ask for a shorter horizon"
        )
    values = actions[rows]
    return _summary(measure(values), np.quantile(values.astype(np.float64), list(LEVELS.values()), axis=0))


def _summary(moments: Moments, quantiles: np.ndarray) -> Summary:
    total = totals(moments)
    std = tuple(np.sqrt(np.array(total.m2) / total.count).tolist())
    named = {name: tuple(row) for name, row in zip(LEVELS, quantiles.tolist(), strict=True)}
    return Summary(total.count, total.mean, std, total.min, total.max, named)


def _channels(store: EpisodeStore, camera: str, chosen: np.ndarray, frames: int) -> ChannelSummary:
    """Over `frames` frames, evenly spaced over those of the chosen episodes, or over all where there are fewer."""
    lengths = store.stream_lengths(camera)[chosen]
    ends = np.cumsum(lengths)
    wanted = np.unique(np.linspace(0, ends[-1] - 1, min(frames, ends[-1])).round().astype(np.int64))
    place = np.searchsorted(ends, wanted, side="right")
    parts = []
    for number, frame in zip(place.tolist(), (wanted - (ends - lengths)[place]).tolist(), strict=True):
        values = store.frames(camera, int(chosen[number]), frame, frame + 1)
        pixels = values.reshape(-1, 3) if values.ndim == 4 else values[values > 0].reshape(-1, 1)
        parts += [measure(pixels)] if len(pixels) else []
    if not parts:
        return ChannelSummary(len(wanted), (0.0,), (0.0,))
    total = totals(Moments(np.concatenate([p.count for p in parts]), np.concatenate([p.rows for p in parts])))
    return ChannelSummary(len(wanted), total.mean, tuple(np.sqrt(np.array(total.m2) / total.count).tolist()))


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
