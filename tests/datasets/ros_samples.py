"""Small ROS logs for tests, written with the message types of Humble."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.datasets.exporters.mcap import write_mcap
from kineflow.datasets.exporters.ros_messages import RosMessage, types
from kineflow.datasets.importers.source import ImportOptions, Source, open_source

MS = 1_000_000
START = 1_700_000_000 * 10**9


def make(kind: str, **fields: Any) -> Any:
    """A message of `kind` with all its other fields zero or empty."""
    store = types()
    values = {}
    for name, (node, detail) in store.fielddefs[kind][1]:
        values[name] = fields.pop(name) if name in fields else _zero(node.name, detail)
    assert not fields, f"{kind} has no {sorted(fields)}"
    return store.types[kind](**values)


def _zero(node: str, detail: Any) -> Any:
    if node == "NAME":
        return make(detail)
    if node == "BASE":
        return {"string": "", "bool": False}.get(detail[0], 0)
    (inner, of), length = detail
    if inner.name == "NAME" or of[0] == "string":
        return [make(of) for _ in range(length)] if inner.name == "NAME" else [""] * length
    return np.zeros(length, {"float64": np.float64, "float32": np.float32, "uint8": np.uint8}.get(of[0], np.dtype(of[0])))


def header(stamp_ns: int, frame: str = "") -> Any:
    stamp = make("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def twist(*numbers: float) -> Any:
    vectors = [make("geometry_msgs/msg/Vector3", x=a, y=b, z=c) for a, b, c in (numbers[:3], numbers[3:])]
    return make("geometry_msgs/msg/Twist", linear=vectors[0], angular=vectors[1])


def pose(*numbers: float) -> Any:
    position = make("geometry_msgs/msg/Point", **dict(zip("xyz", numbers)))
    orientation = make("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", numbers[3:])))
    return make("geometry_msgs/msg/Pose", position=position, orientation=orientation)


def write_log(file: Path, messages: Iterable[tuple[str, int, Any]]) -> Path:
    """(topic, log time, message) to an MCAP file, in this order."""
    store = types()
    write_mcap(file, (RosMessage(t, m.__msgtype__, ns, bytes(store.serialize_cdr(m, m.__msgtype__))) for t, ns, m in messages))
    return file


def driving(steps: int = 20, offset: int = 0) -> list[tuple[str, int, Any]]:
    """Commands at 10 Hz without header, odometry at 20 Hz with one that lies 3 ms before the log time."""
    found: list[tuple[str, int, Any]] = []
    for i in range(2 * steps):
        stamp = START + 50 * MS * i + offset
        if i % 2 == 0:
            found.append(("/cmd_vel", stamp, twist(0.1 * i, 0, 0, 0, 0, -0.2 * i)))
        with_pose = make("geometry_msgs/msg/PoseWithCovariance", pose=pose(i, 2 * i, 0, 0, 0, 0, 1))
        with_twist = make("geometry_msgs/msg/TwistWithCovariance", twist=twist(i, 0, 0, 0, 0, 1))
        odometry = make(
            "nav_msgs/msg/Odometry",
            header=header(stamp - 3 * MS, "odom"),
            child_frame_id="base",
            pose=with_pose,
            twist=with_twist,
        )
        found.append(("/odom", stamp, odometry))
    return found


def opened(path: Path, schema: str = "", name: str = "mcap") -> Source:
    """The log at `path`, with the text of a schema."""
    options = ImportOptions()
    if schema:
        (path.parent / "schema.yaml").write_text(schema)
        options = ImportOptions(path.parent / "schema.yaml")
    return open_source(name, path, options)
