"""A plan in a camera's picture: which pixels its path goes through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from kineflow.deploy.keep_out import Mount
from kineflow.deploy.plan_path import along
from kineflow.interface import Interface, KineflowError

ONWARD_S = 3.0
_NEAREST_M = 0.06  # nothing nearer to the camera is drawn


@dataclass(frozen=True)
class CameraPlace:
    """A camera on a body: `mount` in the base frame on the floor (x ahead, y left, z up; m, rad; a positive pitch looks down) and
    its angle of view from top to bottom, degrees. Square pixels, the optical axis in the middle of the picture."""

    mount: Mount
    height_deg: float

    def __post_init__(self) -> None:
        if not 0 < self.height_deg < 180:
            raise KineflowError(f"a camera's angle of view is {self.height_deg:g} degrees; give one between 0 and 180")

    def pixels(self, points: Float[np.ndarray, "N 3"], height: int, width: int) -> Float[np.ndarray, "M 2"]:
        """Columns and rows of points in the base frame, of those in front of the camera; (0, 0) is the top-left pixel."""
        mount = self.mount
        origin = mount.to_base(np.zeros((1, 3)))
        axes = mount.to_base(np.eye(3)) - origin  # rows: the camera's ahead, left and up in the base frame
        ahead, left, up = axes @ (points - origin).T
        in_front = ahead > _NEAREST_M
        focal = 0.5 * height / math.tan(math.radians(self.height_deg) / 2)
        depth = ahead[in_front]
        across = (width - 1) / 2 - focal * left[in_front] / depth
        down = (height - 1) / 2 - focal * up[in_front] / depth
        return np.stack([across, down], axis=1)


@dataclass(frozen=True)
class LiveConfig:
    """Where a robot's cameras are, for drawing plans into their pictures; YAML in `configs/live/`."""

    cameras: Mapping[str, CameraPlace] = field(default_factory=dict)


@dataclass(frozen=True)
class OnFloor:
    """Of a plan of body velocities: its path on the floor, as the camera sees it."""

    place: CameraPlace
    axes: tuple[str, ...]

    def __call__(self, plan: Float[np.ndarray, "N A"], step_s: float, height: int, width: int) -> Float[np.ndarray, "M 2"]:
        places = along(plan, self.axes, step_s)
        return self.place.pixels(np.column_stack([places[:, :2], np.zeros(len(places))]), height, width)


@dataclass(frozen=True)
class FromAbove:
    """Of a plan of places in a plane, `low` to `high`, that the picture shows whole, row 0 at low."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __call__(self, plan: Float[np.ndarray, "N A"], step_s: float, height: int, width: int) -> Float[np.ndarray, "N 2"]:
        share = (plan[:, :2] - np.array(self.low[:2])) / (np.array(self.high[:2]) - np.array(self.low[:2]))
        pixels: np.ndarray = share * np.array([width, height]) - 0.5
        return pixels


Draws: TypeAlias = "OnFloor | FromAbove"


def drawings(interface: Interface, live: LiveConfig) -> dict[str, Draws]:
    """How the policy's plans are drawn into each of its cameras; a camera whose place is unknown gets none."""
    vector = interface.action.vector
    if vector.frame == "base":
        if unknown := sorted(set(live.cameras) - set(interface.cameras)):
            raise KineflowError(f"the places of cameras {unknown} are given, the policy has {sorted(interface.cameras)}")
        return {name: OnFloor(place, vector.names) for name, place in live.cameras.items()}
    bounded = vector.size == 2 and all(math.isfinite(bound) for bound in (*vector.low, *vector.high))
    return {name: FromAbove(vector.low, vector.high) for name in interface.cameras} if bounded else {}


def drawn(
    draws: Mapping[str, Draws], name: str, plan: np.ndarray | None, step_s: float, shape: Sequence[int]
) -> Float[np.ndarray, "M 2"]:
    """Pixels of the plan in the picture `name` of that shape `(H, W, ...)`; none where it is not drawn."""
    if plan is None or len(plan) == 0 or name not in draws:
        return np.zeros((0, 2))
    return draws[name](plan, step_s, shape[0], shape[1])


def drawn_onward(
    draws: Mapping[str, Draws], name: str, plan: np.ndarray | None, step_s: float, shape: Sequence[int]
) -> Float[np.ndarray, "M 2"]:
    """The same, as if a plan of velocities went on with its last one, `ONWARD_S` in all: short ones end below the picture."""
    if plan is None or len(plan) == 0 or not isinstance(draws.get(name), OnFloor):
        return np.zeros((0, 2))
    more = max(math.ceil(ONWARD_S / step_s) - len(plan), 0)
    return drawn(draws, name, np.concatenate([plan, np.repeat(plan[-1:], more, axis=0)]), step_s, shape)
