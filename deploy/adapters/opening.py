"""Which robot the adapter of a profile means, where it needs no ROS.

mavlink                                              MAVLink over UDP: mavlink.py
g1                                                   Unitree's locomotion service: g1.py
twist, twist_stamped, px4, joint_trajectory, path    topics: deploy/ros2/robots.py
"""

from __future__ import annotations

from kineflow.deploy.adapters.g1 import G1
from kineflow.deploy.adapters.mavlink import Mavlink
from kineflow.deploy.adapters.robot import Robot
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.interface import KineflowError

NATIVE = ("mavlink", "g1")


def open_robot(profile: RobotProfile) -> Robot:
    """Raises:
    KineflowError: the adapter is one of topics; the SDK is not installed; the address cannot be used.
    """
    if profile.adapter == "mavlink":
        return Mavlink(profile)
    if profile.adapter == "g1":
        return G1.open(profile)
    raise KineflowError(f"robot '{profile.name}' has adapter '{profile.adapter}', which is topics: run it by the ROS 2 node")
