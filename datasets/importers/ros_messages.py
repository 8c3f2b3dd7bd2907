"""Known ROS message types to named streams: names, units and frame of every dimension, pictures to frames.

Types that mean more than numbers (transforms, point clouds, maps, diagnostics) are not here; importers list them as not carried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.datasets.importers.axes import LocalFrame, ecef_from_geodetic
from kineflow.datasets.importers.pictures import decode_picture, is_jpeg
from kineflow.datasets.importers.schemas import unbounded
from kineflow.datasets.manifest import Calibration

POSE_NAMES, POSE_UNITS = ("x", "y", "z", "qx", "qy", "qz", "qw"), ("m", "m", "m", "1", "1", "1", "1")
TWIST_NAMES = ("linear_x", "linear_y", "linear_z", "angular_x", "angular_y", "angular_z")
TWIST_UNITS = ("m/s",) * 3 + ("rad/s",) * 3
PICTURES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_COLOURS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
_DEPTH = ("16UC1",)


@dataclass(frozen=True)
class Part:
    """One vector stream that a message type gives; `suffix` tells the parts of one topic apart."""

    suffix: str
    vector: VectorSpec
    values: Callable[[Any], Sequence[float] | np.ndarray]  # message -> [D]
    said: str = ""


@contextmanager
def known_fields(what: str) -> Iterator[None]:
    """Turns the failures of a message whose type is called as a known one but has other fields into one KineflowError."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise KineflowError(
            f"{what}: its type has not the fields that this importer knows ({error}); leave the topic out with a schema"
        ) from error


def _frame(message: Any) -> str:
    return str(getattr(getattr(message, "header", None), "frame_id", "")).lstrip("/") or "unknown"


def _twist(suffix: str, frame: str, find: Callable[[Any], Any]) -> Part:
    def values(message: Any) -> list[float]:
        twist = find(message)
        return [getattr(part, axis) for part in (twist.linear, twist.angular) for axis in "xyz"]

    return Part(suffix, unbounded(TWIST_NAMES, TWIST_UNITS, frame), values)


def _pose(suffix: str, frame: str, find: Callable[[Any], Any]) -> Part:
    def values(message: Any) -> list[float]:
        pose = find(message)
        return [pose.position.x, pose.position.y, pose.position.z, *(getattr(pose.orientation, axis) for axis in "xyzw")]

    return Part(suffix, unbounded(POSE_NAMES, POSE_UNITS, frame), values)


def _without_covariance(*parts: Part) -> tuple[Part, ...]:
    return tuple(replace(part, said="; ".join([*([part.said] if part.said else []), "covariance not carried"])) for part in parts)


def _bare_twist(message: Any) -> tuple[Part, ...]:
    part = _twist("", "base_link", lambda m: m)
    return (Part(part.suffix, part.vector, part.values, "no header: frame base_link is the convention, not recorded"),)


def _odometry(message: Any) -> tuple[Part, ...]:
    child = str(message.child_frame_id).lstrip("/") or "unknown"
    pose, twist = _pose("pose", _frame(message), lambda m: m.pose.pose), _twist("twist", child, lambda m: m.twist.twist)
    return _without_covariance(pose, twist)


def _imu(message: Any) -> tuple[Part, ...]:
    def motion(m: Any) -> list[float]:
        return [getattr(part, axis) for part in (m.angular_velocity, m.linear_acceleration) for axis in "xyz"]

    def turned(m: Any) -> list[float]:
        return [getattr(m.orientation, axis) for axis in "xyzw"]

    names = ("angular_x", "angular_y", "angular_z", "acceleration_x", "acceleration_y", "acceleration_z")
    parts = [Part("", unbounded(names, ("rad/s",) * 3 + ("m/s^2",) * 3, _frame(message)), motion)]
    known = message.orientation_covariance[0] != -1 and any(turned(message))
    if known:
        said = "the IMU's orientation; the message does not name its reference"
        parts.append(Part("orientation", unbounded(("qx", "qy", "qz", "qw"), "1", "unknown"), turned, said))
    return _without_covariance(*parts)


