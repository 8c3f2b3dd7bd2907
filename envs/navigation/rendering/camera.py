"""A camera of a model: by its name, and which geoms cannot be in its picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float32, Int64

from kineflow.contracts import KineflowError

HIDDEN_GROUP = 5  # of MuJoCo's six geom groups, one that no picture shows


def camera_id(model: Any, camera: str) -> int:
    """Id of a camera by name.

    Raises:
        KineflowError: the model has none of that name.
    """
    number = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera))
    if number < 0:
        raise KineflowError(f"the model has no camera '{camera}'; it has {[model.camera(i).name for i in range(model.ncam)]}")
    return number


class Culling:
    """Leaves out what lies wholly beside or behind the view. A picture costs per geom, and MuJoCo draws all there are.

    The view is cut into `tiles` x `tiles` parts, row by row from the top left, each with its own answer.
    """

    def __init__(self, model: Any, width: int, height: int, tiles: int = 1) -> None:
        self._model = model
        self._aspect = width / height
        self._edges = [tile_edges(size, tiles) / size * 2 - 1 for size in (width, height)]
        boxes = np.asarray(model.geom_aabb, np.float32)
        self._middle, self._half = boxes[:, :3], boxes[:, 3:]
        self._has_end = model.geom_type != int(mujoco.mjtGeom.mjGEOM_PLANE)
        self._sides: dict[tuple[int, float], Float32[np.ndarray, "3 S"]] = {}

    def outside(self, data: Any, camera: int) -> Bool[np.ndarray, "T G"]:
        """Per tile, the geoms whose bounding box lies beyond one of the tile's four sides."""
        sides = data.cam_xmat[camera].reshape(3, 3).astype(np.float32) @ self._normals(camera)
        axes = data.geom_xmat.reshape(-1, 3, 3).astype(np.float32)
        along = np.swapaxes(axes, 1, 2) @ sides  # [G, 3, S]
        reach = np.einsum("gi,gis->gs", self._half, np.abs(along)) + np.einsum("gi,gis->gs", self._middle, along)
        offsets = (data.geom_xpos - data.cam_xpos[camera]).astype(np.float32) @ sides
        # A millimetre of slack for the rounding of both sides.
        beyond = (offsets + reach < -1e-3) & self._has_end[:, None]
        return np.asarray(beyond.reshape(len(beyond), -1, 4).any(axis=2).T)

    @contextmanager
    def hiding(self, hidden: Bool[np.ndarray, "G"]) -> Iterator[None]:
        """While it lasts these geoms are in a group that is not drawn."""
        groups = self._model.geom_group
        kept = groups.copy()
        groups[hidden] = HIDDEN_GROUP
        try:
            yield
        finally:
            groups[:] = kept

    def _normals(self, camera: int) -> Float32[np.ndarray, "3 S"]:
        """Inward normals of the tiles' left, right, top and bottom in MuJoCo's camera axes (right, up, backward), as columns."""
        fovy = float(self._model.cam_fovy[camera])
        if (camera, fovy) not in self._sides:
            if len(self._sides) > 8:
                self._sides.clear()
            up = math.tan(math.radians(fovy) / 2)
            across, down = self._edges[0] * up * self._aspect, self._edges[1] * up
            sides = [
                ((1.0, 0.0, left), (-1.0, 0.0, -right), (0.0, -1.0, top), (0.0, 1.0, -bottom))
                for top, bottom in itertools.pairwise(down)
                for left, right in itertools.pairwise(across)
            ]
            normals = np.array(sides, np.float32).reshape(-1, 3)
            self._sides[camera, fovy] = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).T
        return self._sides[camera, fovy]


def tile_edges(size: int, tiles: int) -> Int64[np.ndarray, "E"]:
    """Where tiles begin and end along a side of `size` pixels."""
    return np.linspace(0, size, min(tiles, size) + 1).round().astype(np.int64)
