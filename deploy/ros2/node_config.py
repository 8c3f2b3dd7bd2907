"""What a policy node is told of its robot: topics, robot profile, executor; YAML in `configs/nodes/`.

`load_config(NodeConfig, "nodes/wheeled")` reads one. Topics may be remapped as usual (`--ros-args -r front:=/camera/image`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.keep_out import Mount
from kineflow.interface import KineflowError

FeatureKind = Literal["odometry_velocity", "odometry_pose", "joint_positions", "constant"]


@dataclass(frozen=True)
class CameraTopic:
    """Where a camera of the policy is published. `rate_hz`: of the topic; below half of it is an error of wiring.

    `compressed`: sensor_msgs/CompressedImage; take it above 0.4 MB a picture. `frame`: of the header, "" for any. `height` and
    `width`: of what is published, 0 for any; the picture is scaled to the policy's.
    """

    topic: str
    rate_hz: float
    compressed: bool = False
    frame: str = ""
    height: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        _check_topic(self.topic, self.rate_hz)


@dataclass(frozen=True)
class DepthTopic:
    """A depth camera (sensor_msgs/Image, 16UC1 or 32FC1) that keeps the robot out of obstacles; the policy need not see it.

    `fx` to `cy`: as its CameraInfo says, in pixels. `mount`: where its optical centre sits in the base frame (no tf is read).
    """

    topic: str
    rate_hz: float
    fx: float
    fy: float
    cx: float
    cy: float
    mount: Mount = field(default_factory=Mount)

    def __post_init__(self) -> None:
        _check_topic(self.topic, self.rate_hz)
        if not (self.fx > 0 and self.fy > 0):
            raise KineflowError(f"depth '{self.topic}': fx {self.fx}, fy {self.fy} must be positive, as CameraInfo says")


@dataclass(frozen=True)
class FeatureTopic:
    """Where a feature of the policy comes from.

    odometry_velocity (vx vy vz yaw_rate) and odometry_pose (x y z qx qy qz qw) read nav_msgs/Odometry; joint_positions reads
    sensor_msgs/JointState by the feature's own names; constant has `values` and no topic. `frame`: header.frame_id of a pose,
    child_frame_id of a velocity, "" for any.
    """

    kind: FeatureKind
    topic: str = ""
    rate_hz: float = 10.0
    frame: str = ""
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "constant") != bool(self.values) or (self.kind == "constant") == bool(self.topic):
            raise KineflowError(f"a feature is constant with values or has a topic, got {self}")
        if self.topic:
            _check_topic(self.topic, self.rate_hz)


@dataclass(frozen=True)
class GoalTopics:
    """By which topics the goal is told, "" for none; what the policy does not take is not subscribed.

    instruction: std_msgs/String. image: sensor_msgs/CompressedImage; image_raw: sensor_msgs/Image, the newer of both counts.
    video: CompressedImage with header.frame_id "i/n", a clip of n pictures at `video_rate_hz`. pose: geometry_msgs/PoseStamped,
    given as pose or point.
    """

    instruction: str = "instruction"
    image: str = "goal_image"
    image_raw: str = "goal_image_raw"
    video: str = "goal_video"
    pose: str = "goal_pose"
    video_rate_hz: float = 5.0


@dataclass(frozen=True)
class NodeConfig:
    """`policy`: run folder, kineflow://NAME, exported folder, or "module:function" that makes one.

    `action_limits`: "same" refuses a policy whose action range is not the robot's; "clamped" lets the governor cut it.
    `robot` says how the robot is told (deploy/adapters/README.md); one with a link of its own is echoed on `command_topic`.
    `shadow`: everything runs, what would be commanded is published on shadow_<command_topic> alone.
    `starts`: "at_once" follows the policy from activation on and after each new goal; "asked" waits for the service `~/run`.
    `fifo_priority`: of the output thread, where permitted; 0 does not ask.
    `scan_topic` and `depths`: what keep-out looks with; `scan_mount`: where the scanner sits in the base frame (no tf is read).
    """

    policy: str
    robot: str
    cameras: Mapping[str, CameraTopic] = field(default_factory=dict)
    features: Mapping[str, FeatureTopic] = field(default_factory=dict)
    goals: GoalTopics = field(default_factory=GoalTopics)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    command_topic: str = "cmd_vel"
    command_frame: str = "base_link"
    estop_topic: str = "estop"
    guard_estop_topic: str = "guard_estop"  # pressed by the guard process when it had to stop the robot
    supervisor_topic: str = "supervisor"
    scan_topic: str = ""
    scan_mount: Mount = field(default_factory=Mount)
    depths: Mapping[str, DepthTopic] = field(default_factory=dict)
    pose_topic: str = ""  # nav_msgs/Odometry in the geofence's frame
    action_limits: Literal["same", "clamped"] = "same"
    wiring_timeout_s: float = 5.0
    warm_up_calls: int = 3
    shadow: bool = False
    fifo_priority: int = 20
    starts: Literal["at_once", "asked"] = "at_once"

    def __post_init__(self) -> None:
        if not self.wiring_timeout_s > 0 or self.warm_up_calls < 0 or not 0 <= self.fifo_priority <= 99:
            raise KineflowError(
                f"wiring_timeout_s {self.wiring_timeout_s} must be positive, warm_up_calls {self.warm_up_calls} not negative, "
                f"fifo_priority {self.fifo_priority} from 0 to 99"
            )
        if not self.command_topic:
            raise KineflowError("command_topic is empty; name the topic of the robot's command")


def _check_topic(topic: str, rate_hz: float) -> None:
    if not topic or not rate_hz > 0:
        raise KineflowError(f"topic '{topic}' with {rate_hz} Hz: name the topic and its rate, above 0")
