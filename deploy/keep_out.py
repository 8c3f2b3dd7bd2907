"""How fast the base may move in which direction: able to stop before what range scan and depth see, and before the fence.

Each obstacle point or piece of fence is a half-plane of the body's velocity: with unit vector n toward it and `room` metres
left after footprint and margin, the closing speed n . v keeps v latency + v^2 / (2 deceleration) <= room, that is

    n . v <= h(room) = sqrt((d L)^2 + 2 d room) - d L        (0 without room: moving away stays possible, turning too)

For a round footprint this is exact on every path, straight or curved, and along walls (the distance shrinks by n . v dt).
What the body moves between the measurement and the moment when the new command acts is known, it was commanded already: it is
taken off the room by dead reckoning, and L is only the time that the change of speed takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kineflow.deploy.robot_profile import Geofence, KeepOut
from kineflow.interface import KineflowError

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float, UInt16

TOUCH = 1e-7  # metres: rounding, not room
Place = tuple[float, float, float, float]  # x, y, z in metres and yaw, since the governor began


@dataclass(frozen=True)
class Mount:
    """Where a sensor sits in the base frame: metres, and radians of yaw, pitch (nose down positive) and roll, applied in that
    order. A depth camera's own axes are those of optics (z ahead, x right, y down); its mount turns x ahead, y left, z up."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.x + self.y + self.z + self.yaw + self.pitch + self.roll):
            raise KineflowError(f"{self}: metres and radians are finite numbers")

    def to_base(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        (cy, cp, cr), (sy, sp, sr) = np.cos([self.yaw, self.pitch, self.roll]), np.sin([self.yaw, self.pitch, self.roll])
        turn = np.array(
            [
                [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
                [-sp, cp * sr, cp * cr],
            ]
        )
        turned: np.ndarray = points @ turn.T + np.array([self.x, self.y, self.z])
        return turned


@dataclass(frozen=True)
class Pinhole:
    """Intrinsics of a depth camera in pixels, as in sensor_msgs/CameraInfo."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class HalfPlanes:
    """Unit vectors `toward` what must not be touched, base frame, and the metres of `room` as of `received_s`.

    Slowing down in time keeps the room above zero. Braking that must not wait starts `grace_m` later: the body is allowed
    that much of the margin, so that creeping up to it does not end in hard braking.
    """

    toward: Float[np.ndarray, "N 3"]
    room: Float[np.ndarray, "N"]
    received_s: float
    grace_m: float
    least: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "least", float(self.room.min(initial=math.inf)))

    def is_too_fast(self, motion: Motion, deceleration: float, latency_s: float, grace_m: float = 0.0) -> bool:
        """Whether a closing speed is above h(room + grace_m); without roots, for every tick."""
        grace_m += TOUCH
        if motion.speed * (motion.speed * (0.5 / deceleration) + latency_s) + motion.way <= self.least + grace_m:
            return False
        closing = self._closing(motion)
        reach = closing * (np.abs(closing) * (0.5 / deceleration) + latency_s)  # negative where it moves away
        return bool((reach > np.maximum(self._left(motion) + grace_m, 0.0)).any())

    def share(self, motion: Motion, deceleration: float, latency_s: float) -> float:
        """The factor, at most 1, by which this velocity must shrink to keep every closing speed at h or below."""
        if not self.is_too_fast(motion, deceleration, latency_s):
            return 1.0
        closing, slow = self._closing(motion), deceleration * latency_s
        allowed = np.sqrt(slow * slow + 2 * deceleration * np.maximum(self._left(motion), 0.0)) - slow
        toward = closing > 0
        return min(1.0, float((allowed[toward] / closing[toward]).min()))

    def _closing(self, motion: Motion) -> np.ndarray:
        speeds: np.ndarray = (self.toward @ motion.velocities).max(axis=1)
        return speeds

    def _left(self, motion: Motion) -> np.ndarray:
        left: np.ndarray = self.room - np.maximum(self.toward @ motion.moved, 0.0)
        return left


class Motion:
    """A velocity of the base, and how far it came, in its own frame of when the half-planes were received.

    Places are by dead reckoning of the commands, `late` the one of a latency before. A body that follows that late had the
    motion since `late` still to do, and stood as it was turned then; a prompt one stood as it is `turned` at the receipt. Way
    counts as of the late body; both directions count.
    """

    def __init__(self, velocity: Sequence[float], here: Place, late: Place, turned: float) -> None:
        vx, vy, vz = velocity
        self.speed = math.sqrt(vx * vx + vy * vy + vz * vz)
        dx, dy, dz = here[0] - late[0], here[1] - late[1], here[2] - late[2]
        self.way = math.sqrt(dx * dx + dy * dy + dz * dz)
        c, s = math.cos(late[3]), math.sin(late[3])
        self.moved = np.array([c * dx + s * dy, c * dy - s * dx, dz])
        (c, s), (e, t) = ((math.cos(a), math.sin(a)) for a in (here[3] - late[3], here[3] - turned))
        self.velocities = np.array([[c * vx - s * vy, e * vx - t * vy], [s * vx + c * vy, t * vx + e * vy], [vz, vz]])


def from_ranges(
    angles: Float[np.ndarray, "N"],
    metres: Float[np.ndarray, "N"],
    mount: Mount,
    footprint_m: float,
    config: KeepOut,
    reach_m: float,
    received_s: float,
) -> HalfPlanes | None:
    """Of one planar scan, angles counter-clockwise from the sensor's x axis.

    `inf` is free, `-inf` closer than the sensor can tell (REP 117); NaN, zero and negative were not measured, nor was a beam
    whose angle is no number. None where not a single beam was measured: such a scan must not count as having looked.
    """
    angles, metres = np.asarray(angles, np.float64), np.asarray(metres, np.float64)
    if angles.shape != metres.shape or angles.ndim != 1:
        raise KineflowError(f"range scan: {metres.shape} distances for {angles.shape} angles; give one angle per distance")
    metres = np.where(metres == -math.inf, 0.01, metres)
    metres = np.where(np.isfinite(angles) & (metres > 0), metres, math.nan)
    if np.isnan(metres).all():
        return None
    near = np.flatnonzero(metres < math.inf)
    flat = metres[near, None] * np.stack([np.cos(angles[near]), np.sin(angles[near]), np.zeros(len(near))], axis=1)
    points = mount.to_base(flat)
    points[:, 2] = 0.0  # one height stands for all: a planar scan keeps the body away sideways
    return _planes(points, footprint_m, config.margin_m, config.margin_m / 2, reach_m, received_s)


def from_depth(
    depth: Float[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"],
    camera: Pinhole,
    mount: Mount,
    footprint_m: float,
    config: KeepOut,
    reach_m: float,
    received_s: float,
    stride: int = 8,
) -> HalfPlanes | None:
    """Of one depth image, float metres or uint16 millimetres along the optical axis; 0 and NaN were not measured (a hole says
    nothing), `inf` is free. Of every `stride` x `stride` block the nearest pixel counts. None where nothing was measured."""
    if depth.ndim != 2:
        raise KineflowError(f"depth image has shape {depth.shape}; give [H, W], metres or uint16 millimetres")
    z = depth * 1e-3 if depth.dtype == np.uint16 else np.asarray(depth, np.float64)
    z = np.where(z > 0, z, math.nan)  # NaN fails the comparison too
    if np.isnan(z).all():
        return None
    height, width = (-(-n // stride) * stride for n in z.shape)  # blocks at the right and lower edge may be smaller
    whole = np.full((height, width), math.inf)
    whole[: z.shape[0], : z.shape[1]] = np.where(np.isnan(z), math.inf, z)
    blocks = whole.reshape(height // stride, stride, width // stride, stride)
    nearest = blocks.transpose(0, 2, 1, 3).reshape(height // stride, width // stride, stride * stride)
    pixel, z = nearest.argmin(-1), nearest.min(-1)
    row = np.arange(height // stride)[:, None] * stride + pixel // stride
    column = np.arange(width // stride)[None, :] * stride + pixel % stride
    seen = z < math.inf
    ahead, u, v = z[seen], column[seen], row[seen]
    points = mount.to_base(np.stack([ahead, -(u - camera.cx) / camera.fx * ahead, -(v - camera.cy) / camera.fy * ahead], axis=1))
    points = points[(points[:, 2] >= config.low_m) & (points[:, 2] <= config.high_m)]
    points[:, 2] = 0.0  # an upright cylinder as high as the band
    return _planes(points, footprint_m, config.margin_m, config.margin_m / 2, reach_m, received_s)


def from_fence(
    fence: Geofence, x: float, y: float, z: float, yaw: float, footprint_m: float, received_s: float
) -> HalfPlanes | None:
    """Of the fence, seen from this pose (metres and radians in the fence's frame). None outside of it."""
    corners = np.array(fence.polygon)
    ends = np.roll(corners, -1, axis=0)
    here = np.array([x, y])
    if not (_inside(corners, ends, here) and fence.low_m <= z <= fence.high_m):
        return None
    edge = ends - corners
    along = np.clip(((here - corners) * edge).sum(1) / np.maximum((edge * edge).sum(1), 1e-12), 0.0, 1.0)
    way = corners + along[:, None] * edge - here
    turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    points = np.concatenate([way @ turn.T, np.zeros((len(way), 1))], axis=1)
    level = _planes(points, footprint_m, fence.margin_m, fence.margin_m, math.inf, received_s)
    bands = [(1.0, fence.high_m - fence.margin_m - z), (-1.0, z - fence.low_m - fence.margin_m)]
    caps = [(sign, room) for sign, room in bands if room < math.inf]
    toward = np.concatenate([level.toward, np.array([[0.0, 0.0, sign] for sign, _ in caps]).reshape(-1, 3)])
    return HalfPlanes(toward, np.concatenate([level.room, np.array([room for _, room in caps])]), received_s, fence.margin_m)


def _planes(
    points: np.ndarray, footprint_m: float, margin_m: float, grace_m: float, reach_m: float, received_s: float
) -> HalfPlanes:
    distance = np.sqrt((points * points).sum(1))
    near = distance - footprint_m - margin_m < reach_m  # further ones never bind at the speeds of this body
    points, distance = points[near], distance[near]
    return HalfPlanes(points / np.maximum(distance, 1e-9)[:, None], distance - footprint_m - margin_m, received_s, grace_m)


def _inside(corners: np.ndarray, ends: np.ndarray, here: np.ndarray) -> bool:
    """Even-odd rule: how many edges a ray from here along +x crosses."""
    (ax, ay), (bx, by) = corners.T, ends.T
    spans = (ay > here[1]) != (by > here[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = ax + (here[1] - ay) * (bx - ax) / (by - ay)
    return bool(np.count_nonzero(spans & (here[0] < crossing)) % 2)
