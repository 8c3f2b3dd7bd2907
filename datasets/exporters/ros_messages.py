"""One episode of a store as ROS 2 messages in the order of their stamps; the layout is in importers/ros_episode.py."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from kineflow.contracts import Episode, Goal, KineflowError, to_plain
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.ros_episode import (
    ARRAY,
    COMPRESSED,
    EPISODE_TOPIC,
    GOAL_PREFIX,
    IMAGE,
    STRING,
    EpisodeFacts,
    GoalFacts,
    topic_of,
)
from kineflow.datasets.importers.ros_messages import CAMERA_INFO
from kineflow.datasets.manifest import Calibration
from kineflow.extras import require

_SECOND = 1_000_000_000
_LATEST_NS = 2**31 * _SECOND  # a ROS stamp has 32 bits of seconds


class RosMessage(NamedTuple):
    """One message, ready to be written."""

    topic: str
    type: str
    stamp_ns: int
    data: bytes


@cache
def types() -> Any:
    """The message types of ROS 2 Humble."""
    typesys = require("rosbags.typesys", "for ROS messages")
    return typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)


@cache
def definition(message_type: str) -> str:
    """The text of a type and of all types in it, as MCAP wants it."""
    return str(types().generate_msgdef(message_type, ros_version=2)[0])


def described(store: EpisodeStore) -> tuple[dict[str, str], dict[str, str]]:
    """What an export of `store` carries and what not."""
    interface = store.interface
    carried = {name: f"{topic_of(name)} {ARRAY}" for name in [*interface.features, "action"]}
    for name in interface.cameras:
        how = (
            f"/{name}/compressed, the stored JPEG bytes" if store.jpegs(0, name) is not None else f"/{name}/image, pixel by pixel"
        )
        carried[name] = how
    carried["instruction, success, spans, split, seed, operator, schema, calibration"] = f"{EPISODE_TOPIC}, JSON"
    carried["goals"] = f"{GOAL_PREFIX}<goal>"
    return carried, {"statistics": "an import computes them again"}


def episode_messages(store: EpisodeStore, index: int) -> Iterator[RosMessage]:
    """All messages of episode `index`, by stamp.

    Raises:
        KineflowError: a stamp that ROS cannot express (before 1970 or after 2038).
    """
    episode = store.episode(index)
    for name, stream in episode.streams.items():
        if stream.stamp_ns[0] < 0 or stream.stamp_ns[-1] >= _LATEST_NS:
            raise KineflowError(
                f"{store.path}, episode {index}, stream '{name}': stamps {stream.stamp_ns[0]} to {stream.stamp_ns[-1]} ns "
                "do not fit a ROS time (0 to 2**31 s); shift the clock first"
            )
    start_ns = min(int(stream.stamp_ns[0]) for stream in episode.streams.values())
    yield _message(EPISODE_TOPIC, STRING, start_ns, data=json.dumps(to_plain(_facts(store, episode)), allow_nan=False))
    for name, record in store.manifest.cameras.items():
        if record.calibration is not None:
            yield _camera_info(store, name, record.calibration, start_ns)
    for name, goal in episode.goals.items():
        yield from _goal(name, goal, start_ns)
    yield from heapq.merge(*_lanes(store, index, episode), key=lambda message: message.stamp_ns)


def _lanes(store: EpisodeStore, index: int, episode: Episode) -> Iterator[Iterator[RosMessage]]:
    interface = store.interface
    for name, spec in {**interface.features, "action": interface.action}.items():
        yield _rows(name, spec.vector.names, episode)
    for name in interface.cameras:
        yield _pictures(name, episode, store.jpegs(index, name))


def _rows(name: str, columns: Sequence[str], episode: Episode) -> Iterator[RosMessage]:
    layout = _layout(columns)
    stream = episode.streams[name]
    for row, stamp_ns in zip(stream.values, stream.stamp_ns):
        yield _message(topic_of(name), ARRAY, int(stamp_ns), layout=layout, data=np.ascontiguousarray(row, np.float32))


def _pictures(name: str, episode: Episode, jpegs: Sequence[bytes] | None) -> Iterator[RosMessage]:
    stream = episode.streams[name]
    for number, stamp_ns in enumerate(int(stamp) for stamp in stream.stamp_ns):
        if jpegs is None:
            yield _image(f"/{name}/image", stream.values[number], name, stamp_ns)
        else:
            data = np.frombuffer(jpegs[number], np.uint8)
            yield _message(f"/{name}/compressed", COMPRESSED, stamp_ns, header=_header(stamp_ns, name), format="jpeg", data=data)


def _goal(name: str, goal: Goal, stamp_ns: int) -> Iterator[RosMessage]:
    topic = f"{GOAL_PREFIX}{name}"
    if goal.kind in ("pose", "point"):
        columns = ("x", "y", "z", "qx", "qy", "qz", "qw")[: len(goal.value)]
        yield _message(topic, ARRAY, stamp_ns, layout=_layout(columns), data=np.ascontiguousarray(goal.value, np.float32))
        return
    for frame in goal.value if goal.kind == "video" else goal.value[None]:
        yield _image(topic, frame, goal.frame, stamp_ns)


def _image(topic: str, frame: np.ndarray, frame_id: str, stamp_ns: int) -> RosMessage:
    height, width = frame.shape[:2]
    little = np.ascontiguousarray(frame.astype("<u2") if frame.dtype == np.uint16 else frame)
    return _message(
        topic,
        IMAGE,
        stamp_ns,
        header=_header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="16UC1" if frame.dtype == np.uint16 else "rgb8",
        is_bigendian=0,
        step=little.nbytes // height,
        data=little.view(np.uint8).reshape(-1),
    )


def _camera_info(store: EpisodeStore, name: str, found: Calibration, stamp_ns: int) -> RosMessage:
    camera = store.interface.cameras[name]
    k = np.array(found.intrinsics, np.float64)
    region = types().types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return _message(
        f"/{name}/camera_info",
        CAMERA_INFO,
        stamp_ns,
        header=_header(stamp_ns, name),
        height=camera.height,
        width=camera.width,
        distortion_model=found.distortion_model,
        d=np.array(found.distortion, np.float64),
        k=k.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.concatenate([k, np.zeros((3, 1))], 1).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def _facts(store: EpisodeStore, episode: Episode) -> EpisodeFacts:
    manifest = store.manifest
    return EpisodeFacts(
        store.interface,
        {name: len(stream.stamp_ns) for name, stream in episode.streams.items()},
        manifest.cameras,
        episode.clock,
        manifest.clock,
        episode.instruction,
        episode.language,
        episode.success,
        episode.source,
        episode.spans,
        {name: GoalFacts(goal.kind, goal.frame) for name, goal in episode.goals.items()},
        episode.split,
        episode.seed,
        episode.operator,
        manifest.provenance,
        manifest.licence,
    )


def _layout(columns: Sequence[str]) -> Any:
    dimension = types().types["std_msgs/msg/MultiArrayDimension"](",".join(columns), len(columns), len(columns))
    return types().types["std_msgs/msg/MultiArrayLayout"]([dimension], 0)


def _header(stamp_ns: int, frame_id: str) -> Any:
    stamp = types().types["builtin_interfaces/msg/Time"](stamp_ns // _SECOND, stamp_ns % _SECOND)
    return types().types["std_msgs/msg/Header"](stamp, frame_id)


def _message(topic: str, message_type: str, stamp_ns: int, **fields: Any) -> RosMessage:
    data = types().serialize_cdr(types().types[message_type](**fields), message_type)
    return RosMessage(topic, message_type, stamp_ns, bytes(data))
