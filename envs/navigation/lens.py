"""Cameras for people on a scene: the body's own, drawn larger than the policy sees it, and one that follows the body.

The renderers are opened at the first picture, so that those who want none pay nothing. Drawing leaves the scene as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from kineflow.envs.navigation.rendering.backend import open_renderer
from kineflow.envs.navigation.stage import Stage

BEHIND_M, BODIES = 1.5, 0.7  # how far away the follower is: metres, and heights of the body more
ABOVE_RAD, BESIDE_RAD = 0.42, 0.45  # at which angles up, and off the way behind
FOLLOWER_FOV_DEG = 52.0
OFF_WALLS_M = 0.12
NEAREST_M = 0.5


class Lens:
    """Of one stage; close it before the stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._renderers: dict[tuple[int, int], Any] = {}

    def picture(self, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        """What the body's camera sees, smoother than the policy's: drawn at twice the size where that is cheap."""
        scene = self._stage.scene
        drawn = self._renderer(width, height).rgb(scene.data, scene.camera)
        return np.asarray(cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def follower(self, width: int, height: int, heading: float) -> UInt8[np.ndarray, "height width 3"]:
        """The body from behind and above, where `heading` (rad) is forward; nearer where a wall is in the way."""
        with self._camera_at(*self._behind(heading)):
            return self.picture(width, height)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}

    def _renderer(self, width: int, height: int) -> Any:
        if (width, height) not in self._renderers:
            scene, backend = self._stage.scene, self._stage.picture_spec.backend
            renderer = open_renderer(scene.model, 2 * width, 2 * height, backend)
            if renderer.backend == "ray":  # four times the rays are four times the time
                renderer = open_renderer(scene.model, width, height, "ray")
            self._renderers[width, height] = renderer
        return self._renderers[width, height]

    def _behind(self, heading: float) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position, and axes right, up, backward (MuJoCo's) as columns."""
        x, y, z = self._stage.position
        # At a body on the ground one looks at its middle, at a flying one as it is.
        middle = np.array([x, y, max(z, 0.5 * self._stage.embodiment.height_m)])
        angle = heading + math.pi - BESIDE_RAD
        away = np.array([math.cos(ABOVE_RAD) * math.cos(angle), math.cos(ABOVE_RAD) * math.sin(angle), math.sin(ABOVE_RAD)])
        across = np.array([-math.sin(angle), math.cos(angle), 0.0])
        distance = max(
            min(BEHIND_M + BODIES * self._stage.embodiment.height_m, self._free(middle, away) - OFF_WALLS_M), NEAREST_M
        )
        return middle + distance * away, np.stack([across, np.cross(away, across), away], axis=1)

    def _free(self, start: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]) -> float:
        """Metres from a point inside the body to the first thing that is not the body."""
        scene, own, along = self._stage.scene, self._stage.robot.geoms, 0.0
        struck = np.zeros(1, np.int32)
        for _ in range(12):
            gap = float(mujoco.mj_ray(scene.model, scene.data, start + along * direction, direction, None, 1, -1, struck))
            if gap < 0:
                return math.inf
            along += gap
            if int(struck[0]) not in own:
                return along
            along += 1e-3
        return along

    @contextmanager
    def _camera_at(self, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]) -> Iterator[None]:
        """The body's camera elsewhere for a moment: renderers know a model's cameras alone, and worlds have just this one."""
        scene = self._stage.scene
        number = scene.model.camera(scene.camera).id
        places = (scene.data.cam_xpos[number], scene.data.cam_xmat[number], scene.model.cam_fovy[number : number + 1])
        kept = [place.copy() for place in places]
        try:
            for place, value in zip(places, (position, rotation.ravel(), FOLLOWER_FOV_DEG)):
                place[:] = value
            yield
        finally:
            for place, value in zip(places, kept):
                place[:] = value
