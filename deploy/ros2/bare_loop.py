"""What the policy node is measured beside: the least rclpy node that hears the same topics and sends 50 commands a second.

Newest odometry in, its x as velocity out; no policy, no executor, no governor. The same output thread: absolute times, SCHED_FIFO
where permitted.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import Image, LaserScan

from kineflow.deploy.ros2.messages import twist_message
from kineflow.deploy.ros2.outputs import ask_for_fifo
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.qos import Quality, profile

PERIOD_S = 0.02


class BareLoop(Node):  # type: ignore[misc]
    """See the module."""

    def __init__(self, context: Any) -> None:
        super().__init__("bare", context=context)
        self.ending = threading.Event()
        self._speed, self._picture = 0.0, np.zeros(0, np.uint8)
        self._commands = self.create_publisher(TwistStamped, "cmd_vel", profile(Quality(True)))
        self.create_subscription(Odometry, "odom", self._on_odometry, profile(Quality(True)))
        self.create_subscription(Image, "front", self._on_picture, profile(Quality(False)))
        self.create_subscription(LaserScan, "scan", lambda message: None, profile(Quality(False)))
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def stop_now(self) -> None:
        self.ending.set()
        self._thread.join(1.0)

    def _on_odometry(self, message: Any) -> None:
        self._speed = message.pose.pose.position.x

    def _on_picture(self, message: Any) -> None:
        self._picture = np.frombuffer(message.data, np.uint8)

    def _send(self) -> None:
        ask_for_fifo(20)
        due = time.monotonic()
        while not self.ending.is_set():
            stamp = self.get_clock().now().to_msg()
            self._commands.publish(twist_message(True, ("vx",), np.array([self._speed]), stamp, "base_link"))
            due = max(due + PERIOD_S, time.monotonic() - PERIOD_S)
            time.sleep(max(due - time.monotonic(), 0.0))


def main() -> int:
    return run_process(BareLoop, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
