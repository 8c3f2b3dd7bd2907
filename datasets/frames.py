"""The hot path: frames of one camera at random rows, straight from the shards into one reused buffer.

At open the index of every shard goes into one table (16 bytes a frame) and the shards are mapped. A batch is one call of
the compiled reader (datasets/native/), which holds no GIL, or the loop below where that is not there; both verify the
crc32c of every frame they return and give the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.datasets.checksums import CorruptData, without_crc
from kineflow.datasets.codecs import FrameCodec, decode_jpeg, decode_lz4hc
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.mapped_file import map_file
from kineflow.datasets.native.library import CODECS, OK, PLACE, SHARD, Batches, NativeFrames, native
from kineflow.datasets.segment import Segment
from kineflow.datasets.store_error import StoreError
from kineflow.datasets.zarr_v3 import FrameArray, frame_places


class FrameReader:
    """Frames of `camera` by row: 0 .. len - 1 over all episodes, in commit order.

    Safe to use after fork, to pickle (the copy opens the store again) and in several threads, each with an `out` of its own.
    """

    def __init__(self, store: EpisodeStore, camera: str, *, compiled: bool | None = None) -> None:
        """Load the index of every shard; sees the store as it is now. `compiled`: None uses the native reader if there is one.

        Raises:
            StoreError: no such camera, or a shard that is missing, damaged or lacks a frame; names it and the remedy.
        """
        if camera not in store.interface.cameras:
            raise StoreError(f"{store.path}: no camera '{camera}'; it has {sorted(store.interface.cameras)}; choose one")
        spec = store.interface.cameras[camera]
        self._arguments = (store.path, camera, compiled)
        self._shape = spec.frame_shape
        self._dtype = np.dtype(np.uint8 if spec.kind == "rgb" else np.uint16)
        self._shards: list[np.ndarray] = []
        self._origin: list[tuple[Segment, FrameArray, int, int]] = []  # of each shard: number in its segment, first row
        tables = [np.empty(0, PLACE)]
        for segment in store.segments:
            for table in self._map(segment, segment.frame_array(camera), sum(map(len, tables))):
                tables.append(table)
        self._places = np.concatenate(tables)
        self._views = [shard.data for shard in self._shards]
        self._codecs = [array.codec for _, array, _, _ in self._origin]
        self._native = self._batches(native()) if compiled in (None, True) else None
        if compiled and self._native is None:
            raise StoreError(f"{store.path}: camera '{camera}' cannot be read by compiled code here (see `native_status`)")
        self._buffer = np.empty((0, *self._shape), self._dtype)

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, self._arguments

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def codecs(self) -> frozenset[FrameCodec]:
        """What the segments are stored with."""
        return frozenset(self._codecs)

    @property
    def is_native(self) -> bool:
        return self._native is not None

    @property
    def encoded_bytes(self) -> Int64[np.ndarray, "N"]:
        """Bytes of each frame on disk, checksum included."""
        return self._places["length"].astype(np.int64)

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Frames `rows` (integers of any shape `[...]`): uint8 `[..., H, W, 3]` or uint16 `[..., H, W]`, each verified.

        Without `out` (C-contiguous) the result lies in a buffer that the next call overwrites.

        Raises:
            IndexError: a row is out of range.
            StoreError: a frame is damaged; names its file, row and the remedy. `out` then holds rubbish in part.
        """
        wanted = np.ascontiguousarray(rows, np.int64)
        shape = (*wanted.shape, *self._shape)
        if out is None:
            if len(self._buffer) < wanted.size:
                self._buffer = np.empty((wanted.size, *self._shape), self._dtype)
            out = self._buffer[: wanted.size].reshape(shape)
        elif out.shape != shape or out.dtype != self._dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)}, needed is writeable C-contiguous {self._dtype} {list(shape)}"
            )
        flat = out.reshape(-1, *self._shape)
        if self._native is None:
            self._check(wanted)
            self._read_pure(wanted.reshape(-1), flat)
        else:
            self._read_native(self._native, wanted.reshape(-1), flat)
        return out

    def _read_native(self, native: Batches, rows: np.ndarray, out: np.ndarray) -> None:
        done = 0
        while done < len(rows):
            status, good = native.read(rows[done:], out[done:])
            done += good
            if status == OK:
                return
            # What is not right with this frame is said, or denied, by the definition of it.
            self._check(rows)
            self._read_pure(rows[done : done + 1], out[done : done + 1])
            done += 1

    def _read_pure(self, rows: np.ndarray, out: np.ndarray) -> None:
        size = self._dtype.itemsize * math.prod(self._shape)
        target = out.reshape(-1).view(np.uint8).data
        for number, (offset, length, shard) in enumerate(self._places[rows].tolist()):
            data = self._views[shard][offset : offset + length].tobytes()
            try:
                if self._codecs[shard].name == "jpeg":
                    decode_jpeg(without_crc(data, ""), out[number])
                else:
                    target[number * size : (number + 1) * size] = decode_lz4hc(without_crc(data, ""), size)
            except CorruptData as error:
                raise self._damaged(int(rows[number]), shard, str(error)) from error

    def _damaged(self, row: int, shard: int, problem: str) -> StoreError:
        segment, array, number, first = self._origin[shard]
        frame = number * array.shard_frames + row - first
        return segment.damaged(array.shards()[number], f"frame {frame}: {problem.lstrip(': ')}")

    def _check(self, rows: np.ndarray) -> None:
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} are not all in 0 .. {len(self) - 1}")

    def _map(self, segment: Segment, array: FrameArray, first: int) -> Iterator[np.ndarray]:
        """Map the shards of one segment, whose first frame is row `first`; their tables."""
        for number, path in enumerate(array.shards()):
            shard = map_file(segment.checked_path(path))
            try:
                places = frame_places(array, number, shard.data)
            except CorruptData as error:
                raise segment.damaged(path, str(error).removeprefix(f"{path}: ")) from error
            missing = np.flatnonzero(places[:, 0] < 0)
            if len(missing):
                raise segment.damaged(path, f"frame {number * array.shard_frames + missing[0]} is missing from the shard")
            table = np.empty(len(places), PLACE)
            table["offset"], table["length"], table["shard"] = places[:, 0], places[:, 1], len(self._shards)
            self._shards.append(shard)
            self._origin.append((segment, array, number, first))
            first += len(table)
            yield table

    def _batches(self, library: NativeFrames | None) -> Batches | None:
        """The compiled reader, if it decodes every codec of this camera."""
        jpeg = any(codec.name == "jpeg" for codec in self._codecs)
        if library is None or (jpeg and library.jpeg_problem):
            return None
        lines = [(shard.ctypes.data, len(shard), CODECS[codec.name]) for shard, codec in zip(self._shards, self._codecs)]
        return library.batches(np.array(lines, SHARD), self._places, self._shape, jpeg=jpeg)


def _open(path: Path, camera: str, compiled: bool | None) -> FrameReader:
    return FrameReader(EpisodeStore.open(path), camera, compiled=compiled)
