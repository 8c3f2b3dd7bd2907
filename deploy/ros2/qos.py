"""Which quality of service to ask for, given what the publishers of a topic offer; plain values, no ROS.

A subscription that asks for more than is offered hears nothing. So ours asks for what every publisher offers, and for reliable
delivery where it can: of a large picture cut into fragments, best effort loses nearly all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kineflow.interface import KineflowError


@dataclass(frozen=True)
class Quality:
    """`depth`: samples kept. `transient`: who comes late is told the last sample."""

    reliable: bool
    transient: bool = False
    depth: int = 1

    def __str__(self) -> str:
        return f"{'reliable' if self.reliable else 'best effort'}, {'transient local' if self.transient else 'volatile'}"


@dataclass(frozen=True)
class Offer:
    """One publisher of a topic, or subscription: its node, message type and quality."""

    node: str
    type_name: str
    quality: Quality


def choose(offers: Sequence[Offer], *, depth: int = 1, latched: bool = False) -> Quality:
    """For a subscription: what all of `offers` give. `latched`: the last sample is wanted (e-stop, goals) where it is kept.

    Without an offer: best effort and volatile, which every publisher meets; for `latched` reliable and transient, because a
    publisher of such topics that gives less is an error of wiring (`missing`).
    """
    if not offers:
        return Quality(latched, latched, depth)
    return Quality(
        reliable=all(offer.quality.reliable for offer in offers),
        transient=latched and all(offer.quality.transient for offer in offers),
        depth=depth,
    )


def missing(offers: Sequence[Offer], wanted: Quality) -> list[str]:
    """Publishers that a subscription with `wanted` would never hear; one line each."""
    return [
        f"'{offer.node}' offers {offer.quality}, needed is {wanted}"
        for offer in offers
        if (wanted.reliable and not offer.quality.reliable) or (wanted.transient and not offer.quality.transient)
    ]


def offers_of(node: Any, topic: str) -> list[Offer]:
    """Who publishes `topic` now, as an rclpy `node` sees it. A type that is not ours shows here and nowhere else."""
    return _ends(node.get_publishers_info_by_topic(topic))


def listeners_of(node: Any, topic: str) -> list[Offer]:
    """Who subscribes `topic` now, and with what quality."""
    return _ends(node.get_subscriptions_info_by_topic(topic))


def _ends(infos: Sequence[Any]) -> list[Offer]:
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    return [
        Offer(
            info.node_name,
            info.topic_type,
            Quality(
                info.qos_profile.reliability == ReliabilityPolicy.RELIABLE,
                info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
            ),
        )
        for info in infos
    ]


def profile(quality: Quality) -> Any:
    """As rclpy's QoSProfile."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    if quality.depth < 1:
        raise KineflowError(f"a queue of {quality.depth} samples holds nothing; give at least 1")
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=quality.depth,
        reliability=ReliabilityPolicy.RELIABLE if quality.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if quality.transient else DurabilityPolicy.VOLATILE,
    )
