"""What a policy node publishes: commands and heartbeats from the output thread, reports from the ROS thread.

<command_topic>        at the robot's rate, while active, in the words of the robot's adapter: robots.py
heartbeat              std_msgs/Header beside each command: the guard's proof of life
chunk/path, chunk/markers    where the plan leads, in the body's frame
/diagnostics           once a second and on change;  status   std_msgs/String, on change, kept for who comes late
run/feedback, run/result    diagnostic_msgs/DiagnosticStatus of the present run and of the one that ended last
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Path
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from kineflow.deploy.adapters.g1 import G1
from kineflow.deploy.control import Ticked
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.messages import (
    along,
    diagnostic_message,
    marker_message,
    path_message,
    run_message,
    to_time,
)
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.robots import Echoed, PathRobot, open_robot
from kineflow.deploy.ros2.runs import Run

STOP_MESSAGES = 3


class CommandOutput:
    """The one place where commands leave. Closed, it lets nothing through but `stop`; that is how the last word is kept."""

    def __init__(self, node: Any, robot: RobotProfile, config: NodeConfig) -> None:
        """Raises KineflowError: the robot's adapter cannot be opened."""
        self._node = node
        self.robot = open_robot(node, robot, config)
        self._beats = node.create_publisher(Header, "~/heartbeat", profile(Quality(True)))
        self._lock, self._open = threading.Lock(), False
        self._priority = config.fifo_priority
        self.fifo = "not asked for"
        self.last: Ticked | None = None
        self.sent = 0
        self.failure = ""  # why commands no longer leave: the process must end, and its guard stop the robot

    def open(self) -> None:
        with self._lock:
            self._open, self.fifo = True, "not yet"

    def __call__(self, ticked: Ticked) -> None:
        """Publish one command; in the output thread."""
        if self.fifo == "not yet":
            self.fifo = ask_for_fifo(self._priority)
        self.last = ticked
        with self._lock:
            if self._open:
                try:
                    self.robot.send(ticked.command, ticked.now_s)
                    self._beat("active", time.monotonic() - ticked.now_s)
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    raise

    def follow(self, ahead: Callable[[], np.ndarray], step_s: float) -> None:
        """Where the robot follows paths: the plan `[N, A]` from now on."""
        if isinstance(self.robot, PathRobot):
            self.robot.plan(ahead(), step_s)

    def damp(self) -> str:
        """The operator's decision (deploy/adapters/g1.py). Why it was not done, or ""."""
        robot = self.robot.robot if isinstance(self.robot, Echoed) else self.robot
        return robot.damp(time.monotonic()) if isinstance(robot, G1) else "this robot cannot be damped"

    def stop(self, times: int = STOP_MESSAGES) -> None:
        """Close, and say stop. Whoever comes after this says nothing. Idempotent, any thread."""
        with self._lock:
            was_open, self._open = self._open, False
            for _ in range(times if was_open else 0):
                self.robot.stop(time.monotonic())
                self._beat("stopped")

    def close(self) -> None:
        self.stop()
        self.robot.close()
        self._node.destroy_publisher(self._beats)

    def _beat(self, state: str, age_s: float = 0.0) -> None:
        stamp = to_time(1e-9 * self._node.get_clock().now().nanoseconds - age_s)
        self._beats.publish(Header(stamp=stamp, frame_id=state))
        self.sent += 1


class Reports:
    """Diagnostics, status, path and markers; in the ROS thread."""

    def __init__(self, node: Any, robot: RobotProfile, config: NodeConfig) -> None:
        self._node, self._names, self._frame = node, robot.command.names, config.command_frame
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._status = node.create_publisher(String, "~/status", profile(Quality(True, True)))
        self._path = node.create_publisher(Path, "~/chunk/path", 1)
        self._markers = node.create_publisher(MarkerArray, "~/chunk/markers", 1)
        self._feedback = node.create_publisher(DiagnosticStatus, "~/run/feedback", profile(Quality(True, depth=10)))
        self._result = node.create_publisher(DiagnosticStatus, "~/run/result", profile(Quality(True, True)))
        self._said = ""

    def status(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._status.publish(String(data=text))

    def diagnose(self, level: str, summary: str, values: dict[str, Any]) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostic_message(self._node.get_name(), level, summary, values, stamp))

    def plan(self, actions: np.ndarray, step_s: float, moves: bool) -> None:
        """The chunk `[H, A]` that was taken last."""
        stamp, places = self._node.get_clock().now().to_msg(), along(actions, self._names, step_s)
        self._path.publish(path_message(places, stamp, self._frame))
        self._markers.publish(marker_message(places, stamp, self._frame, moves))

    def run(self, run: Run, outcome: str = "", why: str = "") -> None:
        """Feedback while it runs, else the result."""
        publisher = self._feedback if run.state == "running" else self._result
        monotonic_s = 1e-9 * self._node.get_clock().now().nanoseconds - time.monotonic()
        publisher.publish(run_message(run, outcome, why, monotonic_s))

    def close(self) -> None:
        for publisher in (self._diagnostics, self._status, self._path, self._markers, self._feedback, self._result):
            self._node.destroy_publisher(publisher)


def spoken(robot: RobotProfile, ticked: Ticked | None) -> dict[str, Any]:
    """Of the last command, by axis: what was wanted and what was given, and the robot's bounds (`deploy/live/diagnosed.py`)."""
    axes = robot.command.names

    def by_axis(values: Any) -> dict[str, float]:
        return {} if values is None else dict(zip(axes, np.asarray(values, np.float64).tolist()))

    return {
        "axis": {"low": by_axis(robot.limits.low), "high": by_axis(robot.limits.high)},
        "wanted": by_axis(ticked.intent.action if ticked else None),
        "commanded": by_axis(ticked.command.values if ticked else None),
    }


def ask_for_fifo(priority: int) -> str:
    """SCHED_FIFO for the calling thread alone: of the whole process it would starve what it waits for. What came of it."""
    if priority < 1:
        return "not asked for"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError):
        return "not permitted"
    return f"yes, {priority}, thread {threading.get_native_id()}, since {time.monotonic():.0f} s"
