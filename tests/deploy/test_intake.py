"""What messages of the robot's surroundings mean to its governor: scans, depth, poses, e-stops; no ROS."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg

from kineflow.config import load_config
from kineflow.deploy.governor import Governor, Intent
from kineflow.deploy.keep_out import Mount
from kineflow.deploy.robot_profile import Geofence, RobotProfile
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.intake import GoalIntake, Intake, Tap
from kineflow.deploy.ros2.node_config import DepthTopic, NodeConfig
from kineflow.deploy.ros2.rates import Rates
from kineflow.deploy.ros2.toy_policies import forward
from kineflow.interface import GoalSpec
from tests.deploy.governed import profile

NODE = load_config(NodeConfig, "nodes/wheeled")
ROS_S = 1.7e9  # of the ROS clock, where the monotonic one says 50
SLOW = 0.3
NODE_WITHOUT = replace(NODE, estop_topic="")


class Around:
    """A governor fed by an intake; `wants` is what it makes of 0.3 m/s ahead or back after two seconds."""

    def __init__(self, robot: RobotProfile, config: NodeConfig = NODE) -> None:
        self.governor, self.now_s = Governor(robot), 50.0
        contract = forward().contract
        self.intake = Intake(contract, robot, config, self.governor, lambda *sample: "")
        self.taps: dict[str, Tap] = {tap.name: tap for tap in self.intake.taps}
        if robot.watchdogs.estop:
            self.hear("estop", SimpleNamespace(data=False))
        self.governor.supervisor(self.now_s)
        self.governor.activate(self.now_s)

    def tick(self, vx: float) -> tuple[float, tuple[str, ...]]:
        """20 ms later."""
        self.now_s += 0.02
        command = self.governor.govern(Intent(np.array([vx, 0, 0, 0]), "", self.now_s), self.now_s)
        return float(command.values[0]), command.reasons

    def hear(self, name: str, message: Any) -> None:
        self.taps[name].take(message, ROS_S + self.now_s, self.now_s)

    def wants(self, vx: float, messages: dict[str, Any], seconds: float = 2.0) -> tuple[float, tuple[str, ...]]:
        for _ in range(round(seconds / 0.02)):
            self.now_s += 0.02
            self.governor.supervisor(self.now_s)
            for name, message in messages.items():
                stamped = replace_stamp(message, ROS_S + self.now_s) if hasattr(message, "header") else message
                self.hear(name, stamped)
            command = self.governor.govern(Intent(np.array([vx, 0, 0, 0]), "", self.now_s), self.now_s)
        return float(command.values[0]), command.reasons


def replace_stamp(message: Any, seconds: float) -> Any:
    seconds += message.age
    header = SimpleNamespace(stamp=SimpleNamespace(sec=int(seconds), nanosec=int(1e9 * (seconds % 1))), frame_id="odom")
    return SimpleNamespace(**{**vars(message), "header": header})


def scan(ranges: list[float], age: float = 0.0, **changed: float) -> Any:
    """Beams all round, the middle one ahead."""
    angles = {"angle_min": -math.pi, "angle_increment": math.tau / len(ranges), "range_min": 0.1, "range_max": 10.0, **changed}
    return SimpleNamespace(header=None, age=age, ranges=ranges, **angles)


def ahead(metres: float) -> list[float]:
    return [5.0] * 18 + [metres] + [5.0] * 17


WHEELED = profile("wheeled")


def test_a_wall_ahead_stops_and_free_space_does_not() -> None:
    assert Around(WHEELED).wants(SLOW, {"ranges": scan(ahead(5.0))})[0] == pytest.approx(SLOW)
    assert Around(WHEELED).wants(SLOW, {"ranges": scan(ahead(0.3))})[0] == pytest.approx(0.0, abs=1e-3)


def test_closer_than_the_sensor_can_tell_is_not_free() -> None:
    """REP 117: -inf is an object too close to be measured."""
    assert Around(WHEELED).wants(SLOW, {"ranges": scan(ahead(-math.inf))})[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("nothing", [0.0, 0.05, math.nan])
def test_beams_that_measured_nothing_are_no_look(nothing: float) -> None:
    """Below range_min is no measurement; a scanner that gives nothing else has not looked."""
    around = Around(WHEELED)
    assert around.wants(SLOW, {"ranges": scan([5.0] * 36)})[0] == pytest.approx(SLOW)
    speed, reasons = around.wants(SLOW, {"ranges": scan([nothing] * 36)})
    assert (speed, reasons) == (0.0, ("ranges went silent",))
    assert around.wants(SLOW, {"ranges": scan([nothing] * 36, range_min=0.0)})[0] == 0.0


def test_beyond_the_sensors_reach_is_free() -> None:
    assert Around(WHEELED).wants(SLOW, {"ranges": scan([11.0] * 18 + [math.inf] * 18)})[0] == pytest.approx(SLOW)


def test_angles_that_are_no_numbers_are_no_look() -> None:
    assert Around(WHEELED).wants(SLOW, {"ranges": scan(ahead(0.3), angle_increment=math.nan)})[0] == 0.0


@pytest.mark.parametrize(("age", "reason"), [(-0.8, "stamp too old"), (0.4, "stamp in the future")])
def test_scans_with_old_or_future_stamps_are_dropped_and_counted(age: float, reason: str) -> None:
    """Promise 3 for what keeps the robot out of obstacles: a scan from before it turned shows another room."""
    around = Around(WHEELED)
    around.wants(SLOW, {"ranges": scan(ahead(5.0))})
    speed, reasons = around.wants(SLOW, {"ranges": scan(ahead(5.0), age)})
    assert (speed, reasons) == (0.0, ("ranges went silent",))
    assert around.governor.state(around.now_s)["reasons"][reason] > 50
    assert around.intake.faults["ranges"] == reason


def test_nothing_moves_before_obstacles_were_looked_for() -> None:
    assert Around(WHEELED).wants(SLOW, {}) == (0.0, ("ranges not heard",))


def test_a_scanner_that_looks_backwards_is_turned() -> None:
    """Without tf, where a scanner sits is configuration."""
    backwards = replace(NODE, scan_mount=Mount(x=-0.1, yaw=math.pi))
    assert Around(WHEELED, backwards).wants(-SLOW, {"ranges": scan(ahead(0.2))})[0] == pytest.approx(0.0, abs=1e-3)
    assert Around(WHEELED, backwards).wants(SLOW, {"ranges": scan(ahead(0.2))})[0] == pytest.approx(SLOW)


DEPTH = replace(NODE, scan_topic="", depths={"front": DepthTopic("depth", 15.0, 50.0, 50.0, 31.5, 23.5, Mount(z=0.5))})


def depth(metres: float, encoding: str = "32FC1", age: float = 0.0) -> Any:
    values = np.full((48, 64), metres, np.float32)
    if encoding == "16UC1":
        values = (1e3 * values).astype(np.uint16)
    size = {"height": 48, "width": 64, "step": 64 * values.itemsize, "is_bigendian": False}
    return SimpleNamespace(header=None, age=age, encoding=encoding, data=values.tobytes(), **size)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_depth_keeps_out_of_obstacles_without_a_scanner(encoding: str) -> None:
    name = "depth 'front'"
    assert Around(WHEELED, DEPTH).wants(SLOW, {}) == (0.0, (f"{name} not heard",))
    assert Around(WHEELED, DEPTH).wants(SLOW, {name: depth(3.0, encoding)})[0] == pytest.approx(SLOW)
    assert Around(WHEELED, DEPTH).wants(SLOW, {name: depth(0.3, encoding)})[0] == pytest.approx(0.0, abs=1e-3)
    assert Around(WHEELED, DEPTH).wants(SLOW, {name: depth(3.0, encoding, age=-0.9)})[0] == 0.0


def test_free_depth_is_a_look_and_none_is_not() -> None:
    assert Around(WHEELED, DEPTH).wants(SLOW, {"depth 'front'": depth(math.inf)})[0] == pytest.approx(SLOW)
    assert Around(WHEELED, DEPTH).wants(SLOW, {"depth 'front'": depth(math.nan)})[0] == 0.0


def test_a_depth_message_that_is_none_is_a_fault() -> None:
    around, colours = Around(WHEELED, DEPTH), depth(3.0)
    colours.encoding = "rgb8"
    assert around.wants(SLOW, {"depth 'front'": colours})[0] == 0.0
    assert "encoding 'rgb8' is not known" in around.intake.faults["depth 'front'"]
    assert "encoding 'rgb8' is not known" in around.taps["depth 'front'"].check(colours)


def test_poses_with_old_stamps_do_not_hold_the_fence_open() -> None:
    robot = profile("wheeled", keep_out=None, geofence=Geofence(((-5.0, -5.0), (5.0, -5.0), (5.0, 5.0), (-5.0, 5.0))))
    place = SimpleNamespace(
        position=SimpleNamespace(x=0.0, y=0.0, z=0.0), orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    )
    config = replace(NODE, pose_topic="map_odom")
    for age, expected in ((0.0, SLOW), (-0.8, 0.0)):
        message = SimpleNamespace(header=None, age=age, pose=SimpleNamespace(pose=place))
        assert Around(robot, config).wants(SLOW, {"pose": message})[0] == pytest.approx(expected)


OPEN = profile("wheeled", keep_out=None)
PRESSED, RELEASED = SimpleNamespace(data=True), SimpleNamespace(data=False)


def test_a_guard_that_lives_does_not_stand_in_for_a_supervisor_that_left() -> None:
    """Both beat on one topic, each under its name; either one's silence stops the robot."""
    for silent in ("guard", "person"):
        around = Around(OPEN)
        around.governor = Governor(OPEN)  # heard by name alone
        around.intake = Intake(forward().contract, OPEN, NODE, around.governor, lambda *sample: "")
        around.taps = {tap.name: tap for tap in around.intake.taps}
        around.hear("estop", RELEASED)
        around.governor.activate(around.now_s)
        for k in range(200):
            for name in ("guard", "person"):
                if k < 100 or name != silent:
                    around.hear("supervisor", SimpleNamespace(frame_id=name))
            speed, reasons = around.tick(SLOW)
            if k == 99:
                assert speed == pytest.approx(SLOW)
        assert (speed, reasons) == (0.0, (f"supervisor lost: {silent}",))


