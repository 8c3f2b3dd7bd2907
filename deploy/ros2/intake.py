"""What messages mean to executor and governor, whoever delivers them: the node's subscriptions, or a bag. No ROS here.

    message, now of the clock of its stamp, when it was received (monotonic) ---take---> stream of the executor, or the governor

Source stamps are of the ROS clock, which may be simulated, jump or stand still; everything else here is of the monotonic clock.
A stamp enters as an age: received_s - (now of the ROS clock - stamp). Messages are read by their fields alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError, PolicyContract
from kineflow.deploy.asking import FollowsGoal
from kineflow.deploy.governor import Governor
from kineflow.deploy.keep_out import Mount, Pinhole
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.images import PictureError, colours, decompressed, depth_as_sent, fitted
from kineflow.deploy.ros2.message_checks import Check, depth_check, feature_check, frame_check, picture_check
from kineflow.deploy.ros2.node_config import DepthTopic, FeatureTopic, NodeConfig
from kineflow.deploy.ros2.readers import pose_of, read_feature, read_picture, seconds_of
from kineflow.interface import CameraSpec

Observe = Callable[[str, np.ndarray, float, float], str]  # stream, value, stamp_s, received_s
Take = Callable[[Any, float, float], None]  # message, now of the ROS clock, received_s
SAME_S = 1.0  # the same goal twice in this time is one, heard on both subscriptions

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
ODOMETRY, JOINTS, SCAN = "nav_msgs/msg/Odometry", "sensor_msgs/msg/JointState", "sensor_msgs/msg/LaserScan"
BOOL, HEADER, STRING, POSE = "std_msgs/msg/Bool", "std_msgs/msg/Header", "std_msgs/msg/String", "geometry_msgs/msg/PoseStamped"
FEATURE_TYPES = {"odometry_velocity": ODOMETRY, "odometry_pose": ODOMETRY, "joint_positions": JOINTS}


@dataclass(frozen=True)
class Tap:
    """One topic that is listened to. `needed`: the policy cannot do without; the others are for the robot's safety. `check`: what
    is wrong with a message, where that is a matter of configuration."""

    name: str
    topic: str
    type: str
    take: Take
    needed: bool = False
    check: Check = lambda message: ""


class Intake:
    """All topics of a policy node but its goals."""

    def __init__(
        self, contract: PolicyContract, robot: RobotProfile, config: NodeConfig, governor: Governor, observe: Observe
    ) -> None:
        self._contract, self._governor, self._observe = contract, governor, observe
        self._pressed: dict[str, bool] = {} if robot.watchdogs.estop else {"source": False}
        kept = {name: feature.values for name, feature in config.features.items() if feature.kind == "constant"}
        self._constants = {name: np.array(values, np.float32) for name, values in kept.items()}
        self.faults: dict[str, str] = {}  # last complaint per stream, for diagnostics
        self.received: dict[str, int] = {}
        self.taps = [*self._sensed(config), *self._watched(robot, config)]
        if robot.keep_out:
            governor.expect([*(["ranges"] if config.scan_topic else []), *(f"depth '{name}'" for name in config.depths)])

    def _sensed(self, config: NodeConfig) -> Iterator[Tap]:
        interface = self._contract.interface
        for name, camera in config.cameras.items():
            kind = COMPRESSED if camera.compressed else IMAGE
            spec = interface.cameras[name]
            yield Tap(f"camera '{name}'", camera.topic, kind, self._picture(name, spec), True, picture_check(camera, spec))
        for name, feature in config.features.items():
            if feature.kind != "constant":
                names, kind = interface.features[name].vector.names, FEATURE_TYPES[feature.kind]
                take = self._feature(name, feature, names)
                yield Tap(f"feature '{name}'", feature.topic, kind, take, True, feature_check(feature, names))

    def _watched(self, robot: RobotProfile, config: NodeConfig) -> Iterator[Tap]:
        if robot.watchdogs.estop:
            yield Tap("estop", config.estop_topic, BOOL, self._press("source"))
        yield Tap("guard", config.guard_estop_topic, BOOL, self._press("guard"))  # what it stopped must stay so, in any case
        if math.isfinite(robot.watchdogs.supervisor_s):
            yield Tap("supervisor", config.supervisor_topic, HEADER, self._beat)
        if robot.keep_out and config.scan_topic:
            yield Tap("ranges", config.scan_topic, SCAN, self._scan(config.scan_mount))
        if robot.keep_out:
            for name, depth in config.depths.items():
                yield Tap(f"depth '{name}'", depth.topic, IMAGE, self._depth(f"depth '{name}'", depth), check=depth_check())
        if robot.geofence:
            yield Tap("pose", config.pose_topic, ODOMETRY, self._pose, check=frame_check(robot.geofence.frame))

    def _take(self, stream: str, value: np.ndarray, header: Any, ros_s: float, received_s: float) -> None:
        stamp_s = received_s - (ros_s - seconds_of(header.stamp))
        reason = self._observe(stream, value, stamp_s, received_s)
        for name, constant in self._constants.items():  # as fresh as what is sensed
            self._observe(name, constant, stamp_s, received_s)
        self.received[stream] = self.received.get(stream, 0) + 1
        if reason:
            self.faults[stream] = reason

    def _picture(self, stream: str, spec: CameraSpec) -> Take:
        def take(message: Any, ros_s: float, received_s: float) -> None:
            try:
                picture = read_picture(message, spec)
            except PictureError as error:  # one damaged picture is a picture less; many are a stale observation
                self.faults[stream] = str(error)
                return
            self._take(stream, fitted(picture, spec), message.header, ros_s, received_s)

        return take

    def _feature(self, stream: str, feature: FeatureTopic, names: tuple[str, ...]) -> Take:
        def take(message: Any, ros_s: float, received_s: float) -> None:
            try:
                value = read_feature(message, feature.kind, names)
            except KineflowError as error:
                self.faults[stream] = str(error)
                return
            self._take(stream, value, message.header, ros_s, received_s)

        return take

    def _press(self, who: str) -> Take:
        """Pressed by one is pressed; released is released by all, and only the source itself can be the first to be heard."""

        def take(message: Any, ros_s: float, received_s: float) -> None:
            self._pressed[who] = pressed = bool(message.data)
            if pressed or "source" in self._pressed:
                self._governor.estop(any(self._pressed.values()), received_s)

        return take

    def _beat(self, message: Any, ros_s: float, received_s: float) -> None:
        """frame_id is the supervisor's name: several on one topic are watched each."""
        self._governor.supervisor(received_s, message.frame_id)

    def _is_timely(self, stream: str, message: Any, ros_s: float) -> bool:
        """What the surroundings were long ago must not be taken for how they are."""
        self.received[stream] = self.received.get(stream, 0) + 1
        if reason := self._governor.check_stamp(seconds_of(message.header.stamp), ros_s):
            self.faults[stream] = reason
        return not reason

    def _scan(self, mount: Mount) -> Take:
        def take(message: Any, ros_s: float, received_s: float) -> None:
            if not self._is_timely("ranges", message, ros_s):
                return
            metres = np.asarray(message.ranges, np.float64)
            angles = message.angle_min + message.angle_increment * np.arange(len(metres))
            metres = np.where(metres > message.range_max, np.inf, metres)
            unmeasured = (metres < message.range_min) & (metres > -np.inf)  # -inf: closer than it can tell
            self._governor.ranges(angles, np.where(unmeasured, np.nan, metres), received_s, mount)

        return take

    def _depth(self, stream: str, camera: DepthTopic) -> Take:
        pinhole = Pinhole(camera.fx, camera.fy, camera.cx, camera.cy)

        def take(message: Any, ros_s: float, received_s: float) -> None:
            if not self._is_timely(stream, message, ros_s):
                return
            try:
                picture = depth_as_sent(message)
            except PictureError as error:
                self.faults[stream] = str(error)
                return
            self._governor.depth(picture, pinhole, received_s, camera.mount, stream)

        return take

    def _pose(self, message: Any, ros_s: float, received_s: float) -> None:
        if not self._is_timely("fence", message, ros_s):
            return
        x, y, z, qx, qy, qz, qw = pose_of(message.pose.pose)
        yaw = math.atan2(2 * (qx * qy + qw * qz), 1 - 2 * (qy * qy + qz * qz))
        self._governor.pose(x, y, yaw, received_s, z)


