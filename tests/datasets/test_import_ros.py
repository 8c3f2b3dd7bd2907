"""Logs of robots: streams, units and frames from known messages, every clock kept, the action chosen or asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.clocks import increasing
from kineflow.datasets.importers.source import ImportOptions, Source, open_source

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from tests.datasets.ros_samples import MS, START, driving, header, make, opened, pose, twist, write_log


def one_topic(tmp_path: Path, topic: str, messages: list[Any], schema: str = "") -> Source:
    """A log of commands and of `messages`, 100 ms apart."""
    extra = [(topic, START + 100 * MS * i, message) for i, message in enumerate(messages)]
    return opened(write_log(tmp_path / "log.mcap", driving() + extra), schema)


def test_a_driving_log_keeps_every_clock(tmp_path: Path) -> None:
    report = import_data("mcap", write_log(tmp_path / "drive.mcap", driving()), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    episode = store.episode(0)
    assert (store.interface.action.vector.names[0], store.interface.action.rate_hz) == ("linear_x", 10.0)
    assert store.interface.action.vector.units == ("m/s",) * 3 + ("rad/s",) * 3
    assert store.interface.features["odom_pose"].vector.frame == "odom"
    assert store.interface.features["odom_twist"].vector.frame == "base"
    assert store.interface.features["odom_pose"].rate_hz == 20.0
    np.testing.assert_array_equal(episode.streams["action"].stamp_ns, START + 100 * MS * np.arange(20))
    np.testing.assert_array_equal(episode.streams["odom_pose"].stamp_ns, START - 3 * MS + 50 * MS * np.arange(40))
    np.testing.assert_allclose(episode.streams["action"].values[:, 5], -0.4 * np.arange(20), rtol=1e-6)
    np.testing.assert_array_equal(episode.streams["odom_pose"].values[7], [7, 14, 0, 0, 0, 0, 1])
    assert report.carried["action"] == (
        "/cmd_vel geometry_msgs/msg/Twist, stamps: log time; no header: frame base_link is the convention, not recorded"
    )
    assert report.carried["odom_pose"] == "/odom nav_msgs/msg/Odometry, stamps: header.stamp; covariance not carried"


def test_a_rate_is_refused_because_logs_have_clocks(tmp_path: Path) -> None:
    path = write_log(tmp_path / "drive.mcap", driving())
    with pytest.raises(KineflowError, match=r"--rate-hz 10 has nothing to say"):
        open_source("mcap", path, ImportOptions(rate_hz=10.0))


def test_files_of_a_folder_are_episodes(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    write_log(tmp_path / "logs" / "b.mcap", driving(5, offset=10**12))
    write_log(
        tmp_path / "logs" / "a.mcap",
        [*driving(7), ("/extra", START, twist(*[0.0] * 6)), ("/extra", START + 1, twist(*[1.0] * 6))],
    )
    source = opened(tmp_path / "logs")
    assert [source.episode(i).source for i in range(2)] == ["a.mcap", "b.mcap"]
    assert [len(source.episode(i).streams["action"].stamp_ns) for i in range(2)] == [7, 5]
    assert source.facts.not_carried == {"/extra": "geometry_msgs/msg/Twist: not in every log (missing in b.mcap)"}


def test_repeated_and_late_stamps_are_dropped_and_counted(tmp_path: Path) -> None:
    messages = driving()
    messages.insert(9, messages[5])  # odometry again, late
    messages.append(messages[-1])  # and again, at once
    source = opened(write_log(tmp_path / "log.mcap", messages))
    assert source.facts.not_carried["/odom: messages"] == "2 whose header.stamp is not later than the one before were dropped"
    episode = source.episode(0)
    assert len(episode.streams["odom_pose"].stamp_ns) == 40
    np.testing.assert_array_equal(episode.streams["odom_pose"].values[:, 0], np.arange(40))


def test_a_clock_that_was_set_back_is_refused(tmp_path: Path) -> None:
    late = [(topic, ns, message) for topic, ns, message in driving() if topic == "/cmd_vel"]
    path = write_log(tmp_path / "log.mcap", [*driving(), *late, *late])
    with pytest.raises(KineflowError, match=r"topic /cmd_vel: 40 of 60 time stamps do not increase .* split the log there"):
        opened(path)


def test_headers_that_were_never_filled_fall_back_to_the_log_time(tmp_path: Path) -> None:
    messages = [make("geometry_msgs/msg/PoseStamped", header=header(0, "map"), pose=pose(i, 0, 0, 0, 0, 0, 1)) for i in range(4)]
    source = one_topic(tmp_path, "/pose", messages)
    assert source.facts.carried["pose"] == "/pose geometry_msgs/msg/PoseStamped, stamps: log time"
    np.testing.assert_array_equal(source.episode(0).streams["pose"].stamp_ns, START + 100 * MS * np.arange(4))


def joints(names: list[str], position: list[float], velocity: list[float], stamp: int) -> Any:
    return make(
        "sensor_msgs/msg/JointState",
        header=header(stamp),
        name=names,
        position=np.array(position),
        velocity=np.array(velocity),
    )


def test_joints_are_matched_by_name(tmp_path: Path) -> None:
    messages = [joints(["b", "a"], [1.0, 2.0], [], START + 1), joints(["a", "b"], [4.0, 3.0], [], START + 2)]
    source = one_topic(tmp_path, "/joint_states", messages)
    vector = source.facts.interface.features["joint_states_position"].vector
    assert (vector.names, vector.units) == (("b", "a"), ("rad or m",) * 2)
    np.testing.assert_array_equal(source.episode(0).streams["joint_states_position"].values, [[1, 2], [3, 4]])
    assert "joint_states_velocity" not in source.facts.interface.features


def test_other_joints_in_between_are_refused_by_name(tmp_path: Path) -> None:
    messages = [joints(["a"], [1.0], [], START + 1), joints(["grip"], [4.0], [], START + 2)]
    source = one_topic(tmp_path, "/joint_states", messages)
    with pytest.raises(KineflowError, match=r"log.mcap, topic /joint_states, message 1: joints \['grip'\] with position"):
        source.episode(0)


def test_imu_without_orientation_gives_none(tmp_path: Path) -> None:
    def imu(unknown: bool, i: int) -> Any:
        covariance = np.full(9, -1.0 if unknown else 0.0)
        spin = make("geometry_msgs/msg/Vector3", x=1.0, y=2.0, z=3.0)
        quaternion = make("geometry_msgs/msg/Quaternion", w=1.0)
        fields = {"orientation": quaternion, "orientation_covariance": covariance, "angular_velocity": spin}
        return make("sensor_msgs/msg/Imu", header=header(START + i, "imu_link"), linear_acceleration=spin, **fields)

    known = one_topic(tmp_path, "/imu/data", [imu(False, i) for i in range(3)])
    assert known.facts.interface.features["imu_data"].vector.units == ("rad/s",) * 3 + ("m/s^2",) * 3
    assert known.facts.interface.features["imu_data"].vector.frame == "imu_link"
    assert known.facts.carried["imu_data"].endswith("; covariance not carried")
    np.testing.assert_array_equal(known.episode(0).streams["imu_data_orientation"].values[0], [0, 0, 0, 1])
    unknown = one_topic(tmp_path, "/imu/data", [imu(True, i) for i in range(3)])
    assert "imu_data_orientation" not in unknown.facts.interface.features


def test_fixes_become_local_metres(tmp_path: Path) -> None:
    step = 1e-5  # degrees: 1.11 m to the north
    fixes = [
        make("sensor_msgs/msg/NavSatFix", header=header(START + i), latitude=48.1 + i * step, longitude=11.5, altitude=500.0 + i)
        for i in range(3)
    ]
    source = one_topic(tmp_path, "/fix", fixes)
    assert source.facts.interface.features["fix"].vector.frame == "enu(WGS84 48.1 11.5 500.0)"
    np.testing.assert_allclose(source.episode(0).streams["fix"].values, [[0, 1.1119 * i, i] for i in range(3)], atol=2e-3)


def test_scans_hold_finite_ranges(tmp_path: Path) -> None:
    scans = [
        make(
            "sensor_msgs/msg/LaserScan",
            header=header(START + i, "laser"),
            range_min=0.1,
            range_max=8.0,
            ranges=np.float32([1.5, math.inf, -math.inf, math.nan]),
        )
        for i in range(2)
    ]
    source = one_topic(tmp_path, "/scan", scans)
    np.testing.assert_array_equal(source.episode(0).streams["scan"].values[0], np.float32([1.5, 8.0, 0.1, 0.0]))
    assert "inf kept as range_max 8" in source.facts.carried["scan"]


ENCODINGS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2, 0), "bgra8": (2, 1, 0, 0), "mono8": (0,)}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_raw_pictures_of_every_byte_order(tmp_path: Path, encoding: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    rows = rgb[:, :, list(ENCODINGS[encoding])].reshape(4, -1)
    padded = np.concatenate([rows, np.full((4, 3), 7, np.uint8)], 1)  # `step` may be longer than a row
    image = {"height": 4, "width": 5, "encoding": encoding, "step": padded.shape[1], "data": padded.reshape(-1)}
    messages = [make("sensor_msgs/msg/Image", header=header(START + i, "cam"), **image) for i in range(2)]
    info = make(
        "sensor_msgs/msg/CameraInfo", k=np.array([9.0, 0, 2, 0, 9, 2, 0, 0, 1]), distortion_model="plumb_bob", d=np.zeros(5)
    )
    log = [*driving(), ("/cam/camera_info", START, info)]
    log += [("/cam/image_raw", START + i, message) for i, message in enumerate(messages)]
    source = opened(write_log(tmp_path / "log.mcap", log))
    expected = rgb if encoding != "mono8" else np.repeat(rgb[:, :, :1], 3, 2)
    np.testing.assert_array_equal(source.episode(0).streams["cam"].values, [expected, expected])
    calibration = source.facts.cameras["cam"].calibration
    assert calibration is not None
    assert calibration.intrinsics[0] == (9.0, 0.0, 2.0)
    assert "body_from_camera is the identity" in source.facts.not_carried["extrinsics of cam"]


def test_depth_and_unknown_pictures(tmp_path: Path) -> None:
    depth = (np.arange(20).reshape(4, 5) * 1000).astype(">u2")
    fields = {
        "height": 4,
        "width": 5,
        "step": 10,
        "encoding": "16UC1",
        "is_bigendian": 1,
        "data": depth.view(np.uint8).reshape(-1),
    }
    messages = [make("sensor_msgs/msg/Image", header=header(START + i), **fields) for i in range(2)]
    source = one_topic(tmp_path, "/depth/image_rect", messages)
    assert source.facts.interface.cameras["depth"].kind == "depth"
    np.testing.assert_array_equal(source.episode(0).streams["depth"].values[1], depth)
    fields["encoding"] = "bayer_rggb8"
    messages = [make("sensor_msgs/msg/Image", header=header(START + i), **fields) for i in range(2)]
    rest = one_topic(tmp_path, "/depth/image_rect", messages).facts.not_carried
    assert "encoding 'bayer_rggb8' is not one of rgb8, bgr8" in rest["/depth/image_rect"]


def test_jpeg_bytes_pass_through(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 256, (16, 16, 3), np.uint8), quality=70) for _ in range(3)]
    messages = [
        make(
            "sensor_msgs/msg/CompressedImage",
            header=header(START + i),
            format="rgb8; jpeg compressed bgr8",
            data=np.frombuffer(j, np.uint8),
        )
        for i, j in enumerate(jpegs)
    ]
    source = one_topic(tmp_path, "/cam/image_raw/compressed", messages)
    import_data("mcap", tmp_path / "log.mcap", tmp_path / "s.eps")
    assert EpisodeStore.open(tmp_path / "s.eps").jpegs(0, "cam") == jpegs
    np.testing.assert_array_equal(source.episode(0).streams["cam"].values[2], simplejpeg.decode_jpeg(jpegs[2]))


def test_a_frame_that_changes_is_refused(tmp_path: Path) -> None:
    messages = [
        make("geometry_msgs/msg/PoseStamped", header=header(START + i, f), pose=pose(*[0.0] * 7))
        for i, f in enumerate(("map", "odom"))
    ]
    with pytest.raises(KineflowError, match=r"topic /pose, message 1: frame_id is 'odom', before it was 'map'"):
        one_topic(tmp_path, "/pose", messages).episode(0)


def without_commands() -> list[tuple[str, int, Any]]:
    return [entry for entry in driving() if entry[0] != "/cmd_vel"]


def test_a_log_without_a_command_says_what_to_write(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.mcap", without_commands())
    with pytest.raises(
        KineflowError, match=r"topics: \{action: odom_pose\}.*Streams: odom_pose \(/odom nav_msgs/msg/Odometry\), odom_twist"
    ):
        opened(path)
    source = opened(path, "topics: {action: odom_twist}")
    assert list(source.facts.interface.features) == ["odom_pose"]
    np.testing.assert_array_equal(source.episode(0).streams["action"].values[:, 0], np.arange(40))


def test_two_commands_are_not_guessed_between(tmp_path: Path) -> None:
    extra = [("/joy/cmd_vel", START + i, twist(*[0.0] * 6)) for i in range(2)]
    path = write_log(tmp_path / "log.mcap", driving() + extra)
    with pytest.raises(KineflowError, match=r"cmd_vel and joy_cmd_vel could be the action; write `topics: \{action: cmd_vel\}`"):
        opened(path)
    source = opened(path, "topics: {action: /joy/cmd_vel}")
    assert len(source.episode(0).streams["action"].stamp_ns) == 2
    assert "cmd_vel" in source.facts.interface.features


DECLARED = """
topics: {action: cmd_vel, where: odom_pose}
features:
  where: {rate_hz: 20.0, vector: {names: [y, x], units: [m, m], frame: map, low: [-inf, -inf], high: [inf, inf]}}
