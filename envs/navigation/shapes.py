"""The solids of a world: blocks with a surface and a colour, and the named things that language speaks of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Rgb = tuple[float, float, float]
Shape = Literal["box", "cylinder", "ellipsoid"]

# Far enough apart to be told from each other at 96 pixels; nothing that is not a goal wears one of them.
COLOURS: dict[str, Rgb] = {
    "red": (0.86, 0.06, 0.06),
    "yellow": (0.98, 0.86, 0.05),
    "green": (0.05, 0.62, 0.12),
    "blue": (0.06, 0.18, 0.88),
    "purple": (0.48, 0.08, 0.62),
    "cyan": (0.05, 0.82, 0.86),
    "pink": (1.0, 0.42, 0.68),
    "black": (0.03, 0.03, 0.03),
}
COLOUR_NAMES = tuple(COLOURS)
NOUNS = ("sofa", "cabinet", "lamp", "ball", "hut", "box", "bench", "sign", "chair", "car", "bin", "table", "barrel", "door")


@dataclass(frozen=True)
class Block:
    """One static solid, metres and radians in the world frame.

    `half_size` is along the block's own x, y, z after turning by `yaw` about z; cylinders are upright and use x as radius.
    `surface` names a texture family ("" is plain paint) that is projected along the block's own axis `facing`.
    What is not `solid` is only seen: no contact, no footprint.
    """

    name: str
    shape: Shape
    position: tuple[float, float, float]
    half_size: tuple[float, float, float]
    yaw: float = 0.0
    rgb: Rgb = (1.0, 1.0, 1.0)
    surface: str = ""
    facing: Literal["x", "y", "z"] = "z"
    solid: bool = True
    glow: float = 0.0

    @property
    def reach(self) -> tuple[float, float]:
        """Half extents of the footprint along the world's x and y, metres."""
        cos, sin = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
        hx, hy = self.half_size[:2]
        return cos * hx + sin * hy, sin * hx + cos * hy

    def distance(self, dx: Float[np.ndarray, "..."], dy: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Metres from points at (dx, dy) relative to the block's centre to its footprint, 0 inside."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        along, across = np.abs(cos * dx + sin * dy), np.abs(cos * dy - sin * dx)
        hx, hy = self.half_size[:2]
        if self.shape == "box":
            return np.asarray(np.hypot(np.maximum(along - hx, 0.0), np.maximum(across - hy, 0.0)))
        # An ellipse is taken as the disc around it: on the safe side, and exact where both radii agree.
        return np.asarray(np.maximum(np.hypot(along, across) - max(hx, hy), 0.0))


@dataclass(frozen=True)
class GoalObject:
    """A thing to drive to. `name` is unique in its world, for example "red door".

    `position` is its centre (m); `stand_off` = x, y, yaw of a free place in front of it, facing it; `blocks` are its parts.
    """

    name: str
    colour: str
    noun: str
    position: tuple[float, float, float]
    stand_off: tuple[float, float, float]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class MoverPlan:
    """A moving obstacle: an upright cylinder that walks to and fro between two points at `speed` (m/s).

    `phase` in 0..1 is where on its way there and back it starts.
    """

    name: str
    start: tuple[float, float]
    end: tuple[float, float]
    speed: float
    phase: float
    radius: float
    height: float
    rgb: Rgb
