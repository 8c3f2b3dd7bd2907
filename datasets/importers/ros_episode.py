"""How Kineflow writes an episode as ROS 2 messages, and reads it back; every robot and Foxglove can play and plot it.

    /kineflow/episode           std_msgs/String once: JSON of `EpisodeFacts`, all that messages have no place for
    /<stream>                   std_msgs/Float32MultiArray: `data` is the row; dimension 0 of the layout names the columns
    /<camera>/image             sensor_msgs/Image, rgb8 or 16UC1 (depth, mm); header.frame_id is the camera
    /<camera>/compressed        sensor_msgs/CompressedImage instead, "jpeg": the source's own bytes
    /<camera>/camera_info       sensor_msgs/CameraInfo once, where the store has a calibration
    /kineflow/goal/<goal>       Image (one each frame of a video) or Float32MultiArray (pose, point)

The stamp of a sample is the time at which the message is logged, to the nanosecond, and header.stamp too where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import Episode, Goal, Interface, KineflowError, Span, Stream
from kineflow.datasets.importers.ros_messages import PICTURES, known_fields, picture
from kineflow.datasets.importers.ros_topics import Log, Seen, decode
from kineflow.datasets.importers.schemas import chosen, not_chosen
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.manifest import CameraRecord

EPISODE_TOPIC, GOAL_PREFIX = "/kineflow/episode", "/kineflow/goal/"
STRING, ARRAY = "std_msgs/msg/String", "std_msgs/msg/Float32MultiArray"
IMAGE, COMPRESSED = PICTURES
VERSION = 1


@dataclass(frozen=True)
class GoalFacts:
    """A goal without its value, which is in its messages."""

    kind: str
    frame: str


@dataclass(frozen=True)
class EpisodeFacts:
    """The JSON of /kineflow/episode. `samples` counts the messages of each stream, so that a lost one is noticed."""

    interface: Interface
    samples: Mapping[str, int]
    cameras: Mapping[str, CameraRecord] = field(default_factory=dict)
    clock: str = "sensor"
    store_clock: str = "sensor"
    instruction: str = ""
    language: str = "und"
    success: bool | None = None
    source: str = ""
    spans: tuple[Span, ...] = ()
    goals: Mapping[str, GoalFacts] = field(default_factory=dict)
    split: str = ""
    seed: int | None = None
    operator: str = ""
    provenance: str = ""
    licence: str = ""
    kineflow_episode: int = VERSION


def topic_of(stream: str) -> str:
    return f"/{stream}"


class ExportedLogs:
    """A `Source` over logs that `kineflow data export` wrote: values, stamps and facts as they were."""

    def __init__(
        self,
        name: str,
        path: Path,
        logs: Sequence[Log],
        scans: Sequence[tuple[Mapping[str, Seen], Mapping[str, str]]],
        options: ImportOptions,
    ) -> None:
        self._name, self._path, self._logs = name, path, logs
        self._left_out = {thing: reason for _, left_out in scans for thing, reason in left_out.items()}
        self._facts = [_facts(seen[EPISODE_TOPIC], f"{path}, {log.label}") for log, (seen, _) in zip(logs, scans)]
        first = self._facts[0].interface
        for log, facts in zip(logs, self._facts):
            if facts.interface != first:
                raise KineflowError(f"{path}: {log.label} has other streams than {logs[0].label}; import them as two stores")
        for log, facts, (seen, _) in zip(logs, self._facts, scans):
            self._compare(log, facts, seen)
        self._offered = first
        self._interface = chosen(options.schema, first, str(path))

    def _compare(self, log: Log, facts: EpisodeFacts, seen: Mapping[str, Seen]) -> None:
        """Messages that are gone are said; a stream that is gone altogether makes no episode."""
        for stream, count in facts.samples.items():
            topics = [topic_of(stream), f"/{stream}/image", f"/{stream}/compressed"]
            found = sum(len(seen[topic].log_ns) for topic in topics if topic in seen)
            if found == 0:
                raise KineflowError(f"{self._path}: {log.label} has no message of stream '{stream}'; export it again")
            if found != count:
                self._left_out[f"{log.label}: {stream}"] = f"{count - found} of {count} messages are lost"

    @property
    def facts(self) -> Facts:
        first = self._facts[0]
        carried = dict.fromkeys([*self._interface.features, "action"], "as it was exported, stamps: log time")
        carried |= dict.fromkeys(self._interface.cameras, "frames as they were exported, stamps: log time")
        rest = self._left_out | not_chosen(self._interface, self._offered)
        cameras = {name: first.cameras[name] for name in self._interface.cameras if name in first.cameras}
        return Facts(self._interface, first.store_clock, first.provenance, carried, rest, cameras, first.licence)

    def __len__(self) -> int:
        return len(self._logs)

    def episode(self, index: int) -> Episode:
        log, facts, interface = self._logs[index], self._facts[index], self._interface
        names = {topic_of(name): name for name in [*interface.features, "action"]}
        names |= {f"/{name}/{word}": name for name in interface.cameras for word in ("image", "compressed")}
        names |= {f"{GOAL_PREFIX}{name}": f"{GOAL_PREFIX}{name}" for name in facts.goals}
        values: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
        stamp_ns: dict[str, list[int]] = {name: [] for name in names.values()}
        jpeg: dict[str, list[bytes]] = {name: [] for name in interface.cameras}
        for topic, log_ns, data in log.messages():
            name = names.get(topic.name)
            if name is None:
                continue
            what = f"{log.label}, topic {topic.name}, message {len(values[name])}"
            message = decode(topic, data, what)
            stamp_ns[name].append(log_ns)
            with known_fields(what):
                if topic.type in PICTURES:
                    pixels, source = picture(message, topic.type, what)
                    values[name].append(pixels)
                    if source is not None and name in jpeg:
                        jpeg[name].append(source)
                else:
                    values[name].append(np.asarray(message.data, np.float32))
        streams = {
            n: Stream(np.stack(values[n]), np.array(stamp_ns[n], np.int64)) for n in values if not n.startswith(GOAL_PREFIX)
        }
        goals = {name: _goal(told, values[f"{GOAL_PREFIX}{name}"]) for name, told in facts.goals.items()}
        kept = {name: found for name, found in jpeg.items() if found and len(found) == len(values[name])}
        said = (facts.instruction, facts.success, facts.source, facts.clock, facts.language, facts.spans)
        return Episode(streams, *said, goals, facts.split, facts.seed, facts.operator, kept)


def _goal(told: GoalFacts, values: Sequence[np.ndarray]) -> Goal:
    if told.kind not in ("image", "video", "pose", "point") or not values:
        raise KineflowError(f"a goal of kind '{told.kind}' with {len(values)} messages; export the episode again")
    return Goal(told.kind, np.stack(values) if told.kind == "video" else values[0], told.frame)  # type: ignore[arg-type]


def _facts(seen: Seen, what: str) -> EpisodeFacts:
    message = decode(seen.topic, seen.first, f"{what}, topic {EPISODE_TOPIC}")
    try:
        data = json.loads(message.data)
        version = data.get("kineflow_episode")
        if version != VERSION:
            raise KineflowError(f"{what}: written as version {version}, this Kineflow reads version {VERSION}; upgrade Kineflow")
        facts: EpisodeFacts = from_plain(EpisodeFacts, data, f"{what}, topic {EPISODE_TOPIC}")
    except (ValueError, AttributeError, TypeError, ConfigError) as error:
        raise KineflowError(f"{what}: topic {EPISODE_TOPIC} does not describe an episode ({error}); export it again") from error
    return facts