action: {rate_hz: 10.0, vector: {names: [linear_x, angular_z], units: [m/s, rad/s], frame: base, low: [-1, -1], high: [1, 1]}}
"""


def test_a_schema_selects_streams_and_dimensions(tmp_path: Path) -> None:
    source = opened(write_log(tmp_path / "log.mcap", driving()), DECLARED)
    episode = source.episode(0)
    assert set(episode.streams) == {"where", "action"}
    np.testing.assert_array_equal(episode.streams["where"].values[3], [6, 3])
    np.testing.assert_allclose(episode.streams["action"].values[2], [0.4, -0.8], rtol=1e-6)
    assert source.facts.interface.action.vector.high == (1.0, 1.0)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("topics: {action: nowhere}", r"'action' is to be 'nowhere', which the log has not.*Streams: cmd_vel"),
        ("topics: {action: /odom}", r"'action' is to be '/odom', which is several streams"),
        (DECLARED.replace("[y, x], units: [m, m]", "[u, v], units: [m, m]"), r"'where' has the dimensions \('u', 'v'\)"),
        ("cameras: {top: {height: 4, width: 4, rate_hz: 1.0}}", "'top' is to be 'top', which the log has not"),
    ],
)
def test_schemas_that_do_not_fit_are_refused(tmp_path: Path, schema: str, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        opened(write_log(tmp_path / "log.mcap", driving()), schema)


def test_topics_of_one_name_are_told_apart(tmp_path: Path) -> None:
    extra = [(topic, START + i, twist(*[1.0] * 6)) for i in range(2) for topic in ("/a/b", "/a_b", "/a-b")]
    source = opened(write_log(tmp_path / "log.mcap", driving() + extra))
    assert {"a_b", "a_b_Twist", "a_b_Twist_Twist"} <= set(source.facts.interface.features)


def test_late_stamps_stay_out_until_the_clock_is_ahead_again() -> None:
    stamps = np.array([0, 10, 3, 5, 10, 11])
    assert increasing(stamps, "here").tolist() == [True, True, False, False, False, True]
