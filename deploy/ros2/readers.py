"""Messages to arrays and numbers, by their fields alone: rclpy's and those of a bag are read alike. No ROS here."""

from __future__ import annotations

from typing import Any

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.deploy.ros2.images import colours, decompressed, depth_mm
from kineflow.interface import CameraSpec


def seconds_of(stamp: Any) -> float:
    """Of a builtin_interfaces/Time; rclpy calls its fraction nanosec, as every definition does."""
    return float(stamp.sec) + 1e-9 * float(stamp.nanosec)


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
        return np.array(pose_of(message.pose.pose), np.float32)
    place = dict(zip(message.name, message.position))
    if lacking := [name for name in names if name not in place]:
        raise KineflowError(f"the joint states lack {lacking}, they have {sorted(place)}; name the joints as the policy does")
    return np.array([place[name] for name in names], np.float32)


_TWIST = {"vx": ("linear", "x"), "vy": ("linear", "y"), "vz": ("linear", "z"), "yaw_rate": ("angular", "z")}


def twist_values(twist: Any, names: tuple[str, ...]) -> np.ndarray:
    """float32 of the axes `names` of a geometry_msgs/Twist.

    Raises:
        KineflowError: an axis is none of a twist's that a policy commands.
    """
    if unknown := [name for name in names if name not in _TWIST]:
        raise KineflowError(f"command axes {unknown} are none of a twist, which gives {sorted(_TWIST)}; record another topic")
    return np.array([getattr(getattr(twist, _TWIST[n][0]), _TWIST[n][1]) for n in names], np.float32)


def pose_of(pose: Any) -> tuple[float, float, float, float, float, float, float]:
    """x y z (m) and qx qy qz qw of a geometry_msgs/Pose."""
    p, q = pose.position, pose.orientation
    return p.x, p.y, p.z, q.x, q.y, q.z, q.w
