"""Features of camera frames, computed once for each episode and kept beside the store: derived data that may be removed any time.

    my_data.eps/cache/features/<encoder>/<camera>/<episode>.npy
    my_data.eps/cache/features/<encoder>/goals/<pictures>.npy

`<encoder>` begins the fingerprint of what computed them (policies/encoders/frame_encoder.py), `<episode>` is the SHA-256 of the
episode's contents as the store keeps it, `<pictures>` that of a goal clip or image, which many episodes may share. So other
weights, another preprocessing or another episode never find these features, and they survive compacting and deleting other
episodes. A file is an ordinary NumPy array float16 [T, P, D] (steps, tokens, width) with a crc32c behind it, which is checked
before it is used; it appears by a rename, whole or not at all. The manifest knows nothing of the cache, and `kineflow data gc`
and `doctor` do not look at it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Int64, UInt8

from kineflow.contracts import KineflowError
from kineflow.datasets.checksums import CorruptData, with_crc, without_crc
from kineflow.datasets.clips import with_rest
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.mapped_file import map_file

GOALS = "goals"  # stands for a camera: features of goals


def content_digest(pictures: UInt8[np.ndarray, "N H W 3"]) -> bytes:
    """SHA-256 of what the pictures show."""
    shape = repr((pictures.dtype.name, pictures.shape)).encode()
    return hashlib.sha256(shape + hashlib.sha256(np.ascontiguousarray(pictures).data).digest()).digest()


def feature_folder(store: Path) -> Path:
    """Below the store."""
    return store / "cache" / "features"


class FeatureCache:
    """Features of one camera by one encoder, episode by episode; any number of processes may read and write."""

    def __init__(self, folder: Path, fingerprint: str, camera: str) -> None:
        """`folder`: see `feature_folder`; another place where the store cannot be written."""
        self.folder = folder / fingerprint[:32] / camera

    def path(self, digest: bytes) -> Path:
        """Of the episode with these contents (`EpisodeStore.digests`), or of goal pictures (`content_digest`)."""
        return self.folder / f"{digest.hex()}.npy"

    def load(self, digest: bytes) -> Float16[np.ndarray, "T P D"] | None:
        """Read-only and mapped, its bytes checked; None where there is none or a damaged one."""
        path = self.path(digest)
        try:
            if path.stat().st_size == 0:  # what cannot be mapped
                return None
            data = map_file(path)
            without_crc(data.data, path.name)
            file = io.BytesIO(data[:1024].tobytes())  # the header is short
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            values = data[file.tell() : -4].view(np.float16)
        except (OSError, CorruptData, ValueError):
            return None
        if len(shape) != 3 or is_fortran or dtype != np.float16 or values.size != np.prod(shape):
            return None
        return values.reshape(shape)

    def save(self, digest: bytes, features: Float16[np.ndarray, "T P D"]) -> None:
        """Keep the features of an episode, durably and whole or not at all.

        Raises:
            KineflowError: they cannot be written; names the remedy.
        """
        path = self.path(digest)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(features), version=(1, 0))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(staged, "wb") as file:
                file.write(with_crc(buffer.getvalue()))
                file.flush()
                os.fsync(file.fileno())
            staged.rename(path)
        except OSError as error:
            staged.unlink(missing_ok=True) if staged.parent.is_dir() else None
            raise KineflowError(f"{path}: features cannot be kept ({error}); free space or name another folder") from error


class FeatureReader:
    """Features of a store's frames by row, 0 .. len - 1 over all episodes in commit order, as `FrameReader` numbers them.

    Rows of episodes that were not asked for must not be read.
    """

    def __init__(self, store: EpisodeStore, camera: str, cache: FeatureCache, episodes: Sequence[int]) -> None:
        """Raises KineflowError when features of one of `episodes` are not in `cache`."""
        lengths, digests = store.stream_lengths(camera), store.digests()
        self._arguments = (store.path, camera, cache, list(episodes))
        self._ends = np.cumsum(lengths)
        self._parts: dict[int, np.ndarray] = {}
        for index in episodes:
            features = cache.load(digests[index].tobytes())
            if features is None or len(features) != lengths[index]:
                raise KineflowError(
                    f"{cache.path(digests[index].tobytes())}: no features of episode {index} of {store.path}; compute them with "
                    "kineflow.policies.encoders.cached_features.cache_features"
                )
            self._parts[index] = features
        shapes = {features.shape[1:] for features in self._parts.values()}
        if len(shapes) != 1:
            raise KineflowError(f"{cache.folder}: needs features of one shape for at least one episode; got {sorted(shapes)}")
        self.frame_shape: tuple[int, ...] = shapes.pop()
        self.dtype = np.dtype(np.float16)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, self._arguments

    def read(self, rows: Int64[np.ndarray, "..."], out: np.ndarray | None = None) -> np.ndarray:
        """Features of `rows`, float16 `[*rows, P, D]`, in new memory or in `out`; any thread may read.

        Raises:
            IndexError: a row is out of range, or of an episode that was not asked for.
        """
        result = np.empty((*rows.shape, *self.frame_shape), self.dtype) if out is None else out
        flat, wanted = result.reshape(-1, *self.frame_shape), rows.reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} .. {wanted.max()} are not all in 0 .. {len(self) - 1}")
        episode = np.searchsorted(self._ends, wanted, side="right")
        order = np.argsort(episode, kind="stable")
        bounds = np.flatnonzero(np.diff(episode[order], prepend=-1, append=len(self._ends)))
        for first, stop in pairwise(bounds):
            places = order[first:stop]
            index = int(episode[places[0]])
            if index not in self._parts:
                raise IndexError(f"row {wanted[places[0]]} is of episode {index}, whose features were not asked for")
            begin = self._ends[index] - len(self._parts[index])
            flat[places] = self._parts[index][wanted[places] - begin]
        return result


def _open(path: Path, camera: str, cache: FeatureCache, episodes: Sequence[int]) -> FeatureReader:
    return FeatureReader(EpisodeStore.open(path), camera, cache, episodes)


def prune(store: EpisodeStore, folder: Path | None = None) -> int:
    """Remove features of episodes and goals that the store no longer holds, and what killed writers left; returns the bytes
    freed. Features of clips that an episode's own frames were taken for are not known here: they go too."""
    held = {row.tobytes().hex() for row in store.digests()}
    files, freed = sorted((folder or feature_folder(store.path)).glob("*/*/*")), 0
    goals = _goals_held(store) if any(file.parent.name == GOALS for file in files) else set()
    for file in files:
        known = goals if file.parent.name == GOALS else held if file.parent.name in store.interface.cameras else set()
        if file.suffix != ".npy" or file.stem not in known:
            freed += file.stat().st_size
            file.unlink(missing_ok=True)
    return freed


def _goals_held(store: EpisodeStore) -> set[str]:
    """Digests of the goal clips and images of all episodes, as they are looked at; a clip's last frame can be its image."""
    found = (goal.value for index in range(store.num_episodes) for goal in store.told(index)[1].values() if goal.value.ndim > 2)
    looked_at = (x for value in found for x in ((with_rest(value), value[-1:]) if value.ndim == 4 else (value[None],)))
    return {content_digest(pictures).hex() for pictures in looked_at}


def remove_features(store: Path) -> None:
    """Remove all of them; they are computed again when they are asked for."""
    shutil.rmtree(feature_folder(store), ignore_errors=True)