@dataclass(frozen=True)
class GoalTap:
    """A goal topic that the policy takes; `take` has also what tells two messages apart (the message itself, or its bytes)."""

    topic: str
    type: str
    depth: int
    take: Callable[[Any, Any, float], None]  # message, what it is compared by, received_s


class GoalIntake:
    """Goal messages to what the policy is told: `follow` is called with each new one, None while it is incomplete."""

    def __init__(self, inbox: GoalInbox, config: NodeConfig, follow: Callable[[FollowsGoal | None], None]) -> None:
        self._inbox, self._follow = inbox, follow
        self.fault = ""
        self._last: dict[str, tuple[Any, float]] = {}
        topics, kinds = config.goals, inbox.kinds()
        wanted: list[tuple[bool, str, str, int, Callable[[Any], FollowsGoal | None]]] = [
            ("instruction" in kinds, topics.instruction, STRING, 1, lambda m: inbox.words(m.data)),
            ("image" in kinds, topics.image, COMPRESSED, 1, lambda m: inbox.picture(_decoded(m))),
            ("image" in kinds, topics.image_raw, IMAGE, 1, lambda m: inbox.picture(colours(m))),
            ("video" in kinds, topics.video, COMPRESSED, 100, self._clip),
            (bool({"pose", "point"} & kinds), topics.pose, POSE, 1, lambda m: inbox.pose(*_goal_of(m.pose))),
        ]
        self.taps = [
            GoalTap(topic, kind, depth, self._once(topic, read))
            for needed, topic, kind, depth, read in wanted
            if needed and topic
        ]

    def _clip(self, message: Any) -> FollowsGoal | None:
        return self._inbox.clip_picture(_decoded(message), message.header.frame_id)

    def _once(self, topic: str, read: Callable[[Any], FollowsGoal | None]) -> Callable[[Any, Any, float], None]:
        def take(message: Any, same: Any, received_s: float) -> None:
            last, last_s = self._last.get(topic, (None, -math.inf))
            self._last[topic] = (same, received_s)
            if same == last and received_s - last_s < SAME_S:
                return
            try:
                told = read(message)
            except KineflowError as error:
                self.fault = str(error)
                return
            self.fault = ""
            self._follow(told)

        return take


def _goal_of(pose: Any) -> tuple[float, float, float, tuple[float, float, float, float]]:
    x, y, z, *quaternion = pose_of(pose)
    return x, y, z, (quaternion[0], quaternion[1], quaternion[2], quaternion[3])


def _decoded(message: Any) -> np.ndarray:
    return decompressed(message, CameraSpec(1, 1, 1.0))
