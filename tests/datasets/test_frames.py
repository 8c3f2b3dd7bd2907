"""FrameReader: the frames that were written, by compiled code and without it; damage is found and located by both."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import simplejpeg

from kineflow.contracts import CameraSpec, Interface, Stream
from kineflow.datasets import zarr_v3
from kineflow.datasets.checksums import with_crc
from kineflow.datasets.codecs import LZ4HC
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.manifest import CameraRecord
from kineflow.datasets.native.library import native, native_status
from kineflow.datasets.store_error import StoreError
from kineflow.datasets.zarr_v3 import encode_shards
from tests.datasets.sample_episodes import INTERFACE, sample_episode
from tests.datasets.sample_frames import depth_frames, natural_frames, simulated_frames

KINDS = ("flat", "natural", "jpeg", "source", "depth", "mixed")
POLICY = {"natural": "lossless", "jpeg": "jpeg:90"}
LENGTHS = (7, 1, 9, 4)
SHARD = 5  # frames
INDEX = 16 * SHARD + 4  # bytes


@pytest.fixture(params=["compiled", "pure"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "compiled" and native() is None:
        pytest.skip(f"no compiled reader: {native_status().reason}")
    return bool(request.param == "compiled")


def frames_of(kind: str, number: int) -> np.ndarray:
    length = LENGTHS[number]
    if kind == "depth":
        return depth_frames(length, 40, 37, seed=number)
    if kind == "flat" or (kind == "mixed" and number == 1):
        return simulated_frames(length, 50, 41, seed=number)
    return natural_frames(length, 50, 41, seed=number)


@pytest.fixture(scope="module", autouse=True)
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_v3, "MAX_SHARD_FRAMES", SHARD)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A store of each kind, four episodes in shards of a few frames; "mixed" has segments of different codecs."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = write(tmp_path_factory.mktemp(kind) / "s.eps", kind).path
        return made[kind]

    return make


def write(path: Path, kind: str) -> EpisodeStore:
    shape = frames_of(kind, 0).shape[1:]
    camera = CameraSpec(shape[0], shape[1], 10.0, "depth" if kind == "depth" else "rgb")
    interface = Interface(INTERFACE.features, INTERFACE.action, {"front": camera})
    store = EpisodeStore.create(path, interface, cameras={"front": CameraRecord(POLICY.get(kind, "auto"))})
    with store.writer(1 if kind == "mixed" else 2) as writer:
        for number in range(len(LENGTHS)):
            frames = frames_of(kind, number)
            episode = sample_episode(number, INTERFACE, len(frames))
            streams = {**episode.streams, "front": Stream(frames, episode.streams["action"].stamp_ns)}
            jpeg = kind == "source" or (kind == "mixed" and number == 2)
            sources = {"front": [simplejpeg.encode_jpeg(f, 80, "RGB", "420") for f in frames]} if jpeg else {}
            writer.add(replace(episode, streams=streams, jpeg=sources))
    return store


def everything(store: EpisodeStore) -> np.ndarray:
    return np.concatenate([store.episode(n).streams["front"].values for n in range(store.num_episodes)])


def need_jpeg(compiled: bool, kind: str) -> None:
    if compiled and kind in ("jpeg", "source", "mixed") and not native_status().jpeg:
        pytest.skip(f"no compiled JPEG: {native_status().reason}")


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_the_episodes(stores: Callable[[str], Path], kind: str, compiled: bool) -> None:
    need_jpeg(compiled, kind)
    store = EpisodeStore.open(stores(kind))
    reader = FrameReader(store, "front", compiled=compiled)
    expected = everything(store)
    assert reader.is_native == compiled
    assert len(reader) == len(expected) == sum(LENGTHS)
    assert (reader.frame_shape, reader.dtype) == (expected.shape[1:], expected.dtype)
    np.testing.assert_array_equal(reader.read(np.arange(len(reader))), expected)
    rows = np.random.default_rng(0).integers(0, len(reader), (11, 2))
    np.testing.assert_array_equal(reader.read(rows), expected[rows])
    if kind in ("flat", "natural", "depth"):
        np.testing.assert_array_equal(expected, np.concatenate([frames_of(kind, n) for n in range(len(LENGTHS))]))


def test_the_kinds_are_what_they_are_called(stores: Callable[[str], Path]) -> None:
    def codecs(kind: str) -> set[str]:
        return {codec.name_and_quality for codec in FrameReader(EpisodeStore.open(stores(kind)), "front").codecs}

    assert [codecs(kind) for kind in KINDS[:5]] == [{"lz4hc"}, {"lz4hc"}, {"jpeg q90 420"}, {"jpeg of the source 420"}, {"lz4hc"}]
    assert codecs("mixed") == {"jpeg q95 444", "lz4hc", "jpeg of the source 420"}
    assert len(list(stores("flat").glob("segments/*/cameras/front/c/*/0/0/0"))) == 5


def test_the_result_lies_in_out_or_in_a_buffer_that_is_used_again(stores: Callable[[str], Path], compiled: bool) -> None:
    reader = FrameReader(EpisodeStore.open(stores("flat")), "front", compiled=compiled)
    first = reader.read(np.arange(8))
    assert np.shares_memory(first, reader.read(np.arange(4, 8)))
    out = np.empty((2, 3, *reader.frame_shape), np.uint8)
    rows = np.array([[0, 5, 9], [20, 1, 1]])
    assert reader.read(rows, out) is out
    np.testing.assert_array_equal(out, reader.read(rows))
    assert reader.read(np.zeros((0, 2), np.int64)).shape == (0, 2, *reader.frame_shape)
    for wrong in (out[0], out[..., ::-1], out.astype(np.int8), np.empty((2, 3, 41, 50, 3), np.uint8)):
        with pytest.raises(ValueError, match="needed is writeable C-contiguous uint8"):
            reader.read(rows, wrong)


def test_rows_out_of_range_and_unknown_cameras(stores: Callable[[str], Path], compiled: bool) -> None:
    store = EpisodeStore.open(stores("flat"))
    reader = FrameReader(store, "front", compiled=compiled)
    for row in (-1, len(reader), 2**40):
        with pytest.raises(IndexError, match=f"not all in 0 .. {len(reader) - 1}"):
            reader.read(np.array([0, row]))
    with pytest.raises(StoreError, match=r"no camera 'rear'; it has \['front'\]"):
        FrameReader(store, "rear")


@pytest.mark.parametrize("kind", ["flat", "natural", "jpeg", "depth"])
def test_a_thousand_bit_flips_are_found_and_located(
    tmp_path: Path, stores: Callable[[str], Path], kind: str, compiled: bool
) -> None:
    """Both paths together 2,000 over the four kinds; a flip in one frame leaves the others readable."""
    need_jpeg(compiled, kind)
    store, rng = EpisodeStore.open(stores(kind)), random.Random(kind)
    reader = FrameReader(store, "front", compiled=compiled)
    good, first = reader.read(np.arange(len(reader))).copy(), sum(LENGTHS[:2])
    tail = "/0" * (good.ndim - 1)
    for _ in range(250):
        row = rng.randrange(len(reader))
        segment, frame = (store.segments[0], row) if row < first else (store.segments[1], row - first)
        shard = segment.folder / f"cameras/front/c/{frame // SHARD}{tail}"
        place = reader._places[row]
        bit = rng.randrange(8 * int(place["length"]))
        with open(shard, "r+b") as file:  # in place: the reader maps this very file
            flip(file, int(place["offset"]) + bit // 8, 1 << bit % 8)
            try:
                with pytest.raises(StoreError, match=rf"{shard}: frame {frame}: .*crc32c.*kineflow data doctor"):
                    reader.read(np.array([row]))
                other = (row + 1) % len(reader)
                np.testing.assert_array_equal(reader.read(np.array([other]))[0], good[other])
            finally:
                flip(file, int(place["offset"]) + bit // 8, 1 << bit % 8)
    np.testing.assert_array_equal(reader.read(np.arange(len(reader))), good)


def flip(file: BinaryIO, place: int, bits: int) -> None:
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ bits]))
    file.flush()


def test_a_damaged_index_or_a_frame_that_is_not_there_stops_the_opening(tmp_path: Path, compiled: bool) -> None:
    store = write(tmp_path / "s.eps", "flat")
    shard = min(store.path.glob("segments/*/cameras/front/c/0/0/0/0"))
    original = shard.read_bytes()
    shard.write_bytes(original[:-20] + bytes([original[-20] ^ 1]) + original[-19:])
    with pytest.raises(StoreError, match=rf"{shard}: shard index: .*crc32c"):
        FrameReader(store, "front", compiled=compiled)
    index = np.frombuffer(original[-INDEX:-4], "<u8").copy()
    index[4:6] = 2**64 - 1
    shard.write_bytes(original[:-INDEX] + with_crc(index.tobytes()))
    with pytest.raises(StoreError, match=rf"{shard}: frame 2 is missing"):
        FrameReader(store, "front", compiled=compiled)


def test_frames_whose_checksum_is_right_but_that_cannot_be_decoded(tmp_path: Path, compiled: bool) -> None:
    """As a faulty writer would leave them: an error from both, never other pixels."""
    store = write(tmp_path / "s.eps", "flat")
    shard = min(store.path.glob("segments/*/cameras/front/c/0/0/0/0"))
    reader = FrameReader(store, "front", compiled=compiled)
    place = reader._places[2]
    payload = bytearray(reader._shards[0][place["offset"] : place["offset"] + place["length"] - 4])
    payload[20:40] = bytes(20)
    with open(shard, "r+b") as file:
        file.seek(int(place["offset"]))
        file.write(with_crc(bytes(payload)))
    with pytest.raises(StoreError, match=rf"{shard}: frame 2: it cannot be decompressed"):
        reader.read(np.arange(4))


def test_a_copy_in_another_process_reads_the_same(stores: Callable[[str], Path], compiled: bool) -> None:
    reader = FrameReader(EpisodeStore.open(stores("flat")), "front", compiled=compiled)
    rows = np.array([3, 1, 17])
    expected = reader.read(rows).copy()
    again = pickle.loads(pickle.dumps(reader))
    assert again.is_native == compiled
    np.testing.assert_array_equal(again.read(rows), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads
        with multiprocessing.get_context("fork").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(_read, (reader, rows)), expected)


def _read(reader: FrameReader, rows: np.ndarray) -> np.ndarray:
    return reader.read(rows)


def test_threads_with_buffers_of_their_own(stores: Callable[[str], Path], compiled: bool) -> None:
    store = EpisodeStore.open(stores("natural"))
    reader, expected = FrameReader(store, "front", compiled=compiled), everything(store)

    def work(seed: int) -> None:
        rng, out = np.random.default_rng(seed), np.empty((6, *reader.frame_shape), np.uint8)
        for _ in range(40):
            rows = rng.integers(0, len(reader), 6)
            np.testing.assert_array_equal(reader.read(rows, out), expected[rows])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_open_shards_need_no_file_descriptors(stores: Callable[[str], Path]) -> None:
    before = len(os.listdir("/dev/fd"))
    readers = [FrameReader(EpisodeStore.open(stores("flat")), "front") for _ in range(5)]
    assert len(os.listdir("/dev/fd")) == before
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(str(stores("flat"))) >= 25
        del readers
        assert str(stores("flat")) not in maps.read_text()


def test_an_episode_committed_later_is_seen_by_a_new_reader(tmp_path: Path, compiled: bool) -> None:
    store = write(tmp_path / "s.eps", "flat")
    before = FrameReader(store, "front", compiled=compiled)
    with store.writer() as writer:
        writer.add(store.episode(0))
    after = FrameReader(store, "front", compiled=compiled)
    assert len(after) == len(before) + LENGTHS[0]
    np.testing.assert_array_equal(after.read(np.array([len(before)])), before.read(np.array([0])))


def test_an_empty_store_has_no_rows(tmp_path: Path, compiled: bool) -> None:
    reader = FrameReader(EpisodeStore.create(tmp_path / "s.eps", INTERFACE), "front", compiled=compiled)
    assert len(reader) == 0
    with pytest.raises(IndexError):
        reader.read(np.array([0]))


def test_payloads_of_a_shard_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_v3, "MAX_SHARD_BYTES", 100)
    assert len(encode_shards("c", [bytes(60)] * 4, (2, 2, 3), LZ4HC)) == 5
