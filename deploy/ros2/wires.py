"""What a policy node is connected to, from its configuration: everything that `wiring.py` looks at before it is configured."""

from __future__ import annotations

import math

from std_msgs.msg import Bool, Header

from kineflow.contracts import PolicyContract
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.inputs import message_class
from kineflow.deploy.ros2.intake import FEATURE_TYPES
from kineflow.deploy.ros2.message_checks import depth_check, feature_check, frame_check, picture_check
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.robots import told_on
from kineflow.deploy.ros2.wiring import Wire


def wires(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> list[Wire]:
    """What must be published before the node may be configured, and what it will tell the robot."""
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
    if told := told_on(robot, config):
        found.append(Wire("command", *told, needs_publisher=False, told=True))
    return found
