"""A drone through ROS topics. What is said when: deploy/adapters/offboard.py.

    px4_msgs    PX4's own bridge (uXRCE-DDS): OffboardControlMode is the proof of life, TrajectorySetpoint in NED the motion
    mavros      setpoint_velocity/cmd_vel, in the body's axes: MAVROS' setpoint_velocity/mav_frame must be BODY_NED

Neither package is on PyPI: apt or colcon brings them, px4_msgs of the firmware's version.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped

from kineflow.deploy.adapters.frames import heading, ned_from_flu
from kineflow.deploy.adapters.offboard import Mode, Offboard
from kineflow.deploy.adapters.robot import Robot, axes
from kineflow.deploy.adapters.settings import Px4Settings
from kineflow.deploy.governor import Command
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.inputs import message_class
from kineflow.deploy.ros2.messages import twist_message
from kineflow.deploy.ros2.qos import Quality, profile as quality_profile

HEADING_S = 0.5
_NAN = [math.nan] * 3


def open_px4(node: Any, profile: RobotProfile, frame: str) -> Robot:
    """Raises:
    KineflowError: the messages of the bridge are not installed.
    """
    settings = profile.px4 or Px4Settings()
    return MavrosRobot(node, profile, settings, frame) if settings.bridge == "mavros" else Px4Robot(node, profile, settings)


class Px4Robot:
    """px4_msgs."""

    def __init__(self, node: Any, profile: RobotProfile, settings: Px4Settings) -> None:
        self._node, self._names = node, profile.command.names
        self._offboard = Offboard(settings.offboard, profile.rate_hz, setpoints_prove_life=False)
        self._heading: tuple[float, float] | None = None  # rad east of north, and when it was heard
        kinds: list[Any] = [
            message_class(f"px4_msgs/msg/{name}")
            for name in ("OffboardControlMode", "TrajectorySetpoint", "VehicleStatus", "VehicleLocalPosition")
        ]
        self._control, self._setpoint, self._status, position = kinds
        quality = quality_profile(Quality(False, True))  # of PX4's bridge: best effort, transient local

        def topic(way: str, name: str, kind: Any) -> str:
            version = getattr(kind, "MESSAGE_VERSION", 0)
            return f"{settings.namespace}/fmu/{way}/{name}{f'_v{version}' if version else ''}"

        self._lives = node.create_publisher(self._control, topic("in", "offboard_control_mode", self._control), quality)
        self._flies = node.create_publisher(self._setpoint, topic("in", "trajectory_setpoint", self._setpoint), quality)
        self._heard = [
            node.create_subscription(self._status, topic("out", "vehicle_status", self._status), self._on_status, quality),
            node.create_subscription(position, topic("out", "vehicle_local_position", position), self._on_position, quality),
        ]

    def send(self, command: Command, now_s: float) -> None:
        told = self._offboard.tick(command, now_s)
        if told.beat:
            self._lives.publish(self._control(timestamp=self._microseconds(), velocity=True))
        if told.setpoint is not None:
            self._fly(told.setpoint, now_s)

    def stop(self, now_s: float) -> None:
        if self._offboard.may_say_stop(now_s):
            self._fly(np.zeros(len(self._names)), now_s)

    def waits(self, now_s: float) -> str:
        known = self._heading is not None and now_s - self._heading[1] <= HEADING_S
        return self._offboard.waits(now_s) or ("" if known else "the autopilot does not say where it heads")

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        return self._offboard.state(now_s)

    def close(self) -> None:
        for publisher in (self._lives, self._flies):
            self._node.destroy_publisher(publisher)
        for subscription in self._heard:
            self._node.destroy_subscription(subscription)

    def _fly(self, values: np.ndarray, now_s: float) -> None:
        """Where the heading is not known any more, only a zero can be said."""
        vx, vy, vz, yaw_rate = axes(self._names, values, ("vx", "vy", "vz", "yaw_rate"))
        known = self._heading
        if known is None or now_s - known[1] > HEADING_S:
            vx = vy = vz = yaw_rate = 0.0
        towards = heading(known[0] if known else 0.0)
        turn = ned_from_flu(np.array([0.0, 0.0, yaw_rate]), towards)
        velocity = ned_from_flu(np.array([vx, vy, vz]), towards).tolist()
        nothing = {"position": _NAN, "acceleration": _NAN, "jerk": _NAN, "yaw": math.nan}  # NaN: not controlled
        self._flies.publish(self._setpoint(timestamp=self._microseconds(), velocity=velocity, yawspeed=float(turn[2]), **nothing))

    def _on_status(self, message: Any) -> None:
        obeys = message.nav_state == self._status.NAVIGATION_STATE_OFFBOARD
        armed = message.arming_state == self._status.ARMING_STATE_ARMED
        self._offboard.hear(Mode(f"nav_state {message.nav_state}", obeys, armed, time.monotonic()))

    def _on_position(self, message: Any) -> None:
        if math.isfinite(message.heading) and getattr(message, "heading_good_for_control", True):
            self._heading = (float(message.heading), time.monotonic())

    def _microseconds(self) -> int:
        return int(self._node.get_clock().now().nanoseconds // 1000)


class MavrosRobot:
    """MAVROS: it makes a SET_POSITION_TARGET_LOCAL_NED of each twist, so the twists are the proof of life."""

    def __init__(self, node: Any, profile: RobotProfile, settings: Px4Settings, frame: str) -> None:
        self._node, self._names, self._frame, self._guided = node, profile.command.names, frame, settings.guided
        self._offboard = Offboard(settings.offboard, profile.rate_hz, setpoints_prove_life=True)
        state = message_class("mavros_msgs/msg/State")
        base = f"{settings.namespace}/mavros" if settings.namespace else "mavros"
        self._flies = node.create_publisher(TwistStamped, f"{base}/setpoint_velocity/cmd_vel", quality_profile(Quality(True)))
        self._heard = node.create_subscription(state, f"{base}/state", self._on_state, quality_profile(Quality(True)))

    def send(self, command: Command, now_s: float) -> None:
        told = self._offboard.tick(command, now_s)
        if told.setpoint is not None:
            self._fly(told.setpoint)
        elif told.beat:  # PX4 wants a stream before it enters OFFBOARD, and flies none of it until then
            self._fly(np.zeros(len(self._names)))

    def stop(self, now_s: float) -> None:
        if self._offboard.may_say_stop(now_s):
            self._fly(np.zeros(len(self._names)))

    def waits(self, now_s: float) -> str:
        return self._offboard.waits(now_s)

    def held(self, now_s: float) -> tuple[float, ...] | None:
        return None

    def state(self, now_s: float) -> dict[str, Any]:
        return self._offboard.state(now_s)

    def close(self) -> None:
        self._node.destroy_publisher(self._flies)
        self._node.destroy_subscription(self._heard)

    def _fly(self, values: np.ndarray) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._flies.publish(twist_message(True, self._names, values, stamp, self._frame))

    def _on_state(self, message: Any) -> None:
        if message.connected:
            self._offboard.hear(Mode(message.mode, message.mode in self._guided, message.armed, time.monotonic()))
