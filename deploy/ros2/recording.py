"""One recording: raw messages into an MCAP file, what the policy senses and is commanded into an episode. No ROS here.

    raw message ---> MCAP, as it came           a killed process loses what came since the last flush (half a second)
              \\---> decoded, converted as for the policy ---> EpisodeRecorder: loses nothing that was counted

The stamp of a sample is header.stamp where the message has one, else when it was received. The action is what was commanded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineflow.contracts import Goal, Interface, KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.ros_messages import definition
from kineflow.datasets.importers.ros_topics import Topic, decode
from kineflow.datasets.recorder import EpisodeRecorder
from kineflow.datasets.store_error import StoreError
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.images import fitted
from kineflow.deploy.ros2.intake import FEATURE_TYPES, GoalIntake
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.readers import read_feature, read_picture, twist_values
from kineflow.extras import require
from kineflow.interface import CameraSpec

TWISTS = ("geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped")
_EARLY = 0.8  # of a picture's period: pictures that come faster than the store's rate are thinned to it


class Raw(NamedTuple):
    """One message as it came; `log_ns`: when, by the system's clock."""

    topic: str
    type: str
    data: bytes
    log_ns: int


class McapFile:
    """An MCAP file that a kill leaves readable up to its last flush."""

    def __init__(self, path: Path, flush_s: float, about: Mapping[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count = path, 0
        self._flush_ns, self._flushed_ns = round(1e9 * flush_s), 0
        self._file = path.open("xb")
        self._writer = require("mcap.writer", "to write MCAP").Writer(self._file, enable_data_crcs=True)
        self._writer.start(profile="ros2", library="kineflow")
        self._writer.add_metadata("kineflow", dict(about))
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}

    def write(self, raw: Raw) -> None:
        channel = self._channels.get(raw.topic)
        if channel is None:
            channel = self._channels[raw.topic] = self._writer.register_channel(raw.topic, "cdr", self._schema(raw.type))
        self._writer.add_message(channel, raw.log_ns, raw.data, raw.log_ns, self.count)
        self.count += 1
        if raw.log_ns - self._flushed_ns > self._flush_ns:
            self._writer.flush()
            self._flushed_ns = raw.log_ns

    def close(self) -> None:
        self._writer.finish()
        self._file.close()

    def _schema(self, kind: str) -> int:
        if kind not in self._schemas:
            try:
                text, form = definition(kind).encode(), "ros2msg"
            except KeyError:  # no definition at hand: the bytes are kept all the same
                text, form = b"", ""
            self._schemas[kind] = self._writer.register_schema(kind, form, text)
        return self._schemas[kind]


@dataclass(frozen=True)
class _Lane:
    """How messages of one topic become samples of one stream."""

    stream: str
    read: Callable[[Any], np.ndarray]
    least_ns: int = 0  # between two samples


class Recording:
    """One episode and its bag, begun when it is made. One thread."""

    def __init__(
        self,
        store: EpisodeStore,
        bags: Path,
        inbox: GoalInbox,
        config: NodeConfig,
        *,
        operator: str = "",
        flush_s: float = 0.5,
    ) -> None:
        """Raises StoreError, OSError: there is no room."""
        source = f"{config.policy} on {config.robot}"
        self._episode = EpisodeRecorder(store, clock="sensor", operator=operator, source=source)
        self.id, self._store, self._inbox = self._episode.id, store, inbox
        self._bag = McapFile(bags / f"{self.id}.mcap", flush_s, {"source": source, "operator": operator})
        self._lanes = lanes_of(store.interface, config)
        self._constants = {
            name: np.array(feature.values, np.float32)
            for name, feature in config.features.items()
            if feature.kind == "constant" and name in store.interface.features
        }
        self._goals = {f"/{tap.topic.lstrip('/')}": tap for tap in GoalIntake(inbox, config, lambda told: None).taps}
        self._last_ns: dict[str, int] = {}
        self.samples: Counter[str] = Counter()  # by stream: in the journal, they outlive this process
        self.dropped: Counter[str] = Counter()  # by stream and reason

    @property
    def bag(self) -> Path:
        return self._bag.path

    @property
    def messages(self) -> int:
        return self._bag.count

    def take(self, raw: Raw) -> None:
        """Raises StoreError, OSError: there is no room any more."""
        self._bag.write(raw)
        lanes, goal = self._lanes.get(raw.topic, ()), self._goals.get(raw.topic)
        if not lanes and goal is None:
            return
        try:
            message = decode(_topic(raw.topic, raw.type), raw.data, raw.topic)
            if goal is not None:
                goal.take(message, raw.data, 1e-9 * raw.log_ns)
            for lane in lanes:
                self._sample(lane, message, raw.log_ns)
        except KineflowError as error:
            if isinstance(error, StoreError) and isinstance(error.__cause__, OSError):  # no room: not a matter of this message
                raise
            self.dropped[f"{raw.topic}: {error}"[:200]] += 1

    def _sample(self, lane: _Lane, message: Any, log_ns: int) -> None:
        stamp = getattr(getattr(message, "header", None), "stamp", None)
        stamp_ns = log_ns if stamp is None else int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
        last_ns = self._last_ns.get(lane.stream)
        if last_ns is not None and stamp_ns <= last_ns:
            self.dropped[f"{lane.stream}: not later than the one before"] += 1
            return
        if last_ns is not None and stamp_ns - last_ns < lane.least_ns:
            return
        values = {lane.stream: lane.read(message)}
        if lane.stream == "action":
            values |= self._constants
        self._episode.append_step(values, stamp_ns)
        self._last_ns[lane.stream] = stamp_ns
        self.samples.update(values.keys())

    def finish(self, success: bool | None = None) -> str:
        """Close the bag, commit the episode: what became of it. Nothing was sensed or commanded: there is a bag, but no episode.

        Raises:
            StoreError, OSError: it could not be committed; the journal stays for `kineflow data repair`.
        """
        self._bag.close()
        streams = [*self._store.interface.features, *self._store.interface.cameras, "action"]
        if empty := [name for name in streams if not self.samples[name]]:
            self._episode.abort()
            return f"no episode: nothing came of {', '.join(empty)}; the bag is {self._bag.path.name}"
        words, goals = goals_of(self._inbox)
        self._episode.finish(success=success, instruction=words, goals=goals)
        return f"episode {self.id}: {self.samples['action']} actions, {self._bag.count} messages in {self._bag.path.name}"


def lanes_of(interface: Interface, config: NodeConfig) -> dict[str, list[_Lane]]:
    """Topic -> the streams of `interface` that come from it.

    Raises:
        KineflowError: a stream of the interface comes from no topic of the node.
    """
    found: dict[str, list[_Lane]] = {}

    def add(topic: str, stream: str, read: Callable[[Any], np.ndarray], least_ns: int = 0) -> None:
        found.setdefault(f"/{topic.lstrip('/')}", []).append(_Lane(stream, read, least_ns))

    for name, spec in interface.cameras.items():
        if name not in config.cameras:
            raise KineflowError(f"camera '{name}' of the store: the node has {sorted(config.cameras)}; record another interface")
        least_ns = round(_EARLY * 1e9 / spec.rate_hz) if config.cameras[name].rate_hz > 1.1 * spec.rate_hz else 0
        add(config.cameras[name].topic, name, partial(_picture, spec=spec), least_ns)
    for name, feature in interface.features.items():
        topic = config.features.get(name)
        if topic is None:
            raise KineflowError(
                f"feature '{name}' of the store: the node has {sorted(config.features)}; record another interface"
            )
        if topic.kind in FEATURE_TYPES:
            add(topic.topic, name, partial(read_feature, kind=topic.kind, names=feature.vector.names))
    axes = interface.action.vector.names
    add(config.command_topic, "action", lambda m: twist_values(getattr(m, "twist", m), axes))
    return found


def _picture(message: Any, spec: CameraSpec) -> np.ndarray:
    return fitted(read_picture(message, spec), spec)


def goals_of(inbox: GoalInbox) -> tuple[str, dict[str, Goal]]:
    """What the policy was told, as an episode has it: words, and goals by name."""
    words, goals = "", {}
    for name, value in inbox.values.items():
        kind = inbox.kind_of(name)
        if kind == "instruction":
            words = str(value)
        elif kind in ("image", "video"):
            goals[name] = Goal("image" if kind == "image" else "video", np.asarray(value))
        else:
            goals[name] = Goal("pose" if kind == "pose" else "point", np.asarray(value), "world")
    return words, goals


def _topic(name: str, kind: str) -> Topic:
    return Topic(name, kind, "", "", "cdr")
