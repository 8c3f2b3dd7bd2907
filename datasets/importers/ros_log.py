"""ROS logs, one an episode, whatever file they lie in: every topic keeps its own clock, nothing is resampled or reordered.

Stamps are `header.stamp` where the message has one, else the time at which it was logged. A message that is not later than
all before it on its topic is dropped and counted. The action is what the schema names, else the one topic that is called a
command or action (ros_plan.py). Logs that `kineflow data export` wrote come back as they were (ros_episode.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, KineflowError, Stream
from kineflow.datasets.importers.clocks import increasing
from kineflow.datasets.importers.ros_episode import EPISODE_TOPIC, ExportedLogs
from kineflow.datasets.importers.ros_messages import CAMERA_INFO, calibration, known_fields, picture
from kineflow.datasets.importers.ros_plan import Lane, Plan, find_lanes, load_schema, make_plan, stamps
from kineflow.datasets.importers.ros_topics import Log, Seen, decode, scan
from kineflow.datasets.importers.schemas import refuse_rate
from kineflow.datasets.importers.source import Facts, ImportOptions, Source
from kineflow.datasets.manifest import CameraRecord


def open_logs(name: str, path: Path, logs: Sequence[Log], options: ImportOptions) -> Source:
    """The logs as a Source; reads all of them once, for the stamps.

    Raises:
        KineflowError: a log that cannot be read, has no messages, or has no stream that can be the action.
    """
    refuse_rate(options, str(path))
    scans = [scan(log) for log in logs]
    for log, (seen, left_out) in zip(logs, scans):
        if not seen:
            raise KineflowError(f"{path}: {log.label} has no messages ({_listed(left_out) or 'empty'}); leave it out")
    if all(EPISODE_TOPIC in seen for seen, _ in scans):
        return ExportedLogs(name, path, logs, scans, options)
    return RosLogs(name, path, logs, scans, options)


class RosLogs:
    """A `Source` over logs of any robot."""

    def __init__(
        self,
        name: str,
        path: Path,
        logs: Sequence[Log],
        scans: Sequence[tuple[Mapping[str, Seen], Mapping[str, str]]],
        options: ImportOptions,
    ) -> None:
        self._name, self._path, self._logs = name, path, logs
        self._seen = [seen for seen, _ in scans]
        self._left_out = {thing: reason for _, left_out in scans for thing, reason in left_out.items()}
        self._lanes, self._rest = find_lanes(self._seen, [log.label for log in logs])
        if not self._lanes:
            remedy = "record numbers, poses, commands or pictures"
            raise KineflowError(f"{path}: no topic gives a stream: {_listed(self._rest)}; {remedy}")
        self._plan = make_plan(self._lanes, self._rest, load_schema(options.schema), str(path))
        self._infos = _camera_infos(self._plan, self._seen[0])

    @property
    def facts(self) -> Facts:
        plan, rest = self._plan, dict(self._rest)
        carried = {name: lane.said for name, lane in plan.lanes.items()}
        used = {lane.topic for lane in plan.lanes.values()}
        for name, lane in self._lanes.items():
            if lane.topic not in used:
                rest[lane.topic] = f"{lane.type}: the schema leaves {name} out"
        for topic in sorted({lane.topic: lane for lane in plan.lanes.values()}):
            lane = next(lane for lane in plan.lanes.values() if lane.topic == topic)
            dropped = sum(int((~self._keep(i, lane)).sum()) for i in range(len(self._logs)))
            if dropped:
                rest[f"{topic}: messages"] = f"{dropped} whose {lane.clock} is not later than the one before were dropped"
        records = {}
        for camera, topic in self._infos.items():
            message = decode(self._seen[0][topic].topic, self._seen[0][topic].first, f"{self._logs[0].label}, topic {topic}")
            with known_fields(f"{self._logs[0].label}, topic {topic}"):
                found = calibration(message)
            if found is None:
                rest[topic] = "it says that the camera is not calibrated (K is 0)"
            else:
                records[camera] = CameraRecord(calibration=found)
                carried[f"calibration of {camera}"] = f"{topic}, first message"
                rest[f"extrinsics of {camera}"] = f"{topic} has none; body_from_camera is the identity until you set it"
        for topic, seen in self._seen[0].items():
            if seen.topic.type == CAMERA_INFO and topic not in self._infos.values():
                rest[topic] = "no carried camera belongs to it"
        carried["values"] = "float64 kept as float32"
        return Facts(plan.interface, "sensor", f"{self._path.name} ({self._name})", carried, rest | self._left_out, records)

    def __len__(self) -> int:
        return len(self._logs)

    def episode(self, index: int) -> Episode:
        log, plan = self._logs[index], self._plan
        streams_of: dict[str, list[str]] = {}
        for name, lane in plan.lanes.items():
            streams_of.setdefault(lane.topic, []).append(name)
        keep = {topic: self._keep(index, plan.lanes[names[0]]) for topic, names in streams_of.items()}
        values: dict[str, list[np.ndarray]] = {name: [] for name in plan.lanes}
        jpeg: dict[str, list[bytes | None]] = {name: [] for name in plan.interface.cameras}
        number, frame = dict.fromkeys(streams_of, 0), dict[str, str]()
        for topic, _, data in log.messages():
            if topic.name not in streams_of:
                continue
            what, number[topic.name] = f"{log.label}, topic {topic.name}, message {number[topic.name]}", number[topic.name] + 1
            if not keep[topic.name][number[topic.name] - 1]:
                continue
            message = decode(topic, data, what)
            _check_frame(message, frame, topic.name, what)
            for name in streams_of[topic.name]:
                if name in jpeg:
                    pixels, source = _frame(message, topic.type, plan.interface.cameras[name], what)
                    values[name].append(pixels)
                    jpeg[name].append(source)
                else:
                    values[name].append(_row(message, plan.lanes[name], plan.dimensions.get(name), what))
        streams = {}
        for name, lane in plan.lanes.items():
            stamp_ns = stamps(self._seen[index][lane.topic], lane.clock)[keep[lane.topic]]
            streams[name] = Stream(np.stack(values[name]), stamp_ns)
        kept = {name: [b for b in found if b is not None] for name, found in jpeg.items()}
        kept = {name: found for name, found in kept.items() if len(found) == len(jpeg[name])}
        return Episode(streams, source=log.label, jpeg=kept)

    def _keep(self, index: int, lane: Lane) -> np.ndarray:
        what = f"{self._logs[index].label}, topic {lane.topic}"
        return np.asarray(increasing(stamps(self._seen[index][lane.topic], lane.clock), what))


def _row(message: Any, lane: Lane, dimensions: Sequence[int] | None, what: str) -> np.ndarray:
    assert lane.part is not None
    try:
        with known_fields(what):
            row = np.asarray(lane.part.values(message), np.float64)
    except KineflowError as error:
        raise KineflowError(f"{what}: {error}; leave the topic out with a schema, or split the log") from error
    return row if dimensions is None else row[list(dimensions)]


def _frame(message: Any, message_type: str, camera: CameraSpec, what: str) -> tuple[np.ndarray, bytes | None]:
    with known_fields(what):
        pixels, source = picture(message, message_type, what)
    if pixels.shape != camera.frame_shape:
        raise KineflowError(
            f"{what}: a picture of {list(pixels.shape)}, the first has {list(camera.frame_shape)}; "
            "split the log where the camera changes, or leave it out with a schema"
        )
    return pixels, source


def _check_frame(message: Any, frames: dict[str, str], topic: str, what: str) -> None:
    """A stream has one frame; numbers in two of them must not be mixed."""
    found = str(getattr(getattr(message, "header", None), "frame_id", ""))
    if frames.setdefault(topic, found) != found:
        raise KineflowError(
            f"{what}: frame_id is '{found}', before it was '{frames[topic]}'; "
            "split the log there, or leave the topic out with a schema"
        )


def _camera_infos(plan: Plan, seen: Mapping[str, Seen]) -> dict[str, str]:
    """Camera -> the CameraInfo topic in the nearest namespace around its pictures."""
    infos = {topic.rsplit("/", 1)[0]: topic for topic, found in seen.items() if found.topic.type == CAMERA_INFO}
    found = {}
    for camera in plan.interface.cameras:
        space = plan.lanes[camera].topic
        while space.count("/") > 1 or (space and not space.startswith("/") and "/" in space):
            space = space.rsplit("/", 1)[0]
            if space in infos:
                found[camera] = infos[space]
                break
    return found


def _listed(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{thing} ({reason})" for thing, reason in reasons.items())
