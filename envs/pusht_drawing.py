"""Pictures of the PushT board from its state alone: the simulator's look, anti-aliased at any size, without pygame.

Because a picture needs only a state, videos are drawn after an evaluation from recorded trajectories, and only those
that a report shows. Geometry and colours are gym-pusht's; tests/envs/test_pusht.py compares both pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

BOARD_PX = 512.0
GOAL_POSE = (256.0, 256.0, math.pi / 4)  # x px, y px, angle rad
AGENT_RADIUS_PX = 15.0
# The T, in its own frame (px): a 120 x 30 bar on a 30 x 90 stem.
TEE = (
    np.array([(-60, 30), (60, 30), (60, 0), (-60, 0)], dtype=np.float64),
    np.array([(-15, 30), (-15, 120), (15, 120), (15, 30)], dtype=np.float64),
)
WALL_PX = (5.0, 506.0)

WHITE, WALL, GOAL = (255, 255, 255), (211, 211, 211), (144, 238, 144)
TEE_EDGE, TEE_FILL = (119, 136, 153), (142, 163, 183)
AGENT_EDGE, AGENT_FILL = (65, 105, 225), (78, 126, 255)
TARGET = (225, 29, 72)
# Start and end of a plan: colour shows how far ahead an action is.
PLAN_NEAR, PLAN_FAR = np.array((124, 58, 237)), np.array((251, 146, 60))

_OVERSAMPLING = 2
_SHIFT = 4  # fractional bits of cv2's sub-pixel coordinates

Image = UInt8[np.ndarray, "size size 3"]


def tee_corners(pose: Sequence[float] | np.ndarray) -> list[Float[np.ndarray, "4 2"]]:
    """Corners of the T's two rectangles on the board (px) for a pose (x px, y px, angle rad)."""
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    rotation = np.array([(cos, sin), (-sin, cos)])
    return [part @ rotation + np.asarray(pose[:2], dtype=np.float64) for part in TEE]


def draw_board(
    state: Float[np.ndarray, "5"],
    size: int,
    target: Float[np.ndarray, "2"] | None = None,
    plans: Float[np.ndarray, "N H 2"] | None = None,
) -> Image:
    """RGB picture `[size, size, 3]` of a state (agent x, y, block x, y in px, block angle in rad).

    `target` marks the action being executed; `plans` fans out N action chunks from the agent, near actions violet,
    far ones orange.
    """
    canvas = _Canvas(size * _OVERSAMPLING)
    for corners in tee_corners(GOAL_POSE):
        canvas.polygon(corners, GOAL)
    low, high = WALL_PX
    canvas.lines(np.array([(low, low), (high, low), (high, high), (low, high), (low, low)]), WALL, 4.0)
    canvas.disc(state[:2], AGENT_RADIUS_PX, AGENT_EDGE)
    canvas.disc(state[:2], AGENT_RADIUS_PX - 4, AGENT_FILL)
    for corners in tee_corners(state[2:5]):
        canvas.polygon(corners, TEE_FILL)
        canvas.lines(np.vstack([corners, corners[:1]]), TEE_EDGE, 4.0)
    if plans is not None:
        _draw_plans(canvas, state[:2], plans)
    if target is not None:
        canvas.cross(np.asarray(target, dtype=np.float64), 9.0, TARGET)
    return canvas.picture(size)


def _draw_plans(canvas: _Canvas, start: Float[np.ndarray, "2"], plans: Float[np.ndarray, "N H 2"]) -> None:
    count, horizon = plans.shape[:2]
    opacity = 0.9 if count == 1 else 0.55
    for plan in plans:
        before = canvas.pixels.copy()
        points = np.vstack([start, plan]).astype(np.float64)
        for i in range(horizon):
            ahead = i / max(horizon - 1, 1)
            colour = tuple(int(c) for c in PLAN_NEAR + ahead * (PLAN_FAR - PLAN_NEAR))
            canvas.lines(points[i : i + 2], colour, 2.6)
            canvas.disc(points[i + 1], 2.4, colour)
        cv2.addWeighted(canvas.pixels, opacity, before, 1 - opacity, 0, dst=canvas.pixels)


class _Canvas:
    """A square RGB image addressed in board pixels."""

    def __init__(self, size: int) -> None:
        self.scale = size / BOARD_PX
        self.pixels = np.full((size, size, 3), 255, dtype=np.uint8)

    def polygon(self, corners: np.ndarray, colour: tuple[int, ...]) -> None:
        cv2.fillPoly(self.pixels, [self._fixed(corners)], colour, cv2.LINE_AA, _SHIFT)

    def lines(self, points: np.ndarray, colour: tuple[int, ...], width_px: float) -> None:
        thickness = max(1, round(width_px * self.scale))
        cv2.polylines(self.pixels, [self._fixed(points)], False, colour, thickness, cv2.LINE_AA, _SHIFT)

    def disc(self, centre: np.ndarray, radius_px: float, colour: tuple[int, ...]) -> None:
        x, y = self._fixed(centre)
        radius = round(radius_px * self.scale * (1 << _SHIFT))
        cv2.circle(self.pixels, (int(x), int(y)), radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def cross(self, centre: np.ndarray, reach_px: float, colour: tuple[int, ...]) -> None:
        for arm in (np.array((reach_px, 0.0)), np.array((0.0, reach_px))):
            self.lines(np.stack([centre - arm, centre + arm]), colour, 3.0)

    def picture(self, size: int) -> Image:
        return np.asarray(cv2.resize(self.pixels, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        # The simulator draws board point p on the pixel whose centre is p: pixel i covers [i - 0.5, i + 0.5].
        pixels = (np.asarray(points, dtype=np.float64) + 0.5) * self.scale - 0.5
        return np.round(pixels * (1 << _SHIFT)).astype(np.int32)
