"""Ground truth: pinhole geometry, ego-motion and flow, against cases worked out by hand and against the pictures themselves."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.ground_truth import (
    Flow,
    Snapshot,
    body_pose,
    camera_pose,
    ego_motion,
    intrinsics,
    optical_flow,
    snapshot,
)
from kineflow.envs.navigation.movers import Movers
from kineflow.envs.navigation.rendering.ray import RayRenderer
from tests.envs.navigation.views import SIZE, look, scene, simple_model

CAMERA = "robot/front"


def still(rotation: np.ndarray, position: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Snapshot:
    """A camera in a world of one body that never moves."""
    return Snapshot(np.array(position), rotation, np.zeros((1, 3)), np.eye(3)[None])


def turn(axis: int, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    matrix = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = (-s, s) if axis != 1 else (s, -s)
    return matrix


@pytest.fixture
def model() -> mujoco.MjModel:
    return simple_model()


K = np.array([[50.0, 0.0, 31.5], [0.0, 50.0, 23.5], [0.0, 0.0, 1.0]])
V, U = np.mgrid[0:48, 0:64].astype(np.float64)
ONE_GEOM = np.zeros((48, 64), np.int32)


def test_a_point_is_where_k_and_the_pose_put_it() -> None:
    model = simple_model('<geom name="dot" type="sphere" pos="3 0.7 0.9" size="0.1"/>', fovy=70)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    k = intrinsics(model, "front", 160, 120)
    position, rotation = camera_pose(model, data, "front")
    u, v, w = k @ (rotation.T @ (np.array([3.0, 0.7, 0.9]) - position))
    rows, columns = np.nonzero(RayRenderer(model, 160, 120).segmentation(data, "front") == model.geom("dot").id)
    assert len(rows) > 20
    assert (u / w, v / w) == pytest.approx((columns.mean(), rows.mean()), abs=0.35)
    assert u / w < 79.5  # it is on the left
    np.testing.assert_allclose(rotation, [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-9)


def test_depth_and_k_give_the_floor_back() -> None:
    model = simple_model(camera='pos="1 2 0.8" xyaxes="0 -1 0 0.3 0 1"')
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    depth = RayRenderer(model, 40, 30).depth(data, "front").astype(np.float64)
    k = intrinsics(model, "front", 40, 30)
    position, rotation = camera_pose(model, data, "front")
    v, u = np.mgrid[0:30, 0:40]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
    points = (rays * np.where(np.isfinite(depth), depth, 0)[..., None]) @ rotation.T + position
    assert np.isfinite(depth).sum() > 400
    np.testing.assert_allclose(points[np.isfinite(depth)][:, 2], 0.0, atol=1e-4)


def test_turning_moves_pixels_whatever_their_depth(model: mujoco.MjModel) -> None:
    """Half a degree to the right about the camera's down axis: the middle goes left by f tan."""
    depth = np.random.default_rng(0).uniform(0.5, 9.0, (48, 64)).astype(np.float32)
    depth[:5] = np.inf
    angle = 0.03
    flow = optical_flow(model, K, still(np.eye(3)), still(turn(1, angle)), depth, ONE_GEOM)
    x = (U - 31.5) / 50
    expected = 50 * (np.tan(np.arctan(x) - angle) - x)
    np.testing.assert_allclose(flow.pixels[..., 0], expected, atol=1e-3)
    assert flow.pixels[24, 32, 0] == pytest.approx(-50 * math.tan(angle), abs=0.02)
    np.testing.assert_array_equal(flow.valid, (U + expected > -0.5) & (U + expected < 63.5) & _rows_inside(flow))


def _rows_inside(flow: Flow) -> np.ndarray:
    v = V + flow.pixels[..., 1]
    return np.asarray((v > -0.5) & (v < 47.5))


def test_going_towards_a_wall_spreads_from_the_middle(model: mujoco.MjModel) -> None:
    depth = np.full((48, 64), 4.0, np.float32)
    flow = optical_flow(model, K, still(np.eye(3)), still(np.eye(3), (0.0, 0.0, 1.0)), depth, ONE_GEOM)
    np.testing.assert_allclose(flow.pixels[..., 0], (U - 31.5) / 3, atol=1e-4)
    np.testing.assert_allclose(flow.pixels[..., 1], (V - 23.5) / 3, atol=1e-4)
    assert flow.valid[24, 32]
    assert not flow.valid[0, 0]


