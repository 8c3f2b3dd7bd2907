"""What one robot may do: axes of its command, limits, safe state, watchdogs, keep-out and fence; YAML in `configs/robots/`.

`load_config(RobotProfile, "robots/wheeled")` reads one. SI units and radians; REP-103 axes. This file needs NumPy and the
standard library only (in fact the latter), on Python 3.10. Numbers without another source are deployment defaults of
nav2's velocity smoother and collision monitor, PX4 offboard and MoveIt Servo, as compared for this project.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from kineflow.deploy.adapters.settings import G1Settings, JointSettings, MavlinkSettings, PathSettings, Px4Settings
from kineflow.interface import KineflowError

Kind = Literal["velocity", "position"]
SafeState = Literal["stop", "hover", "hold", "stand"]
Adapter = Literal["twist", "twist_stamped", "g1", "mavlink", "px4", "joint_trajectory", "path"]
_SETTINGS = ("g1", "mavlink", "px4", "joint_trajectory", "path")  # adapters that have some
_AXES = {  # of a command of velocities that each adapter can carry; joint_trajectory carries positions
    **dict.fromkeys(("twist", "twist_stamped"), ("vx", "vy", "vz", "roll_rate", "pitch_rate", "yaw_rate")),
    **dict.fromkeys(("mavlink", "px4"), ("vx", "vy", "vz", "yaw_rate")),
    **dict.fromkeys(("g1", "path"), ("vx", "vy", "yaw_rate")),
}


@dataclass(frozen=True)
class CommandAxes:
    """Names and units of the command `[A]`, in `frame`. Keep-out and fence know `vx`, `vy`, `vz`; adapters map by name."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str = "base"

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names) or len(self.units) != len(self.names):
            raise KineflowError(f"command axes {self.names} with units {self.units}: give distinct names and one unit each")

    @property
    def size(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class AxisLimits:
    """Bounds of each command axis, one entry per axis.

    Kind "velocity": `low`..`high` bound the velocity (0 lies between; both 0: the body lacks the axis), `acceleration` how
    fast speed grows, `deceleration` how fast it falls, `jerk` the change of acceleration. Kind "position": `low`..`high`
    bound the position, keeping `margin` away; `velocity` its change, `acceleration` the change of that, `deceleration` how
    hard the joint brakes when it must hold. There `jerk` is unused and left out: the joint's own controller smooths.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    acceleration: tuple[float, ...]
    deceleration: tuple[float, ...]
    jerk: tuple[float, ...] = ()
    velocity: tuple[float, ...] = ()
    margin: float = 0.0


@dataclass(frozen=True)
class Watchdogs:
    """Longest silence, in seconds of the monotonic clock, that motion survives; `.inf` switches one off.

    `observation_s`: newest observation. `supervisor_s`: heartbeat of the supervisor (5 Hz or faster). `tick_s`: between two
    ticks of the output thread itself. `estop`: an e-stop source exists, and nothing moves before it was heard. A header
    stamp older than `stamp_age_s` or further than `stamp_ahead_s` in the future is not an observation.
    """

    observation_s: float = 0.2
    supervisor_s: float = 0.5
    tick_s: float = 0.1
    estop: bool = True
    stamp_age_s: float = 0.5
    stamp_ahead_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("observation_s", "supervisor_s", "tick_s", "stamp_age_s", "stamp_ahead_s"):
            if not getattr(self, name) > 0:
                raise KineflowError(f"watchdogs.{name} is {getattr(self, name)}; give positive seconds, .inf for off")


@dataclass(frozen=True)
class ChunkChecks:
    """When a whole chunk is refused: an action beyond `ratio` times its axis' limit, or an answer older than `age_s`."""

    ratio: float = 3.0
    age_s: float = 2.0
    in_a_row: int = 3  # refused chunks that make a fault

    def __post_init__(self) -> None:
        if not (self.ratio >= 1 and self.age_s > 0 and self.in_a_row >= 1):
            raise KineflowError(f"{self}: ratio and in_a_row are at least 1, age_s is positive")


@dataclass(frozen=True)
class KeepOut:
    """Stay able to stop before what range scan or depth sees: closing speed v with v latency + v^2 / (2 deceleration) <= room.

    Room is the distance less footprint and `margin_m`; half of the margin is kept even when something appears close.
    `deceleration` is what the body really does, at most the limit's; `latency_s` covers sensor, transport and drive. Points
    between `low_m` and `high_m` of height over the base count.
    """

    deceleration: float
    margin_m: float = 0.1
    latency_s: float = 0.15
    range_s: float = 0.5  # longest silence of each source that was ever heard
    low_m: float = 0.05
    high_m: float = 1.8

    def __post_init__(self) -> None:
        room = 0 <= self.margin_m < math.inf and 0 <= self.latency_s < math.inf
        if not (self.deceleration > 0 and room and self.range_s > 0 and self.low_m < self.high_m):
            raise KineflowError(
                f"{self}: deceleration and range_s are positive, margin_m and latency_s not negative and finite, low_m < high_m"
            )


@dataclass(frozen=True)
class Geofence:
    """Where the base may be: a polygon of (x, y) in `frame`, any shape that does not cross itself, and a band of heights."""

    polygon: tuple[tuple[float, float], ...]
    frame: str = "map"
    low_m: float = -math.inf
    high_m: float = math.inf
    margin_m: float = 0.1  # between footprint and fence
    pose_s: float = 0.5  # longest silence of the pose

    def __post_init__(self) -> None:
        if len(self.polygon) < 3 or not all(math.isfinite(v) for corner in self.polygon for v in corner):
            raise KineflowError(f"geofence polygon {self.polygon}: give at least three finite corners (x, y)")
        if not self.low_m < self.high_m or not self.pose_s > 0 or not 0 <= self.margin_m < math.inf:
            raise KineflowError(
                f"geofence: low_m {self.low_m} must be below high_m {self.high_m}, pose_s {self.pose_s} positive, margin_m "
                f"{self.margin_m} not negative and finite"
            )
        edges = list(zip(self.polygon, (*self.polygon[1:], self.polygon[0])))
        if crossing := next((pair for pair in itertools.combinations(edges, 2) if _cross(*pair)), None):
            raise KineflowError(f"geofence polygon: its edges {crossing[0]} and {crossing[1]} cross; give the corners in order")
        if not abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in edges)) > 1e-9:
            raise KineflowError(f"geofence polygon {self.polygon} encloses nothing; give its corners in order")


