"""Frames of a store at a URL without its shards: their indices once, then only the bytes of the frames that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from kineflow.datasets.checksums import CorruptData, without_crc
from kineflow.datasets.codecs import decode_frame
from kineflow.datasets.remote.segment_cache import CONNECTIONS
from kineflow.datasets.remote.store import RemoteSegment, RemoteStore
from kineflow.datasets.store_error import StoreError
from kineflow.datasets.zarr_v3 import FrameArray, index_bytes, places

T = TypeVar("T")


class RemoteFrameReader:
    """Frames of `camera` by row, 0 .. len - 1 over all episodes in commit order, like `FrameReader` for a local store.

    A frame whose shard is in the cache is read there. The others of a call come as coalesced ranges, one request for
    neighbours and several requests at once; training that will read everything calls `store.prefetch(shards=True)` first.
    """

    def __init__(self, store: RemoteStore, camera: str) -> None:
        """Fetch the index of every shard: 16 bytes a frame.

        Raises:
            StoreError: no such camera, or an index that is damaged.
        """
        if camera not in store.interface.cameras:
            raise StoreError(f"{store.objects.url}: no camera '{camera}'; it has {sorted(store.interface.cameras)}; choose one")
        spec = store.interface.cameras[camera]
        self._objects, self._shape = store.objects, spec.frame_shape
        self._dtype = np.dtype(np.uint8 if spec.kind == "rgb" else np.uint16)
        segments = [segment for segment in store.segments if isinstance(segment, RemoteSegment)]
        arrays = [segment.frame_array(camera) for segment in segments]
        self._shards = [(s, a, n) for s, a in zip(segments, arrays, strict=True) for n in range(len(a.shards()))]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            tables = list(pool.map(lambda shard: self._index(*shard), self._shards))
        self._places = np.concatenate([np.zeros((0, 2), np.int64), *tables])
        self._shard_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])

    def __len__(self) -> int:
        return len(self._places)

    def read(self, rows: Int64[np.ndarray, "K"]) -> np.ndarray:
        """Frames `rows`: uint8 `[K, H, W, 3]` or uint16 `[K, H, W]`, each checked against its crc32c.

        Raises:
            IndexError: a row is out of range.
            StoreError: the server cannot be reached, or a frame is damaged or missing; names file and frame.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} are not all in 0 .. {len(self) - 1}")
        out = np.empty((len(rows), *self._shape), self._dtype)
        wanted = [(int(shard), np.flatnonzero(self._shard_of[rows] == shard)) for shard in np.unique(self._shard_of[rows])]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda pair: self._read_shard(pair[0], rows, pair[1], out), wanted))
        return out

    def _read_shard(self, number: int, rows: np.ndarray, at: np.ndarray, out: np.ndarray) -> None:
        segment, array, shard = self._shards[number]
        path = array.shards()[shard]

        def decode(payloads: Sequence[bytes]) -> None:
            for row, payload in zip(at, payloads, strict=True):
                decode_frame(without_crc(payload, f"row {rows[row]}"), array.codec, out[row])

        starts, lengths = self._places[rows[at]].T.tolist()
        self._decoded(segment, path, starts, lengths, decode)

    def _index(self, segment: RemoteSegment, array: FrameArray, number: int) -> Int64[np.ndarray, "F 2"]:
        path = array.shards()[number]
        size = segment.listed(path).bytes
        tail = min(index_bytes(array), size)
        found = self._decoded(segment, path, [size - tail], [tail], lambda index: places(array, number, size, index[0]))
        missing = np.flatnonzero(found[:, 0] < 0)
        if len(missing):
            raise segment.damaged(path, f"frame {number * array.shard_frames + missing[0]} is missing from the shard")
        return found

    def _decoded(
        self, segment: RemoteSegment, path: str, starts: list[int], lengths: list[int], decode: Callable[[Sequence[bytes]], T]
    ) -> T:
        """What `decode` makes of these parts of a file: of its copy, or of the server's bytes without a sound one."""
        copy = segment.cache.held(segment.entry.id, segment.listed(path))
        if copy is not None:
            try:
                return decode(_parts(copy, starts, lengths))
            except FileNotFoundError:  # evicted since it was found
                pass
            except CorruptData:
                segment.cache.drop_damaged(segment.entry.id, [segment.listed(path)])
        try:
            return decode(self._objects.ranges(f"segments/{segment.entry.id}/{path}", starts, lengths))
        except CorruptData as error:
            raise segment.damaged(path, str(error).removeprefix(f"{path}: ")) from error


def _parts(path: Path, starts: list[int], lengths: list[int]) -> list[bytes]:
    with open(path, "rb") as file:
        parts = []
        for start, length in zip(starts, lengths, strict=True):
            file.seek(start)
            parts.append(file.read(length))
    return parts
