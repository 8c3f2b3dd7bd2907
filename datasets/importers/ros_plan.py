"""Which streams of a ROS log become which streams of the store, and which of them is the action."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from kineflow.config import find_config, from_plain
from kineflow.contracts import CameraSpec, FeatureSpec, Interface, KineflowError
from kineflow.datasets.importers.clocks import increasing, rate_of
from kineflow.datasets.importers.ros_messages import CAMERA_INFO, PICTURES, VECTORS, Part, known_fields, picture
from kineflow.datasets.importers.ros_topics import Decoder, Seen, decode, decoder

HEADER, LOGGED = "header.stamp", "log time"
_PICTURE_WORDS = re.compile(r"/(image(_raw|_color|_rect|_rect_color|_mono)?|compressed|compressedDepth)$")
_COMMAND = re.compile(r"cmd|command", re.IGNORECASE)
_ENDINGS = ("timestamp", "_moments", "_start", "_length")  # of arrays of the store


@dataclass(frozen=True)
class Lane:
    """One stream that a topic gives: `part` of its messages, or its pictures."""

    topic: str
    type: str
    part: Part | None
    spec: FeatureSpec | CameraSpec
    clock: str  # HEADER or LOGGED

    @property
    def said(self) -> str:
        words = [self.part.said] if self.part is not None and self.part.said else []
        return "; ".join([f"{self.topic} {self.type}, stamps: {self.clock}", *words])


@dataclass(frozen=True)
class LogSchema:
    """What the user says about a log: an Interface of which every part may be left out, and where its streams come from.

    `topics` maps a stream of the store to a stream or topic of the log, e.g. {action: cmd_vel}. Features, action or cameras
    given: only those are carried, with these names, units, frames and rates. Dimension names that the log's stream has too
    choose among its dimensions; otherwise the numbers of dimensions must agree.
    """

    features: Mapping[str, FeatureSpec] = field(default_factory=dict)
    action: FeatureSpec | None = None
    cameras: Mapping[str, CameraSpec] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The interface of the store, and for each of its streams the lane and the dimensions that it takes."""

    interface: Interface
    lanes: Mapping[str, Lane]
    dimensions: Mapping[str, Sequence[int]]


def load_schema(path: Path | None) -> LogSchema | None:
    if path is None:
        return None
    file = find_config(path)
    data = yaml.safe_load(file.read_text())
    if isinstance(data, dict) and data.get("kind") == "Interface":
        data = {key: value for key, value in data.items() if key != "kind"}
    schema: LogSchema = from_plain(LogSchema, data, str(file))
    return schema


def stamps(seen: Seen, clock: str) -> np.ndarray:
    return seen.header_ns if clock == HEADER else seen.log_ns


def find_lanes(logs: Sequence[Mapping[str, Seen]], labels: Sequence[str]) -> tuple[dict[str, Lane], dict[str, str]]:
    """Every stream that all logs can give, told from the first message of each topic, and why the other topics give none."""
    lanes: dict[str, Lane] = {}
    rest: dict[str, str] = {}
    for name, seen in {n: s for log in reversed(logs) for n, s in log.items()}.items():
        reason = _unfit(name, seen, logs, labels)
        if reason:
            rest[name] = reason
        elif seen.topic.type != CAMERA_INFO:
            try:
                found = _lanes_of(seen, logs, labels[0])
            except KineflowError as error:
                rest[name] = f"{seen.topic.type}, {len(seen.log_ns)} messages: {error}"
                continue
            if not found:
                rest[name] = f"{seen.topic.type}, {len(seen.log_ns)} messages: the first one is empty"
            for ours, lane in found.items():
                while ours in lanes:  # /cam/image and /cam/compressed, or /a/b and /a_b
                    ours = f"{ours}_{lane.type.split('/')[-1]}"
                lanes[ours] = lane
    return lanes, rest


def _unfit(name: str, seen: Seen, logs: Sequence[Mapping[str, Seen]], labels: Sequence[str]) -> str:
    kind, count = seen.topic.type, len(seen.log_ns)
    known = decoder(seen.topic)
    if kind not in VECTORS and kind not in PICTURES and kind != CAMERA_INFO:
        return f"{kind or 'no type'}, {count} messages: not a type that this importer turns into a stream"
    if not isinstance(known, Decoder):
        return f"{kind}, {count} messages: {known}"
    lacking = [label for label, log in zip(labels, logs) if name not in log]
    if lacking:
        return f"{kind}: not in every log (missing in {', '.join(lacking[:3])})"
    if kind != CAMERA_INFO and min(len(log[name].log_ns) for log in logs) < 2:
        return f"{kind}: a single message is no stream"
    return ""


def _lanes_of(seen: Seen, logs: Sequence[Mapping[str, Seen]], label: str) -> dict[str, Lane]:
    topic = seen.topic
    clock = HEADER if any(log[topic.name].header_ns.any() for log in logs) else LOGGED
    for log in logs:
        increasing(stamps(log[topic.name], clock), f"{label}, topic {topic.name}")
    stamp_ns = stamps(seen, clock)
    rate = rate_of(stamp_ns[increasing(stamp_ns, f"{label}, topic {topic.name}")])
    what = f"{label}, topic {topic.name}, message 0"
    message = decode(topic, seen.first, what)
    if topic.type in PICTURES:
        with known_fields(what):
            frame, _ = picture(message, topic.type, what)
        camera = CameraSpec(frame.shape[0], frame.shape[1], rate, "rgb" if frame.ndim == 3 else "depth")
        return {_word(_without_picture_words(topic.name)): Lane(topic.name, topic.type, None, camera, clock)}
    found = {}
    with known_fields(what):
        parts = [(part, part.values(message)) for part in VECTORS[topic.type](message)]
    for part, _ in parts:
        name = _word(topic.name + (f"_{part.suffix}" if part.suffix else ""))
        found[name] = Lane(topic.name, topic.type, part, FeatureSpec(part.vector, rate), clock)
    return found