@dataclass(frozen=True)
class RobotProfile:
    """One robot, for governor, adapters and node.

    `direction`: limits act on each axis alone ("axis"), or all axes of a velocity slow together, so that the body stays on
    the path that was asked for ("common"). `safe_state` is what the adapter asks of the body after a stop; for the governor
    it is zero velocity, or the position held. `adapter` says who tells the body (deploy/adapters/opening.py); its settings, where
    the defaults do not fit, are the field of its name.
    """

    name: str
    kind: Kind
    command: CommandAxes
    limits: AxisLimits
    safe_state: SafeState
    adapter: Adapter
    footprint_radius_m: float
    rate_hz: float = 50.0
    direction: Literal["axis", "common"] = "axis"
    watchdogs: Watchdogs = field(default_factory=Watchdogs)
    chunk: ChunkChecks = field(default_factory=ChunkChecks)
    keep_out: KeepOut | None = None
    geofence: Geofence | None = None
    g1: G1Settings | None = None
    mavlink: MavlinkSettings | None = None
    px4: Px4Settings | None = None
    joint_trajectory: JointSettings | None = None
    path: PathSettings | None = None

    def __post_init__(self) -> None:
        if not (0 < self.rate_hz < math.inf and 0 <= self.footprint_radius_m < math.inf):
            raise KineflowError(
                f"robot '{self.name}': rate_hz {self.rate_hz} must be positive, footprint_radius_m {self.footprint_radius_m} not "
                "negative, both finite"
            )
        if self.kind == "position" and (self.keep_out or self.geofence or self.direction == "common"):
            raise KineflowError(
                f"robot '{self.name}': keep_out, geofence and direction 'common' are about a moving base; leave them out"
            )
        _check_limits(self.name, self.kind, self.command, self.limits)
        self._check_adapter()
        if self.keep_out:
            slow = min(
                (d for n, d in zip(self.command.names, self.limits.deceleration) if n in ("vx", "vy", "vz")), default=math.inf
            )
            if self.keep_out.deceleration > slow:
                raise KineflowError(
                    f"robot '{self.name}': keep_out.deceleration {self.keep_out.deceleration:g} is more than limits.deceleration "
                    f"{slow:g}; the body would not stop in time"
                )

    def _check_adapter(self) -> None:
        if wrong := [name for name in _SETTINGS if name != self.adapter and getattr(self, name) is not None]:
            raise KineflowError(f"robot '{self.name}' has adapter '{self.adapter}' and settings of {wrong}; leave those out")
        if (self.adapter == "joint_trajectory") != (self.kind == "position"):
            raise KineflowError(
                f"robot '{self.name}': adapter '{self.adapter}' does not carry commands of kind {self.kind}; joint_trajectory "
                "carries positions, the others velocities"
            )
        for axis, low, high in zip(self.command.names, self.limits.low, self.limits.high):
            if self.kind == "velocity" and axis not in _AXES[self.adapter] and (low, high) != (0, 0):
                raise KineflowError(
                    f"robot '{self.name}': adapter '{self.adapter}' does not carry '{axis}' but {_AXES[self.adapter]}; bound "
                    "it by 0, or choose another adapter"
                )