def test_going_sideways_is_parallax(model: mujoco.MjModel) -> None:
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:, 32:] = 8.0
    depth[:4] = np.inf
    flow = optical_flow(model, K, still(np.eye(3)), still(np.eye(3), (0.2, 0.0, 0.0)), depth, ONE_GEOM)
    np.testing.assert_allclose(flow.pixels[10, 10], [-5.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(flow.pixels[10, 50], [-1.25, 0.0], atol=1e-4)
    np.testing.assert_allclose(flow.pixels[2, 20], [0.0, 0.0], atol=1e-5)  # the sky stays


def test_what_ends_up_behind_the_camera_is_not_valid(model: mujoco.MjModel) -> None:
    flow = optical_flow(model, K, still(np.eye(3)), still(np.eye(3), (0, 0, 2.0)), np.ones((48, 64), np.float32), ONE_GEOM)
    assert not flow.valid.any()
    assert np.isfinite(flow.pixels).all()


def test_a_moving_body_has_a_flow_of_its_own() -> None:
    model = simple_model(
        '<body name="cart" mocap="true" pos="3 0 0.5"><geom name="cart" type="box" size="0.2 0.4 0.3"/></body>', fovy=60
    )
    data = mujoco.MjData(model)
    ray, k = RayRenderer(model, 64, 48), intrinsics(model, "front", 64, 48)

    def at(y: float, yaw: float) -> tuple[Snapshot, np.ndarray, np.ndarray]:
        data.mocap_pos[0, 1] = y
        data.mocap_quat[0] = math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)
        mujoco.mj_forward(model, data)
        return snapshot(model, data, "front"), *ray.depth_and_segmentation(data, "front")

    before, depth, shown = at(0.0, 0.0)
    after, depth_after, _ = at(0.5, 0.0)
    flow = optical_flow(model, k, before, after, depth, shown, depth_after)
    cart = shown == model.geom("cart").id
    focal = k[0, 0]
    front = cart & (np.abs(depth - 2.8) < 0.01)
    np.testing.assert_allclose(
        flow.pixels[front][:, 0], -focal * 0.5 / 2.8, atol=0.01
    )  # left in the world is left in the picture
    np.testing.assert_allclose(flow.pixels[~cart], 0.0, atol=1e-3)
    assert flow.valid[front].mean() > 0.9
    # The floor and the air that the cart now stands before are hidden in the second picture.
    covered = ~cart & np.roll(cart, round(-focal * 0.5 / 2.8), axis=1)
    assert covered.sum() > 50
    assert flow.valid[covered].mean() < 0.1
    turned, depth_turned, _ = at(0.0, 0.3)
    spin = optical_flow(model, k, before, turned, depth, shown, depth_turned).pixels[cart][:, 0]
    assert spin.min() < -0.5 or spin.max() > 0.5


def warped(picture: np.ndarray, flow: Flow) -> np.ndarray:
    """The second picture, fetched back to where its points were in the first."""
    v, u = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]]
    places = [v + flow.pixels[..., 1], u + flow.pixels[..., 0]]
    return np.stack([map_coordinates(picture[..., c].astype(float), places, order=1, mode="nearest") for c in range(3)], axis=-1)


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_flow_takes_one_picture_to_the_other(kind: str) -> None:
    """The test of the whole chain: |I1 - I0| falls strongly when the second picture is fetched back along the flow."""
    here = scene(kind, 1, 2)
    movers, ray = Movers(here), RayRenderer(here.model, SIZE, SIZE)
    movers.start(here.data)
    k = intrinsics(here.model, CAMERA, SIZE, SIZE)
    for goal in here.world.goals[:2]:
        x, y, yaw = goal.stand_off
        look(here, (x - 0.3 * math.cos(yaw), y - 0.3 * math.sin(yaw), yaw))
        first, (depth, shown), before = (
            ray.rgb(here.data, CAMERA),
            ray.depth_and_segmentation(here.data, CAMERA),
            snapshot(here.model, here.data, CAMERA),
        )
        movers.advance(here.data, 0.1)
        look(here, (x - 0.22 * math.cos(yaw), y - 0.22 * math.sin(yaw), yaw + 0.08))
        second, depth_after, after = (
            ray.rgb(here.data, CAMERA),
            ray.depth(here.data, CAMERA),
            snapshot(here.model, here.data, CAMERA),
        )
        flow = optical_flow(here.model, k, before, after, depth, shown, depth_after)
        assert flow.pixels.dtype == np.float32
        assert flow.valid.mean() > 0.6
        change = np.abs(second.astype(float) - first)[flow.valid].mean()
        left = np.abs(warped(second, flow) - first)[flow.valid].mean()
        assert change > 4
        assert left < 0.35 * change


