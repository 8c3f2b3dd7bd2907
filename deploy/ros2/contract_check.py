"""Whether policy, robot and topics belong together: every mismatch that can be seen before anything is published."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kineflow.contracts import ContractError, PolicyContract
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.node_config import FeatureTopic, NodeConfig

_SIZES = {"odometry_velocity": 4, "odometry_pose": 7}


def check(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> None:
    """Raises ContractError with one line per mismatch: the thing, both values, the remedy."""
    problems = [*_cameras(contract, config), *_features(contract, config), *_action(contract, robot, config)]
    problems += _watchdogs(robot, config)
    if problems:
        raise ContractError(f"policy '{config.policy}' and robot '{robot.name}' do not match:\n  " + "\n  ".join(problems))


def _cameras(contract: PolicyContract, config: NodeConfig) -> Iterator[str]:
    for name, spec in contract.interface.cameras.items():
        topic = config.cameras.get(name)
        if topic is None:
            yield f"camera '{name}': the policy needs it, the node has {sorted(config.cameras)}; add cameras.{name} or rename one"
        elif topic.rate_hz < 0.99 * spec.rate_hz:
            yield (
                f"camera '{name}': the policy sees {spec.rate_hz:g} Hz, topic '{topic.topic}' has {topic.rate_hz:g} Hz; publish "
                "faster, or train at that rate"
            )
    for name in set(config.cameras) - set(contract.interface.cameras):
        yield f"camera '{name}': the policy has none of that name but {sorted(contract.interface.cameras)}; remove or rename it"


def _features(contract: PolicyContract, config: NodeConfig) -> Iterator[str]:
    for name, spec in contract.interface.features.items():
        topic = config.features.get(name)
        if topic is None:
            yield f"feature '{name}': the policy needs it, the node has {sorted(config.features)}; add features.{name}"
            continue
        size = _size(topic, spec.vector.size)
        if size != spec.vector.size:
            yield f"feature '{name}': {topic.kind} gives {size} values, the policy takes {spec.vector.names}; map another kind"
        if topic.kind != "constant" and topic.rate_hz < 0.99 * spec.rate_hz:
            yield f"feature '{name}': the policy sees {spec.rate_hz:g} Hz, '{topic.topic}' has {topic.rate_hz:g}; publish faster"
    for name in set(config.features) - set(contract.interface.features):
        yield f"feature '{name}': the policy has none of that name but {sorted(contract.interface.features)}; remove or rename it"


def _size(topic: FeatureTopic, wanted: int) -> int:
    return len(topic.values) if topic.kind == "constant" else _SIZES.get(topic.kind, wanted)


def _action(contract: PolicyContract, robot: RobotProfile, config: NodeConfig) -> Iterator[str]:
    mine, axes = contract.interface.action.vector, robot.command
    for what, policy, body in (
        ("axes", mine.names, axes.names),
        ("units", mine.units, axes.units),
        ("frame", mine.frame, axes.frame),
    ):
        if policy != body:
            yield f"action: {what} are {policy} in the policy and {body} of the robot; take the robot's own policy or profile"
    if robot.rate_hz < 0.99 * contract.interface.action.rate_hz:
        yield (
            f"action: the policy acts at {contract.interface.action.rate_hz:g} Hz, the node sends {robot.rate_hz:g} commands a "
            "second; raise the robot's rate_hz"
        )
    if config.action_limits == "same" and mine.names == axes.names:
        for name, low, high, least, most in zip(mine.names, mine.low, mine.high, robot.limits.low, robot.limits.high):
            if not (math.isclose(low, least, abs_tol=1e-5) and math.isclose(high, most, abs_tol=1e-5)):
                yield (
                    f"action '{name}': {low:g}..{high:g} in the policy, {least:g}..{most:g} of the robot; say "
                    "action_limits: clamped when the governor may cut it"
                )


def _watchdogs(robot: RobotProfile, config: NodeConfig) -> Iterator[str]:
    if robot.watchdogs.estop and not config.estop_topic:
        yield "estop: the robot's profile wants an e-stop source; name estop_topic, or say watchdogs.estop: false there"
    if math.isfinite(robot.watchdogs.supervisor_s) and not config.supervisor_topic:
        yield "supervisor: the robot's profile watches one; name supervisor_topic, or say watchdogs.supervisor_s: .inf there"
    if robot.keep_out and not (config.scan_topic or config.depths):
        yield "keep_out: the robot's profile wants ranges; name scan_topic or depths, or leave keep_out out of the profile"
    if config.depths and not robot.keep_out:
        yield f"depths: {sorted(config.depths)} keep out of obstacles, and the robot's profile has no keep_out; add it there"
    if robot.geofence and not config.pose_topic:
        yield "geofence: the robot's profile wants the pose; name pose_topic, or leave geofence out of the profile"
