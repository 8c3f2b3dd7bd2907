"""Robots that take governed commands from the node: which one a profile's adapter means, and those that are topics.

    twist, twist_stamped    <command_topic>
    joint_trajectory        trajectory_msgs/JointTrajectory to a ros2_control arm
    path                    nav_msgs/Path to a path follower
    px4                     px4_msgs or MAVROS: deploy/ros2/px4.py
    mavlink, g1             links of their own: deploy/adapters; what they are told is echoed on <command_topic>

In shadow mode nothing but shadow_ topics is published, and no link is opened.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Path
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from kineflow.contracts import KineflowError
from kineflow.deploy.adapters.opening import NATIVE, open_robot as open_native
from kineflow.deploy.adapters.robot import Robot
from kineflow.deploy.adapters.settings import JointSettings, PathSettings
from kineflow.deploy.governor import Command
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.messages import along, check_twist_axes, path_message, to_time, twist_message
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.px4 import open_px4
from kineflow.deploy.ros2.qos import Quality, profile as quality_profile


def open_robot(node: Any, profile: RobotProfile, config: NodeConfig) -> Robot:
    """Raises:
    KineflowError: messages, an SDK or an address that the adapter needs are not there.
    """
    if profile.adapter == "joint_trajectory":
        return JointRobot(node, profile, config.shadow)
    if profile.adapter == "path" and not config.shadow:
        return PathRobot(node, profile, config.command_frame)
    if profile.adapter in ("twist", "twist_stamped", "path") or config.shadow:
        return TwistRobot(node, profile, config)
    if profile.adapter == "px4":
        return Echoed(open_px4(node, profile, config.command_frame), TwistRobot(node, profile, config))
    assert profile.adapter in NATIVE
    return Echoed(open_native(profile), TwistRobot(node, profile, config))


def told_on(profile: RobotProfile, config: NodeConfig) -> tuple[str, type] | None:
    """Topic and type by which the robot itself hears its commands; None in shadow mode, and for links of their own."""
    if config.shadow:
        return None
    if profile.adapter == "joint_trajectory":
        return (profile.joint_trajectory or JointSettings()).topic, JointTrajectory
    if profile.adapter == "path":
        return (profile.path or PathSettings()).topic, Path
    kinds = {"twist": Twist, "twist_stamped": TwistStamped}
    return (config.command_topic, kinds[profile.adapter]) if profile.adapter in kinds else None


def shadowed(topic: str, is_shadow: bool) -> str:
    return f"shadow_{topic.strip('/')}" if is_shadow else topic


class TwistRobot:
    """geometry_msgs/TwistStamped, or Twist: each command, zero to stop. The body's driver needs a timeout of its own."""

    def __init__(self, node: Any, profile: RobotProfile, config: NodeConfig) -> None:
        self._node, self._names, self._frame = node, profile.command.names, config.command_frame
        check_twist_axes(self._names)
        self._stamped = profile.adapter != "twist"
        # Reliable serves subscribers of both kinds; depth 1: an old command must not be sent again.
        topic = shadowed(config.command_topic, config.shadow)
        self._topic = node.create_publisher(TwistStamped if self._stamped else Twist, topic, quality_profile(Quality(True)))

    def send(self, command: Command, now_s: float) -> None:
        self._say(command.values, time.monotonic() - now_s)

    def stop(self, now_s: float) -> None:
        self._say(np.zeros(len(self._names)), 0.0)

    def waits(self, now_s: float) -> str:
        return ""

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._node.destroy_publisher(self._topic)

    def _say(self, values: np.ndarray, age_s: float) -> None:
        """Stamped with the time for which it was governed: limits hold between stamps."""
        stamp = to_time(1e-9 * self._node.get_clock().now().nanoseconds - age_s)
        self._topic.publish(twist_message(self._stamped, self._names, values, stamp, self._frame))


class Echoed:
    """A robot with a link of its own; others (recorder, views) hear on the command topic what it is told."""

    def __init__(self, robot: Robot, echo: TwistRobot) -> None:
        self.robot, self._echo = robot, echo
        self.waits, self.held, self.state = robot.waits, robot.held, robot.state

    def send(self, command: Command, now_s: float) -> None:
        self.robot.send(command, now_s)
        self._echo.send(command, now_s)

    def stop(self, now_s: float) -> None:
        self.robot.stop(now_s)
        self._echo.stop(now_s)

    def close(self) -> None:
        self.robot.close()
        self._echo.close()


