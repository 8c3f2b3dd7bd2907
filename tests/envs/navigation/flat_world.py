"""A robot on an endless floor, and how well it does what it is told."""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np

from kineflow.envs.navigation.embodiments.embodiment import Embodiment, Robot, attach

STOP = (0.0, 0.0, 0.0, 0.0)


def on_floor(embodiment: Embodiment, wall_x: float | None = None) -> Robot:
    """The robot in a world with "floor" and, at `wall_x`, a wall across the x axis named "wall"."""
    world = mujoco.MjSpec()
    world.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[20, 20, 5])
    if wall_x is not None:
        box = mujoco.mjtGeom.mjGEOM_BOX
        world.worldbody.add_geom(name="wall", type=box, size=[0.1, 5, 1.5], pos=[wall_x + 0.1, 0, 1.5])
    attach(world, embodiment)
    model = world.compile()
    return embodiment.bind(model, mujoco.MjData(model))


def drive(robot: Robot, command: tuple[float, ...], steps: int) -> np.ndarray:
    """Velocities `[steps, 4]` measured after each control step of holding `command`."""
    measured = []
    for _ in range(steps):
        robot.drive(np.array(command, dtype=np.float32))
        measured.append(robot.velocity())
    return np.array(measured)


def steady(robot: Robot, command: tuple[float, ...], settle: int = 20, steps: int = 5, yaw: float = 0.0) -> np.ndarray:
    """Mean velocity `[4]` from a new start, once the robot has had `settle` control steps to get there."""
    robot.start(0.0, 0.0, yaw)
    drive(robot, command, settle)
    return drive(robot, command, steps).mean(axis=0)


def state_after(robot: Robot, commands: Iterable[tuple[float, ...]], x: float = 0.0) -> bytes:
    """Every bit of the state after a new start and these commands."""
    robot.start(x, 0.0, 0.3)
    for command in commands:
        robot.drive(np.array(command, dtype=np.float32))
    return robot.data.qpos.tobytes() + robot.data.qvel.tobytes() + robot.data.act.tobytes()


def position(robot: Robot) -> np.ndarray:
    """Where the base is `[3]`, m."""
    return np.array(robot.data.xpos[robot.base])
