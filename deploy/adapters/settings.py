"""Settings of the adapters, as they stand in a robot's profile: `mavlink: {listen: ...}` beside `adapter: mavlink`.

What safety rests on is bounded here: a profile that is wrong is refused when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kineflow.interface import KineflowError

Autopilot = Literal["px4", "ardupilot"]


@dataclass(frozen=True)
class G1Settings:
    """Unitree G1's locomotion service.

    `interface`: network interface to the robot for Unitree's SDK, or udp:HOST:PORT of the simulated service. Each velocity
    lasts `duration_s` and is refreshed `refresh_hz` times a second, two refreshes at least within a duration. A call that is
    not answered within `timeout_s` has failed. `walking`: states of the robot (FSM ids) in which it takes velocities; 500 is
    what the SDK's Start() enters, others come with firmware.
    """

    interface: str = "eth0"
    duration_s: float = 0.4
    refresh_hz: float = 10.0
    timeout_s: float = 0.15
    walking: tuple[int, ...] = (500,)

    def __post_init__(self) -> None:
        if not 0 < self.duration_s <= 0.5:
            raise KineflowError(f"g1.duration_s is {self.duration_s}; a velocity may last 0.5 s at most, or a dead node walks on")
        if not (self.refresh_hz * self.duration_s >= 2 and self.refresh_hz <= 50):
            raise KineflowError(
                f"g1.refresh_hz is {self.refresh_hz}; from {2 / self.duration_s:g} (twice in each duration_s) to 50"
            )
        if not 0 < self.timeout_s < self.duration_s:
            raise KineflowError(f"g1.timeout_s is {self.timeout_s}; it lies between 0 and duration_s {self.duration_s}")
        if not self.walking or not self.interface:
            raise KineflowError("g1: name the interface, and at least one state in `walking`")


@dataclass(frozen=True)
class OffboardSettings:
    """How an autopilot is kept informed.

    `heartbeat_hz`: of the proof of life, only while the policy is healthy; from `silent_s` after a fault on nothing proves
    life. `first_plan_s`: for so long a policy that was at rest may think before it is called unhealthy. `heard_s`: longest
    silence of the autopilot; then its mode is not known.
    """

    heartbeat_hz: float = 20.0
    silent_s: float = 0.2
    first_plan_s: float = 2.0
    heard_s: float = 2.5

    def __post_init__(self) -> None:
        if not 2 < self.heartbeat_hz <= 50:
            raise KineflowError(f"offboard.heartbeat_hz is {self.heartbeat_hz}; autopilots want more than 2 Hz, 50 is the most")
        if not 0 < self.silent_s <= 0.23:
            raise KineflowError(
                f"offboard.silent_s is {self.silent_s}; 0.23 s after a fault is the latest, and 0.25 s the promise"
            )
        if not (self.first_plan_s > 0 and self.heard_s > 0):
            raise KineflowError(f"{self}: first_plan_s and heard_s are positive seconds")


@dataclass(frozen=True)
class MavlinkSettings:
    """An autopilot by MAVLink 2 over UDP.

    `address`: HOST:PORT. Listening there ("listen") suits an autopilot or router that sends to us (PX4 sends to 14540), which
    is answered where it sends from; else ("connect") we speak first. `system` and `component` are the autopilot's, `own` our
    component on it (191: onboard computer). `guided_mode`: ArduPilot's number of GUIDED (4 copter, 15 rover and plane).
    """

    autopilot: Autopilot = "px4"
    address: str = "127.0.0.1:14540"
    direction: Literal["listen", "connect"] = "listen"
    system: int = 1
    component: int = 1
    own: int = 191
    guided_mode: int = 4
    offboard: OffboardSettings = field(default_factory=OffboardSettings)

    def __post_init__(self) -> None:
        host_and_port(self.address, "mavlink.address")
        for name in ("system", "component", "own"):
            if not 1 <= getattr(self, name) <= 255:
                raise KineflowError(f"mavlink.{name} is {getattr(self, name)}; MAVLink ids are 1..255")
        if self.guided_mode < 0:
            raise KineflowError(f"mavlink.guided_mode is {self.guided_mode}; give the number of the mode")


@dataclass(frozen=True)
class Px4Settings:
    """A drone through ROS topics: px4_msgs over PX4's own bridge ("px4_msgs"), or MAVROS ("mavros").

    `namespace` stands before the topics: "" gives /fmu/in/..., "/uav1" /uav1/fmu/in/... MAVROS must be told to take velocities
    of the body: setpoint_velocity/mav_frame BODY_NED. `guided` are the names of the modes in which MAVROS' autopilot obeys.
    """

    bridge: Literal["px4_msgs", "mavros"] = "px4_msgs"
    namespace: str = ""
    guided: tuple[str, ...] = ("OFFBOARD", "GUIDED")
    offboard: OffboardSettings = field(default_factory=OffboardSettings)


@dataclass(frozen=True)
class JointSettings:
    """A ros2_control arm. `topic` of its trajectory controller, `state_topic` of sensor_msgs/JointState.

    Each command is a trajectory of one point, to be reached `lead_s` later: not below the robot's own period. Positions that
    are older than `state_s` do not activate.
    """

    topic: str = "joint_trajectory_controller/joint_trajectory"
    state_topic: str = "joint_states"
    lead_s: float = 0.1
    state_s: float = 0.5

    def __post_init__(self) -> None:
        if not (self.topic and self.state_topic and 0 < self.lead_s <= 1 and self.state_s > 0):
            raise KineflowError(f"{self}: name both topics; lead_s is from 0 to 1 s, state_s positive")


@dataclass(frozen=True)
class PathSettings:
    """A path follower. `topic` of nav_msgs/Path, sent anew `rate_hz` times a second; poses at least `spacing_m` apart."""

    topic: str = "plan"
    rate_hz: float = 5.0
    spacing_m: float = 0.02

    def __post_init__(self) -> None:
        if not (self.topic and 0 < self.rate_hz <= 50 and self.spacing_m > 0):
            raise KineflowError(f"{self}: name the topic; rate_hz is from 0 to 50, spacing_m positive")


def host_and_port(text: str, what: str) -> tuple[str, int]:
    """HOST:PORT.

    Raises:
        KineflowError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise KineflowError(f"{what} is '{text}'; write HOST:PORT")
    return host, int(port)