class JointRobot:
    """trajectory_msgs/JointTrajectory of one point at a time; a stop, and silence, hold the position."""

    def __init__(self, node: Any, profile: RobotProfile, is_shadow: bool) -> None:
        self._settings = settings = profile.joint_trajectory or JointSettings()
        self._node, self._names = node, profile.command.names
        self._topic = node.create_publisher(JointTrajectory, shadowed(settings.topic, is_shadow), quality_profile(Quality(True)))
        self._states = node.create_subscription(JointState, settings.state_topic, self._on_state, quality_profile(Quality(False)))
        self._now: tuple[tuple[float, ...], float] | None = None  # replaced as a whole: heard in the ROS thread
        self._told: np.ndarray | None = None

    def send(self, command: Command, now_s: float) -> None:
        self._told = command.values
        self._say(command.values)

    def stop(self, now_s: float) -> None:
        """Positions were told that can be stopped at: the governor brakes before it ends."""
        if self._told is not None:
            self._say(self._told)

    def waits(self, now_s: float) -> str:
        return "" if self._fresh(now_s) else f"positions of {list(self._names)} are not heard on {self._settings.state_topic}"

    def held(self, now_s: float) -> tuple[float, ...] | None:
        """Raises:
        KineflowError: the joints are not heard.
        """
        now = self._fresh(now_s)
        if now is None:
            raise KineflowError(f"{self.waits(now_s)}; activation holds the arm where it is, so it must be known")
        return now

    def state(self, now_s: float) -> dict[str, Any]:
        return {"joints_age_s": now_s - self._now[1] if self._now else math.inf}

    def close(self) -> None:
        self._node.destroy_publisher(self._topic)
        self._node.destroy_subscription(self._states)

    def _fresh(self, now_s: float) -> tuple[float, ...] | None:
        now = self._now
        return now[0] if now is not None and now_s - now[1] <= self._settings.state_s else None

    def _on_state(self, message: Any) -> None:
        of = dict(zip(message.name, message.position))
        positions = tuple(float(of.get(name, math.nan)) for name in self._names)
        if all(math.isfinite(p) for p in positions):  # states of other joints come on the same topic
            self._now = (positions, time.monotonic())

    def _say(self, values: np.ndarray) -> None:
        """Without a stamp: from when it arrives on."""
        point = JointTrajectoryPoint(positions=values.tolist())
        whole = math.floor(self._settings.lead_s)
        point.time_from_start = Duration(sec=whole, nanosec=round(1e9 * (self._settings.lead_s - whole)))
        self._topic.publish(JointTrajectory(joint_names=list(self._names), points=[point]))


class PathRobot:
    """nav_msgs/Path of what is left of the chunk, in the body's frame; a path of one pose, here, says stay.

    The follower keeps the speed: give it the limits of the profile. It stops only as well as it honours a new path.
    """

    def __init__(self, node: Any, profile: RobotProfile, frame: str) -> None:
        self._settings = settings = profile.path or PathSettings()
        self._node, self._names, self._frame, self._limits = node, profile.command.names, frame, profile.limits
        self._topic = node.create_publisher(Path, settings.topic, quality_profile(Quality(True)))
        self._ahead: tuple[np.ndarray, float] | None = None
        self._due_s, self._moved = -math.inf, False

    def plan(self, actions: np.ndarray, step_s: float) -> None:
        """What the executor will do from now on `[N, A]`, N may be 0."""
        self._ahead = (np.clip(actions, self._limits.low, self._limits.high), step_s)

    def send(self, command: Command, now_s: float) -> None:
        ahead = self._ahead
        moves = command.health == "follows" and not command.braking and ahead is not None and len(ahead[0]) > 0
        if now_s < self._due_s - 0.002 and moves == self._moved:
            return
        self._due_s, self._moved = now_s + 1 / self._settings.rate_hz, moves
        self._say(along(ahead[0], self._names, ahead[1]) if moves and ahead is not None else np.zeros((1, 3)))

    def stop(self, now_s: float) -> None:
        self._ahead, self._moved = None, False
        self._say(np.zeros((1, 3)))

    def waits(self, now_s: float) -> str:
        return ""

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        return {"follows_path": self._moved}

    def close(self) -> None:
        self._node.destroy_publisher(self._topic)

    def _say(self, places: np.ndarray) -> None:
        kept = [0]
        for i in range(1, len(places)):
            if math.dist(places[i, :2], places[kept[-1], :2]) >= self._settings.spacing_m or i == len(places) - 1:
                kept.append(i)
        self._topic.publish(path_message(places[kept], self._node.get_clock().now().to_msg(), self._frame))
