"""How many pictures of a topic arrive: `python -m kineflow.deploy.ros2.image_rate TOPIC SECONDS` prints JSON; for the doctor."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from kineflow.deploy.ros2.environment import prepare
from kineflow.interface import KineflowError

_MEET_S = 8.0  # for the publisher to be found, on a busy machine
_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


def measure(topic: str, seconds: float) -> dict[str, Any]:
    """Rate, bytes of a message, type and what is offered.

    Raises:
        KineflowError: nobody publishes it, or no pictures.
    """
    prepare()
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import CompressedImage, Image

    from kineflow.deploy.ros2.qos import choose, offers_of, profile

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("kineflow_doctor", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        name = node.resolve_topic_name(topic)
        until = time.monotonic() + _MEET_S
        while not (offers := offers_of(node, name)) and time.monotonic() < until:
            executor.spin_once(timeout_sec=0.1)
        if not offers:
            raise KineflowError(f"nobody publishes {name}")
        if offers[0].type_name not in _TYPES:
            raise KineflowError(f"{name} is {offers[0].type_name}, which is no picture")
        came: list[tuple[float, int]] = []
        kind = Image if offers[0].type_name == _TYPES[0] else CompressedImage
        quality = choose(offers)
        node.create_subscription(kind, name, lambda raw: came.append((time.monotonic(), len(raw))), profile(quality), raw=True)
        until = time.monotonic() + _MEET_S
        while not came and time.monotonic() < until:
            executor.spin_once(timeout_sec=0.1)
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            executor.spin_once(timeout_sec=0.05)
        lasted = time.monotonic() - begin
        counted = [size for at, size in came if at > begin]
        return {
            "topic": name,
            "rate_hz": len(counted) / lasted,
            "bytes": counted[-1] if counted else 0,
            "type": offers[0].type_name,
            "offered": str(offers[0].quality),
            "publishers": len(offers),
        }
    finally:
        executor.shutdown(timeout_sec=2.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def main() -> int:
    try:
        print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
    except KineflowError as error:
        print(f"kineflow: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the middleware's own threads must not end in abort()
