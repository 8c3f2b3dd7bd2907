"""Is everything connected as it should be? Looked at on live topics before a node is configured.

A publisher with another type is silence: no match, no event on either side; the graph alone shows it. So does a reliable
subscription with a best-effort publisher. And a picture that is too large for its publisher's segment arrives once in twenty.
The probe is a node of its own, with an executor of its own, so that it can run inside a callback of the node that it works for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from kineflow.deploy.ros2.qos import Offer, Quality, choose, listeners_of, missing, offers_of, profile
from kineflow.interface import KineflowError

LISTEN_S = 1.5  # for rates of 5 Hz and more
FEWEST_SHARE = 0.5  # of the expected rate
POLL_S = 0.05


class WiringError(KineflowError):
    """One or more topics are not as the configuration says; one line each."""


@dataclass(frozen=True)
class Wire:
    """One topic that must be there. `latched`: its last sample is wanted on connecting. `check`: what is wrong with a message.
    `told`: we publish it; nobody need listen, but who listens must understand."""

    name: str
    topic: str
    message: type
    rate_hz: float = 0.0  # 0: not periodic
    latched: bool = False
    needs_publisher: bool = True
    told: bool = False
    check: Callable[[Any], str] = field(default=lambda message: "")

    @property
    def type_name(self) -> str:
        package, _, name = self.message.__module__.split(".")[0], "", self.message.__name__
        return f"{package}/msg/{name}"


@dataclass
class _Heard:
    wire: Wire
    quality: Quality
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    fault: str = ""


def check_wiring(context: Any, wires: Sequence[Wire], timeout_s: float, namespace: str = "") -> dict[str, Quality]:
    """The quality to subscribe each topic with, by the wire's name.

    Raises:
        WiringError: a topic has no publisher within `timeout_s`, another type, a quality that would not be heard, less than half
            the rate, or messages of which `check` complains.
    """
    node = Node("wiring_probe", context=context, namespace=namespace or None, enable_rosout=False, start_parameter_services=False)
    executor = SingleThreadedExecutor(context=context)
    try:
        executor.add_node(node)
        return _checked(node, executor, wires, timeout_s)
    finally:
        executor.shutdown()
        node.destroy_node()


def _checked(node: Any, executor: Any, wires: Sequence[Wire], timeout_s: float) -> dict[str, Quality]:
    offers = _wait_for_publishers(node, executor, wires, timeout_s)
    problems = [line for wire in wires for line in _mismatches(node, wire, offers[wire.name])]
    if problems:  # nothing would be heard of these: do not wait for it
        raise WiringError("the topics are not wired as configured:\n  " + "\n  ".join(problems))
    qualities = {w.name: choose(offers[w.name], latched=w.latched, depth=10 if w.latched else 1) for w in wires}
    heard = [_Heard(wire, qualities[wire.name]) for wire in wires if wire.rate_hz and wire.needs_publisher]
    subscriptions = [
        node.create_subscription(h.wire.message, h.wire.topic, _counter(h), profile(Quality(h.quality.reliable, False, 5)))
        for h in heard
    ]
    _listen(executor, heard, timeout_s)
    for subscription in subscriptions:
        node.destroy_subscription(subscription)
    if problems := [line for h in heard for line in _silences(node, h)]:
        raise WiringError("the topics are not wired as configured:\n  " + "\n  ".join(problems))
    return qualities


def _wait_for_publishers(node: Any, executor: Any, wires: Sequence[Wire], timeout_s: float) -> dict[str, list[Offer]]:
    until, settled = time.monotonic() + timeout_s, 0
    while True:
        offers = {wire.name: offers_of(node, node.resolve_topic_name(wire.topic)) for wire in wires}
        found = all(offers[wire.name] for wire in wires if wire.needs_publisher)
        settled = settled + 1 if found else 0
        if settled > 4 or time.monotonic() > until:  # a little longer: a second publisher with another type may follow
            return offers
        executor.spin_once(timeout_sec=POLL_S)
        time.sleep(POLL_S / 5)


def _mismatches(node: Any, wire: Wire, offers: Sequence[Offer]) -> Iterator[str]:
    topic = node.resolve_topic_name(wire.topic)
    if wire.told:
        yield from _not_understood(wire, topic, listeners_of(node, topic), offers)
        return
    if not offers and wire.needs_publisher:
        yield f"{wire.name}: nobody publishes '{topic}' ({wire.type_name}); start its driver, or remap the topic"
    for offer in offers:
        if offer.type_name != wire.type_name:
            yield (
                f"{wire.name}: '{topic}' is {offer.type_name} from '{offer.node}', needed is {wire.type_name}; remap one of them "
                "(such topics do not connect, and say nothing)"
            )
    if wire.latched:
        # e-stop and supervisor: losing the one sample that says stop is no way to stop
        for line in missing(offers, Quality(True, True)):
            yield f"{wire.name}: '{topic}': {line}; publish it reliable and transient local"


def _not_understood(wire: Wire, topic: str, listeners: Sequence[Offer], others: Sequence[Offer]) -> Iterator[str]:
    """Who would hear nothing of what is told: the robot would stand still, and nobody would say why. And whose own commands would
    not be heard there: a guard that cannot stop it."""
    for other in others:
        if other.type_name != wire.type_name:
            yield (
                f"{wire.name}: '{other.node}' sends '{topic}' as {other.type_name}, told is {wire.type_name}; start it with the "
                "type of the robot profile's adapter (a guard: --type), or remap one of them"
            )
    for listener in listeners:
        if listener.type_name != wire.type_name:
            yield (
                f"{wire.name}: '{listener.node}' hears '{topic}' as {listener.type_name}, told is {wire.type_name}; choose the "
                "robot profile's adapter (twist or twist_stamped), or remap one of them (such topics do not connect)"
            )
        elif listener.quality.transient:
            yield f"{wire.name}: '{listener.node}' hears '{topic}' transient local alone, commands are volatile; change it there"


def _counter(heard: _Heard) -> Callable[[Any], None]:
    def count(message: Any) -> None:
        now = time.monotonic()
        heard.first_s = heard.first_s or now
        heard.count, heard.last_s = heard.count + 1, now
        if not heard.fault:
            heard.fault = heard.wire.check(message)

    return count


def _listen(executor: Any, heard: Sequence[_Heard], timeout_s: float) -> None:
    """Until the slowest topic could have been heard 8 times; longer only for who has not begun."""
    if not heard:
        return
    begin = time.monotonic()
    until = begin + max([LISTEN_S, *(4 / h.wire.rate_hz for h in heard)])
    while (now := time.monotonic()) < until or (now < begin + timeout_s and not all(h.count for h in heard)):
        executor.spin_once(timeout_sec=POLL_S)


def _silences(node: Any, heard: _Heard) -> Iterator[str]:
    wire, topic = heard.wire, node.resolve_topic_name(heard.wire.topic)
    if heard.fault:
        yield f"{wire.name}: '{topic}': {heard.fault}"
        return
    span = heard.last_s - heard.first_s
    rate = (heard.count - 1) / span if span > 0 else 0.0
    if rate < FEWEST_SHARE * wire.rate_hz:
        remedy = "is its publisher, or this machine, too slow?"
        if "camera" in wire.name:
            remedy = "when it is sent faster, give the PUBLISHER deploy/ros2/fastdds_profile.xml, or publish compressed pictures"
        yield f"{wire.name}: '{topic}' arrives at {rate:.1f} Hz, expected are {wire.rate_hz:g} ({heard.quality}); {remedy}"


def is_running(context: Any) -> bool:
    """Whether `context` was initialised and not shut down."""
    return bool(rclpy.ok(context=context))