def test_what_the_guard_stopped_stays_so_without_an_estop_too() -> None:
    """A robot without an e-stop: a node that was frozen, stopped by its guard and thawed must not go on."""
    around = Around(profile("wheeled", keep_out=None, watchdogs={"estop": False}), NODE_WITHOUT)
    assert around.wants(SLOW, {})[0] == pytest.approx(SLOW)
    around.hear("guard", RELEASED)
    assert around.wants(SLOW, {})[0] == pytest.approx(SLOW)
    around.hear("guard", PRESSED)
    assert around.wants(SLOW, {}, 0.2) == (0.0, ("e-stop",))
    assert around.governor.reset_estop(around.now_s) != ""
    around.hear("guard", RELEASED)
    assert around.governor.reset_estop(around.now_s) == ""


def test_a_guard_alone_is_no_estop_source() -> None:
    """Promise 8: what the guard says is not what the button says."""
    around = Around(OPEN)
    around.governor = Governor(OPEN)
    around.intake = Intake(forward().contract, OPEN, NODE, around.governor, lambda *sample: "")
    around.taps = {tap.name: tap for tap in around.intake.taps}
    around.governor.activate(around.now_s)
    around.hear("guard", RELEASED)
    assert around.wants(SLOW, {}) == (0.0, ("e-stop source not heard",))


