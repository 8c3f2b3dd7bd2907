"""Store -> MCAP or rosbag2 -> store loses nothing, and readers that are not ours see the same messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from kineflow.contracts import CameraSpec, Episode, Goal, Interface, KineflowError, Span, Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.manifest import Calibration, CameraRecord
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

FORMATS = (("mcap", "mcap"), ("rosbag2", "rosbag2"), ("rosbag2-db3", "rosbag2"))
RICH = Interface(
    INTERFACE.features,
    INTERFACE.action,
    {"front": CameraSpec(6, 8, 10.0), "wrist": CameraSpec(16, 24, 20.0), "range": CameraSpec(5, 7, 10.0, "depth")},
)
EYE = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
CALIBRATION = Calibration(((90.0, 0.0, 4.0), (0.0, 91.5, 3.0), (0.0, 0.0, 1.0)), "plumb_bob", (0.1, -0.2, 0.0, 0.0, 0.3), EYE)
CAMERAS = {"front": CameraRecord("lossless", calibration=CALIBRATION), "wrist": CameraRecord(), "range": CameraRecord()}


def rich_episode(number: int) -> Episode:
    """Raw and JPEG and depth cameras, each on a clock of its own, and every other thing that an episode may hold."""
    plain, rng = sample_episode(number), np.random.default_rng([11, number])
    start = int(plain.streams["action"].stamp_ns[0])
    jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 256, (16, 24, 3), np.uint8), quality=80) for _ in range(9)]
    wrist = Stream(np.stack([simplejpeg.decode_jpeg(j) for j in jpegs]), start + 7 + np.arange(9) * 50_000_001)
    depth = Stream(rng.integers(0, 65536, (4, 5, 7)).astype(np.uint16), start - 3 + np.arange(4) * 99_999_999)
    spans = (Span("reach", start, start + 5, "en"), Span("zurück", start + 5, start + 9, "de"))
    goals = {
        "photo": Goal("image", rng.integers(0, 256, (6, 8, 3), np.uint8), "front"),
        "film": Goal("video", rng.integers(0, 256, (3, 6, 8, 3), np.uint8), "front"),
        "there": Goal("pose", np.float32([1, 2, 3, 0, 0, 0, 1]), "map"),
        "spot": Goal("point", np.float32([0.1, -2, 3]), "map"),
    }
    streams = {**plain.streams, "wrist": wrist, "range": depth}
    said = {"language": "en", "spans": spans, "goals": goals, "split": "train", "seed": 3 + number, "operator": "anna"}
    return replace(plain, streams=streams, jpeg={"wrist": jpegs}, **said)


def make_store(path: Path, rich: bool = True, episodes: int = 3) -> EpisodeStore:
    store = EpisodeStore.create(path, RICH if rich else LOW_DIM, "sensor", "a robot", "CC0-1.0", CAMERAS if rich else {})
    with store.writer(2) as writer:
        for number in range(episodes):
            writer.add(rich_episode(number) if rich else sample_episode(number, LOW_DIM))
    return store


@pytest.mark.parametrize(("export", "load"), FORMATS)
def test_nothing_is_lost_on_the_way_out_and_back(tmp_path: Path, export: str, load: str) -> None:
    store = make_store(tmp_path / "a.eps")
    report = export_data(export, store, tmp_path / "logs")
    assert report.carried["wrist"].startswith("/wrist/compressed")
    assert report.carried["front"].startswith("/front/image")
    back = import_data(load, tmp_path / "logs", tmp_path / "b.eps")
    again = EpisodeStore.open(tmp_path / "b.eps")
    for index in range(3):
        assert_equal_episodes(again.episode(index), store.episode(index))
        assert again.jpegs(index, "wrist") == store.jpegs(index, "wrist") == list(rich_episode(index).jpeg["wrist"])
    assert again.fingerprint() == store.fingerprint()
    assert again.interface == store.interface
    assert again.manifest.cameras == store.manifest.cameras
    assert (again.manifest.provenance, again.manifest.licence, back.clock) == ("a robot", "CC0-1.0", "sensor")
    assert back.not_carried == {}


@pytest.mark.parametrize("export", ["mcap", "rosbag2", "rosbag2-db3"])
def test_rosbags_reads_the_same_messages(tmp_path: Path, export: str) -> None:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    store = make_store(tmp_path / "a.eps")
    export_data(export, store, tmp_path / "logs")
    humble = get_typestore(Stores.ROS2_HUMBLE)
    for index in range(3):
        episode = store.episode(index)
        place = tmp_path / "logs" / f"episode_{index:06d}{'.mcap' if export == 'mcap' else ''}"
        found: dict[str, list[tuple[int, object]]] = {}
        with AnyReader([place], default_typestore=humble) as reader:
            for connection, stamp_ns, data in reader.messages():
                found.setdefault(connection.topic, []).append((stamp_ns, reader.deserialize(data, connection.msgtype)))
        for name in ("pose", "force", "action"):
            stamps, messages = zip(*found[f"/{name}"])
            np.testing.assert_array_equal(stamps, episode.streams[name].stamp_ns)
            np.testing.assert_array_equal([m.data for m in messages], episode.streams[name].values)
        assert found["/pose"][0][1].layout.dim[0].label == "x,y,yaw"
        for (stamp_ns, image), stamp, frame in zip(found["/front/image"], *reversed_pair(episode.streams["front"])):
            assert stamp_ns == stamp == image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
            assert (image.encoding, image.step, image.header.frame_id) == ("rgb8", 24, "front")
            np.testing.assert_array_equal(image.data.reshape(6, 8, 3), frame)
        depth = [m.data.view("<u2").reshape(5, 7) for _, m in found["/range/image"]]
        np.testing.assert_array_equal(depth, episode.streams["range"].values)
        assert [bytes(m.data) for _, m in found["/wrist/compressed"]] == store.jpegs(index, "wrist")
        info = found["/front/camera_info"][0][1]
        np.testing.assert_array_equal(info.k.reshape(3, 3), CALIBRATION.intrinsics)
        assert json.loads(found["/kineflow/episode"][0][1].data)["seed"] == 3 + index


def reversed_pair(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    return stream.stamp_ns, stream.values


def test_the_mcap_package_reads_it_indexed_and_ordered(tmp_path: Path) -> None:
    from mcap.reader import make_reader

    store = make_store(tmp_path / "a.eps")
    export_data("mcap", store, tmp_path / "logs")
    export_data("rosbag2", store, tmp_path / "bags")
    for file in (tmp_path / "logs" / "episode_000001.mcap", tmp_path / "bags" / "episode_000001" / "episode_000001_0.mcap"):
        with open(file, "rb") as opened:
            reader = make_reader(opened, validate_crcs=True)
            summary = reader.get_summary()
            assert summary is not None
            assert {s.encoding for s in summary.schemas.values()} == {"ros2msg"}
            messages = list(reader.iter_messages(topics=["/action"]))
        stream = store.episode(1).streams["action"]
        np.testing.assert_array_equal([m.log_time for _, _, m in messages], stream.stamp_ns)
        # CDR by hand: encapsulation, one dimension (label, size, stride), data offset, length, floats.
        for (_, _, message), row in zip(messages, stream.values):
            np.testing.assert_array_equal(np.frombuffer(message.data[-8:], "<f4"), row)
            assert message.data[:4] == b"\x00\x01\x00\x00"


def test_low_dimensional_stores_and_single_steps_come_back(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "a.eps", LOW_DIM)
    with store.writer() as writer:
        writer.add(sample_episode(0, LOW_DIM, length=1))
    export_data("rosbag2-db3", store, tmp_path / "bags")
    import_data("rosbag2", tmp_path / "bags", tmp_path / "b.eps")
    assert EpisodeStore.open(tmp_path / "b.eps").fingerprint() == store.fingerprint()


@pytest.mark.parametrize(("export", "load"), FORMATS[1:])
def test_one_bag_is_one_episode(tmp_path: Path, export: str, load: str) -> None:
    store = make_store(tmp_path / "a.eps", rich=False)
    export_data(export, store, tmp_path / "bags")
    import_data(load, tmp_path / "bags" / "episode_000002", tmp_path / "b.eps")
    assert_equal_episodes(EpisodeStore.open(tmp_path / "b.eps").episode(0), store.episode(2))


def test_times_that_ros_cannot_express_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    for number, shift in enumerate((-(10**18) - 10**9, 2**31 * 10**9)):
        store = EpisodeStore.create(tmp_path / f"{number}.eps", LOW_DIM)
        plain = sample_episode(0, LOW_DIM)
        streams = {name: Stream(s.values, s.stamp_ns + shift) for name, s in plain.streams.items()}
        with store.writer() as writer:
            writer.add(replace(plain, streams=streams))
        with pytest.raises(KineflowError, match=r"episode 0, stream '\w+': stamps -?\d+ to .* do not fit a ROS time"):
            export_data("mcap", store, tmp_path / f"logs{number}")
        assert not (tmp_path / f"logs{number}").exists()


def test_lost_messages_of_an_export_are_said(tmp_path: Path) -> None:
    import sqlite3

    store = make_store(tmp_path / "a.eps", rich=False)
    export_data("rosbag2-db3", store, tmp_path / "bags")
    with sqlite3.connect(tmp_path / "bags" / "episode_000001" / "episode_000001_0.db3") as connection:
        force = "topic_id = (SELECT id FROM topics WHERE name = '/force')"
        connection.execute(f"DELETE FROM messages WHERE {force} AND id IN (SELECT id FROM messages WHERE {force} LIMIT 2)")
    connection.close()
    report = import_data("rosbag2", tmp_path / "bags", tmp_path / "b.eps")
    length = int(store.lengths[1])
    assert report.not_carried == {"episode_000001: force": f"2 of {length} messages are lost"}
    with sqlite3.connect(tmp_path / "bags" / "episode_000001" / "episode_000001_0.db3") as connection:
        connection.execute(f"DELETE FROM messages WHERE {force}")
    connection.close()
    with pytest.raises(KineflowError, match=r"episode_000001 has no message of stream 'force'"):
        import_data("rosbag2", tmp_path / "bags", tmp_path / "c.eps")
