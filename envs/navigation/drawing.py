"""Chunks of commands drawn into a camera's picture, on a level plane: where the body would go, and when.

    commands [H, 4]  --integrate-->  places x, y, z, yaw in the body's frame  --to_world-->  points  --project-->  pixels

A plan is a ribbon that perspective makes narrow; colour says when (violet: now, orange: the chunk's end), a
white dot is half a second. Pixels as everywhere here: the centre of the top-left one is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from kineflow.envs.navigation.values import CONTROL_HZ
from kineflow.envs.pusht_drawing import PLAN_FAR, PLAN_NEAR

Colour = tuple[int, int, int]
INK: Colour = (20, 21, 26)
WHITE: Colour = (255, 255, 255)
RIBBON_M, FAN_M = 0.055, 0.025  # half width of one plan, and of each of many
HEAD_M = 0.13  # length of the arrow's head at the end of a plan
NEAREST_M = 0.06  # nothing nearer to the camera than this is drawn
DOT_S = 0.5
SUBSTEPS = 2  # points per command: an arc shall look like one

_OVERSAMPLING = 2
_SHIFT = 4  # fractional bits of cv2's sub-pixel coordinates


def integrate(
    commands: Float[np.ndarray, "*B H 4"], substeps: int = 1, rate_hz: float = CONTROL_HZ
) -> Float[np.ndarray, "*B S 4"]:
    """Places x, y, z (m), yaw (rad) in the body's frame at the start: the start itself, then `substeps` per command.

    Each command holds for 1 / rate_hz seconds, and a body that turns while it drives goes along an arc: with a = turn of the
    step, its way is [[sin a, cos a - 1], [1 - cos a, sin a]] / a @ (vx, vy) dt (the exponential map of SE(2)).
    """
    dt = 1 / (rate_hz * substeps)
    held = np.repeat(np.asarray(commands, np.float64), substeps, axis=-2)
    turn = held[..., 3] * dt
    after = np.cumsum(turn, axis=-1)
    before = after - turn
    along, across = np.sinc(turn / math.pi), 0.5 * turn * np.sinc(turn / math.tau) ** 2
    forward = dt * (along * held[..., 0] - across * held[..., 1])
    left = dt * (across * held[..., 0] + along * held[..., 1])
    cos, sin = np.cos(before), np.sin(before)
    steps = np.stack([cos * forward - sin * left, sin * forward + cos * left, dt * held[..., 2], turn], axis=-1)
    start = np.zeros_like(steps[..., :1, :])
    places: Float[np.ndarray, "*B S 4"] = np.concatenate([start, np.cumsum(steps, axis=-2)], axis=-2)
    return places


def to_world(places: Float[np.ndarray, "*B S 4"], x: float, y: float, yaw: float) -> Float[np.ndarray, "*B S 3"]:
    """x, y, yaw in the world of places in the frame of a body at x, y (m), yaw (rad)."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    ahead, left = places[..., 0], places[..., 1]
    return np.asarray(np.stack([x + cos * ahead - sin * left, y + sin * ahead + cos * left, yaw + places[..., 3]], axis=-1))


def project(
    points: Float[np.ndarray, "*B 3"],
    position: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    k: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "*B 2"], Float[np.ndarray, "*B"]]:
    """Pixels u, v of points in the world (m), and their depth along the optical axis; behind the camera, pixels mean nothing.

    `position` and `rotation` (columns right, down, forward) are of the camera, as `ground_truth.camera_pose` gives them.
    """
    seen = (np.asarray(points, np.float64) - position) @ rotation
    depth = seen[..., 2]
    ahead = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return np.stack([k[0, 0] * seen[..., 0] / ahead + k[0, 2], k[1, 1] * seen[..., 1] / ahead + k[1, 2]], axis=-1), depth


