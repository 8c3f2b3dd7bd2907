"""Subscriptions of a policy node. Callbacks store and return (`intake.py`): what takes time happens in other threads."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from std_msgs.msg import Bool, Header

from kineflow.contracts import KineflowError, PolicyContract
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.intake import FEATURE_TYPES, GoalIntake, Intake, Take
from kineflow.deploy.ros2.message_checks import depth_check, feature_check, frame_check, picture_check
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.wiring import Wire


def message_class(name: str) -> type:
    """`std_msgs/msg/Bool` as the class of this ROS.

    Raises:
        KineflowError: its package is not installed.
    """
    package, _, kind = name.split("/")
    try:
        found: type = getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError) as error:
        raise KineflowError(
            f"messages of type {name} are not installed here ({error}); install ros-<distro>-{package}"
        ) from error
    return found


def wires(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> list[Wire]:
    """Everything that must be published before the node may be configured."""
    found = [
        Wire(
            f"camera '{name}'",
            topic.topic,
            message_class(f"sensor_msgs/msg/{'CompressedImage' if topic.compressed else 'Image'}"),
            topic.rate_hz,
            check=picture_check(topic, contract.interface.cameras[name]),
        )
        for name, topic in config.cameras.items()
    ]
    found += [
        Wire(
            f"feature '{name}'",
            topic.topic,
            message_class(FEATURE_TYPES[topic.kind]),
            topic.rate_hz,
            check=feature_check(topic, contract.interface.features[name].vector.names),
        )
        for name, topic in config.features.items()
        if topic.kind != "constant"
    ]
    if robot.watchdogs.estop:
        found.append(Wire("estop", config.estop_topic, Bool, latched=True))
    if math.isfinite(robot.watchdogs.supervisor_s):
        found.append(Wire("supervisor", config.supervisor_topic, Header, needs_publisher=False))
    if robot.keep_out and config.scan_topic:
        found.append(Wire("ranges", config.scan_topic, message_class("sensor_msgs/msg/LaserScan"), 2 / robot.keep_out.range_s))
    if robot.keep_out and config.depths:
        image = message_class("sensor_msgs/msg/Image")
        found += [Wire(f"depth '{n}'", d.topic, image, d.rate_hz, check=depth_check()) for n, d in config.depths.items()]
    if robot.geofence:
        odometry = message_class("nav_msgs/msg/Odometry")
        found.append(Wire("pose", config.pose_topic, odometry, check=frame_check(robot.geofence.frame)))
    return found


class Inputs:
    """All subscriptions of a policy node but its goals, made once at configure."""

    def __init__(self, node: Any, qualities: Mapping[str, Quality], intake: Intake) -> None:
        """Qualities by the names of wires; what has none may come later (the guard), and is always our own."""
        self._node, self.intake = node, intake
        self._subscriptions = [
            node.create_subscription(
                message_class(tap.type),
                tap.topic,
                self._with_times(tap.take),
                profile(Quality(True, True) if tap.name == "guard" else qualities.get(tap.name, Quality(False))),
            )
            for tap in intake.taps
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _with_times(self, take: Take) -> Callable[[Any], None]:
        clock = self._node.get_clock()
        return lambda message: take(message, 1e-9 * clock.now().nanoseconds, time.monotonic())


class GoalInputs:
    """Goal topics: what the policy takes is subscribed, reliable and with the last sample kept where the publisher keeps it."""

    def __init__(self, node: Any, intake: GoalIntake) -> None:
        self._node, self.intake = node, intake
        # A volatile subscription hears every publisher from now on, a transient one what was said before; both, each once.
        self._subscriptions = [
            node.create_subscription(
                message_class(tap.type), tap.topic, self._with_time(tap.take), profile(Quality(True, transient, tap.depth))
            )
            for tap in intake.taps
            for transient in (False, True)
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _with_time(self, take: Callable[[Any, Any, float], None]) -> Callable[[Any], None]:
        return lambda message: take(message, message, time.monotonic())
