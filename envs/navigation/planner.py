"""Ways through a world: A* that would rather keep away from things, then a smooth path with its arc length.

cost of a cell    1 far from everything, up to 1 + KEEP_AWAY where the body's rim would be at `margin_m` or nearer
A*                8 neighbours, octile distance as the heuristic: consistent, because no cell costs less than 1
smoothing         a Gaussian along the path, narrower and narrower until the smooth path is as free as it must be
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.free_space import FreeSpace

SPACING_M = 0.05  # between points of a path
SAFETY_M = 0.06  # free space that a path leaves around the body
KEEP_AWAY = 6.0
SMOOTHING_M = (0.4, 0.25, 0.15, 0.08)  # standard deviations, tried in this order
_DIAGONAL = math.sqrt(2.0)


class NoPath(KineflowError):
    """There is no way from here to there for a body of that size."""


@dataclass(frozen=True, eq=False)
class Path:
    """A way on the floor: points x, y (m, world frame), about `SPACING_M` apart."""

    points: Float[np.ndarray, "N 2"]

    @cached_property
    def along(self) -> Float[np.ndarray, "N"]:
        """Arc length of each point from the start, m."""
        steps = np.hypot(*np.diff(self.points, axis=0).T)
        return np.concatenate([[0.0], np.cumsum(steps)])

    @cached_property
    def headings(self) -> Float[np.ndarray, "N"]:
        """Direction of travel at each point, rad, without jumps of 2 pi."""
        ahead = np.diff(self.points, axis=0)
        angles = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
        return np.concatenate([angles, angles[-1:]])

    @property
    def length(self) -> float:
        """Metres."""
        return float(self.along[-1])

    def at(self, along: float) -> tuple[float, float]:
        """The point at that arc length; beyond the end, straight on."""
        if along > self.length:
            x, y = self.points[-1]
            more, heading = along - self.length, float(self.headings[-1])
            return float(x) + more * math.cos(heading), float(y) + more * math.sin(heading)
        x, y = (float(np.interp(along, self.along, self.points[:, axis])) for axis in (0, 1))
        return x, y

    def project(self, x: float, y: float, around: float, back: float = 0.5, ahead: float = 1.5) -> float:
        """Arc length of the nearest point among those from `around - back` to `around + ahead`.

        A path may cross itself; looking only near where the body was keeps it on its own branch.
        """
        first = int(np.searchsorted(self.along, around - back))
        last = max(int(np.searchsorted(self.along, around + ahead, side="right")), first + 1)
        first = min(first, len(self.points) - 1)
        gaps = np.hypot(self.points[first:last, 0] - x, self.points[first:last, 1] - y)
        return float(self.along[first + int(gaps.argmin())])


def straight(points: Sequence[Sequence[float]] | Float[np.ndarray, "N 2"]) -> Path:
    """The path of straight lines through `points`, sampled."""
    corners = np.asarray(points, dtype=np.float64)[:, :2]
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    if not lengths[-1] > 0:
        raise KineflowError(f"a path through {corners.tolist()} has no length; give points that differ")
    samples = np.linspace(0.0, lengths[-1], max(2, round(lengths[-1] / SPACING_M) + 1))
    return Path(np.stack([np.interp(samples, lengths, corners[:, axis]) for axis in (0, 1)], axis=1))


class Planner:
    """Plans for one body in one world; makes its cost map once."""

    def __init__(self, space: FreeSpace, radius_m: float, margin_m: float = 0.35) -> None:
        self.space, self.radius_m = space, radius_m
        self._margin = margin_m
        self._costs = self._cost_map(space.clearance)
        self._flat: list[float] = self._costs.ravel().tolist()

    def plan(self, *places: Sequence[float], discs: Sequence[tuple[float, float, float]] = ()) -> Path:
        """A smooth free path through `places` (x, y in metres) in this order, from the first to the last of them.

        `discs` (x, y, radius) are obstacles that the world does not know, such as walkers where they are now. A place that is
        too close to something for the body is left, or reached, by the nearest cell that is not.

        Raises:
            NoPath: there is none.
        """
        clearance = self._with(discs) if discs else self.space.clearance
        costs = self._cost_map(clearance) if discs else self._costs
        flat: list[float] = costs.ravel().tolist() if discs else self._flat
        cells: list[int] = []
        for start, goal in itertools.pairwise(places):
            found = shortest(flat, costs.shape, self._free_cell(costs, start), self._free_cell(costs, goal))
            if found is None:
                raise NoPath(
                    f"no way for a body of {self.radius_m} m radius from {_said(start)} to {_said(goal)}; "
                    "choose places that are connected, or a world of lower density"
                )
            cells += found if not cells else found[1:]
        rows, columns = np.divmod(np.array(cells), costs.shape[1])
        points = np.stack([columns, rows], axis=1) * self.space.resolution_m + np.asarray(self.space.origin)
        return self._smooth(np.concatenate([[places[0][:2]], points[1:-1], [places[-1][:2]]]), clearance)

    def free_at(self, x: float, y: float) -> float:
        """Metres between the body's rim and the nearest obstacle with its centre there, to within a cell."""
        return self.space.clearance_at(x, y) - self.radius_m

    def _cost_map(self, clearance: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R C"]:
        room = clearance.astype(np.float64) - self.radius_m
        costs = 1.0 + KEEP_AWAY * np.clip(1.0 - room / self._margin, 0.0, 1.0) ** 2
        return np.where(room > SAFETY_M, costs, math.inf)

    def _with(self, discs: Sequence[tuple[float, float, float]]) -> Float[np.ndarray, "R C"]:
        rows, columns = self.space.occupied.shape
        x = self.space.origin[0] + np.arange(columns) * self.space.resolution_m
        y = self.space.origin[1] + np.arange(rows)[:, None] * self.space.resolution_m
        clearance = self.space.clearance
        for disc_x, disc_y, radius in discs:
            clearance = np.minimum(clearance, np.maximum(np.hypot(x - disc_x, y - disc_y) - radius, 0.0))
        return clearance

    def _free_cell(self, costs: Float[np.ndarray, "R C"], place: Sequence[float]) -> int:
        (row, column), width = self.space.cell(place[0], place[1]), int(costs.shape[1])
        if math.isfinite(costs[row, column]):
            return row * width + column
        rows, columns = np.nonzero(np.isfinite(costs))
        if len(rows) == 0:
            raise NoPath(f"nothing is free for a body of {self.radius_m} m radius; take a world of lower density")
        nearest = int(((rows - row) ** 2 + (columns - column) ** 2).argmin())
        return int(rows[nearest]) * width + int(columns[nearest])

    def _smooth(self, corners: Float[np.ndarray, "N 2"], clearance: Float[np.ndarray, "R C"]) -> Path:
        if len(corners) == 2 and np.allclose(corners[0], corners[1]):
            raise NoPath(f"{_said(corners[0])} is where the body is already; choose another place")
        sampled = straight(corners).points
        needed = self.radius_m + SAFETY_M
        for sigma in SMOOTHING_M:
            smooth = straight(_gaussian(sampled, sigma / SPACING_M)).points
            # The ends may be closer to something than a path should be: they were given.
            inner = smooth[(np.hypot(*(smooth - smooth[0]).T) > 0.3) & (np.hypot(*(smooth - smooth[-1]).T) > 0.3)]
            if all(clearance[self.space.cell(x, y)] > needed for x, y in inner.tolist()):
                return Path(smooth)
        return Path(sampled)


def shortest(costs: Sequence[float], shape: tuple[int, ...], start: int, goal: int) -> list[int] | None:
    """Cells of the cheapest way on a grid, from `start` to `goal` (A*); None where there is none.

    A step costs its length in cells times the mean of both cells' costs (`costs` row by row; inf: blocked). No cell may cost
    less than 1, and the rim of the grid must be blocked.
    """
    rows, columns = shape
    goal_row, goal_column = divmod(goal, columns)
    across, down = np.abs(np.arange(columns) - goal_column), np.abs(np.arange(rows) - goal_row)[:, None]
    estimate: list[float] = (np.maximum(across, down) + (_DIAGONAL - 1) * np.minimum(across, down)).ravel().tolist()
    moves = [(d, 1.0) for d in (1, -1, columns, -columns)]
    moves += [(d, _DIAGONAL) for d in (columns + 1, columns - 1, -columns + 1, -columns - 1)]
    moves = [(d, length / 2) for d, length in moves]
    spent = {start: 0.0}
    came: dict[int, int] = {}
    closed = bytearray(rows * columns)
    heap = [(estimate[start], start)]
    while heap:
        cell = heapq.heappop(heap)[1]
        if cell == goal:
            way = [cell]
            while cell in came:
                cell = came[cell]
                way.append(cell)
            return way[::-1]
        if closed[cell]:
            continue
        closed[cell] = 1
        so_far, here = spent[cell], costs[cell]
        for move, half in moves:
            neighbour = cell + move
            there = costs[neighbour]
            if there == math.inf or closed[neighbour]:
                continue
            total = so_far + half * (here + there)
            if total < spent.get(neighbour, math.inf):
                spent[neighbour] = total
                came[neighbour] = cell
                heapq.heappush(heap, (total + estimate[neighbour], neighbour))
    return None


def _gaussian(points: Float[np.ndarray, "N 2"], sigma: float) -> Float[np.ndarray, "N 2"]:
    """Smoothed along the path; both ends stay, because beyond them the path is continued by its own mirror image."""
    reach = min(int(4 * sigma), len(points) - 1)
    before, after = 2 * points[0] - points[reach:0:-1], 2 * points[-1] - points[-2 : -reach - 2 : -1]
    smooth = ndimage.gaussian_filter1d(np.concatenate([before, points, after]), sigma, axis=0, mode="nearest")
    kept: Float[np.ndarray, "N 2"] = smooth[reach : reach + len(points)]
    kept[0], kept[-1] = points[0], points[-1]
    return kept


def _said(place: Sequence[float]) -> str:
    return f"({place[0]:.2f}, {place[1]:.2f})"
