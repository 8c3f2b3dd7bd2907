"""Putting pieces into a world one by one, so that what is free stays one connected part and goals can be seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from kineflow.envs.navigation.free_space import largest_part, mark
from kineflow.envs.navigation.furniture import Piece
from kineflow.envs.navigation.shapes import Block, GoalObject

ROBOT_RADIUS_M = 0.4  # the widest body that every place is kept reachable for
LOST_SHARE = 0.02  # of the free cells, that a piece may cut off (a gap behind it)


class Site:
    """A world while it is built. Coordinates in metres, world frame."""

    def __init__(self, bounds: tuple[float, float, float, float], resolution_m: float) -> None:
        self.bounds = bounds
        self.resolution_m = resolution_m
        x0, y0, x1, y1 = bounds
        shape = (round((y1 - y0) / resolution_m) + 1, round((x1 - x0) / resolution_m) + 1)
        self._blocked = np.zeros(shape, dtype=bool)
        self._blocked[[0, -1]] = True
        self._blocked[:, [0, -1]] = True
        self._kept = np.zeros(shape, dtype=bool)
        self._filled = np.zeros(shape, dtype=bool)
        self.blocks: list[Block] = []
        self.goals: list[GoalObject] = []
        self._pieces = 0

    def build(self, blocks: Iterable[Block]) -> None:
        """Add what stands no matter what: walls, fences, pictures."""
        for block in blocks:
            self.blocks.append(block)
            if _low(block):
                self._mark(self._blocked, block, ROBOT_RADIUS_M)
                self._mark(self._filled, block, -0.05)

    def keep_free(self, x: float, y: float, radius: float) -> None:
        """No piece may stand within `radius` of the point."""
        self._mark(self._kept, Block("", "cylinder", (x, y, 0.5), (radius, radius, 0.5)), 0.0)

    def is_filled(self, x: float, y: float, along: float, yaw: float, width: float) -> bool:
        """Whether something stands before a stretch of wall: `x, y` on its face, `along` its direction, `yaw` into the room."""
        shares = np.linspace(-0.5, 0.5, 7)
        points = [(x + math.cos(along) * s * width, y + math.sin(along) * s * width) for s in shares]
        return any(self._filled[self._cell(a + math.cos(yaw) * d, b + math.sin(yaw) * d)] for a, b in points for d in (0.08, 0.2))

    def place(self, piece: Piece, x: float, y: float, yaw: float, margin: float = 0.02) -> tuple[Block, ...] | None:
        """Stand the piece there if it fits and cuts nothing off; None where not."""
        placed = self._fitting(piece, x, y, yaw, margin)
        if placed is not None:
            self._settle(placed)
        return placed

    def place_goal(
        self, piece: Piece, colour: str, x: float, y: float, yaw: float, views: tuple[float, ...]
    ) -> GoalObject | None:
        """Stand a goal there if it fits and is reachable from the side of one of `views` (angles from its front, rad)."""
        placed = self._fitting(piece, x, y, yaw, 0.02)
        if placed is None:
            return None
        part = largest_part(~self._with(piece, x, y, yaw))
        for distance, view in itertools.product(_viewing_distances(piece), views):
            angle = yaw + view
            reach = 0.5 * (abs(math.cos(view)) * piece.size[0] + abs(math.sin(view)) * piece.size[1]) + distance
            stand_x, stand_y = x + math.cos(angle) * reach, y + math.sin(angle) * reach
            if self._holds(part, stand_x, stand_y) and self._sees(stand_x, stand_y, x, y, reach):
                self._settle(placed)
                for share in (0.0, 0.35, 0.7):
                    self.keep_free(stand_x + share * (x - stand_x), stand_y + share * (y - stand_y), 0.45)
                middle = (x, y, max(b.position[2] + b.half_size[2] for b in placed) / 2)
                stand_off = (stand_x, stand_y, math.remainder(angle + math.pi, 2 * math.pi))
                goal = GoalObject(f"{colour} {piece.noun}", colour, piece.noun, middle, stand_off, tuple(b.name for b in placed))
                self.goals.append(goal)
                return goal
        return None

    def _fitting(self, piece: Piece, x: float, y: float, yaw: float, margin: float) -> tuple[Block, ...] | None:
        half = (piece.size[0] / 2 + margin, piece.size[1] / 2 + margin, 1.0)
        footprint = np.zeros_like(self._filled)
        self._mark(footprint, Block("", "box", (x, y, 1.0), half, yaw), -0.05)
        x0, y0, x1, y1 = self.bounds
        inside = x0 < x < x1 and y0 < y < y1
        if not inside or (footprint & (self._filled | self._kept)).any():
            return None
        placed = piece.at(f"{piece.noun}{self._pieces}", x, y, yaw)
        free = ~self._with(piece, x, y, yaw)
        return placed if largest_part(free).sum() >= (1 - LOST_SHARE) * free.sum() else None

    def _with(self, piece: Piece, x: float, y: float, yaw: float) -> np.ndarray:
        """What is blocked once the piece stands there, by its footprint."""
        blocked = self._blocked.copy()
        self._mark(blocked, Block("", "box", (x, y, 1.0), (piece.size[0] / 2, piece.size[1] / 2, 1.0), yaw), ROBOT_RADIUS_M)
        return blocked

    def _settle(self, placed: tuple[Block, ...]) -> None:
        self._pieces += 1
        self.build(placed)

    def _sees(self, x: float, y: float, goal_x: float, goal_y: float, distance: float) -> bool:
        """Nothing stands between the two points; the last half metre belongs to the goal."""
        shares = np.linspace(0.0, max(distance - 0.5, 0.1) / distance, 8)
        return all(not self._filled[self._cell(x + s * (goal_x - x), y + s * (goal_y - y))] for s in shares)

    def _holds(self, part: np.ndarray, x: float, y: float) -> bool:
        x0, y0, x1, y1 = self.bounds
        return x0 < x < x1 and y0 < y < y1 and bool(part[self._cell(x, y)])

    def _cell(self, x: float, y: float) -> tuple[int, int]:
        return round((y - self.bounds[1]) / self.resolution_m), round((x - self.bounds[0]) / self.resolution_m)

    def _mark(self, grid: np.ndarray, block: Block, inflate_m: float) -> None:
        mark(grid, block, self.bounds[:2], self.resolution_m, inflate_m)


def _viewing_distances(piece: Piece) -> tuple[float, float]:
    """Metres before the piece from where it is seen: well, and still."""
    width = max(piece.size)
    height = max(block.position[2] + block.half_size[2] for block in piece.blocks)
    return max(1.3, 0.9 * width, 0.7 * height), max(0.85, 0.35 * width)


def _low(block: Block) -> bool:
    return block.solid and block.position[2] - block.half_size[2] < 1.9
