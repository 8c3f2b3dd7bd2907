"""Scenes without a robot, and a camera that can be put anywhere in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import mujoco
import numpy as np

from kineflow.envs.navigation.scene import Scene, build_scene
from kineflow.envs.navigation.world import World, WorldConfig, generate_world

SIZE = 48


@functools.cache
def world(kind: str = "indoor", seed: int = 0, movers: int = 0) -> World:
    return generate_world(WorldConfig(kind=kind, seed=seed, movers=movers))  # type: ignore[arg-type]


@functools.cache
def scene(kind: str = "indoor", seed: int = 0, movers: int = 0) -> Scene:
    """One scene for many tests: who changes its model changes it back."""
    return build_scene(world(kind, seed, movers))


def look(scene: Scene, pose: Sequence[float]) -> None:
    """Put the camera's carrier at x, y, yaw."""
    x, y, yaw = pose
    body = scene.model.body_mocapid[scene.model.body("robot/base").id]
    scene.data.mocap_pos[body] = x, y, 0.0
    scene.data.mocap_quat[body] = math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)
    mujoco.mj_forward(scene.model, scene.data)


def poses(scene: Scene, count: int = 3, seed: int = 0) -> list[tuple[float, float, float]]:
    """Free places and headings."""
    generator = np.random.default_rng(seed)
    points = scene.world.free_space.sample(generator, 0.5, count)
    return [(float(x), float(y), float(generator.uniform(-math.pi, math.pi))) for x, y in points]


def simple_model(geoms: str = "", camera: str = 'pos="0 0 0.5" xyaxes="0 -1 0 0 0 1"', fovy: float = 60.0) -> mujoco.MjModel:
    """A lit floor with some geoms and a camera "front", at the origin half a metre up, looking along x."""
    return mujoco.MjModel.from_xml_string(
        f"""<mujoco><statistic extent="1"/><visual><map znear="0.02" zfar="100"/><headlight active="0"/>
        <quality numslices="64" numstacks="64"/></visual>
        <worldbody><light type="directional" dir="0.3 0.2 -1" diffuse="0.6 0.6 0.6" ambient="0.3 0.3 0.3" specular="0 0 0"/>
        <geom name="floor" type="plane" size="30 30 30" rgba="0.5 0.4 0.3 1"/>{geoms}
        <camera name="front" {camera} fovy="{fovy}"/></worldbody></mujoco>"""
    )
