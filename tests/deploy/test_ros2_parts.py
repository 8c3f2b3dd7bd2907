"""The parts of the ROS 2 nodes that need no ROS: checks before init, quality of service, pictures, contract and goals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg

from kineflow.config import load_config
from kineflow.contracts import ActionChunk, ContractError, KineflowError
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.contract_check import check
from kineflow.deploy.ros2.environment import PROFILE, check_not_mixed, check_settings, clean_stale_segments
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.images import PictureError, colours, decompressed, depth_mm, fitted
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.qos import Offer, Quality, choose, missing
from kineflow.deploy.ros2.toy_policies import forward, to_point, toy_contract
from kineflow.interface import CameraSpec

RMW = ("rmw_fastrtps_cpp",)
HOME = {"HOME": "/tmp"}


@pytest.mark.parametrize("domain", ["0", "77", "232", ""])
def test_good_domains_pass(domain: str) -> None:
    check_settings({**HOME, "ROS_DOMAIN_ID": domain}, RMW)


@pytest.mark.parametrize("domain", ["233", "-1", "x", "1.0", "٣"])
def test_bad_domains_are_one_sentence(domain: str) -> None:
    with pytest.raises(KineflowError, match="ROS_DOMAIN_ID"):
        check_settings({**HOME, "ROS_DOMAIN_ID": domain}, RMW)


def test_a_middleware_that_is_not_there_is_named() -> None:
    with pytest.raises(KineflowError, match=r"rmw_zenoh_cpp.*installed here: rmw_fastrtps_cpp"):
        check_settings({**HOME, "RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}, RMW)
    with pytest.raises(KineflowError, match="no middleware"):
        check_settings(HOME, ())
    with pytest.raises(KineflowError, match="ROS_LOG_DIR"):
        check_settings({}, RMW)


@pytest.mark.parametrize("sourced", [{"AMENT_PREFIX_PATH": "/opt/ros/jazzy"}, {"LD_LIBRARY_PATH": "/lib:/opt/ros/humble/lib"}])
def test_wheels_in_a_sourced_shell_are_refused(sourced: dict[str, str]) -> None:
    with pytest.raises(KineflowError, match=r"sourced|another ROS"):
        check_not_mixed({**HOME, **sourced})


def test_the_profile_is_there() -> None:
    assert "<segment_size>16777216</segment_size>" in PROFILE.read_text()


def test_only_segments_that_nobody_maps_are_removed(tmp_path: Path) -> None:
    shm, processes = tmp_path / "shm", tmp_path / "proc"
    (processes / "7" / "fd").mkdir(parents=True)
    shm.mkdir()
    for name in ("fastdds_0123456789abcdef", "fastdds_fedcba9876543210", "fastdds_port7000", "other"):
        (shm / name).touch()
    (processes / "7" / "maps").write_text(f"7f00-7f01 rw-s 00000000 00:19 1 {shm}/fastdds_0123456789abcdef\n")
    assert clean_stale_segments(shm, processes) == 1
    assert sorted(f.name for f in shm.iterdir()) == ["fastdds_0123456789abcdef", "fastdds_port7000", "other"]


def offer(reliable: bool, transient: bool = False) -> Offer:
    return Offer("driver", "sensor_msgs/msg/Image", Quality(reliable, transient))


def test_quality_is_what_every_publisher_offers() -> None:
    assert choose([offer(True)]) == Quality(True)
    assert choose([offer(True), offer(False)]) == Quality(False)
    assert choose([]) == Quality(False)
    assert choose([offer(True, True)], latched=True) == Quality(True, True)
    assert choose([offer(True, True), offer(True)], latched=True) == Quality(True, False)
    assert missing([offer(False), offer(True, True)], Quality(True, True)) == [
        "'driver' offers best effort, volatile, needed is reliable, transient local"
    ]


def image(pixels: np.ndarray, encoding: str, pad: int = 0, big: bool = False) -> SimpleNamespace:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))).view(np.uint8).reshape(height, -1)
    data = np.pad(rows, ((0, 0), (0, pad))).tobytes()
    return SimpleNamespace(height=height, width=width, encoding=encoding, step=rows.shape[1] + pad, is_bigendian=big, data=data)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("pad", [0, 5])
def test_colours_of_every_encoding(picture: np.ndarray, pad: int) -> None:
    opaque = np.full((12, 17, 1), 255, np.uint8)
    assert (colours(image(picture, "rgb8", pad)) == picture).all()
    assert (colours(image(picture[..., ::-1], "bgr8", pad)) == picture).all()
    assert (colours(image(np.concatenate([picture, opaque], axis=2), "rgba8", pad)) == picture).all()
    assert (colours(image(np.concatenate([picture[..., ::-1], opaque], axis=2), "bgra8", pad)) == picture).all()
    grey = picture[..., :1]
    assert (colours(image(grey, "mono8", pad)) == grey).all()
    assert (colours(image(grey.astype(np.uint16) << 8, "mono16", pad, big=True)) == grey).all()


def test_depth_in_millimetres_with_nothing_as_zero() -> None:
    metres = np.array([[0.5, np.nan, np.inf], [-1.0, 1.2344, 100.0]], np.float32)
    assert depth_mm(image(metres, "32FC1")).tolist() == [[500, 0, 0], [0, 1234, 65535]]
    raw = np.array([[1, 2, 65535]], np.uint16)
    assert depth_mm(image(raw, "16UC1", big=True)).tolist() == raw.tolist()


def test_pictures_that_are_none_say_why(picture: np.ndarray) -> None:
    with pytest.raises(PictureError, match="yuv422"):
        colours(image(picture, "yuv422"))
    cut = image(picture, "rgb8")
    cut.data = cut.data[:-1]
    with pytest.raises(PictureError, match="not whole"):
        colours(cut)
    with pytest.raises(PictureError, match=r"damaged|cannot be read"):
        decompressed(SimpleNamespace(format="jpeg", data=b"\xff\xd8nothing"), CameraSpec(1, 1, 1.0))


def test_jpeg_is_decoded_as_rgb() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    message = SimpleNamespace(format="jpeg", data=simplejpeg.encode_jpeg(red, colorspace="RGB"))
    assert np.abs(decompressed(message, CameraSpec(16, 16, 1.0)).astype(int) - red).max() <= 4


@pytest.mark.parametrize("shape", [(480, 640), (96, 128), (101, 150), (96, 96), (50, 60)])
def test_scaling_averages_whole_areas_of_the_middle(shape: tuple[int, int]) -> None:
    """Oracle: means over the areas that each pixel covers, one by one."""
    full = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = fitted(full, CameraSpec(48, 48, 10.0))
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    part = full[top : top + side, left : left + side].astype(float)
    edges = [i * side // 48 for i in range(49)]
    for i, j in ((0, 0), (47, 47), (13, 29)):
        area = part[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
        assert np.abs(got[i, j] - area.mean(axis=(0, 1))).max() <= 0.51
    assert got.shape == (48, 48, 3)


def wheeled() -> tuple[RobotProfile, NodeConfig]:
    return load_config(RobotProfile, "robots/wheeled"), load_config(NodeConfig, "nodes/wheeled")


def test_the_shipped_node_fits_its_toy() -> None:
    robot, config = wheeled()
    check(forward().contract, robot, config)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (lambda c: {"cameras": {"side": c.cameras["front"]}}, "camera 'front': the policy needs it"),
        (lambda c: {"cameras": {"front": replace(c.cameras["front"], rate_hz=5.0)}}, "sees 10 Hz"),
        (lambda c: {"features": {}}, "feature 'pose'"),
        (lambda c: {"features": {"pose": replace(c.features["pose"], kind="odometry_velocity")}}, "gives 4 values"),
        (lambda c: {"action_limits": "same"}, "action_limits: clamped"),
        (lambda c: {"estop_topic": ""}, "e-stop source"),
        (lambda c: {"supervisor_topic": ""}, "supervisor"),
        (lambda c: {"scan_topic": ""}, "keep_out"),
    ],
)
def test_every_mismatch_is_one_line(change, sign: str) -> None:  # type: ignore[no-untyped-def]
    robot, config = wheeled()
    if sign.startswith("action_limits"):
        robot = replace(robot, limits=replace(robot.limits, high=(0.8, 0.0, 0.0, 1.0)))
    with pytest.raises(ContractError, match="do not match") as caught:
        check(forward().contract, robot, replace(config, **change(config)))
    lines = str(caught.value).splitlines()[1:]
    assert any(sign in line for line in lines)


def test_another_frame_is_refused() -> None:
    robot, config = wheeled()
    other = replace(robot, command=replace(robot.command, frame="world"))
    with pytest.raises(ContractError, match="frame are base in the policy and world"):
        check(forward().contract, other, config)


def test_goal_pose_is_told_as_the_policy_takes_it() -> None:
    inbox = GoalInbox(toy_contract(goals=True), 5.0)
    told = inbox.pose(1.0, 2.0, 0.0, (0.0, 0.0, 0.0, 1.0))
    assert told is not None
    assert told.goal()["point"].tolist() == [1.0, 2.0, 0.0]
    assert not told.has_arrived
    sure = ActionChunk(np.zeros((1, 2, 4), np.float32), 0.1, np.zeros(1), stop_probability=np.array([0.9]))
    for _ in range(3):
        assert not told.has_arrived
        told.answered(sure, 0)
    assert told.has_arrived


def test_the_toy_to_a_point_gets_there() -> None:
    """Its own model of motion, without ROS: from the origin to a point behind its left shoulder."""
    from kineflow.contracts import Observation, SamplingRequest

    policy, x, y, yaw = to_point(), 0.0, 0.0, 0.0
    request = SamplingRequest(np.zeros(1, np.int64))
    for _ in range(40):
        state = np.array([[[x, y, 0, 0, 0, np.sin(yaw / 2), np.cos(yaw / 2)]]], np.float32)
        seen = Observation(state, np.zeros((1, 1)), goal={"point": np.array([[-1.0, 1.0, 0.0]], np.float32)})
        for vx, _, _, yaw_rate in policy.predict(seen, request).actions[0][:4].tolist():
            yaw += 0.1 * yaw_rate
            x, y = x + 0.1 * vx * np.cos(yaw), y + 0.1 * vx * np.sin(yaw)
    assert np.hypot(x + 1, y - 1) < 0.1
