"""A robot to test against: MuJoCo's wheeled base as a ROS process of its own, in real time.

    front        sensor_msgs/Image 640x480 rgb8, 30 Hz, best effort        cmd_vel   TwistStamped, the last one is kept for ever
    odom         nav_msgs/Odometry, 50 Hz                                  fault     std_msgs/String, see `_FAULTS`
    scan         sensor_msgs/LaserScan, 10 Hz                              /clock    with --clock: simulated time

It has no command timeout on purpose: what stops it is what is tested. `--draw none` publishes a moving pattern instead of what
the camera sees: drawing without a GPU takes a third of a core.
"""

from __future__ import annotations

import argparse
import array
import math
import sys
import threading
import time
from typing import Any

import mujoco
import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, LaserScan
from std_msgs.msg import String

from kineflow.deploy.ros2.messages import to_time
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.envs.navigation.embodiments.embodiment import attach
from kineflow.envs.navigation.embodiments.wheeled import TRACK_M, WHEEL_RADIUS_M, Wheeled
from kineflow.envs.navigation.rendering.backend import open_renderer

SCAN_HZ, CLOCK_HZ = 10.0, 100.0
# camera on|off|half   odom on|off   scan on|off   stamp SECONDS (added to every header)   clock run|freeze|SECONDS (a jump)
_FAULTS = ("camera", "odom", "scan", "stamp", "clock")


def room(seed: int = 0) -> tuple[Any, Any, Any]:
    """Model, data and robot: a floor with boxes beside a free lane along x."""
    spec, rng = mujoco.MjSpec(), np.random.default_rng(seed)
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[20, 20, 0.1], rgba=[0.6, 0.6, 0.55, 1])
    for _ in range(10):
        x, y = rng.uniform(-2, 8), rng.uniform(2, 4) * rng.choice([-1, 1])
        colour = [*rng.uniform(0.2, 0.9, 3).tolist(), 1.0]
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.3, 0.3, 0.5], pos=[x, y, 0.5], rgba=colour)
    spec.worldbody.add_light(pos=[0, 0, 5])
    body = Wheeled()
    attach(spec, body)
    model = spec.compile()
    data = mujoco.MjData(model)
    robot = body.bind(model, data)
    robot.start(0.0, 0.0, 0.0)
    return model, data, robot


