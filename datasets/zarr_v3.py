"""Zarr v3 nodes as files: `{relative path: bytes}` from arrays and back, written by hand.

Why not zarr-python: a reader that leaves checksums, missing chunks and speed to us costs 12-580 times less CPU, files
built in memory can be hashed, synced and renamed as one unit, and a chunk that is absent is an error here, never fill
values. The output is standard: tests open it with zarr-python. Two kinds of arrays (`docs: zarr-specs v3 core, sharding`):

    vectors   numbers [n, ...]       chunk of at most 4096 rows, zstd level 3 + crc32c, one file a chunk
    frames    uint8 [n, H, W, 3]     chunk of one frame, blosc lz4hc (no shuffle) + crc32c, sharded, index at the end
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import UInt8
from numcodecs import Zstd, blosc

from kineflow.contracts import KineflowError

VECTOR_CHUNK_ROWS = 4096
MAX_SHARD_FRAMES = 4096
MAX_SHARD_BYTES = 32 * 2**20
LZ4HC_LEVEL = 5
_CRC32C = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_VECTOR_CODECS = [_LITTLE, {"name": "zstd", "configuration": {"level": 3, "checksum": False}}, _CRC32C]
_BLOSC = {"cname": "lz4hc", "clevel": LZ4HC_LEVEL, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
_FRAME_CODECS = [{"name": "bytes"}, {"name": "blosc", "configuration": _BLOSC}, _CRC32C]
_INDEX_CODECS = [_LITTLE, _CRC32C]
_DTYPES = ("float32", "float64", "int8", "int64", "uint8")
_MISSING = 2**64 - 1

Files = dict[str, bytes]
ReadFile = Callable[[str], "bytes | memoryview"]  # contents of one file, by its path below the segment


class CorruptData(KineflowError):
    """Bytes that cannot be what was written; the caller adds which store and the remedy."""


def crc32c(data: bytes | memoryview) -> int:
    return int(google_crc32c.value(bytes(data)))


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
        files[f"{path}/{key}"] = _with_crc(Zstd(level=3).encode(chunk.tobytes()))
    return files


def decode_vectors(path: str, read: ReadFile, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `[start, stop)` of the array at `path` (default: all).

    Raises:
        CorruptData: other codecs than ours, or bytes that do not match their checksum or shape.
    """
    shape, dtype, chunk_shape = _metadata(path, read, _VECTOR_CODECS)
    stop = shape[0] if stop is None else stop
    rows = chunk_shape[0]
    first, last = start // rows, -(-stop // rows)
    chunks = []
    for number in range(first, last):
        name = "/".join([path, "c", str(number), *["0"] * (len(shape) - 1)])
        raw = Zstd().decode(_without_crc(bytes(read(name)), name))
        if len(raw) != np.prod(chunk_shape) * dtype.itemsize:
            raise CorruptData(f"{name}: {len(raw)} bytes after decoding, the metadata says shape {chunk_shape}")
        chunks.append(np.frombuffer(raw, dtype).reshape(chunk_shape))
    return np.concatenate(chunks)[start - first * rows : stop - first * rows]


