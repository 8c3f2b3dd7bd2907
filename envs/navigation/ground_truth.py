"""What really happened between two pictures: poses, ego-motion, and where every pixel went (dense optical flow).

Pixels: the centre of the top-left one is (0, 0), u to the right, v down. Cameras: columns right, down, forward in the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.rendering.camera import camera_id

# How much farther than what the second picture shows a point may be before it counts as hidden: metres, and share of depth.
HIDDEN_M, HIDDEN_SHARE = 0.03, 0.03


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Poses at one instant: the camera's, and those of all bodies of the model (world frame, metres)."""

    camera_position: Float[np.ndarray, "3"]
    camera_rotation: Float[np.ndarray, "3 3"]
    body_positions: Float[np.ndarray, "B 3"]
    body_rotations: Float[np.ndarray, "B 3 3"]


@dataclass(frozen=True, eq=False)
class EgoMotion:
    """Motion of a body between two instants, in its own frame at the first: metres, and an axis times its angle (rad)."""

    translation: Float[np.ndarray, "3"]
    rotation_vector: Float[np.ndarray, "3"]


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the pixels of the first picture are in the second.

    `pixels[v, u]` = how far the point went along u and v, float32; `valid` where it is seen in both pictures, and finite
    everywhere: points that end up behind the camera, which have no place in the second picture, are given 0 and not valid.
    """

    pixels: Float32[np.ndarray, "H W 2"]
    valid: Bool[np.ndarray, "H W"]


def intrinsics(model: Any, camera: str, width: int, height: int) -> Float[np.ndarray, "3 3"]:
    """K of a pinhole camera: a point right, down, forward [3] in metres is at pixel (K @ p)[:2] / p[2]."""
    fovy = math.radians(float(model.cam_fovy[camera_id(model, camera)]))
    focal = 0.5 * height / math.tan(fovy / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def camera_pose(model: Any, data: Any, camera: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
    """Position (m) and axes (columns right, down, forward) of a camera in the world."""
    number = camera_id(model, camera)
    # MuJoCo's axes are right, up, backward.
    return data.cam_xpos[number].copy(), data.cam_xmat[number].reshape(3, 3) * np.array([1.0, -1.0, -1.0])


def body_pose(model: Any, data: Any, body: str) -> Float[np.ndarray, "7"]:
    """x y z (m) qx qy qz qw of a body in the world."""
    number = model.body(body).id
    return np.concatenate([data.xpos[number], np.roll(data.xquat[number], -1)])


def snapshot(model: Any, data: Any, camera: str) -> Snapshot:
    """Copy the poses of now; positions in `data` must be computed."""
    position, rotation = camera_pose(model, data, camera)
    return Snapshot(position, rotation, data.xpos.copy(), data.xmat.reshape(-1, 3, 3).copy())


def ego_motion(before: Float[np.ndarray, "7"], after: Float[np.ndarray, "7"]) -> EgoMotion:
    """Motion from one pose (x y z qx qy qz qw) to another, seen from the first."""
    turned = _product(np.asarray(before[3:]) * np.array([-1.0, -1.0, -1.0, 1.0]), np.asarray(after[3:]))
    length = float(np.linalg.norm(turned[:3]))
    # The shorter way round; through atan2, which keeps its precision at nothing and at half a turn.
    angle = 2 * math.atan2(length, abs(turned[3]))
    axis = turned[:3] * (math.copysign(1.0, turned[3]) / length) if length > 0 else np.zeros(3)
    return EgoMotion(_matrix(before[3:]).T @ (np.asarray(after[:3]) - np.asarray(before[:3])), angle * axis)


def optical_flow(
    model: Any,
    k: Float[np.ndarray, "3 3"],
    before: Snapshot,
    after: Snapshot,
    depth: Float32[np.ndarray, "H W"],
    segmentation: Int32[np.ndarray, "H W"],
    depth_after: Float32[np.ndarray, "H W"] | None = None,
) -> Flow:
    """Flow of every pixel from the picture at `before` to the one at `after`, with what each body did in between.

    `depth` and `segmentation` are the renderer's at `before`. With `depth_after`, points that something hides in the second
    picture are marked; without, only those that leave it. The sky (depth inf) counts as infinitely far away.

    Raises:
        KineflowError: the pictures differ in size.
    """
    sizes = {depth.shape, segmentation.shape} | ({depth_after.shape} if depth_after is not None else set())
    if len(sizes) != 1:
        raise KineflowError(f"optical_flow got pictures of {sorted(sizes)}; depth and segmentation must be of one size")
    height, width = depth.shape
    turn = (after.camera_rotation.T @ before.camera_rotation).astype(np.float32)
    shift = (after.camera_rotation.T @ (before.camera_position - after.camera_position)).astype(np.float32)
    rays = _rays(k, width, height)
    is_sky = ~np.isfinite(depth)
    points = rays * np.where(is_sky, np.float32(1.0), depth)[:, :, None]
    moved = points @ turn.T + shift
    moved[is_sky] = rays[is_sky] @ turn.T
    _move_bodies(model, before, after, points, segmentation, moved)
    ahead = moved[:, :, 2]
    is_ahead = ahead > 1e-3
    scale = 1.0 / np.where(is_ahead, ahead, np.float32(1.0))
    u = moved[:, :, 0] * scale * np.float32(k[0, 0]) + np.float32(k[0, 2])
    v = moved[:, :, 1] * scale * np.float32(k[1, 1]) + np.float32(k[1, 2])
    pixels = np.stack([u - np.arange(width, dtype=np.float32), v - np.arange(height, dtype=np.float32)[:, None]], axis=-1)
    pixels[~is_ahead] = 0.0
    valid = is_ahead & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    if depth_after is not None:
        valid &= _is_seen(depth_after, u, v, np.where(is_sky, np.float32(np.inf), ahead), valid)
    return Flow(pixels, valid)


def reprojected(
    k: Float[np.ndarray, "3 3"],
    k_after: Float[np.ndarray, "3 3"],
    before: Snapshot,
    after: Snapshot,
    depth: Float32[np.ndarray, "H W"],
    depth_after: Float32[np.ndarray, "H W"],
) -> tuple[Float[np.ndarray, "H W 2"], Bool[np.ndarray, "H W"]]:
    """Where each pixel's point is in another picture of the same still scene (column, row), and whether it is seen there.

    As `optical_flow`, for cameras with intrinsics `k` and `k_after` of their own, and nothing that moves.
    """
    height, width = depth.shape
    turn = after.camera_rotation.T @ before.camera_rotation
    shift = after.camera_rotation.T @ (before.camera_position - after.camera_position)
    rays, is_sky = _rays(k, width, height), ~np.isfinite(depth)
    # The sky is infinitely far away: moving on does not shift it.
    points = rays * np.where(is_sky, np.float32(1.0), depth)[..., None] @ turn.T + np.where(is_sky[..., None], 0.0, shift)
    ahead = points[..., 2]
    is_ahead = ahead > 1e-3
    scale = 1.0 / np.where(is_ahead, ahead, 1.0)
    u, v = (points[..., i] * scale * k_after[i, i] + k_after[i, 2] for i in (0, 1))
    inside = is_ahead & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    there = np.where(is_sky, np.inf, ahead).astype(np.float32)
    return np.stack([u, v], axis=-1), inside & _is_seen(depth_after, u, v, there, inside)


def _rays(k: Float[np.ndarray, "3 3"], width: int, height: int) -> Float32[np.ndarray, "H W 3"]:
    """Directions right, down, forward through the pixels' centres, forward = 1."""
    x = (np.arange(width) - k[0, 2]) / k[0, 0]
    y = (np.arange(height) - k[1, 2]) / k[1, 1]
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1).astype(np.float32)


