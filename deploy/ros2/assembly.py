"""Executor and governor of one robot, put together from its configuration: the same for the node and for a replayed bag."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kineflow.contracts import PolicyContract
from kineflow.deploy.control import Control
from kineflow.deploy.executor import Executor
from kineflow.deploy.governor import Governor
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.governed import Governed
from kineflow.deploy.ros2.node_config import NodeConfig


@dataclass(frozen=True)
class Assembly:
    """`governed` is the governor as a person may hold it still; `control` joins it with the executor."""

    governor: Governor
    governed: Governed
    control: Control


def assemble(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> Assembly:
    """Ages of observations and of stamps are the robot's, not the executor's own.

    Raises:
        ContractError: a way of executing that this policy cannot do.
    """
    limits = replace(
        config.executor.observations,
        max_age_s=robot.watchdogs.observation_s,
        max_stamp_age_s=robot.watchdogs.stamp_age_s,
        max_stamp_ahead_s=robot.watchdogs.stamp_ahead_s,
    )
    governor = Governor(robot)
    governed = Governed(governor)
    return Assembly(governor, governed, Control(Executor(contract, replace(config.executor, observations=limits)), governed))
