"""What does not belong together does not configure: one message each, on real topics. One node, whose configuration changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from geometry_msgs.msg import Twist
from std_msgs.msg import Bool

from kineflow.config import CONFIG_ROOT
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Rig, parameters, wait_for

NODE = (CONFIG_ROOT / "nodes" / "wheeled.yaml").read_text() + "wiring_timeout_s: 2.0\n"
ROBOT = (CONFIG_ROOT / "robots" / "wheeled.yaml").read_text()


pytestmark = pytest.mark.real_time


@dataclass
class Bench:
    """A node that reads `file` at each configure; the base publishes as nodes/wheeled says."""

    rig: Rig
    file: Path

    def configure(self, **changed: str) -> tuple[bool, str]:
        """`changed`: parts of the shipped configuration, by any name. Whether it configured, and what it logged."""
        text = NODE
        for change in changed.values():
            old, new = change.split(" => ")
            assert old in text
            text = text.replace(old, new)
        self.file.write_text(text)
        before = len(self.rig.log("node"))
        done = self.rig.change("configure")
        wait_for(lambda: "configure" in self.rig.log("node")[before:], 20.0)
        return done, self.rig.log("node")[before:]

    def refuses(self, sign: str, **changed: str) -> None:
        done, said = self.configure(**changed)
        assert not done
        assert said.count("[ERROR]") == 1, said
        assert sign in said, said
        assert self.rig.state() == "unconfigured"
        assert self.rig.heard == []


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Rig() as rig:
        rig.start("base", "base", "--draw", "none")
        rig.wait_for_publisher("front")
        rig.press_estop(False)
        file = tmp_path_factory.mktemp("node") / "node.yaml"
        file.write_text(NODE)
        rig.start("node", "policy", *parameters(config=file))
        rig.meet()
        yield Bench(rig, file)


def test_a_renamed_camera(bench: Bench) -> None:
    bench.refuses("camera 'front': the policy needs it, the node has ['left']", name="front: {topic => left: {topic")


def test_a_renamed_topic(bench: Bench) -> None:
    bench.refuses("nobody publishes '/color' (sensor_msgs/msg/Image)", topic="topic: front => topic: color")


def test_a_lower_rate_than_the_policy_sees(bench: Bench) -> None:
    bench.refuses("the policy sees 10 Hz, topic 'front' has 5 Hz", rate="rate_hz: 30.0 => rate_hz: 5.0")


def test_a_lower_rate_than_is_configured(bench: Bench) -> None:
    bench.rig.fault("camera half")
    time.sleep(0.3)
    try:
        bench.refuses("'/front' arrives at")
    finally:
        bench.rig.fault("camera on")


def test_another_type(bench: Bench) -> None:
    """Such topics do not connect, and no event says so: the graph alone shows it."""
    sign = "'/front' is sensor_msgs/msg/Image from 'base', needed is sensor_msgs/msg/CompressedImage"
    bench.refuses(sign, kind="rate_hz: 30.0 => rate_hz: 30.0, compressed: true")


def test_another_frame(bench: Bench) -> None:
    bench.refuses("'/odom': frame is 'odom', configured is 'map'", frame="frame: odom => frame: map")


def test_another_size(bench: Bench) -> None:
    bench.refuses("pictures are 640x480, configured 1280x480", size="rate_hz: 30.0 => rate_hz: 30.0, width: 1280, height: 480")


def test_other_limits(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(ROBOT.replace("high: [0.5, ", "high: [0.3, "))
    robot, same = f"robots/wheeled => {tmp_path}/slow.yaml", "action_limits: clamped => action_limits: same"
    bench.refuses("action 'vx': -0.5..0.5 in the policy, -0.5..0.3 of the robot", robot=robot, limits=same)


def test_best_effort_where_reliable_is_needed(bench: Bench) -> None:
    """An e-stop whose one sample may be lost is none."""
    publisher = bench.rig.node.create_publisher(Bool, "estop", profile(Quality(False)))
    time.sleep(0.5)
    try:
        bench.refuses("estop: '/estop': 'observer' offers best effort, volatile, needed is reliable, transient local")
    finally:
        bench.rig.node.destroy_publisher(publisher)
        time.sleep(0.5)


def test_a_base_that_hears_another_type_of_command(bench: Bench) -> None:
    """Twist and TwistStamped: the robot would stand still, and nobody would say why."""
    listener = bench.rig.node.create_subscription(Twist, "other_cmd", lambda message: None, profile(Quality(True)))
    sign = "command: 'observer' hears '/other_cmd' as geometry_msgs/msg/Twist, told is geometry_msgs/msg/TwistStamped"
    try:
        bench.refuses(sign, topic="command_topic: cmd_vel => command_topic: other_cmd")
    finally:
        bench.rig.node.destroy_subscription(listener)


def test_a_guard_whose_stop_would_not_be_heard(bench: Bench) -> None:
    """A guard of plain Twist beside a robot of TwistStamped guards nothing."""
    speaker = bench.rig.node.create_publisher(Twist, "other_cmd", profile(Quality(True)))
    sign = "command: 'observer' sends '/other_cmd' as geometry_msgs/msg/Twist, told is geometry_msgs/msg/TwistStamped"
    try:
        bench.refuses(sign, topic="command_topic: cmd_vel => command_topic: other_cmd")
    finally:
        bench.rig.node.destroy_publisher(speaker)


def test_a_depth_camera_that_is_none(bench: Bench) -> None:
    """The colour camera's topic, taken for depth."""
    depths = "{near: {topic: front, rate_hz: 30.0, fx: 500, fy: 500, cx: 320, cy: 240}}"
    bench.refuses("depth 'near': '/front': depth with encoding 'rgb8' is not known", more=f"scan_topic: scan => depths: {depths}")


def test_without_a_mismatch_it_configures(bench: Bench) -> None:
    """The last one: the refusals were not for another reason."""
    done = False
    for _ in range(4):  # a busy machine is late, and refused rightly
        done, said = bench.configure()
        if done:
            break
    assert done, said


def test_a_publisher_that_comes_later_and_is_not_heard_is_told(bench: Bench) -> None:
    """After configure: the node goes on, and its diagnostics say which topic offers less than it subscribed."""
    assert bench.rig.state() == "inactive"
    publisher = bench.rig.node.create_publisher(Bool, "estop", profile(Quality(False)))
    try:
        assert wait_for(lambda: "offers less quality" in fault_of(bench.rig, "estop"), 20.0), bench.rig.report()
    finally:
        bench.rig.node.destroy_publisher(publisher)


def fault_of(rig: Rig, name: str) -> str:
    report = rig.report()
    return report.values.get(f"input_faults.{name}", "") if report else ""
