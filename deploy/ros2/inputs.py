"""Topics into the executor and the governor. Callbacks store and return: what takes time happens in other threads.

Source stamps are of the ROS clock, which may be simulated, jump or stand still; everything else here is of the monotonic clock.
A stamp enters as an age: received_s - (now of the ROS clock - stamp).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CompressedImage, Image, JointState, LaserScan
from std_msgs.msg import Bool, Header, String

from kineflow.contracts import KineflowError, PolicyContract
from kineflow.deploy.asking import FollowsGoal
from kineflow.deploy.governor import Governor
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.images import PictureError, colours, decompressed, depth_mm, fitted
from kineflow.deploy.ros2.messages import to_seconds
from kineflow.deploy.ros2.node_config import CameraTopic, FeatureTopic, NodeConfig
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.wiring import Wire, check_frame, check_picture
from kineflow.interface import CameraSpec

Observe = Callable[[str, np.ndarray, float, float], str]  # stream, value, stamp_s, received_s
SAME_S = 1.0  # the same goal twice in this time is one, heard on both subscriptions
_FEATURES = {"odometry_velocity": Odometry, "odometry_pose": Odometry, "joint_positions": JointState}


def wires(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> list[Wire]:
    """Everything that must be published before the node may be configured."""
    found = [
        Wire(
            f"camera '{name}'",
            topic.topic,
            CompressedImage if topic.compressed else Image,
            topic.rate_hz,
            check=_picture_check(topic, contract.interface.cameras[name]),
        )
        for name, topic in config.cameras.items()
    ]
    found += [
        Wire(
            f"feature '{name}'",
            topic.topic,
            _FEATURES[topic.kind],
            topic.rate_hz,
            check=_feature_check(topic, contract.interface.features[name].vector.names),
        )
        for name, topic in config.features.items()
        if topic.kind != "constant"
    ]
    if robot.watchdogs.estop:
        found.append(Wire("estop", config.estop_topic, Bool, latched=True))
    if math.isfinite(robot.watchdogs.supervisor_s):
        found.append(Wire("supervisor", config.supervisor_topic, Header, needs_publisher=False))
    if robot.keep_out:
        found.append(Wire("ranges", config.scan_topic, LaserScan, 2 / robot.keep_out.range_s))
    if robot.geofence:
        found.append(Wire("pose", config.pose_topic, Odometry, check=check_frame(robot.geofence.frame, _frame_id)))
    return found


class Inputs:
    """All subscriptions of a policy node, made once at configure."""

    def __init__(self, node: Any, qualities: Mapping[str, Quality], governor: Governor, observe: Observe) -> None:
        self._node, self._qualities, self._governor, self._observe = node, qualities, governor, observe
        self._subscriptions: list[Any] = []
        self._pressed: dict[str, bool] = {}
        self._constants: dict[str, np.ndarray] = {}
        self.faults: dict[str, str] = {}  # last complaint per stream, for diagnostics
        self.received: dict[str, int] = {}

    def subscribe(self, contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> None:
        for name, camera in config.cameras.items():
            kind = CompressedImage if camera.compressed else Image
            self._listen(f"camera '{name}'", camera.topic, kind, self._picture(name, contract.interface.cameras[name]))
        for name, feature in config.features.items():
            if feature.kind == "constant":
                self._constants[name] = np.array(feature.values, np.float32)
            else:
                names = contract.interface.features[name].vector.names
                self._listen(f"feature '{name}'", feature.topic, _FEATURES[feature.kind], self._feature(name, feature, names))
        if robot.watchdogs.estop:
            self._listen("estop", config.estop_topic, Bool, lambda m: self._press("source", bool(m.data)))
            self._listen("guard", config.guard_estop_topic, Bool, lambda m: self._press("guard", bool(m.data)))
        if math.isfinite(robot.watchdogs.supervisor_s):
            self._listen("supervisor", config.supervisor_topic, Header, lambda m: self._governor.supervisor(time.monotonic()))
        if robot.keep_out:
            self._listen("ranges", config.scan_topic, LaserScan, self._scan)
        if robot.geofence:
            self._listen("pose", config.pose_topic, Odometry, self._pose)

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _listen(self, name: str, topic: str, kind: type, callback: Callable[[Any], Any]) -> None:
        quality = self._qualities.get(name, Quality(False))
        if name == "guard":  # may come later, and is always our own
            quality = Quality(True, True)
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, profile(quality)))

    def _ages(self, header: Any) -> tuple[float, float]:
        """When it was sensed and received, both monotonic."""
        received_s = time.monotonic()
        return received_s - (1e-9 * self._node.get_clock().now().nanoseconds - to_seconds(header.stamp)), received_s

    def _take(self, stream: str, value: np.ndarray, header: Any) -> None:
        ages = self._ages(header)
        reason = self._observe(stream, value, *ages)
        for name, constant in self._constants.items():  # as fresh as what is sensed
            self._observe(name, constant, *ages)
        self.received[stream] = self.received.get(stream, 0) + 1
        if reason:
            self.faults[stream] = reason

    def _picture(self, stream: str, spec: CameraSpec) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            try:
                picture = read_picture(message, spec)
            except PictureError as error:  # one damaged picture is a picture less; many are a stale observation
                self.faults[stream] = str(error)
                return
            self._take(stream, fitted(picture, spec), message.header)

        return take

    def _feature(self, stream: str, feature: FeatureTopic, names: tuple[str, ...]) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            try:
                self._take(stream, read_feature(message, feature.kind, names), message.header)
            except KineflowError as error:
                self.faults[stream] = str(error)

        return take

    def _press(self, who: str, pressed: bool) -> None:
        """Pressed by one is pressed; released is released by all, and only the source itself can be the first to be heard."""
        self._pressed[who] = pressed
        if pressed or "source" in self._pressed:
            self._governor.estop(any(self._pressed.values()), time.monotonic())

    def _scan(self, message: Any) -> None:
        metres = np.asarray(message.ranges, np.float64)
        angles = message.angle_min + message.angle_increment * np.arange(len(metres))
        metres = np.where((metres < message.range_min) | (metres > message.range_max), np.inf, metres)
        self._governor.ranges(angles, metres, time.monotonic())

    def _pose(self, message: Any) -> None:
        x, y, z, qx, qy, qz, qw = _pose_of(message.pose.pose)
        yaw = math.atan2(2 * (qx * qy + qw * qz), 1 - 2 * (qy * qy + qz * qz))
        self._governor.pose(x, y, yaw, time.monotonic(), z)


class GoalInputs:
    """Goal topics: what the policy takes is subscribed, reliable and with the last sample kept where the publisher keeps it."""

    def __init__(self, node: Any, inbox: GoalInbox, config: NodeConfig, follow: Callable[[FollowsGoal | None], None]) -> None:
        self._inbox, self._follow, self._node = inbox, follow, node
        self.fault = ""
        topics, kinds = config.goals, inbox.kinds()
        wanted: list[tuple[bool, str, type, Callable[[Any], Any], int]] = [
            ("instruction" in kinds, topics.instruction, String, lambda m: inbox.words(m.data), 1),
            ("image" in kinds, topics.image, CompressedImage, lambda m: inbox.picture(_decoded(m)), 1),
            ("video" in kinds, topics.video, CompressedImage, self._clip, 100),
            (bool({"pose", "point"} & kinds), topics.pose, PoseStamped, lambda m: inbox.pose(*_goal_of(m.pose)), 1),
        ]
        # A volatile subscription hears every publisher from now on, a transient one what was said before; both, each once.
        self._last: dict[str, tuple[Any, float]] = {}
        self._subscriptions = [
            node.create_subscription(kind, topic, self._once(topic, read), profile(Quality(True, transient, depth)))
            for needed, topic, kind, read, depth in wanted
            if needed and topic
            for transient in (False, True)
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _clip(self, message: Any) -> FollowsGoal | None:
        return self._inbox.clip_picture(_decoded(message), message.header.frame_id)

    def _once(self, topic: str, read: Callable[[Any], FollowsGoal | None]) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            now, (last, last_s) = time.monotonic(), self._last.get(topic, (None, -math.inf))
            self._last[topic] = (message, now)
            if message == last and now - last_s < SAME_S:
                return
            try:
                told = read(message)
            except KineflowError as error:
                self.fault = str(error)
                return
            self.fault = ""
            self._follow(told)

        return take


def read_picture(message: Any, spec: CameraSpec) -> np.ndarray:
    """Any picture message as the camera's kind, in the published size.

    Raises:
        PictureError: it cannot be read.
    """
    if hasattr(message, "format"):
        return decompressed(message, spec)
    return colours(message) if spec.kind == "rgb" else depth_mm(message)


def read_feature(message: Any, kind: str, names: tuple[str, ...]) -> np.ndarray:
    """float32 values of a feature.

    Raises:
        KineflowError: a joint is missing.
    """
    if kind == "odometry_velocity":
        twist = message.twist.twist
        return np.array([twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.z], np.float32)
    if kind == "odometry_pose":
        return np.array(_pose_of(message.pose.pose), np.float32)
    place = dict(zip(message.name, message.position))
    if lacking := [name for name in names if name not in place]:
        raise KineflowError(f"the joint states lack {lacking}, they have {sorted(place)}; name the joints as the policy does")
    return np.array([place[name] for name in names], np.float32)


def _pose_of(pose: Any) -> tuple[float, float, float, float, float, float, float]:
    p, q = pose.position, pose.orientation
    return p.x, p.y, p.z, q.x, q.y, q.z, q.w


def _goal_of(pose: Any) -> tuple[float, float, float, tuple[float, float, float, float]]:
    x, y, z, *quaternion = _pose_of(pose)
    return x, y, z, (quaternion[0], quaternion[1], quaternion[2], quaternion[3])


def _decoded(message: Any) -> np.ndarray:
    return decompressed(message, CameraSpec(1, 1, 1.0))


def _frame_id(message: Any) -> str:
    return str(message.header.frame_id)


def _picture_check(topic: CameraTopic, spec: CameraSpec) -> Callable[[Any], str]:
    shape = check_picture(topic)

    def check(message: Any) -> str:
        if reason := shape(message):
            return reason
        try:
            read_picture(message, spec)
        except PictureError as error:
            return str(error)
        return ""

    return check


def _feature_check(topic: FeatureTopic, names: tuple[str, ...]) -> Callable[[Any], str]:
    frame = check_frame(topic.frame, _child_frame_id if topic.kind == "odometry_velocity" else _frame_id)

    def check(message: Any) -> str:
        if reason := frame(message):
            return reason
        try:
            read_feature(message, topic.kind, names)
        except KineflowError as error:
            return str(error)
        return ""

    return check


def _child_frame_id(message: Any) -> str:
    return str(message.child_frame_id)