def _joints(message: Any) -> tuple[Part, ...]:
    """One part for each of position, velocity and effort that is filled, in the order of the first message's names."""
    names = tuple(str(name) for name in message.name)
    units = {
        "position": ("rad or m", "the message does not say which joints turn (rad) and which slide (m)"),
        "velocity": ("rad/s or m/s", "the message does not say which joints turn and which slide"),
        "effort": ("N m or N", "the message does not say which joints turn and which slide"),
    }

    def reader(field: str) -> Callable[[Any], np.ndarray]:
        def values(m: Any) -> np.ndarray:
            found = dict(zip(m.name, getattr(m, field)))
            if set(found) != set(names):
                raise KineflowError(f"joints {sorted(found)} with {field}, the first message has {sorted(names)}")
            return np.array([found[name] for name in names])

        return values

    filled = [field for field in units if names and len(getattr(message, field)) == len(names)]
    return tuple(Part(f, unbounded(names, units[f][0], "joints"), reader(f), units[f][1]) for f in filled)


def _scan(message: Any) -> tuple[Part, ...]:
    size = len(message.ranges)

    def values(m: Any) -> np.ndarray:
        if len(m.ranges) != size:
            raise KineflowError(f"{len(m.ranges)} ranges, the first scan has {size}")
        # REP-117: inf is nothing within range, -inf too close, NaN an error; a store holds finite numbers.
        return np.asarray(np.nan_to_num(m.ranges, nan=0.0, posinf=m.range_max, neginf=m.range_min))

    said = (
        f"first beam {message.angle_min:.6g} rad, then every {message.angle_increment:.6g} rad; inf kept as range_max "
        f"{message.range_max:.6g}, -inf as range_min, NaN as 0; intensities not carried"
    )
    vector = unbounded(tuple(f"range_{i}" for i in range(size)), "m", _frame(message))
    return (Part("", vector, values, said),) if size else ()


def _ackermann(find: Callable[[Any], Any]) -> Callable[[Any], tuple[Part, ...]]:
    names = ("steering_angle", "steering_angle_velocity", "speed", "acceleration", "jerk")
    units = ("rad", "rad/s", "m/s", "m/s^2", "m/s^3")

    def parts(message: Any) -> tuple[Part, ...]:
        return (Part("", unbounded(names, units, _frame(message)), lambda m: [getattr(find(m), name) for name in names]),)

    return parts


def _scalar(message: Any) -> tuple[Part, ...]:
    return (Part("", unbounded(("data",), "unknown", "unknown"), lambda m: [float(m.data)]),)


def _array(message: Any) -> tuple[Part, ...]:
    size = len(message.data)

    def values(m: Any) -> np.ndarray:
        if len(m.data) != size:
            raise KineflowError(f"{len(m.data)} numbers, the first message has {size}")
        return np.asarray(m.data)

    return (Part("", unbounded(tuple(f"data_{i}" for i in range(size)), "unknown", "unknown"), values),) if size else ()


def _vector3(suffix: str, units: str, find: Callable[[Any], Any]) -> Callable[[Any], tuple[Part, ...]]:
    def parts(message: Any) -> tuple[Part, ...]:
        vector = unbounded(("x", "y", "z"), units, _frame(message))
        return (Part(suffix, vector, lambda m: [find(m).x, find(m).y, find(m).z]),)

    return parts


def _fix(message: Any) -> tuple[Part, ...]:
    def degrees(m: Any) -> np.ndarray:
        return np.array([[m.latitude, m.longitude, m.altitude]])

    # Local metres, because float32 degrees are half a metre coarse; the frame's name holds the origin.
    local = LocalFrame(*(float(value) for value in degrees(message)[0]))

    def values(m: Any) -> np.ndarray:
        return np.asarray(local.positions(ecef_from_geodetic(degrees(m)))[0])

    said = "degrees turned to metres east, north, up of the first fix; status and covariance not carried"
    return (Part("", unbounded(("x", "y", "z"), "m", local.name), values, said),)


