"""The guard (`deploy/guard.py`) on ROS topics: a process of its own that stops the robot when the node is killed or frozen.

`python -m kineflow.deploy.ros2.start guard`

    cmd_vel, policy/heartbeat ---> silent for 0.15 s while last heard active ---> zero on cmd_vel at 20 Hz, guard_estop pressed
    supervisor <--- 10 Hz: without its guard the node does not move

Tripped it stays, also when the node comes back: `~/reset` releases the e-stop that it presses, then the node's own
`reset_estop` and activation follow. It hears commands, not the graph: that forgets a killed node only after 20 s.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node
from std_msgs.msg import Bool, Header
from std_srvs.srv import Trigger

from kineflow.deploy.guard import Guard, GuardConfig
from kineflow.deploy.ros2.messages import twist_message
from kineflow.deploy.ros2.outputs import ask_for_fifo
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.qos import Quality, profile

LOOK_S = 0.01


class GuardNode(Node):  # type: ignore[misc]
    """See the module. One thread hears, one watches; the watching one has SCHED_FIFO where permitted."""

    def __init__(self, context: Any, options: argparse.Namespace) -> None:
        super().__init__("guard", context=context)
        self.ending = threading.Event()
        self._guard, self._lock, self._frame = Guard(GuardConfig(silence_s=options.silence)), threading.Lock(), options.frame
        self._stamped = options.type == "twist_stamped"
        kind = TwistStamped if self._stamped else Twist
        self._zero = self.create_publisher(kind, options.command_topic, profile(Quality(True)))
        self._estop = self.create_publisher(Bool, options.estop_topic, profile(Quality(True, True)))
        self._supervisor = self.create_publisher(Header, options.supervisor_topic, profile(Quality(True)))
        self.create_subscription(Header, options.heartbeat_topic, self._on_beat, profile(Quality(True)))
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._thread = threading.Thread(target=self._watch, name="kineflow-guard", daemon=True)
        self._thread.start()

    def stop_now(self) -> None:
        """A guard that is told to end lets go; the node then stops for want of its supervisor."""
        self.ending.set()
        self._thread.join(1.0)

    def _on_beat(self, message: Any) -> None:
        """One for each command, from the same thread of the node: commands and beats end together."""
        with self._lock:
            self._guard.beat(message.frame_id == "active", time.monotonic())

    def _on_reset(self, request: Any, response: Any) -> Any:
        with self._lock:
            self._guard.reset()
        response.success, response.message = True, "released; reset the node's e-stop and activate it"
        return response

    def _watch(self) -> None:
        ask_for_fifo(30)
        while not self.ending.wait(LOOK_S):
            with self._lock:
                sends = self._guard.look(time.monotonic())
            stamp = self.get_clock().now().to_msg()
            if sends.stop:
                self._zero.publish(twist_message(self._stamped, ("vx",), np.zeros(1), stamp, self._frame))
            if sends.estop is not None:
                self._estop.publish(Bool(data=sends.estop))
            if sends.supervisor:
                self._supervisor.publish(Header(stamp=stamp, frame_id="guard"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command-topic", default="cmd_vel")
    parser.add_argument("--heartbeat-topic", default="policy/heartbeat")
    parser.add_argument("--estop-topic", default="guard_estop", help="its own: who releases one e-stop must not release another")
    parser.add_argument("--supervisor-topic", default="supervisor")
    parser.add_argument("--frame", default="base_link")
    parser.add_argument("--silence", type=float, default=GuardConfig.silence_s, help="seconds without a command while active")
    parser.add_argument("--type", choices=["twist_stamped", "twist"], default="twist_stamped", help="as the robot's adapter")
    options, rest = parser.parse_known_args()
    return run_process(lambda context: GuardNode(context, options), rest)


if __name__ == "__main__":
    sys.exit(main())
