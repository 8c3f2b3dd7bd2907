"""Robots that are topics: arm, path follower, PX4's bridge, MAVROS, and which robot a profile means.

The arm is heard over real rclpy. px4_msgs and mavros_msgs are on no index: stand-ins have the fields and constants of the
public message files, and what is published is kept by a node that is none.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.deploy.adapters.settings import G1Settings, JointSettings, PathSettings, Px4Settings
from kineflow.deploy.governor import Command, Governor, Intent
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.outputs import CommandOutput
from kineflow.deploy.ros2.rig import claim_domain
from kineflow.deploy.ros2.robots import JointRobot, PathRobot, open_robot

CONFIG = load_config(NodeConfig, "nodes/wheeled")


def robot(name: str, **changes: Any) -> RobotProfile:
    return replace(load_config(RobotProfile, f"robots/{name}"), **changes)


def command(values: list[float], health: Any = "follows", braking: bool = False) -> Command:
    return Command(np.array(values), "pass", (), None, braking, health)


@dataclass
class Kept:
    """A publisher."""

    kind: Any
    topic: str
    sent: list[Any] = field(default_factory=list)

    def publish(self, message: Any) -> None:
        assert isinstance(message, self.kind)
        self.sent.append(message)


class NoNode:
    """Keeps publishers and callbacks by topic."""

    def __init__(self) -> None:
        self.topics: dict[str, Kept] = {}
        self.callbacks: dict[str, Any] = {}

    def create_publisher(self, kind: Any, topic: str, quality: Any) -> Kept:
        self.topics[topic] = Kept(kind, topic)
        return self.topics[topic]

    def create_subscription(self, kind: Any, topic: str, callback: Any, quality: Any) -> str:
        self.callbacks[topic] = callback
        return topic

    def destroy_publisher(self, publisher: Kept) -> None:
        del self.topics[publisher.topic]

    def destroy_subscription(self, topic: str) -> None:
        del self.callbacks[topic]

    def get_clock(self) -> Any:
        from builtin_interfaces.msg import Time

        now = SimpleNamespace(nanoseconds=5_000_000_000, to_msg=lambda: Time(sec=5))
        return SimpleNamespace(now=lambda: now)


# Which robot


def test_the_adapter_of_the_profile_chooses() -> None:
    for adapter, kind in (("twist", "Twist"), ("twist_stamped", "TwistStamped")):
        node = NoNode()
        made = open_robot(node, robot("wheeled", adapter=adapter), CONFIG)
        made.send(command([0.3, 0, 0, -0.5]), time.monotonic())
        made.stop(time.monotonic())
        moved, stopped = (m.twist if kind == "TwistStamped" else m for m in node.topics["cmd_vel"].sent)
        assert type(node.topics["cmd_vel"].sent[0]).__name__ == kind
        assert (moved.linear.x, moved.angular.z, stopped.linear.x, stopped.angular.z) == (0.3, -0.5, 0.0, 0.0)
        made.close()
        assert node.topics == {}


def test_a_shadow_opens_no_link() -> None:
    node = NoNode()
    for name in ("g1", "drone", "arm"):
        open_robot(node, robot(name), replace(CONFIG, shadow=True)).send(command([0.1] * (6 if name == "arm" else 4)), 0.0)
    assert set(node.topics) == {"shadow_cmd_vel", "shadow_joint_trajectory_controller/joint_trajectory"}
    with pytest.raises(KineflowError, match="unitree_sdk2_python"):
        open_robot(node, robot("g1", g1=G1Settings(interface="eth0")), CONFIG)


def test_only_a_humanoid_is_damped() -> None:
    wheeled = CommandOutput(NoNode(), robot("wheeled"), CONFIG)
    assert wheeled.damp() == "this robot cannot be damped"
    silent = CommandOutput(NoNode(), robot("g1", g1=G1Settings(interface="udp:127.0.0.1:9")), CONFIG)
    assert "has not acknowledged" in silent.damp()
    silent.close()


def test_bridges_that_are_not_installed_are_named() -> None:
    for bridge, package in (("px4_msgs", "px4_msgs"), ("mavros", "mavros_msgs")):
        with pytest.raises(KineflowError, match=rf"install ros-<distro>-{package}"):
            open_robot(NoNode(), robot("drone_px4", px4=Px4Settings(bridge=bridge)), CONFIG)  # type: ignore[arg-type]


# The arm, over rclpy


def test_two_rigs_are_in_two_domains() -> None:
    claims = [claim_domain() for _ in range(40)]
    assert len({domain for domain, _ in claims}) == len(claims)
    for _, claim in claims:
        claim.close()
    for _ in range(3):  # given back: more in all than there are
        claims = [claim_domain() for _ in range(40)]
        for _, claim in claims:
            claim.close()


@pytest.fixture
def arm() -> Iterator[SimpleNamespace]:
    context = rclpy.Context()
    domain, claim = claim_domain()
    rclpy.init(context=context, domain_id=domain)
    node, joints = Node("policy", context=context), Node("arm", context=context)
    executor = SingleThreadedExecutor(context=context)
    for each in (node, joints):
        executor.add_node(each)
    profile = robot("arm", joint_trajectory=JointSettings(state_s=1.0))
    heard: list[Any] = []
    joints.create_subscription(JointTrajectory, "joint_trajectory_controller/joint_trajectory", heard.append, 10)
    states = joints.create_publisher(JointState, "joint_states", 10)
    made = JointRobot(node, profile, False)

    def spin_until(condition: Any) -> None:
        until = time.monotonic() + 60
        while not condition():
            executor.spin_once(timeout_sec=0.02)
            assert time.monotonic() < until

    yield SimpleNamespace(robot=made, heard=heard, states=states, spin_until=spin_until, profile=profile)
    made.close()
    executor.shutdown()
    for each in (node, joints):
        each.destroy_node()
    rclpy.try_shutdown(context=context)
    claim.close()


def test_an_arm_is_held_where_it_is_and_holds_after_a_fault(arm: SimpleNamespace) -> None:
    names, here = arm.profile.command.names, [0.1, -0.2, 0.3, 0.0, 0.5, -0.6]
    with pytest.raises(KineflowError, match="so it must be known"):
        arm.robot.held(time.monotonic())
    gripper = JointState(name=["finger"], position=[0.01])
    mixed = JointState(name=["finger", *reversed(names)], position=[0.01, *reversed(here)])
    arm.spin_until(lambda: arm.states.get_subscription_count() > 0)

    def hears() -> bool:
        arm.states.publish(gripper)
        arm.states.publish(mixed)
        return not arm.robot.waits(time.monotonic())

    arm.spin_until(hears)
    until = time.monotonic() + 0.15
    arm.spin_until(lambda: arm.states.publish(gripper) or time.monotonic() > until)
    now = time.monotonic()
    assert arm.robot.held(now) == pytest.approx(here)
    governor = Governor(arm.profile)
    governor.estop(False, now)
    governor.activate(now, arm.robot.held(now))
    told = []
    for tick in range(60):  # goes on, then has no plan
        now += 0.02
        governor.supervisor(now)
        wanted = np.array(here) + 0.05 if tick < 20 else None
        said = governor.govern(Intent(wanted, "chunk used up", now), now)
        arm.robot.send(said, now)
        told.append(said.values)
        arm.spin_until(lambda: len(arm.heard) == len(told))
    arm.robot.stop(now)
    arm.spin_until(lambda: len(arm.heard) == 61)
    points = np.array([m.points[0].positions for m in arm.heard])
    assert arm.heard[0].joint_names == list(names)
    assert arm.heard[0].points[0].time_from_start.nanosec == 100_000_000
    np.testing.assert_allclose(points[:60], told)
    assert np.abs(points[0] - here).max() < 0.01, "begins where it is"
    assert points[-1].tolist() == points[40].tolist(), "holds: nothing moves after it has braked"
    assert np.abs(np.diff(points, axis=0)).max() <= 0.8 * 0.02 + 1e-9
    assert arm.robot.waits(time.monotonic() + 2.0).startswith("positions of")


# A path follower


def test_a_path_is_the_rest_of_the_plan_and_stay_otherwise() -> None:
    node = NoNode()
    profile = robot("wheeled", adapter="path", path=PathSettings(topic="plan", rate_hz=10.0))
    made = PathRobot(node, profile, "base_link")
    sent = node.topics["plan"].sent

    def last() -> list[tuple[float, float]]:
        return [(p.pose.position.x, p.pose.position.y) for p in sent[-1].poses]

    made.send(command([0.4, 0, 0, 0]), 1.0)
    assert last() == [(0.0, 0.0)], "no plan yet"
    made.plan(np.tile([0.4, 0.0, 0.0, 0.0], (5, 1)), 0.1)
    made.send(command([0.4, 0, 0, 0]), 1.2)
    np.testing.assert_allclose(last(), [(0.04 * i, 0.0) for i in range(6)], atol=1e-9)
    assert sent[-1].header.frame_id == "base_link"
    made.plan(np.tile([9.0, 0.0, 0.0, 0.0], (2, 1)), 0.1)
    made.send(command([0.4, 0, 0, 0]), 1.22)
    assert len(last()) == 6, "not before its time"
    made.send(command([0.4, 0, 0, 0]), 1.31)
    assert last()[-1] == pytest.approx((0.1, 0.0)), "within the limits of the profile: 0.5 m/s"
    for wrong in (command([0.4, 0, 0, 0], "fault"), command([0.4, 0, 0, 0], "waits"), command([0.4, 0, 0, 0], braking=True)):
        made.send(command([0.4, 0, 0, 0]), 2.0)
        made.send(wrong, 2.02)
        assert last() == [(0.0, 0.0)], "at once"
    made.plan(np.tile([0.4, 0.0, 0.0, 1.0], (10, 1)), 0.1)
    made.send(command([0.4, 0, 0, 0]), 3.0)
    assert last()[-1] == pytest.approx((0.4 * math.sin(1.0), 0.4 * (1 - math.cos(1.0))), abs=1e-3), "an arc"
    made.stop(3.0)
    made.stop(3.0)
    assert last() == [(0.0, 0.0)]


# PX4


@dataclass
class OffboardControlMode:
    timestamp: int = 0
    position: bool = False
    velocity: bool = False
    acceleration: bool = False
    attitude: bool = False
    body_rate: bool = False
    thrust_and_torque: bool = False
    direct_actuator: bool = False


@dataclass
class TrajectorySetpoint:
    timestamp: int
    position: Any
    velocity: Any
    acceleration: Any
    jerk: Any
    yaw: float
    yawspeed: float
    MESSAGE_VERSION = 0


@dataclass
class VehicleStatus:
    nav_state: int = 4
    arming_state: int = 1
    MESSAGE_VERSION = 1
    NAVIGATION_STATE_OFFBOARD = 14
    ARMING_STATE_ARMED = 2


@dataclass
class VehicleLocalPosition:
    heading: float
    heading_good_for_control: bool = True


@dataclass
class State:
    connected: bool
    armed: bool
    mode: str


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {k.__name__: k for k in (OffboardControlMode, TrajectorySetpoint, VehicleStatus, VehicleLocalPosition)}
    for package, names in (("px4_msgs", kinds), ("mavros_msgs", {"State": State})):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, f"{package}.msg", SimpleNamespace(**names))


class Flight:
    """A drone at 50 Hz of virtual time ahead of now: `heard` is stamped by the machine's clock."""

    def __init__(self, bridge: Any) -> None:
        self.node = NoNode()
        self.robot = open_robot(self.node, robot("drone_px4", px4=Px4Settings(bridge=bridge)), CONFIG)
        self.now_s = time.monotonic()

    def run(self, ticks: int, values: list[float], health: Any = "follows") -> None:
        for _ in range(ticks):
            self.now_s += 0.02
            self.robot.send(command(values, health), self.now_s)

    def sent(self, topic: str) -> list[Any]:
        taken, self.node.topics[topic].sent = self.node.topics[topic].sent, []
        return taken