def test_flow_follows_a_walker() -> None:
    here = scene("indoor", 1, 2)
    movers, ray = Movers(here), RayRenderer(here.model, SIZE, SIZE)
    movers.start(here.data)
    (x, y), (vx, vy) = movers.positions()[0], movers.velocities()[0]
    yaw = math.atan2(vy, vx)
    look(here, (x - 1.5 * math.cos(yaw + 0.8), y - 1.5 * math.sin(yaw + 0.8), yaw + 0.8))
    depth, shown = ray.depth_and_segmentation(here.data, CAMERA)
    before = snapshot(here.model, here.data, CAMERA)
    movers.advance(here.data, 0.2)
    mujoco.mj_forward(here.model, here.data)
    after = snapshot(here.model, here.data, CAMERA)
    flow = optical_flow(here.model, intrinsics(here.model, CAMERA, SIZE, SIZE), before, after, depth, shown)
    walker = np.isin(here.model.geom_bodyid[np.maximum(shown, 0)], here.mover_bodies[0]) & (shown >= 0)
    assert walker.sum() > 30
    assert flow.pixels[walker][:, 0].mean() > 1.0  # it walks to the right of a camera that looks past it on the left
    others = ~np.isin(here.model.geom_bodyid[np.maximum(shown, 0)], here.mover_bodies)
    np.testing.assert_allclose(flow.pixels[others], 0.0, atol=2e-3)


def test_ego_motion_is_seen_from_the_first_pose() -> None:
    before = np.array([1.0, 2.0, 0.5, 0.0, 0.0, math.sin(0.25 * math.pi), math.cos(0.25 * math.pi)])  # looks along y
    after = np.array([1.0, 3.0, 0.5, 0.0, 0.0, math.sin(0.25 * math.pi + 0.1), math.cos(0.25 * math.pi + 0.1)])
    motion = ego_motion(before, after)
    np.testing.assert_allclose(motion.translation, [1.0, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(motion.rotation_vector, [0.0, 0.0, 0.2], atol=1e-9)
    np.testing.assert_array_equal(ego_motion(before, before).rotation_vector, np.zeros(3))


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-7, math.pi])
def test_rotation_vectors_hold_from_nothing_to_half_a_turn(angle: float) -> None:
    for axis in (np.array([1.0, 0, 0]), np.array([-1.0, 2.0, 0.5]), np.array([0.0, -1.0, 1.0])):
        axis = axis / np.linalg.norm(axis)
        after = np.concatenate([np.zeros(3), math.sin(angle / 2) * axis, [math.cos(angle / 2)]])
        found = ego_motion(np.array([0.0, 0, 0, 0, 0, 0, 1]), after).rotation_vector
        if angle == math.pi:  # either sense is the same turn
            found = found * np.sign(found @ axis)
        np.testing.assert_allclose(found, angle * axis, atol=1e-6)
        after[3:] *= -1  # the same turn, written the other way
        again = ego_motion(np.array([0.0, 0, 0, 0, 0, 0, 1]), after).rotation_vector
        np.testing.assert_allclose(again * np.sign(again @ axis), angle * axis, atol=1e-6)
        assert angle == math.pi or again @ axis > 0


def test_poses_turn_quaternions_over() -> None:
    here = scene("indoor", 1)
    look(here, (1.0, 2.0, 0.8))
    np.testing.assert_allclose(body_pose(here.model, here.data, "robot/base"), [1, 2, 0, 0, 0, math.sin(0.4), math.cos(0.4)])


def test_pictures_of_two_sizes_are_refused(model: mujoco.MjModel) -> None:
    with pytest.raises(KineflowError, match="depth and segmentation must be of one size"):
        optical_flow(model, K, still(np.eye(3)), still(np.eye(3)), np.ones((4, 4), np.float32), ONE_GEOM)
