"""What every ROS log has: topics, messages with the time at which they were logged, and types to decode them with."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.extras import require

DEFAULT_DISTRIBUTION = "humble"
_HEADER = "std_msgs/msg/Header"


@dataclass(frozen=True)
class Topic:
    """One topic of a log, with all that is needed to decode its messages."""

    name: str
    type_said: str  # as the log writes it: pkg/msg/Type, or pkg/Type in ROS 1
    definition_format: str  # "ros2msg", "ros1msg", "ros2idl"; "": the log has no definition
    definition: str
    encoding: str  # "cdr" (ROS 2), "ros1", others cannot be decoded here
    distribution: str = ""  # of ROS 2, whose types serve where there is no definition

    @property
    def type(self) -> str:
        parts = self.type_said.split("/")
        return f"{parts[0]}/msg/{parts[-1]}" if len(parts) > 1 else self.type_said


class LogMessage(NamedTuple):
    """One message, not decoded yet."""

    topic: Topic
    log_ns: int
    data: bytes


class Log(Protocol):
    """One episode's worth of messages."""

    @property
    def label(self) -> str: ...

    def messages(self, left_out: dict[str, str] | None = None) -> Iterator[LogMessage]:
        """In the order in which they were written; `left_out` takes what could not be read, as thing -> reason."""
        ...


@dataclass(frozen=True)
class Decoder:
    """Bytes of one topic to messages; `header_at` is where sec and nanosec of header.stamp lie, None without a header."""

    decode: Callable[[bytes], Any]
    header_at: int | None
    signed: bool

    def header_ns(self, data: bytes) -> int:
        """header.stamp without decoding the rest, which may be a picture."""
        if self.header_at is None or len(data) < self.header_at + 8:
            return 0
        little = not self.signed or data[1] & 1  # ROS 1 is always little-endian, CDR says it in its second byte
        seconds, nanoseconds = struct.unpack_from(
            ("<" if little else ">") + ("iI" if self.signed else "II"), data, self.header_at
        )
        return int(seconds) * 1_000_000_000 + int(nanoseconds)


@lru_cache(maxsize=512)
def decoder(topic: Topic) -> Decoder | str:
    """How to decode `topic`, or why that cannot be done."""
    if topic.encoding not in ("cdr", "ros1"):
        return f"message encoding '{topic.encoding}', only cdr and ros1 can be decoded"
    types = require("rosbags.typesys", "for ROS messages")
    try:
        store = _types(types, topic)
    except Exception as error:  # the parser raises whatever the text leads it to
        return f"its type definition cannot be read ({type(error).__name__}: {error})"
    if topic.type not in store.fielddefs:
        return (
            f"the log has no definition of {topic.type}, and ROS 2 {topic.distribution or DEFAULT_DISTRIBUTION} has none either"
        )
    fields = store.fielddefs[topic.type][1]
    has_header = bool(fields) and fields[0][1][1] == _HEADER
    if topic.encoding == "ros1":
        return Decoder(lambda data: store.deserialize_ros1(data, topic.type), 4 if has_header else None, False)
    return Decoder(lambda data: store.deserialize_cdr(data, topic.type), 4 if has_header else None, True)


def _types(types: Any, topic: Topic) -> Any:
    if not topic.definition:
        known = {s.value: s for s in types.Stores}
        wanted = f"ros2_{topic.distribution or DEFAULT_DISTRIBUTION}"
        return types.get_typestore(known.get(wanted, known[f"ros2_{DEFAULT_DISTRIBUTION}"]))
    store = types.get_typestore(types.Stores.EMPTY)
    if topic.definition_format == "ros2idl":
        store.register(types.get_types_from_idl(topic.definition))
    else:
        store.register(types.get_types_from_msg(topic.definition, topic.type))
    return store


def decode(topic: Topic, data: bytes, what: str) -> Any:
    """One message.

    Raises:
        KineflowError: bytes that are not a message of that type; `what` names file and message.
    """
    known = decoder(topic)
    if isinstance(known, str):
        raise KineflowError(f"{what}: {known}; leave the topic out with a schema")
    try:
        return known.decode(data)
    except Exception as error:  # generated code raises whatever the bytes lead it to
        raise KineflowError(
            f"{what}: {len(data)} bytes that are no {topic.type} ({type(error).__name__}: {error}); "
            "the log is damaged or was written with another version of the type: leave the topic out with a schema"
        ) from error


@dataclass(frozen=True)
class Seen:
    """One topic of one log after a pass over all messages."""

    topic: Topic
    first: bytes
    log_ns: np.ndarray  # int64 [T]
    header_ns: np.ndarray  # int64 [T], 0 where there is no header


def scan(log: Log) -> tuple[Mapping[str, Seen], Mapping[str, str]]:
    """Every topic with the stamps of its messages, and what could not be read. Decodes nothing but header stamps.

    Raises:
        KineflowError: the log cannot be read, or a topic changes its type.
    """
    left_out: dict[str, str] = {}
    topics: dict[str, tuple[Topic, bytes, list[int], list[int], Decoder | None]] = {}
    for topic, log_ns, data in log.messages(left_out):
        found = topics.get(topic.name)
        if found is None:
            known = decoder(topic)
            found = topics[topic.name] = (topic, data, [], [], known if isinstance(known, Decoder) else None)
        elif found[0] is not topic and found[0].type != topic.type:
            raise KineflowError(f"{log.label}: topic {topic.name} is {found[0].type} and later {topic.type}; split the log there")
        found[2].append(log_ns)
        found[3].append(found[4].header_ns(data) if found[4] else 0)
    seen = {n: Seen(t, data, np.array(log_ns, np.int64), np.array(h, np.int64)) for n, (t, data, log_ns, h, _) in topics.items()}
    return seen, left_out
