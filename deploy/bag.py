"""A recorded bag for replay: what it holds, then its messages in the order in which they were received. No ROS needed.

MCAP, rosbag2 with either storage: the readers of `kineflow data import`. Two passes: `Bag.open` counts topics, decodes the few
small ones that replay must know beforehand, and finds damage before anything is driven; `messages` decodes what is asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.ros_topics import Log, LogMessage, decode
from kineflow.datasets.importers.rosbag2 import open_log

_REORDER_NS = 2_000_000_000  # recorders write nearly in order of receipt


@dataclass(frozen=True)
class TopicFacts:
    """One topic: its type, how many messages, and when the first and the last were received (ns since the epoch)."""

    type: str
    count: int
    first_ns: int
    last_ns: int

    @property
    def rate_hz(self) -> float:
        span = 1e-9 * (self.last_ns - self.first_ns)
        return (self.count - 1) / span if span > 0 else 0.0


class Received(NamedTuple):
    """One message. `log_ns`: when the recorder received it, by its own clock; `data`: its bytes."""

    topic: str
    log_ns: int
    message: Any
    data: bytes


@dataclass(frozen=True)
class Bag:
    """See the module. `known`: the messages of the topics that `open` was asked to decode, `damage`: why it is not whole."""

    path: Path
    log: Log
    topics: Mapping[str, TopicFacts]
    known: Mapping[str, tuple[Received, ...]]
    damage: str

    @classmethod
    def open(cls, path: Path, known: Collection[str] = ()) -> Bag:
        """First pass.

        Raises:
            KineflowError: not a recording, an empty one, or one with damage in the middle; names what was read until then.
        """
        log = open_log(path)
        kinds: dict[str, str] = {}
        spans: dict[str, tuple[int, int, int]] = {}
        found: dict[str, list[Received]] = {name: [] for name in known}
        left_out: dict[str, str] = {}
        try:
            for raw in log.messages(left_out):
                name, ns = raw.topic.name, raw.log_ns
                kinds.setdefault(name, raw.topic.type)
                count, first, last = spans.get(name, (0, ns, ns))
                spans[name] = (count + 1, min(first, ns), max(last, ns))
                if name in found:
                    found[name].append(_received(raw, f"{path}, topic {name}, message {count}"))
        except KineflowError as error:
            raise KineflowError(f"{error}. Read until then: {_summary(spans)}") from error
        facts = {name: TopicFacts(kinds[name], n, first, last) for name, (n, first, last) in spans.items()}
        said = [f"{thing}: {why}" for thing, why in left_out.items() if thing.endswith((": end", ": metadata.yaml"))]
        if not facts:
            raise KineflowError(f"{path} has no messages" + (f" ({'; '.join(said)})" if said else "") + "; record it again")
        ordered = {name: tuple(sorted(messages, key=lambda message: message.log_ns)) for name, messages in found.items()}
        damage = f"{path} is not whole: {'; '.join(said)}. Read: {_summary(spans)}" if said else ""
        return cls(path, log, facts, ordered, damage)

    @property
    def first_ns(self) -> int:
        return min(topic.first_ns for topic in self.topics.values())

    @property
    def length_s(self) -> float:
        return 1e-9 * (max(topic.last_ns for topic in self.topics.values()) - self.first_ns)

    def messages(self, topics: Collection[str]) -> Iterator[Received]:
        """Of these topics, in order of receipt.

        Raises:
            KineflowError: bytes that are no message of their type; names topic and message.
        """
        waiting: list[tuple[int, int, LogMessage]] = []
        numbers: dict[str, int] = {}
        for number, raw in enumerate(self.log.messages({})):
            if raw.topic.name not in topics:
                continue
            heapq.heappush(waiting, (raw.log_ns, number, raw))
            while waiting[0][0] < raw.log_ns - _REORDER_NS:
                yield self._next(waiting, numbers)
        while waiting:
            yield self._next(waiting, numbers)

    def _next(self, waiting: list[tuple[int, int, LogMessage]], numbers: dict[str, int]) -> Received:
        raw = heapq.heappop(waiting)[2]
        number = numbers[raw.topic.name] = numbers.get(raw.topic.name, -1) + 1
        return _received(raw, f"{self.path}, topic {raw.topic.name}, message {number}")


def _received(raw: LogMessage, what: str) -> Received:
    return Received(raw.topic.name, raw.log_ns, decode(raw.topic, raw.data, what), raw.data)


def _summary(spans: Mapping[str, tuple[int, int, int]]) -> str:
    if not spans:
        return "nothing"
    seconds = 1e-9 * (max(last for _, _, last in spans.values()) - min(first for _, first, _ in spans.values()))
    counts = ", ".join(f"{name} {count}" for name, (count, _, _) in sorted(spans.items()))
    return f"{sum(count for count, _, _ in spans.values())} messages over {seconds:.1f} s ({counts})"
