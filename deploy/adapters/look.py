"""What a robot's profile means, and whether the robot is there. Listens, and for a G1 asks for its state; commands nothing."""

from __future__ import annotations

import time
from typing import Any

from kineflow.deploy.adapters.opening import NATIVE, open_robot
from kineflow.deploy.robot_profile import RobotProfile


def look(profile: RobotProfile, seconds: float) -> dict[str, Any]:
    """Plain values; `waits` says why the robot would not take motion, or is "". Returns early when it would.

    Raises:
        KineflowError: the SDK is not installed; the address cannot be used.
    """
    limits = profile.limits
    found: dict[str, Any] = {
        "robot": profile.name,
        "adapter": profile.adapter,
        "kind": profile.kind,
        "safe_state": profile.safe_state,
        "rate_hz": profile.rate_hz,
        "limits": {n: [low, high] for n, low, high in zip(profile.command.names, limits.low, limits.high)},
        "waits": "",
    }
    if profile.adapter not in NATIVE:
        return {**found, "link": "topics of the ROS 2 node"}
    robot = open_robot(profile)
    try:
        until = time.monotonic() + seconds
        while robot.waits(time.monotonic()) and time.monotonic() < until:
            time.sleep(0.02)
        now = time.monotonic()
        state = {key: value if value not in (float("inf"), None) else "never" for key, value in robot.state(now).items()}
        return {**found, "waits": robot.waits(now), "link": "UDP" if profile.adapter == "mavlink" else "RPC", **state}
    finally:
        robot.close()