def picture(message: bool) -> Any:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 250
    if not message:
        return SimpleNamespace(format="jpeg", data=simplejpeg.encode_jpeg(red, colorspace="RGB"))
    size = {"height": 20, "width": 20, "step": 60, "is_bigendian": False}
    return SimpleNamespace(encoding="rgb8", data=red.tobytes(), **size)


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_goal_picture_comes_raw_or_compressed(is_raw: bool) -> None:
    made = forward().contract
    contract = replace(made, interface=replace(made.interface, goals={"place": GoalSpec("image", 10, 10)}))
    told: list[Any] = []
    taps = {tap.topic: tap for tap in GoalIntake(GoalInbox(contract, 5.0), NODE, told.append).taps}
    assert {topic: tap.type.rsplit("/")[-1] for topic, tap in taps.items()} == {
        "goal_image": "CompressedImage",
        "goal_image_raw": "Image",
    }
    taps["goal_image_raw" if is_raw else "goal_image"].take(picture(is_raw), b"", 0.0)
    seen = told[0].goal()["place"]
    assert seen.shape == (10, 10, 3)
    assert np.abs(seen.astype(int) - [250, 0, 0]).max() <= 4


def test_an_input_that_got_slow_is_named() -> None:
    rates = Rates({"front": 30.0, "pose": 50.0})
    counts = {"front": 0, "pose": 0}
    for k in range(100):
        rates.look(counts, 0.1 * k)
        assert rates.slow == ""
        counts = {"front": counts["front"] + 3, "pose": counts["pose"] + 5}
    for k in range(100, 150):
        rates.look(counts, 0.1 * k)
        counts = {"front": counts["front"] + 1, "pose": counts["pose"] + 5}
    assert rates.slow == "front arrives at 10.0 Hz, expected are 30"
