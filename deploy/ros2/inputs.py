"""Subscriptions of a policy node. Callbacks store and return (`intake.py`): what takes time happens in other threads."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from kineflow.contracts import KineflowError
from kineflow.deploy.ros2.intake import GoalIntake, Intake, Take
from kineflow.deploy.ros2.qos import Quality, offers_of, profile


def message_class(name: str) -> type:
    """`std_msgs/msg/Bool` as the class of this ROS.

    Raises:
        KineflowError: its package is not installed.
    """
    package, _, kind = name.split("/")
    try:
        found: type = getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError) as error:
        raise KineflowError(
            f"messages of type {name} are not installed here ({error}); install ros-<distro>-{package}"
        ) from error
    return found


class Inputs:
    """All subscriptions of a policy node but its goals, made once at configure."""

    def __init__(self, node: Any, qualities: Mapping[str, Quality], intake: Intake) -> None:
        """Qualities by the names of wires; what has none may come later (the guard), and is always our own."""
        self._node, self.intake = node, intake
        self._subscriptions = [
            node.create_subscription(
                message_class(tap.type),
                tap.topic,
                self._with_times(tap.take),
                profile(Quality(True, True) if tap.name == "guard" else qualities.get(tap.name, Quality(False))),
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._not_heard(tap.name)),
            )
            for tap in intake.taps
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _not_heard(self, name: str) -> Callable[[Any], None]:
        """A publisher that came after configure and offers less than was found then."""

        def tell(event: Any) -> None:
            self.intake.faults[name] = "a publisher offers less quality than is subscribed, it is not heard; configure again"

        return tell

    def _with_times(self, take: Take) -> Callable[[Any], None]:
        clock = self._node.get_clock()
        return lambda message: take(message, 1e-9 * clock.now().nanoseconds, time.monotonic())


class GoalInputs:
    """Goal topics: what the policy takes is subscribed, reliable and with the last sample kept where the publisher keeps it."""

    def __init__(self, node: Any, intake: GoalIntake) -> None:
        self._node, self.intake = node, intake
        # A volatile subscription hears every publisher from now on, a transient one what was said before; both, each once.
        self._subscriptions = [
            node.create_subscription(
                message_class(tap.type), tap.topic, self._with_time(tap.take), profile(Quality(True, transient, tap.depth))
            )
            for tap in intake.taps
            for transient in (False, True)
        ]

    @property
    def fault(self) -> str:
        """What is wrong with the last goal, or with who would tell one, or ""."""
        for tap in self.intake.taps:
            for offer in offers_of(self._node, self._node.resolve_topic_name(tap.topic)):
                if offer.type_name != tap.type:
                    return f"'{tap.topic}' is {offer.type_name} from '{offer.node}', taken is {tap.type}"
        return self.intake.fault

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _with_time(self, take: Callable[[Any, Any, float], None]) -> Callable[[Any], None]:
        return lambda message: take(message, message, time.monotonic())