def test_px4_lives_while_healthy_and_flies_in_offboard_alone(messages: None) -> None:
    flight = Flight("px4_msgs")
    lives, flies = "/fmu/in/offboard_control_mode", "/fmu/in/trajectory_setpoint"
    status, position = (
        flight.node.callbacks["/fmu/out/vehicle_status_v1"],
        flight.node.callbacks["/fmu/out/vehicle_local_position"],
    )
    assert flight.robot.waits(flight.now_s) == "the autopilot is not heard"
    status(VehicleStatus())
    flight.run(50, [0.5, 0, 0, 0])
    beats = flight.sent(lives)
    assert (len(beats), flight.sent(flies)) == (20, [])
    assert (beats[0].velocity, beats[0].position, beats[0].timestamp) == (True, False, 5_000_000)
    flight = Flight("px4_msgs")
    flight.node.callbacks["/fmu/out/vehicle_status_v1"](VehicleStatus(14, 2))
    assert flight.robot.waits(flight.now_s) == "the autopilot does not say where it heads"
    flight.node.callbacks["/fmu/out/vehicle_local_position"](VehicleLocalPosition(math.pi / 2))
    assert flight.robot.waits(flight.now_s + 0.01) == ""
    flight.run(5, [0.5, 0.2, 0.1, 0.3])
    point = flight.sent(flies)[-1]  # nose to the east: forward is east, left is north
    assert point.velocity == pytest.approx([0.2, 0.5, -0.1])
    assert point.yawspeed == pytest.approx(-0.3)
    assert all(math.isnan(v) for v in (*point.position, *point.acceleration, point.yaw))
    flight.sent(lives)
    flight.run(15, [0.2, 0, 0, 0], "fault")
    assert flight.sent(lives) == [], "silent at once"
    assert [p.velocity[1] for p in flight.sent(flies)] == pytest.approx([0.2] * 15), "braking is flown until PX4 leaves the mode"
    assert position is not None


def test_mavros_streams_are_the_proof_of_life(messages: None) -> None:
    flight, flies = Flight("mavros"), "mavros/setpoint_velocity/cmd_vel"
    heard = flight.node.callbacks["mavros/state"]
    heard(State(True, True, "POSCTL"))
    flight.run(50, [0.5, 0, 0, 0])
    before = flight.sent(flies)
    assert len(before) == 20
    assert {m.twist.linear.x for m in before} == {0.0}
    heard(State(True, True, "OFFBOARD"))
    flight.run(10, [0.5, 0.1, 0, 0.2])
    flown = flight.sent(flies)
    assert (flown[-1].twist.linear.x, flown[-1].twist.linear.y, flown[-1].twist.angular.z) == (0.5, 0.1, 0.2)
    assert len(flown) == 10
    flight.run(20, [0.3, 0, 0, 0], "fault")
    after = flight.sent(flies)
    assert len(after) <= 10
    assert after[-1].twist.linear.x == 0.0
    heard(State(False, False, ""))
    assert flight.robot.waits(flight.now_s) == "", "a word of MAVROS alone, without the autopilot, changes nothing"
    flight.robot.close()
