"""ROS messages from our values and back. Twist, Path, markers, diagnostics; times as float seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Path
from visualization_msgs.msg import Marker, MarkerArray

from kineflow.deploy.plan_path import along as along
from kineflow.deploy.ros2.runs import Run
from kineflow.interface import KineflowError

_TWIST_AXES = {
    "vx": ("linear", "x"),
    "vy": ("linear", "y"),
    "vz": ("linear", "z"),
    "roll_rate": ("angular", "x"),
    "pitch_rate": ("angular", "y"),
    "yaw_rate": ("angular", "z"),
}


def to_time(seconds: float) -> Any:
    whole = math.floor(seconds)
    return Time(sec=whole, nanosec=min(round(1e9 * (seconds - whole)), 999_999_999))


def check_twist_axes(names: Sequence[str]) -> None:
    """Raises KineflowError when an axis is none of a twist's."""
    if unknown := [name for name in names if name not in _TWIST_AXES]:
        raise KineflowError(f"command axes {unknown} are none of a twist: {sorted(_TWIST_AXES)}; choose another adapter")


def fill_twist(twist: Any, names: Sequence[str], values: np.ndarray) -> None:
    """Write a command `[A]` (m/s, rad/s; REP-103 body frame) into a geometry_msgs/Twist."""
    for name, value in zip(names, values.tolist()):
        part, axis = _TWIST_AXES[name]
        setattr(getattr(twist, part), axis, value)


def read_twist(twist: Any, names: Sequence[str]) -> np.ndarray:
    return np.array([getattr(getattr(twist, part), axis) for part, axis in (_TWIST_AXES[name] for name in names)])


def twist_message(stamped: bool, names: Sequence[str], values: np.ndarray, stamp: Any, frame: str) -> Any:
    """TwistStamped or Twist."""
    message = TwistStamped() if stamped else Twist()
    if stamped:
        message.header.stamp, message.header.frame_id = stamp, frame
    fill_twist(message.twist if stamped else message, names, values)
    return message


def path_message(places: np.ndarray, stamp: Any, frame: str) -> Any:
    """nav_msgs/Path of `places` (x, y, yaw) `[N, 3]` in `frame`."""
    path = Path()
    path.header.stamp, path.header.frame_id = stamp, frame
    for x, y, yaw in places.tolist():
        pose = PoseStamped()
        pose.header = path.header
        pose.pose.position.x, pose.pose.position.y = x, y
        pose.pose.orientation.z, pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
        path.poses.append(pose)
    return path


def marker_message(places: np.ndarray, stamp: Any, frame: str, moves: bool) -> Any:
    """visualization_msgs/MarkerArray: the chunk as a line; green while it is executed, red while the governor stops."""
    line = Marker()
    line.header.stamp, line.header.frame_id = stamp, frame
    line.ns, line.id, line.type, line.action = "chunk", 0, Marker.LINE_STRIP, Marker.ADD
    line.scale.x = 0.03
    line.color.r, line.color.g, line.color.a = (0.1, 0.8, 1.0) if moves else (0.9, 0.1, 1.0)
    line.pose.orientation.w = 1.0
    line.points = [Point(x=x, y=y, z=0.02) for x, y, _ in places.tolist()]
    return MarkerArray(markers=[line])


def diagnostic_message(name: str, level: str, summary: str, values: Mapping[str, Any], stamp: Any) -> Any:
    """One status; `level` is ok, warn, error or stale."""
    levels = {
        "ok": DiagnosticStatus.OK,
        "warn": DiagnosticStatus.WARN,
        "error": DiagnosticStatus.ERROR,
        "stale": DiagnosticStatus.STALE,
    }
    status = DiagnosticStatus(level=levels[level], name=name, message=summary, hardware_id="kineflow")
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in flat(values).items()]
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def run_message(run: Run, outcome: str, why: str, monotonic_s: float) -> Any:
    """diagnostic_msgs/DiagnosticStatus: `message` is the state, `values` the rest; began and ended are ns of the ROS clock, by
    which the monotonic one began at `monotonic_s`."""
    levels = {"cancelled": DiagnosticStatus.WARN, "failed": DiagnosticStatus.ERROR}
    level = levels.get(run.state, DiagnosticStatus.OK)
    status = DiagnosticStatus(level=level, name=f"run {run.number}", message=run.state, hardware_id="kineflow")
    values = {"run": run.number, "state": run.state, "seconds": run.seconds, "why": run.why or why, "outcome": outcome}
    values |= {"by_service": run.by_service, "began": round(1e9 * (run.began_s + monotonic_s))}
    if run.state != "running":
        values["ended"] = round(1e9 * (run.ended_s + monotonic_s))
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return status


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
