"""A process of its own that stops the robot when the policy node is killed or frozen.

`python -m kineflow.deploy.ros2.guard_node`

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

from kineflow.deploy.ros2.messages import twist_message
from kineflow.deploy.ros2.outputs import ask_for_fifo
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.qos import Quality, profile

LOOK_S, ZERO_S, BEAT_S = 0.01, 0.05, 0.1


class GuardNode(Node):  # type: ignore[misc]
    """See the module. One thread hears, one watches; the watching one has SCHED_FIFO where permitted."""

    def __init__(self, context: Any, options: argparse.Namespace) -> None:
        super().__init__("guard", context=context)
        self.ending = threading.Event()
        self._silence_s, self._frame = options.silence, options.frame
        kind = Twist if options.plain else TwistStamped
        self._stamped, self._last_s, self._active, self._tripped = not options.plain, 0.0, False, False
        self._zero = self.create_publisher(kind, options.command_topic, profile(Quality(True)))
        self._estop = self.create_publisher(Bool, options.estop_topic, profile(Quality(True, True)))
        self._supervisor = self.create_publisher(Header, options.supervisor_topic, profile(Quality(True)))
        self.create_subscription(Header, options.heartbeat_topic, self._on_beat, profile(Quality(True)))
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._estop.publish(Bool(data=False))
        self._thread = threading.Thread(target=self._watch, name="kineflow-guard", daemon=True)
        self._thread.start()

    def stop_now(self) -> None:
        """A guard that is told to end lets go; the node then stops for want of its supervisor."""
        self.ending.set()
        self._thread.join(1.0)

    def _on_beat(self, message: Any) -> None:
        """One for each command, from the same thread of the node: commands and beats end together."""
        self._last_s, self._active = time.monotonic(), message.frame_id == "active"

    def _on_reset(self, request: Any, response: Any) -> Any:
        self._tripped = self._active = False
        self._estop.publish(Bool(data=False))
        response.success, response.message = True, "released; reset the node's e-stop and activate it"
        return response

    def _watch(self) -> None:
        ask_for_fifo(30)
        zeroed_s = beat_s = 0.0
        while not self.ending.is_set():
            now = time.monotonic()
            if self._active and not self._tripped and now - self._last_s > self._silence_s:
                self._tripped = True
                self._estop.publish(Bool(data=True))
                zeroed_s = 0.0
            if self._tripped and now - zeroed_s >= ZERO_S:
                zeroed_s = now
                stamp = self.get_clock().now().to_msg()
                self._zero.publish(twist_message(self._stamped, ("vx",), np.zeros(1), stamp, self._frame))
            if now - beat_s >= BEAT_S:
                beat_s = now
                self._supervisor.publish(Header(stamp=self.get_clock().now().to_msg(), frame_id="guard"))
            self.ending.wait(LOOK_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command-topic", default="cmd_vel")
    parser.add_argument("--heartbeat-topic", default="policy/heartbeat")
    parser.add_argument("--estop-topic", default="guard_estop", help="its own: who releases one e-stop must not release another")
    parser.add_argument("--supervisor-topic", default="supervisor")
    parser.add_argument("--frame", default="base_link")
    parser.add_argument("--silence", type=float, default=0.15, help="seconds without a command while active")
    parser.add_argument("--plain", action="store_true", help="Twist instead of TwistStamped")
    options, rest = parser.parse_known_args()
    return run_process(lambda context: GuardNode(context, options), rest)


if __name__ == "__main__":
    sys.exit(main())