_Edge = tuple[tuple[float, float], tuple[float, float]]


def _cross(one: _Edge, other: _Edge) -> bool:
    """Whether two edges cross in their midst; touching at a corner is no crossing."""

    def side(edge: _Edge, point: tuple[float, float]) -> float:
        (ax, ay), (bx, by) = edge
        return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

    return side(one, other[0]) * side(one, other[1]) < 0 and side(other, one[0]) * side(other, one[1]) < 0


def _check_limits(robot: str, kind: Kind, axes: CommandAxes, limits: AxisLimits) -> None:
    needed = ("acceleration", "deceleration", "jerk" if kind == "velocity" else "velocity")
    unused = "velocity" if kind == "velocity" else "jerk"
    if getattr(limits, unused):
        raise KineflowError(f"robot '{robot}': limits.{unused} is not used by commands of kind {kind}; leave it out")
    for name in ("low", "high", *needed):
        if len(getattr(limits, name)) != axes.size:
            raise KineflowError(
                f"robot '{robot}': limits.{name} has {len(getattr(limits, name))} entries for {axes.names}; give one per axis"
            )
    for name in needed:
        for axis, value in zip(axes.names, getattr(limits, name)):
            if not 0 < value < math.inf:
                raise KineflowError(f"robot '{robot}': limits.{name} of '{axis}' is {value}; it must be positive and finite")
    for i, axis in enumerate(axes.names):
        low, high = limits.low[i] + limits.margin, limits.high[i] - limits.margin
        if kind == "velocity" and not (-math.inf < low <= 0 <= high < math.inf and limits.margin == 0):
            raise KineflowError(
                f"robot '{robot}': velocity '{axis}' is bounded by {low}..{high}; 0 must lie between, margin be 0"
            )
        if kind == "position" and not (-math.inf < low < high < math.inf and limits.margin >= 0):
            raise KineflowError(f"robot '{robot}': position '{axis}' with margin {limits.margin} has no room: {low}..{high}")
        if kind == "position" and limits.deceleration[i] < limits.acceleration[i]:
            raise KineflowError(f"robot '{robot}': limits.deceleration of '{axis}' must not be below its acceleration: it brakes")