# message type -> its parts, told from the first message of a topic: frames, joints and sizes are in it.
VECTORS: Mapping[str, Callable[[Any], tuple[Part, ...]]] = {
    "geometry_msgs/msg/Twist": _bare_twist,
    "geometry_msgs/msg/TwistStamped": lambda m: (_twist("", _frame(m), lambda n: n.twist),),
    "geometry_msgs/msg/TwistWithCovarianceStamped": lambda m: _without_covariance(_twist("", _frame(m), lambda n: n.twist.twist)),
    "geometry_msgs/msg/Pose": lambda m: (_pose("", "unknown", lambda n: n),),
    "geometry_msgs/msg/PoseStamped": lambda m: (_pose("", _frame(m), lambda n: n.pose),),
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda m: _without_covariance(_pose("", _frame(m), lambda n: n.pose.pose)),
    "geometry_msgs/msg/PointStamped": _vector3("", "m", lambda n: n.point),
    "geometry_msgs/msg/Vector3Stamped": _vector3("", "unknown", lambda n: n.vector),
    "nav_msgs/msg/Odometry": _odometry,
    "sensor_msgs/msg/Imu": _imu,
    "sensor_msgs/msg/JointState": _joints,
    "sensor_msgs/msg/NavSatFix": _fix,
    "sensor_msgs/msg/LaserScan": _scan,
    "ackermann_msgs/msg/AckermannDrive": _ackermann(lambda n: n),
    "ackermann_msgs/msg/AckermannDriveStamped": _ackermann(lambda n: n.drive),
    **{f"std_msgs/msg/{kind}{bits}": _scalar for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("std_msgs/msg/Float32", "std_msgs/msg/Float64", "std_msgs/msg/Bool"), _scalar),
    **{f"std_msgs/msg/{kind}MultiArray": _array for kind in ("Float32", "Float64", "Int32", "Int64", "UInt8")},
}


def picture(message: Any, message_type: str, what: str) -> tuple[np.ndarray, bytes | None]:
    """The frame of an Image or CompressedImage (uint8 [H, W, 3], depth uint16 [H, W] in mm), and its bytes if it is a JPEG.

    Raises:
        KineflowError: an encoding that is neither RGB nor depth, or bytes that do not fit; `what` names the message.
    """
    data = bytes(message.data)
    if message_type == PICTURES[1]:
        if "compressedDepth" in message.format:
            data = data[12:]  # a header for float depth comes before the PNG
        return decode_picture(data, what), data if is_jpeg(data) else None
    height, width, step, encoding = int(message.height), int(message.width), int(message.step), str(message.encoding)
    channels = 1
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    if encoding in _DEPTH:
        dtype = np.dtype(">u2" if message.is_bigendian else "<u2")
    elif encoding in _COLOURS:
        channels = _COLOURS[encoding][0]
    else:
        known = ", ".join([*_COLOURS, *_DEPTH])
        raise KineflowError(
            f"{what}: encoding '{encoding}' is not one of {known}; convert it, or leave the topic out with a schema"
        )
    row = width * channels * dtype.itemsize
    if step < row or len(data) < step * height or not row or not height:
        raise KineflowError(f"{what}: {len(data)} bytes for {height} rows of {step}; the message is damaged, drop it")
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)[:, :row]
    pixels = np.ascontiguousarray(rows).view(dtype).reshape(height, width, channels)
    if encoding in _DEPTH:
        return pixels[..., 0].astype(np.uint16), None
    return np.ascontiguousarray(pixels[..., list(_COLOURS[encoding][1])]), None


def calibration(message: Any) -> Calibration | None:
    """The intrinsics of a CameraInfo, None where it is not calibrated (K is 0). It has no extrinsics: `body_from_camera` is
    the identity, which importers must say."""
    k = [float(value) for value in (message.k if hasattr(message, "k") else message.K)]
    if not k[0] or not all(math.isfinite(value) for value in k):
        return None
    distortion = tuple(float(value) for value in (message.d if hasattr(message, "d") else message.D))
    eye = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
    rows = tuple(tuple(k[3 * i : 3 * i + 3]) for i in range(3))
    return Calibration(rows, str(message.distortion_model), distortion, eye)
