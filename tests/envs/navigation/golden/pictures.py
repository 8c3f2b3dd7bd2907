"""Pictures that the ray renderer is held to. To write them anew: `python -m tests.envs.navigation.golden.pictures`, then look."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from kineflow.envs.navigation.rendering.ray import RayRenderer
from tests.envs.navigation.views import look, scene, simple_model

GOLDEN = ("shapes", "indoor", "outdoor")


def golden_picture(name: str) -> np.ndarray:
    """uint8 [48, 48, 3]."""
    if name == "shapes":
        model = simple_model(
            """<geom type="box" pos="2 0.6 0.4" size="0.3 0.4 0.4" euler="0 0 30" rgba="0.8 0.2 0.1 1"/>
            <geom type="sphere" pos="1.6 -0.4 0.3" size="0.3" rgba="0.1 0.4 0.8 1"/>
            <geom type="cylinder" pos="2.6 -0.9 0.6" size="0.2 0.6" rgba="0.2 0.7 0.2 1"/>
            <geom type="capsule" pos="2.4 0.05 0.7" size="0.12 0.4" euler="20 30 0" rgba="0.8 0.7 0.1 1"/>
            <geom type="ellipsoid" pos="3 1.4 0.8" size="0.3 0.5 0.8" rgba="0.5 0.2 0.6 1"/>"""
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        return RayRenderer(model, 48, 48).rgb(data, "front")
    here = scene(name, 1)
    look(here, here.world.goals[1].stand_off)
    return RayRenderer(here.model, 48, 48).rgb(here.data, here.camera)


if __name__ == "__main__":
    for name in GOLDEN:
        np.save(Path(__file__).parent / f"{name}.npy", golden_picture(name))
