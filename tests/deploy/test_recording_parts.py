"""The recorder's parts without ROS: what reaches the disk when, which streams come from which topics, and what is dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.ros_messages import types
from kineflow.deploy.bag import Bag
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.recording import McapFile, Raw, Recording, lanes_of
from kineflow.deploy.ros2.toy_policies import toy_contract
from tests.datasets.ros_samples import MS, START, header, make, pose, twist

NODE = load_config(NodeConfig, "nodes/wheeled")
CONTRACT = toy_contract(goals=True)


def raw(topic: str, message: Any, log_ns: int) -> Raw:
    return Raw(topic, message.__msgtype__, bytes(types().serialize_cdr(message, message.__msgtype__)), log_ns)


def word(text: str, log_ns: int) -> Raw:
    return raw("/word", make("std_msgs/msg/String", data=text), log_ns)


def image(stamp_ns: int) -> Raw:
    pixels = np.full(96 * 96 * 3, stamp_ns // MS % 256, np.uint8)
    fields = {"height": 96, "width": 96, "encoding": "rgb8", "step": 288, "data": pixels}
    return raw("/front", make("sensor_msgs/msg/Image", header=header(stamp_ns), **fields), stamp_ns + MS)


def odometry(stamp_ns: int, x: float) -> Raw:
    with_pose = make("geometry_msgs/msg/PoseWithCovariance", pose=pose(x, 0, 0, 0, 0, 0, 1))
    return raw("/odom", make("nav_msgs/msg/Odometry", header=header(stamp_ns, "odom"), pose=with_pose), stamp_ns + MS)


def command(stamp_ns: int, vx: float) -> Raw:
    sent = make("geometry_msgs/msg/TwistStamped", header=header(stamp_ns), twist=twist(vx, 0, 0, 0, 0, 0.5))
    return raw("/cmd_vel", sent, stamp_ns + MS)


def test_a_bag_that_is_not_closed_is_read_up_to_its_last_flush(tmp_path: Path) -> None:
    """Small messages fill no chunk: without flushes they would all be lost with the process."""
    file = McapFile(tmp_path / "bag.mcap", 0.5, {"source": "test"})
    for i in range(100):  # 2 s
        file.write(word(f"{i}", START + 20 * MS * i))
    bag = Bag.open(tmp_path / "bag.mcap", ("/word",))
    assert "did not finish the file" in bag.damage
    found = [received.message.data for received in bag.known["/word"]]
    assert found == [f"{i}" for i in range(len(found))]
    assert len(found) >= 100 - 26
    file.close()
    whole = Bag.open(tmp_path / "bag.mcap")
    assert (whole.damage, whole.topics["/word"].count) == ("", 100)


def test_messages_become_samples_with_the_stamps_of_their_headers(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store", CONTRACT.interface)
    recording = Recording(store, tmp_path / "bags", GoalInbox(CONTRACT, 5.0), NODE)
    for i in range(30):  # a second
        stamp = START + 33 * MS * i
        recording.take(image(stamp))
        recording.take(odometry(stamp, 0.1 * i))
        recording.take(command(stamp, 0.01 * i))
    recording.take(command(START, 9.0))  # earlier than the last
    goal = make("geometry_msgs/msg/PoseStamped", header=header(START, "odom"), pose=pose(1, 2, 0, 0, 0, 0, 1))
    recording.take(raw("/goal_pose", goal, START + 10**9))
    recording.take(Raw("/odom", "nav_msgs/msg/Odometry", b"\0\1\0\0rubbish", START + 10**9))
    assert recording.samples == {"pose": 30, "action": 30, "front": 10}  # pictures: at the store's 10 Hz
    assert recording.dropped["action: not later than the one before"] == 1
    assert any(reason.startswith("/odom: ") for reason in recording.dropped)
    assert recording.finish(True).startswith(f"episode {recording.id}: 30 actions, 93 messages")
    episode = EpisodeStore.open(tmp_path / "store").episode(0)
    np.testing.assert_array_equal(episode.streams["pose"].stamp_ns, START + 33 * MS * np.arange(30))
    np.testing.assert_allclose(episode.streams["pose"].values[:, 0], 0.1 * np.arange(30), atol=1e-6)
    np.testing.assert_allclose(episode.streams["action"].values[:, [0, 3]], [[0.01 * i, 0.5] for i in range(30)], atol=1e-6)
    assert int(episode.streams["front"].values[1].flat[0]) == 33 * 3 % 256
    assert (episode.success, episode.goals["point"].value.tolist()) == (True, [1.0, 2.0, 0.0])
    assert Bag.open(recording.bag).topics["/odom"].count == 31


def test_nothing_sensed_is_a_bag_without_an_episode(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store", CONTRACT.interface)
    recording = Recording(store, tmp_path / "bags", GoalInbox(CONTRACT, 5.0), NODE)
    recording.take(odometry(START, 0.0))
    assert recording.finish().startswith("no episode: nothing came of front, action")
    assert Bag.open(recording.bag).topics["/odom"].count == 1
    assert EpisodeStore.open(tmp_path / "store").num_episodes == 0
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_a_stream_that_comes_from_nowhere_is_an_error_at_once() -> None:
    with pytest.raises(KineflowError, match="camera 'front' of the store: the node has"):
        lanes_of(CONTRACT.interface, replace(NODE, cameras={}))
    with pytest.raises(KineflowError, match="feature 'pose' of the store"):
        lanes_of(CONTRACT.interface, replace(NODE, features={}))