def _move_bodies(
    model: Any,
    before: Snapshot,
    after: Snapshot,
    points: Float32[np.ndarray, "H W 3"],
    segmentation: Int32[np.ndarray, "H W"],
    moved: Float32[np.ndarray, "H W 3"],
) -> None:
    """Overwrite `moved` where a pixel shows a body that itself moved between the instants."""
    seen = np.unique(segmentation[segmentation >= 0])
    bodies = model.geom_bodyid[seen]
    for body in np.unique(bodies):
        if np.array_equal(before.body_positions[body], after.body_positions[body]) and np.array_equal(
            before.body_rotations[body], after.body_rotations[body]
        ):
            continue
        shown = np.isin(segmentation, seen[bodies == body])
        world = points[shown] @ before.camera_rotation.T + before.camera_position
        local = (world - before.body_positions[body]) @ before.body_rotations[body]
        there = local @ after.body_rotations[body].T + after.body_positions[body]
        moved[shown] = (there - after.camera_position) @ after.camera_rotation


def _is_seen(
    depth_after: Float32[np.ndarray, "H W"],
    u: Float32[np.ndarray, "H W"],
    v: Float32[np.ndarray, "H W"],
    ahead: Float32[np.ndarray, "H W"],
    valid: Bool[np.ndarray, "H W"],
) -> Bool[np.ndarray, "H W"]:
    """Whether the second picture shows something as far away as the point, where the point falls."""
    seen = np.zeros_like(valid)
    column, row = np.rint(u[valid]).astype(np.int64), np.rint(v[valid]).astype(np.int64)
    there, expected = depth_after[row, column], ahead[valid]
    both_sky = ~np.isfinite(there) & ~np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        agree = np.abs(there - expected) < HIDDEN_M + HIDDEN_SHARE * expected
    seen[valid] = both_sky | (agree & np.isfinite(expected) & np.isfinite(there))
    return seen


def _matrix(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a quaternion x y z w."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _product(p: Float[np.ndarray, "4"], q: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """Quaternions x y z w: first q, then p."""
    vector = p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3])
    return np.append(vector, p[3] * q[3] - p[:3] @ q[:3])