def encode_frame(frame: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """One frame as it lies in its shard: blosc lz4hc, then crc32c."""
    return _with_crc(blosc.compress(np.ascontiguousarray(frame).reshape(-1), b"lz4hc", LZ4HC_LEVEL, blosc.NOSHUFFLE, 0, 1))


def encode_shards(path: str, payloads: Sequence[bytes], height: int, width: int) -> Files:
    """Files of one camera from its encoded frames, in order; about 32 MiB or 4096 frames a shard."""
    mean_bytes = sum(map(len, payloads)) / len(payloads)
    frames = max(1, min(len(payloads), MAX_SHARD_FRAMES, int(MAX_SHARD_BYTES / mean_bytes)))
    files = {f"{path}/zarr.json": _camera_array(len(payloads), height, width, frames)}
    for number, start in enumerate(range(0, len(payloads), frames)):
        part = payloads[start : start + frames]
        index = np.full((frames, 2), _MISSING, "<u8")
        index[: len(part), 1] = [len(p) for p in part]
        index[: len(part), 0] = np.cumsum([0, *(len(p) for p in part[:-1])])
        files[f"{path}/c/{number}/0/0/0"] = b"".join([*part, _with_crc(index.tobytes())])
    return files


def decode_frames(path: str, read: ReadFile, start: int, stop: int) -> UInt8[np.ndarray, "n H W 3"]:
    """Frames `[start, stop)`, each checked against its crc32c; `read` need not have verified the shard as a whole.

    Raises:
        CorruptData: a frame is missing from its shard, or index or frame do not match their checksums.
    """
    shape, _, (frames, *_) = _metadata(path, read, None)
    images = np.empty((stop - start, *shape[1:]), np.uint8)
    for number in range(start // frames, -(-stop // frames)):
        name = f"{path}/c/{number}/0/0/0"
        shard = memoryview(read(name))
        index = _shard_index(shard, frames, name)
        base = number * frames
        for frame in range(max(start, base), min(stop, base + frames)):
            offset, size = (int(v) for v in index[frame - base])
            if offset + size > len(shard):
                raise CorruptData(f"{name}: frame {frame} is missing from the shard")
            raw = blosc.decompress(_without_crc(bytes(shard[offset : offset + size]), f"{name}: frame {frame}"))
            images[frame - start] = np.frombuffer(raw, np.uint8).reshape(shape[1:])
    return images


def _shard_index(shard: memoryview, frames: int, name: str) -> np.ndarray:
    size = 16 * frames + 4
    if len(shard) < size:
        raise CorruptData(f"{name}: {len(shard)} bytes are too few for an index of {frames} frames")
    return np.frombuffer(_without_crc(bytes(shard[-size:]), f"{name}: shard index"), "<u8").reshape(frames, 2)


def _metadata(path: str, read: ReadFile, codecs: list[Any] | None) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...]]:
    try:
        node = json.loads(bytes(read(f"{path}/zarr.json")))
        shape, dtype = tuple(node["shape"]), np.dtype(node["data_type"]).newbyteorder("<")
        chunk_shape = tuple(node["chunk_grid"]["configuration"]["chunk_shape"])
        found = node["codecs"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}/zarr.json: not the metadata of a Zarr v3 array ({error})") from error
    expected = codecs if codecs is not None else _sharding(shape)
    if found != expected:
        raise CorruptData(f"{path}/zarr.json: codecs {found} are not the ones of this format version, {expected}")
    return shape, dtype, chunk_shape


def _sharding(shape: Sequence[int]) -> list[Any]:
    inner = {
        "chunk_shape": [1, *shape[1:]],
        "codecs": _FRAME_CODECS,
        "index_codecs": _INDEX_CODECS,
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": inner}]


def _camera_array(num_frames: int, height: int, width: int, shard_frames: int) -> bytes:
    shape = (num_frames, height, width, 3)
    return _array(shape, "uint8", (shard_frames, *shape[1:]), 0, _sharding(shape))


def _array(shape: Sequence[int], dtype: str, chunk_shape: Sequence[int], fill: Any, codecs: list[Any]) -> bytes:
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
            "attributes": {},
        }
    )


def _json(node: Mapping[str, Any]) -> bytes:
    return json.dumps(node, indent=1).encode()


def _with_crc(payload: bytes) -> bytes:
    return payload + struct.pack("<I", crc32c(payload))


def _without_crc(data: bytes, name: str) -> bytes:
    payload, checksum = data[:-4], data[-4:]
    if len(data) < 4 or struct.pack("<I", crc32c(payload)) != checksum:
        raise CorruptData(f"{name}: its bytes do not match their crc32c checksum")
    return payload