def draw_plans(
    picture: UInt8[np.ndarray, "H W 3"],
    places: Float[np.ndarray, "N S 3"],
    position: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    k: Float[np.ndarray, "3 3"],
    plane_m: float = 0.0,
    substeps: int = SUBSTEPS,
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of `picture` with N plans, x, y (m), yaw (rad) in the world, on the plane z = `plane_m` (0: the ground).

    Many make a translucent fan. `k` is of this picture's size. `substeps`: places per command.
    """
    drawn = picture.copy()
    half, opacity = (RIBBON_M, 0.92) if len(places) == 1 else (FAN_M, max(1.2 / math.sqrt(len(places)), 0.4))
    for plan in places:
        layer = Layer(*picture.shape[:2])
        camera = _Plane(layer, position, rotation, k, plane_m)
        if len(places) == 1:
            camera.arrow(plan, half + 0.014, [INK])
        camera.arrow(plan, half, shades(len(plan) - 1))
        if len(places) == 1:
            camera.dots(plan, round(DOT_S * CONTROL_HZ) * substeps, 0.4 * half)
        layer.onto(drawn, opacity)
    return drawn


def shades(count: int) -> list[Colour]:
    """`count` colours from now to the end of a plan."""
    ahead = np.linspace(0.0, 1.0, count)[:, None]
    return [(int(r), int(g), int(b)) for r, g, b in PLAN_NEAR + ahead * (PLAN_FAR - PLAN_NEAR)]


def ribbon_edge(places: Float[np.ndarray, "S 3"], offset_m: float) -> Float[np.ndarray, "S 2"]:
    """Points `offset_m` to the left of a way (m), across its direction of travel, closing in to 40 % towards its end."""
    way = np.diff(places[:, :2], axis=0)
    lengths = np.hypot(*way.T)
    headings = np.where(lengths > 1e-6, np.arctan2(way[:, 1], way[:, 0]), places[:-1, 2])
    headings = np.append(headings, headings[-1])
    width = offset_m * np.linspace(1.0, 0.4, len(places))
    return np.asarray(places[:, :2] + width[:, None] * np.stack([-np.sin(headings), np.cos(headings)], axis=1))


class Layer:
    """Opaque shapes that are laid over a picture together, anti-aliased, with one opacity: overlaps do not add up."""

    def __init__(self, height: int, width: int) -> None:
        shape = (height * _OVERSAMPLING, width * _OVERSAMPLING)
        self._colours, self._covered = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
        self._low, self._high = np.array([width, height]), np.zeros(2, np.int64)

    def polygon(self, corners: Float[np.ndarray, "C 2"], colour: Colour) -> None:
        fixed = self._fixed(corners)
        cv2.fillPoly(self._colours, [fixed], colour, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self._covered, [fixed], 255, cv2.LINE_8, _SHIFT)

    def line(self, points: Float[np.ndarray, "P 2"], colour: Colour, width_px: float) -> None:
        fixed, thickness = self._fixed(points, width_px), max(1, round(width_px * _OVERSAMPLING))
        cv2.polylines(self._colours, [fixed], False, colour, thickness, cv2.LINE_8, _SHIFT)
        cv2.polylines(self._covered, [fixed], False, 255, thickness, cv2.LINE_8, _SHIFT)

    def disc(
        self, centre: Sequence[float] | Float[np.ndarray, "2"], radius_px: float, colour: Colour, width_px: float = 0.0
    ) -> None:
        """Filled, or with `width_px` a ring."""
        x, y = self._fixed(np.asarray(centre, np.float64)[None], radius_px + width_px)[0].tolist()
        radius = round(radius_px * _OVERSAMPLING * (1 << _SHIFT))
        thickness = max(1, round(width_px * _OVERSAMPLING)) if width_px else cv2.FILLED
        cv2.circle(self._colours, (x, y), radius, colour, thickness, cv2.LINE_8, _SHIFT)
        cv2.circle(self._covered, (x, y), radius, 255, thickness, cv2.LINE_8, _SHIFT)

    def ribbon(
        self, left: Float[np.ndarray, "S 2"], right: Float[np.ndarray, "S 2"], shown: np.ndarray, colours: Sequence[Colour]
    ) -> None:
        """The band between two lines where both ends are `shown`; a colour for each of its S - 1 pieces, or one for all."""
        for i in range(len(left) - 1):
            if shown[i] and shown[i + 1]:
                self.polygon(np.stack([left[i], left[i + 1], right[i + 1], right[i]]), colours[min(i, len(colours) - 1)])

    def onto(self, picture: UInt8[np.ndarray, "H W 3"], opacity: float = 1.0) -> None:
        """Blend into `picture`, in place."""
        low, high = np.maximum(self._low, 0), np.minimum(self._high, picture.shape[1::-1])
        if (low >= high).any():
            return
        (x0, y0), (x1, y1) = low.tolist(), high.tolist()
        fine = (slice(y0 * _OVERSAMPLING, y1 * _OVERSAMPLING), slice(x0 * _OVERSAMPLING, x1 * _OVERSAMPLING))
        size, part = (x1 - x0, y1 - y0), picture[y0:y1, x0:x1]
        covered = cv2.resize(self._covered[fine], size, interpolation=cv2.INTER_AREA).astype(np.float32)[:, :, None] / 255
        # Where nothing is drawn the colour is black: the mean over a pixel is the colour times its share.
        colours = cv2.resize(self._colours[fine], size, interpolation=cv2.INTER_AREA).astype(np.float32)
        part[:] = np.rint(part * (1 - opacity * covered) + opacity * colours).astype(np.uint8)

    def _fixed(self, points: Float[np.ndarray, "P 2"], reach_px: float = 0.0) -> np.ndarray:
        inside = np.clip(points, -1e4, 1e4)
        self._low = np.minimum(self._low, np.floor(inside.min(axis=0) - reach_px - 2).astype(np.int64))
        self._high = np.maximum(self._high, np.ceil(inside.max(axis=0) + reach_px + 3).astype(np.int64))
        return np.asarray(np.round(((inside + 0.5) * _OVERSAMPLING - 0.5) * (1 << _SHIFT)), np.int32)


class _Plane:
    """Draws what lies on a level plane as a camera sees it."""

    def __init__(
        self,
        layer: Layer,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        k: Float[np.ndarray, "3 3"],
        z: float,
    ) -> None:
        self._layer, self._camera, self._z = layer, (position, rotation, k), z

    def arrow(self, plan: Float[np.ndarray, "S 3"], half_m: float, colours: Sequence[Colour]) -> None:
        """A band along the plan and a head whose tip is its end; a plan that goes nowhere has neither."""
        gaps = np.hypot(*(plan[:, :2] - plan[-1, :2]).T)
        shaft = plan[: int(np.flatnonzero(gaps > HEAD_M)[-1]) + 1] if (gaps > HEAD_M).any() else plan[:0]
        if len(shaft) < 2:
            return
        (left, left_depth), (right, right_depth) = (self._seen(ribbon_edge(shaft, side * half_m)) for side in (1.0, -1.0))
        self._layer.ribbon(left, right, (left_depth > NEAREST_M) & (right_depth > NEAREST_M), colours)
        ahead = (plan[-1, :2] - shaft[-1, :2]) / gaps[len(shaft) - 1]
        rim = max(half_m - RIBBON_M, 0.0)
        wide = 1.5 * min(half_m, RIBBON_M) + rim
        base, tip = shaft[-1, :2] - rim * ahead, plan[-1, :2] + 1.5 * rim * ahead
        across = wide * np.array([-ahead[1], ahead[0]])
        self.polygon(np.stack([tip, base + across, base - across]), colours[-1])

    def dots(self, plan: Float[np.ndarray, "S 3"], every: int, radius_m: float) -> None:
        """White dots every so many places."""
        around = np.linspace(0.0, math.tau, 17)[:-1]
        circle = radius_m * np.stack([np.cos(around), np.sin(around)], axis=1)
        for index in range(every, len(plan), every):
            if math.dist(plan[index, :2], plan[index - every, :2]) > 4 * radius_m:  # or they would cover each other
                self.polygon(plan[index, :2] + circle, WHITE)

    def polygon(self, corners: Float[np.ndarray, "C 2"], colour: Colour) -> None:
        pixels, depths = self._seen(corners)
        if (depths > NEAREST_M).all():
            self._layer.polygon(pixels, colour)

    def _seen(self, points: Float[np.ndarray, "S 2"]) -> tuple[Float[np.ndarray, "S 2"], Float[np.ndarray, "S"]]:
        return project(np.column_stack([points, np.full(len(points), self._z)]), *self._camera)
