"""Files of logs: MCAP and SQLite, whole, torn and damaged, of ROS 1 and 2. No damage ends in an error that says nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from kineflow.datasets.exporters.ros_messages import RosMessage, definition, types
from kineflow.datasets.exporters.rosbag2 import _write_db3
from tests.datasets.ros_samples import MS, START, driving, make, opened, twist, write_log


def test_a_crashed_recorder_loses_its_last_chunk_only(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 320 * 320 * 3, np.uint8)
    image = {"height": 320, "width": 320, "step": 960, "encoding": "rgb8", "data": noise}
    bulk = [("/cam", START + 150 * MS * i, make("sensor_msgs/msg/Image", **image)) for i in range(12)]
    whole = write_log(tmp_path / "whole.mcap", sorted(driving() + bulk, key=lambda entry: entry[1]))
    data = whole.read_bytes()
    chunks = [offset for opcode, offset in records(data) if opcode == 6]
    assert len(chunks) > 2
    for name, cut, count in (("mid", chunks[2] + 1000, 2), ("edge", chunks[2], 2), ("head", chunks[1] + 4, 1)):
        torn = tmp_path / f"{name}.mcap"
        torn.write_bytes(data[:cut])
        source = opened(torn)
        assert f"read up to byte {chunks[count]}" in source.facts.not_carried[f"{name}.mcap: end"]
        part, full = source.episode(0).streams["action"], opened(whole).episode(0).streams["action"]
        assert 0 < len(part.stamp_ns) < len(full.stamp_ns)
        np.testing.assert_array_equal(part.values, full.values[: len(part.values)])
    assert opened(whole).facts.not_carried == {}


def records(data: bytes) -> list[tuple[int, int]]:
    found, at = [], 8
    while at + 9 <= len(data) - 8:
        found.append((data[at], at))
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
    return found


def test_damage_inside_a_chunk_is_refused_not_skipped(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.mcap", driving(200))
    data = bytearray(path.read_bytes())
    chunk = next(offset for opcode, offset in records(bytes(data)) if opcode == 6)
    data[chunk + 400] ^= 4
    path.write_bytes(data)
    with pytest.raises(KineflowError, match=rf"log.mcap, chunk at byte {chunk}: .*mcap recover"):
        opened(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_of_an_mcap_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(write_log(folder / "log.mcap", driving(8)).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "log.mcap").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(KineflowError):
        opened(folder / "log.mcap").episode(0)


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A log without chunks, so without checksums."""
    from mcap.writer import Writer

    file = tmp_path_factory.mktemp("unchecked") / "log.mcap"
    store, channels = types(), dict[str, int]()
    with open(file, "wb") as opened_file:
        writer = Writer(opened_file, use_chunking=False)
        writer.start()
        for number, (topic, ns, message) in enumerate(driving(2)):
            if topic not in channels:
                schema = writer.register_schema(message.__msgtype__, "ros2msg", definition(message.__msgtype__).encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], ns, bytes(store.serialize_cdr(message, message.__msgtype__)), ns, number)
        writer.finish()
    return file.read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_without_checksums_ends_in_another_error(
    unchecked: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(unchecked)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.mcap"
    file.write_bytes(whole)
    with contextlib.suppress(KineflowError):
        opened(file).episode(0)


def test_a_known_name_with_other_fields_is_refused(unchecked: bytes, tmp_path: Path) -> None:
    for number, (before, after) in enumerate(
        ((b"Vector3 linear", b"Vector3 linexr"), (b"string child_frame_id", b"string child_frame_ix"))
    ):
        assert before in unchecked
        (tmp_path / f"{number}.mcap").write_bytes(unchecked.replace(before, after))
    with pytest.raises(
        KineflowError, match=r"no topic gives a stream: .*message 0: its type has not the fields that this importer knows"
    ):
        opened(tmp_path / "0.mcap")
    rest = opened(tmp_path / "1.mcap").facts.not_carried
    assert "its type has not the fields that this importer knows" in rest["/odom"]


def test_a_time_beyond_all_clocks_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.mcap", [*driving(), ("/cmd_vel", 2**63, twist(*[0.0] * 6))])
    with pytest.raises(KineflowError, match=r"log time 9223372036854775808 ns is beyond the year 2262"):
        opened(path)


def test_other_encodings_are_listed_with_the_reason(tmp_path: Path) -> None:
    from mcap.writer import Writer

    with open(tmp_path / "log.mcap", "wb") as file:
        writer = Writer(file)
        writer.start()
        binary = writer.register_schema("sensor_msgs/msg/Imu", "protobuf", b"\xff\xfe\x00binary")
        channel = writer.register_channel("/imu", "protobuf", binary)
        for i in range(3):
            writer.add_message(channel, i, b"x", i)
        writer.add_metadata("setup", {"a": "b"})
        writer.finish()
    with pytest.raises(KineflowError, match=r"no topic gives a stream.*message encoding 'protobuf', only cdr and ros1"):
        opened(tmp_path / "log.mcap")


def test_ros1_messages_are_read(tmp_path: Path) -> None:
    from mcap.writer import Writer

    text = "Header header\nTwist twist\n" + "=" * 80 + "\nMSG: std_msgs/Header\nuint32 seq\ntime stamp\nstring frame_id\n"
    text += "=" * 80 + "\nMSG: geometry_msgs/Twist\nVector3 linear\nVector3 angular\n"
    text += "=" * 80 + "\nMSG: geometry_msgs/Vector3\nfloat64 x\nfloat64 y\nfloat64 z\n"
    with open(tmp_path / "log.mcap", "wb") as file:
        writer = Writer(file)
        writer.start("ros1")
        schema = writer.register_schema("geometry_msgs/TwistStamped", "ros1msg", text.encode())
        channel = writer.register_channel("/cmd_vel", "ros1", schema)
        for i in range(3):
            data = (
                struct.pack("<III", i, 1_700_000_000 + i, 5)
                + struct.pack("<I", 4)
                + b"base"
                + struct.pack("<6d", *range(i, i + 6))
            )
            writer.add_message(channel, i, data, i)
        writer.finish()
    source = opened(tmp_path / "log.mcap")
    action = source.episode(0).streams["action"]
    np.testing.assert_array_equal(action.stamp_ns, [START + 5 + i * 10**9 for i in range(3)])
    np.testing.assert_array_equal(action.values[2], [2, 3, 4, 5, 6, 7])
    assert source.facts.interface.action.vector.frame == "base"


def write_bag(folder: Path, messages: list[tuple[str, int, Any]]) -> Path:
    folder.mkdir()
    store = types()
    rows = (RosMessage(t, m.__msgtype__, ns, bytes(store.serialize_cdr(m, m.__msgtype__))) for t, ns, m in messages)
    _write_db3(folder / f"{folder.name}_0.db3", rows)
    return folder


def test_a_bag_that_was_never_closed_is_read(tmp_path: Path) -> None:
    source = opened(write_bag(tmp_path / "bag", driving()), name="rosbag2")
    assert "recorder did not finish" in source.facts.not_carried["bag: metadata.yaml"]
    assert len(source.episode(0).streams["action"].stamp_ns) == 20
    alone = opened(tmp_path / "bag" / "bag_0.db3", name="rosbag2")
    np.testing.assert_array_equal(alone.episode(0).streams["action"].values, source.episode(0).streams["action"].values)


def test_the_parts_of_a_split_bag_follow_one_another(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", driving(4))
    (bag / "bag_0.db3").rename(bag / "bag_9.db3")
    write_bag(tmp_path / "more", driving(6, offset=10**12))
    (tmp_path / "more" / "more_0.db3").rename(bag / "bag_10.db3")
    stamp_ns = opened(bag, name="rosbag2").episode(0).streams["action"].stamp_ns
    assert (len(stamp_ns), stamp_ns[4] - stamp_ns[0]) == (10, 10**12)


def test_bags_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", driving())
    said = "rosbag2_bagfile_information:\n  relative_file_paths: [bag_0.db3]\n"
    for text, message in (
        ("a: b", "not the metadata of a rosbag2.*ros2 bag reindex bag"),
        (said.replace("bag_0", "bag_7"), r"bag_7.db3 is not there, but .*metadata.yaml names it"),
        (said + "  compression_format: zstd\n  compression_mode: FILE\n", r"compressed as a whole \(FILE, zstd\)"),
    ):
        (bag / "metadata.yaml").write_text(text)
        with pytest.raises(KineflowError, match=message):
            opened(bag, name="rosbag2")
    (bag / "metadata.yaml").unlink()
    file = bag / "bag_0.db3"
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(KineflowError, match=r"bag_0.db3 is not a whole rosbag2 database.*sqlite3 FILE .recover"):
        opened(bag, name="rosbag2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KineflowError, match=r"no rosbag2 folder"):
        opened(tmp_path / "empty", name="rosbag2")
    with pytest.raises(KineflowError, match=r"holds no .mcap file"):
        opened(tmp_path / "empty")


def test_types_of_a_db3_come_from_the_distribution(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", driving())
    connection = sqlite3.connect(bag / "bag_0.db3")
    connection.execute("UPDATE topics SET type = 'nav_msgs/msg/Odometrie' WHERE name = '/odom'")
    connection.commit()
    connection.close()
    (bag / "metadata.yaml").write_text(
        "rosbag2_bagfile_information:\n  relative_file_paths: [bag_0.db3]\n  ros_distro: jazzy\n  version: 9\n"
    )
    rest = opened(bag, name="rosbag2").facts.not_carried
    assert rest["/odom"] == "nav_msgs/msg/Odometrie, 40 messages: not a type that this importer turns into a stream"
