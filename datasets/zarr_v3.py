"""Zarr v3 nodes as files: `{relative path: bytes}` from arrays and back, written by hand.

Why not zarr-python: a reader that leaves checksums, missing chunks and speed to us costs 12-580 times less CPU, files
built in memory can be hashed, synced and renamed as one unit, and a chunk that is absent is an error here, never fill
values. The output is standard: tests open it with zarr-python. Two kinds of arrays (`docs: zarr-specs v3 core, sharding`):

    vectors   numbers [n, ...]       chunk of at most 4096 rows, zstd level 3 + crc32c, one file a chunk
    frames    uint8 [n, H, W, 3]     chunk of one frame, lz4hc or JPEG (datasets/codecs.py) + crc32c, sharded, index at the end
              uint16 [n, H, W]       depth, likewise, lz4hc
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Zstd

from kineflow.datasets.checksums import CorruptData, crc32c as crc32c, with_crc, without_crc
from kineflow.datasets.codecs import FrameCodec, decode_frame, from_metadata

VECTOR_CHUNK_ROWS = 4096
MAX_SHARD_FRAMES = 4096
MAX_SHARD_BYTES = 32 * 2**20
_CRC32C = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_VECTOR_CODECS = [_LITTLE, {"name": "zstd", "configuration": {"level": 3, "checksum": False}}, _CRC32C]
_INDEX_CODECS = [_LITTLE, _CRC32C]
_DTYPES = ("float32", "float64", "int8", "int64", "uint8")
_MISSING = 2**64 - 1

Files = dict[str, bytes]
ReadFile = Callable[[str], "bytes | memoryview"]  # contents of one file, by its path below the segment


@dataclass(frozen=True)
class FrameArray:
    """What the metadata of a camera array say: frames `[n, H, W, 3]` uint8 or `[n, H, W]` uint16, and how they are stored."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: FrameCodec
    shard_frames: int

    def shards(self) -> list[str]:
        """Path of each shard file, in order."""
        tail = "/0" * (len(self.shape) - 1)
        return [f"{self.path}/c/{number}{tail}" for number in range(-(-self.shape[0] // self.shard_frames))]


def group(attributes: Mapping[str, Any], members: Files | None = None) -> bytes:
    """`zarr.json` of a group; with `members` (the files below it) their metadata is consolidated into it."""
    node: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if members is not None:
        nodes = {p.removesuffix("/zarr.json"): json.loads(b) for p, b in sorted(members.items()) if p.endswith("/zarr.json")}
        node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
    return _json(node)


def encode_vectors(path: str, values: np.ndarray) -> Files:
    """Files of one array of numbers `[n, ...]`, n >= 1; float arrays have fill value NaN."""
    dtype = values.dtype.name
    if dtype not in _DTYPES:
        raise ValueError(f"{path}: dtype {dtype} is not one of {_DTYPES}")
    rows = min(len(values), VECTOR_CHUNK_ROWS)
    fill: Any = "NaN" if values.dtype.kind == "f" else 0
    files = {f"{path}/zarr.json": _array(values.shape, dtype, (rows, *values.shape[1:]), fill, _VECTOR_CODECS)}
    for number, start in enumerate(range(0, len(values), rows)):
        chunk = np.zeros((rows, *values.shape[1:]), values.dtype.newbyteorder("<"))
        chunk[: len(values) - start] = values[start : start + rows]
        key = "/".join(["c", str(number), *["0"] * (values.ndim - 1)])
        files[f"{path}/{key}"] = with_crc(Zstd(level=3).encode(chunk.tobytes()))
    return files


def decode_vectors(path: str, read: ReadFile, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `[start, stop)` of the array at `path` (default: all).

    Raises:
        CorruptData: other codecs than ours, or bytes that do not match their checksum or shape.
    """
    shape, dtype, chunk_shape, codecs, _ = _metadata(path, read)
    if codecs != _VECTOR_CODECS:
        raise CorruptData(f"{path}/zarr.json: codecs {codecs} are not the ones of this format version, {_VECTOR_CODECS}")
    stop = shape[0] if stop is None else stop
    rows = chunk_shape[0]
    first, last = start // rows, -(-stop // rows)
    chunks = []
    for number in range(first, last):
        name = "/".join([path, "c", str(number), *["0"] * (len(shape) - 1)])
        raw = Zstd().decode(without_crc(bytes(read(name)), name))
        if len(raw) != np.prod(chunk_shape) * dtype.itemsize:
            raise CorruptData(f"{name}: {len(raw)} bytes after decoding, the metadata says shape {chunk_shape}")
        chunks.append(np.frombuffer(raw, dtype).reshape(chunk_shape))
    return np.concatenate(chunks)[start - first * rows : stop - first * rows]


def encode_shards(path: str, payloads: Sequence[bytes], frame_shape: Sequence[int], codec: FrameCodec) -> Files:
    """Files of one camera from its encoded frames, in order; about 32 MiB or 4096 frames a shard."""
    mean_bytes = sum(map(len, payloads)) / len(payloads)
    frames = max(1, min(len(payloads), MAX_SHARD_FRAMES, int(MAX_SHARD_BYTES / mean_bytes)))
    files = {f"{path}/zarr.json": _frame_array((len(payloads), *frame_shape), frames, codec)}
    tail = "/0" * len(frame_shape)
    for number, start in enumerate(range(0, len(payloads), frames)):
        part = payloads[start : start + frames]
        index = np.full((frames, 2), _MISSING, "<u8")
        index[: len(part), 1] = [len(p) for p in part]
        index[: len(part), 0] = np.cumsum([0, *(len(p) for p in part[:-1])])
        files[f"{path}/c/{number}{tail}"] = b"".join([*part, with_crc(index.tobytes())])
    return files


def read_frame_array(path: str, read: ReadFile) -> FrameArray:
    """The metadata of the camera array at `path`.

    Raises:
        CorruptData: not such metadata, or other codecs than ours.
    """
    shape, dtype, chunk_shape, codecs, attributes = _metadata(path, read)
    try:
        inner = codecs[0]["configuration"]["codecs"]
        codec = from_metadata(inner, attributes, shape[1:])
        if codecs != _sharding(shape, inner):
            raise ValueError(f"sharding {codecs} is not the one of this format version")
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptData(f"{path}/zarr.json: {error}") from error
    return FrameArray(path, shape, dtype, codec, chunk_shape[0])


def frame_places(array: FrameArray, number: int, shard: memoryview) -> np.ndarray:
    """`places` of a shard that is here as a whole."""
    return places(array, number, len(shard), shard[max(len(shard) - index_bytes(array), 0) :])


def index_bytes(array: FrameArray) -> int:
    """Size of the index at the end of each shard, its crc32c included."""
    return 16 * array.shard_frames + 4


def places(array: FrameArray, number: int, shard_bytes: int, index: bytes | memoryview) -> np.ndarray:
    """Offset and length (crc32c included) of each frame in shard `number` of `shard_bytes` bytes, from the last `index_bytes`
    of it; int64 `[frames, 2]`, (-1, -1) where the shard does not hold the frame.

    Raises:
        CorruptData: the shard's index is damaged.
    """
    name, size = array.shards()[number], index_bytes(array)
    if len(index) < size:
        raise CorruptData(f"{name}: {shard_bytes} bytes are too few for an index of {array.shard_frames} frames")
    entries = np.frombuffer(without_crc(index, f"{name}: shard index"), "<u8").reshape(-1, 2)
    entries = entries[: array.shape[0] - number * array.shard_frames]
    room = np.uint64(shard_bytes - size)
    inside = (entries[:, 1] <= room) & (entries[:, 0] <= room - np.minimum(entries[:, 1], room))
    return np.where(inside[:, None], entries.astype(np.int64), -1)


def read_payloads(path: str, read: ReadFile, start: int, stop: int) -> list[bytes]:
    """Encoded frames `[start, stop)`, each checked against the crc32c behind it.

    Raises:
        CorruptData: a frame is missing from its shard, or index or frame do not match their checksums.
    """
    array = read_frame_array(path, read)
    payloads, frames, shards = [], array.shard_frames, array.shards()
    for number in range(start // frames, -(-stop // frames)):
        shard = memoryview(read(shards[number]))
        places, base = frame_places(array, number, shard), number * frames
        for frame in range(max(start, base), min(stop, base + frames)):
            offset, size = (int(v) for v in places[frame - base])
            if offset < 0:
                raise CorruptData(f"{shards[number]}: frame {frame} is missing from the shard")
            payloads.append(bytes(shard[offset : offset + size]))
            without_crc(payloads[-1], f"{shards[number]}: frame {frame}")
    return payloads


def decode_frames(path: str, read: ReadFile, start: int, stop: int) -> np.ndarray:
    """Frames `[start, stop)`, uint8 `[n, H, W, 3]` or uint16 `[n, H, W]`; `read` need not have verified a shard as a whole.

    Raises:
        CorruptData: as `read_payloads`, or a frame that cannot be decoded.
    """
    array = read_frame_array(path, read)
    images = np.empty((stop - start, *array.shape[1:]), array.dtype)
    for number, payload in enumerate(read_payloads(path, read, start, stop)):
        try:
            decode_frame(payload[:-4], array.codec, images[number])
        except CorruptData as error:
            raise CorruptData(
                f"{array.shards()[(start + number) // array.shard_frames]}: frame {start + number}: {error}"
            ) from error
    return images


def _metadata(path: str, read: ReadFile) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...], list[Any], dict[str, Any]]:
    """Shape, dtype, chunk shape, codecs and attributes."""
    try:
        node = json.loads(bytes(read(f"{path}/zarr.json")))
        shape, dtype = tuple(node["shape"]), np.dtype(node["data_type"]).newbyteorder("<")
        chunk_shape = tuple(node["chunk_grid"]["configuration"]["chunk_shape"])
        return shape, dtype, chunk_shape, list(node["codecs"]), dict(node["attributes"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}/zarr.json: not the metadata of a Zarr v3 array ({error})") from error


def _sharding(shape: Sequence[int], frame_codecs: list[Any]) -> list[Any]:
    inner = {
        "chunk_shape": [1, *shape[1:]],
        "codecs": frame_codecs,
        "index_codecs": _INDEX_CODECS,
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": inner}]


def _frame_array(shape: tuple[int, ...], shard_frames: int, codec: FrameCodec) -> bytes:
    dtype = "uint8" if len(shape) == 4 else "uint16"
    return _array(shape, dtype, (shard_frames, *shape[1:]), 0, _sharding(shape, codec.zarr_codecs(shape[1:])), codec.attributes())


def _array(
    shape: Sequence[int],
    dtype: str,
    chunk_shape: Sequence[int],
    fill: Any,
    codecs: list[Any],
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": codecs,
            "attributes": dict(attributes or {}),
        }
    )


def _json(node: Mapping[str, Any]) -> bytes:
    return json.dumps(node, indent=1).encode()
