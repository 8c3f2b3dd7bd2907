"""Arrays as files: zarr-python is the oracle for what we write; every damaged byte must be noticed by what we read."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

from kineflow.datasets import zarr_v3
from kineflow.datasets.checksums import with_crc
from kineflow.datasets.codecs import LZ4HC, encode_frame, encode_frames
from kineflow.datasets.zarr_v3 import (
    CorruptData,
    Files,
    decode_frames,
    decode_vectors,
    encode_shards,
    encode_vectors,
    group,
)

vectors = st.sampled_from(["float32", "float64", "int64", "int8", "uint8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=7))
)


def save(files: Files, folder: Path) -> Path:
    for path, data in {**files, "zarr.json": group({}, files)}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@settings(max_examples=60, deadline=None)
@given(values=vectors, rows=st.integers(1, 8), data=st.data())
def test_vectors_round_trip_any_rows(values: np.ndarray, rows: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_v3, "VECTOR_CHUNK_ROWS", rows)
        files = encode_vectors("a", values)
    start = data.draw(st.integers(0, len(values) - 1))
    stop = data.draw(st.integers(start + 1, len(values)))
    np.testing.assert_array_equal(decode_vectors("a", files.__getitem__), values)
    np.testing.assert_array_equal(decode_vectors("a", files.__getitem__, start, stop), values[start:stop])


@settings(max_examples=25, deadline=None)
@given(values=vectors, rows=st.integers(1, 8))
def test_zarr_python_reads_vectors(values: np.ndarray, rows: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_v3, "VECTOR_CHUNK_ROWS", rows)
        folder = save(encode_vectors("a", values), tmp_path_factory.mktemp("zarr"))
    found = zarr.open_group(folder, mode="r")["a"]
    assert isinstance(found, zarr.Array)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found[...], values)


# A frame of noise is 135 bytes, 16 of header and 4 of checksum.
@pytest.mark.parametrize(("num_frames", "shard_bytes", "shards"), [(1, 10**9, 1), (7, 10**9, 1), (7, 4 * 155, 2), (8, 1, 8)])
def test_frames_round_trip_and_zarr_python_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int, shard_bytes: int, shards: int
) -> None:
    monkeypatch.setattr(zarr_v3, "MAX_SHARD_BYTES", shard_bytes)
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 5, 9, 3), np.uint8)
    files = encode_shards("cam", encode_frames(frames, LZ4HC), (5, 9, 3), LZ4HC)
    assert len(files) == shards + 1
    found = zarr.open_group(save(files, tmp_path), mode="r")["cam"]
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(found[...], frames)
    for start in range(num_frames):
        np.testing.assert_array_equal(decode_frames("cam", files.__getitem__, start, num_frames), frames[start:])
        np.testing.assert_array_equal(decode_frames("cam", files.__getitem__, start, start + 1), frames[start : start + 1])


def test_chunks_and_shards_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    files = encode_vectors("a", np.zeros((9000, 2), np.float32))
    assert sorted(files) == ["a/c/0/0", "a/c/1/0", "a/c/2/0", "a/zarr.json"]
    monkeypatch.setattr(zarr_v3, "MAX_SHARD_FRAMES", 4)
    payloads = [encode_frame(np.zeros((2, 2, 3), np.uint8), LZ4HC)] * 9
    assert len(encode_shards("c", payloads, (2, 2, 3), LZ4HC)) == 1 + 3


def test_every_bit_flip_of_a_frame_is_noticed() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)
    files = encode_shards("cam", encode_frames(frames, LZ4HC), (4, 4, 3), LZ4HC)
    shard = files["cam/c/0/0/0/0"]
    for bit in range(0, 8 * len(shard), 5):
        damaged = bytearray(shard)
        damaged[bit // 8] ^= 1 << bit % 8
        broken = {**files, "cam/c/0/0/0/0": bytes(damaged)}
        with pytest.raises(CorruptData, match="cam/c/0/0/0/0"):
            decode_frames("cam", broken.__getitem__, 0, 3)


def test_every_bit_flip_and_truncation_of_a_vector_chunk_is_noticed() -> None:
    files = encode_vectors("a", np.arange(12, dtype=np.float32).reshape(6, 2))
    chunk = files["a/c/0/0"]
    damaged = [chunk[:size] for size in range(len(chunk))]
    damaged += [bytes(b ^ (1 << bit % 8) if i == bit // 8 else b for i, b in enumerate(chunk)) for bit in range(8 * len(chunk))]
    for data in damaged:
        with pytest.raises(CorruptData, match="a/c/0/0"):
            decode_vectors("a", {**files, "a/c/0/0": data}.__getitem__)


def test_a_frame_that_the_index_calls_missing_is_an_error_not_black() -> None:
    frames = np.full((2, 4, 4, 3), 9, np.uint8)
    payload = encode_frame(frames[0], LZ4HC)
    files = encode_shards("cam", [payload, payload], (4, 4, 3), LZ4HC)
    index = np.array([[0, len(payload)], [2**64 - 1, 2**64 - 1]], "<u8")
    files["cam/c/0/0/0/0"] = payload + with_crc(index.tobytes())
    assert (decode_frames("cam", files.__getitem__, 0, 1) == 9).all()
    with pytest.raises(CorruptData, match="frame 1 is missing"):
        decode_frames("cam", files.__getitem__, 0, 2)


def test_other_codecs_and_broken_metadata_are_refused() -> None:
    files = encode_vectors("a", np.zeros((2, 2), np.float32))
    node = json.loads(files["a/zarr.json"])
    node["codecs"] = node["codecs"][:2]
    for metadata in (json.dumps(node).encode(), b"{", b"[]", b"{}"):
        with pytest.raises(CorruptData, match=r"a/zarr\.json"):
            decode_vectors("a", {**files, "a/zarr.json": metadata}.__getitem__)


def test_unknown_dtypes_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="float16"):
        encode_vectors("a", np.zeros(3, np.float16))
