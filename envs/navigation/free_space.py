"""Where a robot can be: distance to the nearest obstacle on a grid, what is reachable, and points drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.shapes import Block


@dataclass(frozen=True, eq=False)
class FreeSpace:
    """A grid over the floor. Cell (row, column) is the square around (x, y) = origin + resolution * (column, row), metres."""

    occupied: Bool[np.ndarray, "R C"]
    origin: tuple[float, float]
    resolution_m: float

    @cached_property
    def clearance(self) -> Float[np.ndarray, "R C"]:
        """Metres from each cell's centre to the nearest occupied cell, float32; 0 on obstacles."""
        return np.asarray(ndimage.distance_transform_edt(~self.occupied) * self.resolution_m, np.float32)

    def inflated(self, inflate_m: float) -> Bool[np.ndarray, "R C"]:
        """Occupied cells after growing every obstacle by `inflate_m`."""
        return np.asarray(self.clearance <= inflate_m)

    def reachable(self, inflate_m: float) -> Bool[np.ndarray, "R C"]:
        """The largest connected (4-neighbour) part of what is free after growing obstacles by `inflate_m`."""
        return largest_part(~self.inflated(inflate_m))

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of a point, clipped to the grid."""
        rows, columns = self.occupied.shape
        column = round((x - self.origin[0]) / self.resolution_m)
        row = round((y - self.origin[1]) / self.resolution_m)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def point(self, row: int, column: int) -> tuple[float, float]:
        """Centre of a cell in the world frame, metres."""
        return self.origin[0] + column * self.resolution_m, self.origin[1] + row * self.resolution_m

    def clearance_at(self, x: float, y: float) -> float:
        """Metres to the nearest obstacle around a point, to within a cell."""
        return float(self.clearance[self.cell(x, y)])

    def sample(self, generator: np.random.Generator, inflate_m: float, count: int = 1) -> Float[np.ndarray, "N 2"]:
        """Points x, y (m) drawn evenly from `reachable(inflate_m)`.

        Raises:
            KineflowError: nothing is free for a body that large.
        """
        cells = np.flatnonzero(self.reachable(inflate_m))
        if len(cells) == 0:
            raise KineflowError(
                f"no free point with {inflate_m} m around it; take a smaller inflate_m or a world of lower density"
            )
        rows, columns = np.divmod(generator.choice(cells, count), self.occupied.shape[1])
        jitter = generator.uniform(-0.5, 0.5, (count, 2))
        return np.asarray(self.origin) + (np.stack([columns, rows], axis=-1) + jitter) * self.resolution_m

    def is_clear(self, start: Sequence[float], end: Sequence[float], inflate_m: float) -> bool:
        """Whether a disc of radius `inflate_m` passes along the straight line from `start` to `end` (x, y in metres)."""
        length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
        steps = np.linspace(0.0, 1.0, max(2, int(2 * length / self.resolution_m)))[:, None]
        points = np.asarray(start)[None, :2] * (1 - steps) + np.asarray(end)[None, :2] * steps
        return bool((self.clearance[tuple(self._cells(points).T)] > inflate_m).all())

    def _cells(self, points: Float[np.ndarray, "N 2"]) -> Int[np.ndarray, "N 2"]:
        cells = np.rint((points - np.asarray(self.origin)) / self.resolution_m).astype(np.int64)[:, ::-1]
        return np.asarray(np.clip(cells, 0, np.asarray(self.occupied.shape) - 1))


def largest_part(free: Bool[np.ndarray, "R C"]) -> Bool[np.ndarray, "R C"]:
    """The largest 4-connected part of `free`."""
    labels, count = ndimage.label(free)
    if count == 0:
        return np.zeros_like(free)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def rasterise(
    blocks: Sequence[Block],
    bounds: tuple[float, float, float, float],
    resolution_m: float,
    band_m: tuple[float, float] = (0.03, 1.9),
) -> FreeSpace:
    """Footprints of the solid blocks that reach into heights `band_m`; everything on the rim of `bounds` is occupied."""
    x0, y0, x1, y1 = bounds
    columns, rows = round((x1 - x0) / resolution_m) + 1, round((y1 - y0) / resolution_m) + 1
    occupied = np.zeros((rows, columns), dtype=bool)
    occupied[[0, -1]] = True
    occupied[:, [0, -1]] = True
    for block in blocks:
        bottom, top = block.position[2] - block.half_size[2], block.position[2] + block.half_size[2]
        if block.solid and bottom < band_m[1] and top > band_m[0]:
            mark(occupied, block, (x0, y0), resolution_m, 0.0)
    return FreeSpace(occupied, (x0, y0), resolution_m)


def mark(grid: Bool[np.ndarray, "R C"], block: Block, origin: tuple[float, float], resolution_m: float, inflate_m: float) -> None:
    """Set the cells within `inflate_m` (plus half a cell) of the block's footprint."""
    grow = inflate_m + 0.5 * resolution_m
    x, y = block.position[:2]
    reach_x, reach_y = block.reach
    first_column = max(int((x - reach_x - grow - origin[0]) / resolution_m), 0)
    first_row = max(int((y - reach_y - grow - origin[1]) / resolution_m), 0)
    last_column = int((x + reach_x + grow - origin[0]) / resolution_m) + 2
    last_row = int((y + reach_y + grow - origin[1]) / resolution_m) + 2
    part = grid[first_row:last_row, first_column:last_column]
    if part.size == 0:
        return
    dx = (origin[0] + (first_column + np.arange(part.shape[1])) * resolution_m - x)[None, :]
    dy = (origin[1] + (first_row + np.arange(part.shape[0])) * resolution_m - y)[:, None]
    part |= block.distance(dx, dy) <= grow