class Base:
    """The body alone: wheel speeds from a twist, physics in steps."""

    def __init__(self) -> None:
        self.model, self.data, self.robot = room()
        self._wheels = [self.robot.id_of(mujoco.mjtObj.mjOBJ_ACTUATOR, f"{side}_wheel") for side in ("left", "right")]
        self.command = (0.0, 0.0)

    def advance(self, seconds: float) -> None:
        vx, yaw_rate = self.command
        turn = yaw_rate * TRACK_M / 2
        for wheel, speed in zip(self._wheels, (vx - turn, vx + turn)):
            self.data.ctrl[wheel] = speed / WHEEL_RADIUS_M
        for _ in range(round(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)

    def ranges(self, angles: np.ndarray) -> np.ndarray:
        """Metres from the base's middle at 0.2 m of height, infinite where nothing is within 10 m."""
        x, y = self.data.xpos[self.robot.base][:2]
        found = []
        for angle in angles + self.robot.yaw:
            geom = np.zeros(1, np.int32)
            direction = np.array([math.cos(angle), math.sin(angle), 0.0])
            start = np.array([x, y, 0.2]) + 0.3 * direction  # outside the body
            metres = mujoco.mj_ray(self.model, self.data, start, direction, None, 1, -1, geom)
            found.append(metres + 0.3 if 0 <= metres < 9.7 else math.inf)
        return np.array(found)


class BaseNode(Node):  # type: ignore[misc]
    """See the module. Physics and camera have a thread each; the ROS thread hears commands and faults."""

    def __init__(self, context: Any, options: argparse.Namespace) -> None:
        super().__init__("base", context=context)
        self.ending = threading.Event()
        self.base, self._lock, self._options = Base(), threading.Lock(), options
        self._on = {"camera": 1.0, "odom": 1.0, "scan": 1.0}
        self._shift = self._jump = 0.0
        self._frozen_s: float | None = None
        quality = profile(Quality(options.reliable))
        self._front = self.create_publisher(Image, "front", quality)
        self._odom = self.create_publisher(Odometry, "odom", profile(Quality(True)))
        self._scan = self.create_publisher(LaserScan, "scan", profile(Quality(False)))
        self._clock = self.create_publisher(Clock, "/clock", profile(Quality(False))) if options.clock else None
        self.create_subscription(TwistStamped, "cmd_vel", self._on_command, profile(Quality(True)))
        self.create_subscription(String, "fault", self._on_fault, profile(Quality(True, depth=10)))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._drive, self._film)]
        if self._clock:
            self._threads.append(threading.Thread(target=self._tell_time, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop_now(self) -> None:
        self.ending.set()
        for thread in self._threads:
            thread.join(2.0)

    def _now(self) -> float:
        if not self._clock:
            return time.time()
        return (time.monotonic() if self._frozen_s is None else self._frozen_s) + self._jump + 1000.0

    def _stamp(self) -> Any:
        return to_time(self._now() + self._shift)

    def _on_command(self, message: Any) -> None:
        self.base.command = (message.twist.linear.x, message.twist.angular.z)

    def _on_fault(self, message: Any) -> None:
        what, _, value = message.data.partition(" ")
        if what == "clock":
            self._frozen_s = time.monotonic() if value == "freeze" else None
            self._jump += float(value) if value not in ("run", "freeze") else 0.0
        elif what == "stamp":
            self._shift = float(value)
        else:
            self._on[what] = {"on": 1.0, "half": 0.4, "off": 0.0}[value]

    def _every(self, rate_hz: float) -> Any:
        """Absolute times; what was missed is not made up for."""
        due = time.monotonic()
        while not self.ending.is_set():
            yield
            due = max(due + 1 / rate_hz, time.monotonic() - 1 / rate_hz)
            self.ending.wait(max(due - time.monotonic(), 0.0))

    def _drive(self) -> None:
        angles = np.linspace(-math.pi / 2, math.pi / 2, 61)
        rate_hz = self._options.odometry_rate
        for count, _ in enumerate(self._every(rate_hz)):
            with self._lock:
                self.base.advance(1 / rate_hz)
            if self._on["odom"]:
                self._odom.publish(self._odometry())
            if self._on["scan"] and count % max(round(rate_hz / SCAN_HZ), 1) == 0:
                self._scan.publish(self._scanned(angles))

    def _odometry(self) -> Any:
        robot, message = self.base.robot, Odometry()
        message.header.stamp, message.header.frame_id, message.child_frame_id = self._stamp(), "odom", "base_link"
        x, y, z = self.base.data.xpos[robot.base].tolist()
        vx, vy, vz, yaw_rate = robot.motion()
        pose, twist = message.pose.pose, message.twist.twist
        pose.position.x, pose.position.y, pose.position.z = x, y, z
        pose.orientation.z, pose.orientation.w = math.sin(robot.yaw / 2), math.cos(robot.yaw / 2)
        twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.z = vx, vy, vz, yaw_rate
        return message

    def _scanned(self, angles: np.ndarray) -> Any:
        message = LaserScan(angle_min=angles[0], angle_max=angles[-1], angle_increment=angles[1] - angles[0])
        message.header.stamp, message.header.frame_id = self._stamp(), "base_link"
        message.range_min, message.range_max = 0.05, 10.0
        message.ranges = self.base.ranges(angles).astype(np.float32).tolist()
        return message

    def _film(self) -> None:
        options, number = self._options, 0
        width, height = options.width, options.height
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.header.frame_id = "front_camera"
        draws, copy = options.draw != "none", mujoco.MjData(self.base.model)
        scale = 4 if options.draw == "coarse" else 1
        renderer = open_renderer(self.base.model, width // scale, height // scale) if draws else None
        pattern = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for _ in self._every(options.rate):
            number += 1
            if not self._on["camera"] or (self._on["camera"] < 1 and number % 3):
                continue
            stamp, picture = self._stamp(), pattern
            if renderer is not None:
                with self._lock:
                    copy.qpos[:] = self.base.data.qpos
                mujoco.mj_kinematics(self.base.model, copy)
                mujoco.mj_camlight(self.base.model, copy)
                small = renderer.rgb(copy, "robot/front")
                picture = small if scale == 1 else small.repeat(scale, axis=0).repeat(scale, axis=1)
            else:
                pattern[number % height] ^= 255
            message.header.stamp, message.data = stamp, array.array("B", picture.tobytes())
            self._front.publish(message)
        if renderer is not None:
            renderer.close()

    def _tell_time(self) -> None:
        assert self._clock is not None
        for _ in self._every(CLOCK_HZ):
            self._clock.publish(Clock(clock=to_time(self._now())))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--draw", choices=["full", "coarse", "none"], default="full", help="coarse: a quarter of the size, enlarged"
    )
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--rate", type=float, default=30.0, help="pictures a second")
    parser.add_argument("--odometry-rate", type=float, default=50.0, help="odometry messages and physics steps a second")
    parser.add_argument("--reliable", action="store_true")
    parser.add_argument("--clock", action="store_true")
    options, rest = parser.parse_known_args()
    return run_process(lambda context: BaseNode(context, options), rest)


if __name__ == "__main__":
    sys.exit(main())
