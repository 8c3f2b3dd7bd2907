"""Where the frames of training windows come from; the same pixels from each place, at another price.

ram     decoded once when the reader opens, then a copy for each window
disk    read, verified and decoded for each window (datasets/frames.py); the whole data set needs no memory
cache   like disk, and decoded frames stay in a scratch file with a byte budget (datasets/decoded_cache.py)
pool    whole episodes, decoded, a few at a time in RAM; for the order of `PoolSampler` (datasets/shuffle.py)
auto    ram where all frames fit into half of the memory that is free now; else cache where frames are JPEG, else disk
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import KineflowError
from kineflow.datasets.decoded_cache import DecodedCache, cache_key, default_cache_folder
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import FeatureReader
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.resample import Resample, rows_for_images
from kineflow.datasets.shuffle import DecodedEpisodes
from kineflow.datasets.window_streams import ACTION, has_own_clock, slices

RAM_SHARE = 0.5  # of the free memory that decoded frames may take under `auto`
_GIGABYTE = 10**9


@dataclass(frozen=True)
class Images:
    """Where windows take their frames from: see the module."""

    where: Literal["auto", "ram", "disk", "cache", "pool"] = "ram"
    cache: Path | None = None  # scratch folder; None: the user's cache folder (XDG_CACHE_HOME, or ~/.cache)
    cache_gb: float = 20.0  # of decoded frames, all cameras of the reader together
    pool_episodes: int = 32

    def __post_init__(self) -> None:
        if self.cache_gb <= 0 or self.pool_episodes < 1:
            raise KineflowError(f"images: cache_gb {self.cache_gb} and pool_episodes {self.pool_episodes} must be above 0")


class FrameSource(Protocol):
    """Frames of one camera by row of the actions; several threads may read, each into an `out` of its own."""

    def read(self, rows: Int64[np.ndarray, "B T"], out: np.ndarray) -> None:
        """Frames of `rows` into `out` [B, T, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Camera:
    """One camera of the windows: its frames, and the rows of the actions that have one [N]."""

    source: FrameSource
    frame_shape: tuple[int, ...]
    usable: Bool[np.ndarray, "N"]
    is_encoded: bool = False  # float16 features instead of uint8 frames

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16 if self.is_encoded else np.uint8)


def open_cameras(
    store: EpisodeStore,
    names: Sequence[str],
    episodes: Sequence[int],
    rules: Mapping[str, Resample],
    images: Images,
    encoded: Mapping[str, FeatureReader] | None = None,
) -> dict[str, Camera]:
    """Sources of the frames of `names` in `episodes`, or of what `encoded` has of them.

    Raises:
        KineflowError: no such camera, not RGB, or a clock of its own and no rule.
    """
    for name in names:
        _check(store, name)
    features = encoded or {}
    readers = {name: FrameReader(store, name) for name in names if name not in features}
    where = _where(images, store, readers, episodes)
    total = sum(_frame_bytes(reader) * len(reader) for reader in readers.values())
    opened = {}
    for name, known in features.items():
        table, usable = _row_table(store, name, episodes, rules)
        opened[name] = Camera(_Mapped(known, table), known.frame_shape, usable, is_encoded=True)
    for name, reader in readers.items():
        table, usable = _row_table(store, name, episodes, rules)
        share = _frame_bytes(reader) * len(reader) / max(total, 1)
        source: FrameSource
        if where == "ram":
            source = _Ram(reader, table, [slices(store.lengths)[index] for index in episodes])
        elif where == "pool":
            source = DecodedEpisodes(reader, table, store.lengths, images.pool_episodes)
        elif where == "cache":
            folder, key = images.cache or default_cache_folder(), cache_key(store, name)
            source = _Mapped(DecodedCache(reader, folder, key, int(images.cache_gb * _GIGABYTE * share)), table)
        else:
            source = _Mapped(reader, table)
        opened[name] = Camera(source, reader.frame_shape, usable)
    return opened


class _Ram:
    """Frames in the rows of the actions; rows of other episodes are never touched, so they take no memory."""

    def __init__(self, reader: FrameReader, table: Int64[np.ndarray, "N"], chosen: Sequence[slice]) -> None:
        frames = np.zeros((len(table), *reader.frame_shape), np.uint8)
        for rows in chosen:
            reader.read(table[rows], frames[rows])
        self._frames = frames.reshape(len(table), -1)

    def read(self, rows: Int64[np.ndarray, "B T"], out: np.ndarray) -> None:
        np.take(self._frames, rows, axis=0, out=out.reshape(*rows.shape, -1), mode="clip")  # clip: straight into `out`


class _Mapped:
    """A reader by row of the camera, asked by row of the actions."""

    def __init__(self, reader: FrameReader | DecodedCache | FeatureReader, table: Int64[np.ndarray, "N"]) -> None:
        self._reader, self._table = reader, table

    def read(self, rows: Int64[np.ndarray, "B T"], out: np.ndarray) -> None:
        self._reader.read(self._table[rows], out)


def _row_table(
    store: EpisodeStore, camera: str, episodes: Sequence[int], rules: Mapping[str, Resample]
) -> tuple[Int64[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """For each row of the actions the row of the camera, and whether that may be observed."""
    total = int(store.lengths.sum())
    if not has_own_clock(store, camera, rules):
        return np.arange(total), np.ones(total, bool)
    table, usable = np.zeros(total, np.int64), np.ones(total, bool)
    mine, theirs = slices(store.lengths), slices(store.stream_lengths(camera))
    at_ns, stamp_ns = store.stamps(ACTION), store.stamps(camera)
    for index in episodes:
        rows, usable[mine[index]] = rows_for_images(camera, rules[camera], stamp_ns[theirs[index]], at_ns[mine[index]])
        table[mine[index]] = rows + theirs[index].start
    return table, usable


def _where(
    images: Images, store: EpisodeStore, readers: Mapping[str, FrameReader], episodes: Sequence[int]
) -> Literal["ram", "disk", "cache", "pool"]:
    if images.where != "auto":
        return images.where
    needed = int(store.lengths[list(episodes)].sum()) * sum(map(_frame_bytes, readers.values()))
    if needed <= RAM_SHARE * free_memory_bytes():
        return "ram"
    return "cache" if any(codec.name == "jpeg" for reader in readers.values() for codec in reader.codecs) else "disk"


def free_memory_bytes() -> int:
    """Memory that can be had without swapping; all of the machine's where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _frame_bytes(reader: FrameReader) -> int:
    return int(np.prod(reader.frame_shape))


def _check(store: EpisodeStore, camera: str) -> None:
    if camera not in store.interface.cameras:
        raise KineflowError(
            f"{store.path}: no camera '{camera}'; it has {sorted(store.interface.cameras)}; choose one of them or import it"
        )
    kind = store.interface.cameras[camera].kind
    if kind != "rgb":
        raise KineflowError(f"{store.path}: camera '{camera}' measures {kind}; windows hold RGB images, choose another")
