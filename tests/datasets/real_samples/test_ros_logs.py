"""Real logs of other people: nav2 odometry in MCAP, bags in MCAP and SQLite; rosbags reads the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.importers.source import ImportOptions, open_source

pytest.importorskip("rosbags")
Find = Callable[[str], Path]


def schema(tmp_path: Path, action: str) -> ImportOptions:
    (tmp_path / "schema.yaml").write_text(f"topics: {{action: {action}}}\n")
    return ImportOptions(tmp_path / "schema.yaml")


def test_nav2_odometry_equals_what_rosbags_reads_and_survives_both_ways(tmp_path: Path, shared_data: Find) -> None:
    from rosbags.highlevel import AnyReader

    file = shared_data("ros_logs") / "nav2_turtlebot.mcap"
    with pytest.raises(KineflowError, match=r"topics: \{action: odom_pose\}.*/tf \(tf2_msgs/msg/TFMessage, 5422 messages"):
        open_source("mcap", file, ImportOptions())
    report = import_data("mcap", file, tmp_path / "s.eps", schema(tmp_path, "odom_twist"))
    store = EpisodeStore.open(tmp_path / "s.eps")
    episode = store.episode(0)
    with AnyReader([file]) as reader:
        odometry = [reader.deserialize(d, c.msgtype) for c, _, d in reader.messages() if c.topic == "/odom"]
    assert len(odometry) == len(episode.streams["action"].values) == 2639
    theirs = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in odometry]
    np.testing.assert_array_equal(episode.streams["odom_pose"].stamp_ns, theirs)
    x = np.float32([m.pose.pose.position.x for m in odometry])
    np.testing.assert_array_equal(episode.streams["odom_pose"].values[:, 0], x)
    spin = np.float32([m.twist.twist.angular.z for m in odometry])
    np.testing.assert_array_equal(episode.streams["action"].values[:, 5], spin)
    assert store.interface.features["odom_pose"].vector.frame == "odom"
    assert set(report.not_carried) == {"/tf", "/tf_static"}
    assert check_store(store.path) == []
    export_data("rosbag2-db3", store, tmp_path / "bag")
    import_data("rosbag2", tmp_path / "bag", tmp_path / "again.eps")
    assert EpisodeStore.open(tmp_path / "again.eps").fingerprint() == store.fingerprint()


def test_an_old_db3_bag_needs_no_definitions(tmp_path: Path, shared_data: Find) -> None:
    bag = shared_data("ros_logs") / "plotjuggler_rosbag2_test"
    source = open_source("rosbag2", bag, schema(tmp_path, "imu"))
    assert {name: len(s.stamp_ns) for name, s in source.episode(0).streams.items()} == {
        "action": 1565,
        "imu_orientation": 1565,
        "pose": 1565,
    }
    assert "BatteryState, 1565 messages" in source.facts.not_carried["/battery"]


@pytest.mark.parametrize(
    "bag", ["rosbag2_mcap_convert_a", "rosbag2_mcap_convert_b", "rosbag2_mcap_talker", "rosbag2_sqlite3_convert_b"]
)
def test_bags_without_streams_list_their_topics(shared_data: Find, bag: str) -> None:
    with pytest.raises(
        KineflowError, match=r"no topic gives a stream: .*(test_msgs/msg/Empty|std_msgs/msg/String), \d+ messages"
    ):
        open_source("rosbag2", shared_data("ros_logs") / bag, ImportOptions())


def test_a_torn_real_log_is_read_up_to_its_last_whole_chunk(tmp_path: Path, shared_data: Find) -> None:
    data = (shared_data("ros_logs") / "nav2_turtlebot.mcap").read_bytes()
    (tmp_path / "torn.mcap").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(KineflowError, match=r"torn.mcap has no messages .*the recorder did not finish"):
        open_source("mcap", tmp_path / "torn.mcap", ImportOptions())  # this log is one single chunk
