"""Codecs: what probing chooses, that source JPEGs stay as they are, and that other people's readers agree with us."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorstore
import zarr

from kineflow.contracts import CameraSpec, Episode, KineflowError, Stream
from kineflow.datasets.checksums import CorruptData, with_crc, without_crc
from kineflow.datasets.codecs import LZ4HC, FrameCodec, choose, decode_frame, encode_frames, keep_jpegs
from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store, inspect_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions
from kineflow.datasets.manifest import CameraRecord
from kineflow.datasets.segment import Segment
from kineflow.datasets.zarr_v3 import Files, decode_frames, encode_shards, group
from tests.datasets.sample_episodes import INTERFACE, sample_episode
from tests.datasets.sample_frames import depth_frames, natural_frames, simulated_frames

NOISE = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 3), np.uint8)
JPEG95 = FrameCodec("jpeg", 95, "444")
FRONT = replace(INTERFACE, cameras={"front": CameraSpec(96, 96, 10.0)})


def save(files: Files, folder: Path) -> Path:
    for path, data in {**files, "zarr.json": group({}, files)}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def episode(frames: np.ndarray, number: int = 0, jpeg: Sequence[bytes] | None = None) -> Episode:
    plain = sample_episode(number, INTERFACE, len(frames))
    streams = {**plain.streams, "front": Stream(frames, plain.streams["action"].stamp_ns)}
    return replace(plain, streams=streams, jpeg={"front": jpeg} if jpeg else {})


def jpegs(frames: np.ndarray, quality: int = 80, subsampling: str = "420") -> list[bytes]:
    return [simplejpeg.encode_jpeg(frame, quality, "RGB", subsampling) for frame in frames]


def segments(store: EpisodeStore) -> list[Segment]:
    return [Segment(store.path, entry) for entry in EpisodeStore.open(store.path).manifest.segments]


@pytest.mark.parametrize(
    ("frames", "policy", "name", "quality"),
    [
        (simulated_frames(20), "auto", "lz4hc", None),
        (natural_frames(20), "auto", "jpeg", 95),
        (NOISE, "auto", "lz4hc", None),  # a JPEG of so few pixels would be larger
        (natural_frames(20), "lossless", "lz4hc", None),
        (natural_frames(20), "blosc-lz4hc", "lz4hc", None),
        (simulated_frames(20), "jpeg:70", "jpeg", 70),
        (depth_frames(4), "jpeg:70", "lz4hc", None),
        (depth_frames(4), "auto", "lz4hc", None),
    ],
)
def test_the_policy_and_a_probe_choose(frames: np.ndarray, policy: str, name: str, quality: int | None) -> None:
    chosen = choose(policy, frames)
    assert (chosen.name, chosen.quality) == (name, quality)
    assert (chosen.probe_ratio is not None) == (policy == "auto" and frames.dtype == np.uint8)


def test_what_lz4hc_makes_three_times_smaller_stays_lossless_though_jpeg_is_smaller() -> None:
    frames = simulated_frames(8)
    frames[:, :20] = natural_frames(8)[:, :20]
    chosen = choose("auto", frames)
    assert sum(map(len, encode_frames(frames, JPEG95))) < sum(map(len, encode_frames(frames, LZ4HC)))
    assert chosen.name == "lz4hc"
    assert chosen.probe_ratio is not None
    assert chosen.probe_ratio > 3


def test_the_probe_looks_at_the_whole_episode() -> None:
    first_black = np.concatenate([np.zeros((200, 64, 64, 3), np.uint8), natural_frames(300, 64, 64)])
    chosen = choose("auto", first_black)
    assert chosen.name == "jpeg"
    assert chosen.probe_ratio is not None
    assert 1 < chosen.probe_ratio < 3


def test_jpeg_quality_95_is_close_and_deterministic() -> None:
    frames = natural_frames(6)
    payloads = encode_frames(frames, JPEG95)
    assert payloads == encode_frames(frames.copy(), JPEG95)
    images = np.empty_like(frames)
    for payload, image in zip(payloads, images):
        decode_frame(without_crc(payload, ""), JPEG95, image)
    error = ((images.astype(float) - frames) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 40
    assert frames.nbytes / sum(map(len, payloads)) > 3


@pytest.mark.parametrize("policy", ["jpeg", "jpeg:0", "jpeg:101", "png", "lossles", ""])
def test_unknown_policies_are_refused(tmp_path: Path, policy: str) -> None:
    with pytest.raises(KineflowError, match=f"camera 'front': codec '{policy}' is not known"):
        EpisodeStore.create(tmp_path / "s.eps", FRONT, cameras={"front": CameraRecord(policy)})


@pytest.mark.parametrize(
    ("frames", "codec"),
    [(simulated_frames(5), LZ4HC), (natural_frames(5, 30, 50), LZ4HC), (depth_frames(5), LZ4HC), (NOISE, LZ4HC)],
    ids=["flat", "natural", "depth", "tiny"],
)
def test_other_readers_read_lossless_frames_equal(tmp_path: Path, frames: np.ndarray, codec: FrameCodec) -> None:
    files = encode_shards("cam", encode_frames(frames, codec), frames.shape[1:], codec)
    np.testing.assert_array_equal(decode_frames("cam", files.__getitem__, 0, len(frames)), frames)
    save(files, tmp_path)
    by_python = zarr.open_group(tmp_path, mode="r")["cam"]
    assert isinstance(by_python, zarr.Array)
    assert by_python.dtype == frames.dtype
    np.testing.assert_array_equal(by_python[...], frames)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
        by_rust = zarr.open_group(tmp_path, mode="r")["cam"]
        assert isinstance(by_rust, zarr.Array)
        np.testing.assert_array_equal(by_rust[...], frames)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "cam")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), frames)


@pytest.mark.parametrize("frames", [simulated_frames(2), depth_frames(2)], ids=["rgb", "depth"])
def test_the_metadata_say_how_bytes_were_shuffled(frames: np.ndarray) -> None:
    payload = encode_frames(frames, LZ4HC)[0]
    configuration = LZ4HC.zarr_codecs(frames.shape[1:])[1]["configuration"]
    shuffled = {"shuffle": True, "noshuffle": False}[configuration["shuffle"]]
    assert (payload[3], bool(payload[2] & 1)) == (configuration["typesize"], shuffled) == (frames.itemsize, frames.itemsize == 2)


def test_zarr_python_opens_jpeg_frames_and_writes_some_that_we_read(tmp_path: Path) -> None:
    frames = natural_frames(5)
    files = encode_shards("cam", encode_frames(frames, JPEG95), frames.shape[1:], JPEG95)
    ours = decode_frames("cam", files.__getitem__, 0, 5)
    array = zarr.open_group(save(files, tmp_path), mode="r+")["cam"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[...], ours)
    array[...] = frames[::-1]
    read = decode_frames("cam", lambda path: (tmp_path / path).read_bytes(), 0, 5)
    np.testing.assert_array_equal(read, ours[::-1])


def test_source_jpegs_are_kept_byte_for_byte(tmp_path: Path) -> None:
    frames = natural_frames(6)
    source = jpegs(frames)
    store = EpisodeStore.create(tmp_path / "s.eps", FRONT)
    with store.writer() as writer:
        writer.add(episode(frames, jpeg=source))
    (segment,) = segments(store)
    assert segment.frame_array("front").codec == FrameCodec("jpeg", "source", "420")
    assert segment.payloads("front", 0, 6) == [with_crc(data) for data in source]
    decoded = np.stack([simplejpeg.decode_jpeg(data) for data in source])
    np.testing.assert_array_equal(store.episode(0).streams["front"].values, decoded)
    assert check_store(store.path) == []
    camera = inspect_store(store.path).cameras["front"]
    assert (camera.codec, camera.lossy) == ("jpeg of the source 420", False)


def test_source_jpegs_in_a_lossless_store_become_pixels(tmp_path: Path) -> None:
    source = jpegs(natural_frames(3))
    decoded = np.stack([simplejpeg.decode_jpeg(data) for data in source])
    store = EpisodeStore.create(tmp_path / "s.eps", FRONT, cameras={"front": CameraRecord("lossless")})
    with store.writer() as writer:
        writer.add(episode(decoded, jpeg=source))
    np.testing.assert_array_equal(store.episode(0).streams["front"].values, decoded)
    assert segments(store)[0].frame_array("front").codec == LZ4HC


def test_source_jpegs_that_cannot_be_read_back_are_refused() -> None:
    good = jpegs(natural_frames(2))
    small = jpegs(natural_frames(1, 48, 96))[0]
    for bad in (b"", b"no JPEG", good[1][:-900], small):
        with pytest.raises(KineflowError, match=r"camera 'front', frame 1: the source's JPEG cannot be kept"):
            keep_jpegs([good[0], bad], 96, 96, "camera 'front'")


def test_a_segment_has_one_codec(tmp_path: Path) -> None:
    flat, real = simulated_frames(4), natural_frames(4)
    store = EpisodeStore.create(tmp_path / "s.eps", FRONT)
    with store.writer(episodes_per_commit=10) as writer:
        writer.add(episode(flat, 0))
        writer.add(episode(flat, 1))
        writer.add(episode(real, 2, jpegs(real)))
        writer.add(episode(real, 3, jpegs(real)))
        writer.add(episode(real, 4))
        writer.add(episode(real, 5))
    names = [(s.entry.episodes, s.frame_array("front").codec.name_and_quality) for s in segments(store)]
    assert names == [(2, "lz4hc"), (2, "jpeg of the source 420"), (2, "jpeg q95 444")]
    assert check_store(store.path) == []
    camera = inspect_store(store.path).cameras["front"]
    assert camera.lossy
    assert camera.codec.startswith("jpeg of the source 420, jpeg q95 444 (lz4hc probe 1")


def test_attributes_say_codec_quality_and_probe(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", FRONT)
    with store.writer() as writer:
        writer.add(episode(natural_frames(4)))
    node = json.loads(next(store.path.glob("segments/*/cameras/front/zarr.json")).read_text())
    assert node["attributes"].keys() == {"codec", "quality", "subsampling", "probe_ratio"}
    assert (node["attributes"]["codec"], node["attributes"]["quality"]) == ("jpeg", 95)


def test_the_digest_of_a_jpeg_camera_is_over_its_bytes(tmp_path: Path) -> None:
    frames = natural_frames(4)
    stores = []
    for name, source in (("a", jpegs(frames, 90)), ("b", jpegs(frames, 90)), ("c", jpegs(frames, 91))):
        stores.append(EpisodeStore.create(tmp_path / name, FRONT))
        with stores[-1].writer() as writer:
            writer.add(episode(frames, jpeg=source))
    assert stores[0].fingerprint() == stores[1].fingerprint() != stores[2].fingerprint()


@pytest.mark.parametrize("codec", [LZ4HC, JPEG95])
def test_bytes_that_are_no_frame_are_refused(codec: FrameCodec) -> None:
    frame, other = natural_frames(1)[0], natural_frames(1, 32, 32)[0]
    out = np.empty_like(frame)
    good = without_crc(encode_frames(frame[None], codec)[0], "")
    for bad in (b"", b"\x02" * 40, good[: len(good) // 2], without_crc(encode_frames(other[None], codec)[0], "")):
        with pytest.raises(CorruptData):
            decode_frame(bad, codec, out)


@pytest.mark.parametrize(("codec", "name"), [("", "jpeg q95 444"), ("lossless", "lz4hc"), ("jpeg:60", "jpeg q60 420")])
def test_an_import_asks_for_a_codec_and_says_what_it_changed(tmp_path: Path, codec: str, name: str) -> None:
    source = zarr.open_group(tmp_path / "buffer.zarr", mode="w", zarr_format=2)
    for key, values in {
        "data/image": natural_frames(6),
        "data/action": np.ones((6, 2)),
        "meta/episode_ends": np.array([2, 6]),
    }.items():
        source.create_array(key, data=values)
    store = tmp_path / "s.eps"
    report = import_data("diffusion-policy-zarr", tmp_path / "buffer.zarr", store, ImportOptions(rate_hz=10.0, codec=codec))
    assert inspect_store(store).cameras["image"].codec.startswith(name)
    said = report.not_carried.get("exact pixels of camera 'image'", "")
    assert ("stored as jpeg q" in said) == (codec != "lossless")
    if codec == "lossless":
        np.testing.assert_array_equal(EpisodeStore.open(store).episode(1).streams["image"].values, natural_frames(6)[2:])