def make_plan(lanes: Mapping[str, Lane], rest: Mapping[str, str], schema: LogSchema | None, where: str) -> Plan:
    """The store's streams. `rest` says why other topics give none.

    Raises:
        KineflowError: no or several streams can be the action, or the schema asks for what the log has not; the message
            lists the streams and says what to write.
    """
    try:
        return _plan(lanes, schema or LogSchema(), where)
    except KineflowError as error:
        others = "; ".join(f"{topic} ({reason})" for topic, reason in rest.items())
        raise KineflowError(f"{error}. {_listed(lanes)}" + (f". No streams: {others}" if others else "")) from error


def _plan(lanes: Mapping[str, Lane], schema: LogSchema, where: str) -> Plan:
    for ours in schema.topics:
        _lane(lanes, schema.topics[ours], ours, where)
    action = _lane(lanes, schema.topics["action"], "action", where) if "action" in schema.topics else _command(lanes, where)
    if schema.features or schema.cameras or schema.action is not None:
        return _declared(lanes, schema, action, where)
    renamed = {_lane(lanes, lane, ours, where): ours for ours, lane in schema.topics.items()}
    names = {name: renamed.get(name, name) for name in lanes if name != action}
    specs = {names[name]: lanes[name].spec for name in names}
    spec = lanes[action].spec
    assert isinstance(spec, FeatureSpec)
    features = {n: s for n, s in specs.items() if isinstance(s, FeatureSpec)}
    cameras = {n: s for n, s in specs.items() if isinstance(s, CameraSpec)}
    taken = {**{ours: lanes[name] for name, ours in names.items()}, "action": lanes[action]}
    return Plan(Interface(features, spec, cameras), taken, {})


def _declared(lanes: Mapping[str, Lane], schema: LogSchema, action: str, where: str) -> Plan:
    taken, dimensions = {}, {}
    for ours, camera in schema.cameras.items():
        lane = taken[ours] = lanes[_lane(lanes, schema.topics.get(ours, ours), ours, where)]
        if not isinstance(lane.spec, CameraSpec) or lane.spec.frame_shape != camera.frame_shape:
            raise KineflowError(
                f"{where}: camera '{ours}' is {camera} in the schema and {lane.spec} in the log; correct the schema"
            )
    asked = {**schema.features, **({"action": schema.action} if schema.action is not None else {})}
    for ours, spec in asked.items():
        lane = taken[ours] = lanes[action if ours == "action" else _lane(lanes, schema.topics.get(ours, ours), ours, where)]
        have = lane.spec.vector.names if isinstance(lane.spec, FeatureSpec) else ()
        if set(spec.vector.names) <= set(have):
            dimensions[ours] = [have.index(name) for name in spec.vector.names]
        elif len(have) != spec.vector.size:
            raise KineflowError(
                f"{where}: '{ours}' has the dimensions {spec.vector.names} in the schema, {lane.topic} gives {have}; "
                "write names out of these, or as many"
            )
    found = lanes[action].spec
    assert isinstance(found, FeatureSpec)
    taken.setdefault("action", lanes[action])
    return Plan(Interface(schema.features, schema.action or found, schema.cameras), taken, dimensions)


def _lane(lanes: Mapping[str, Lane], wanted: str, ours: str, where: str) -> str:
    found = [wanted] if wanted in lanes else [n for n, lane in lanes.items() if lane.topic.strip("/") == wanted.strip("/")]
    if ours == "action":
        found = [name for name in found if lanes[name].part is not None]
    if len(found) != 1:
        problem = "which is several streams" if found else "which the log has not"
        raise KineflowError(f"{where}: '{ours}' is to be '{wanted}', {problem}; correct the schema")
    return found[0]


def _command(lanes: Mapping[str, Lane], where: str) -> str:
    """The only topic called action, else the only Twist or Ackermann command, else the only command of any type."""
    vectors = {name: lane for name, lane in lanes.items() if lane.part is not None}
    last = {name: lane.topic.rsplit("/", 1)[-1] for name, lane in vectors.items()}
    driving = ("Twist", "AckermannDrive")
    commands = [n for n in vectors if _COMMAND.search(last[n])]
    for found in (
        [n for n in vectors if last[n] == "action"],
        [n for n in commands if vectors[n].type.split("/")[-1].startswith(driving)],
        commands,
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise KineflowError(f"{where}: {' and '.join(found)} could be the action; {_remedy(found[0])}")
    example = next(iter(vectors), "cmd_vel")
    raise KineflowError(f"{where}: no topic is called a command or action; {_remedy(example)}")


def _remedy(example: str) -> str:
    return f"write `topics: {{action: {example}}}`, with the stream you mean, in a YAML file and give it with --schema"


def _listed(lanes: Mapping[str, Lane]) -> str:
    return "Streams: " + (", ".join(f"{name} ({lane.topic} {lane.type})" for name, lane in sorted(lanes.items())) or "none")


def _without_picture_words(topic: str) -> str:
    while (shorter := _PICTURE_WORDS.sub("", topic)) not in (topic, ""):
        topic = shorter
    return topic


def _word(topic: str) -> str:
    word = re.sub(r"\W", "_", topic.strip("/"), flags=re.ASCII)
    word = word if word[:1].isalpha() else f"t_{word}"
    return f"{word}_" if word.endswith(_ENDINGS) or word == "action" else word
