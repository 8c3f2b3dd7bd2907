"""Keep-out and fence: whatever the policy wants, the body can stop before what is seen, and is never stuck for ever."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.deploy.keep_out import Mount, Pinhole, from_depth, from_fence, from_ranges
from kineflow.deploy.robot_profile import Geofence, KeepOut, RobotProfile
from tests.deploy.governed import Drive, assert_limits_hold, is_still, profile

ANGLES = np.linspace(-math.pi, math.pi, 180, endpoint=False)
KEEP = KeepOut(deceleration=1.5)
WHEELED, DRONE = profile("wheeled"), profile("drone", limits={"high": (2.0, 1.0, 0.5, 1.0)})
SQUARE = Geofence(polygon=((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)))
HOOK = Geofence(polygon=((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (3.0, 4.0), (3.0, 1.0), (0.0, 1.0)))  # an L, not convex


class World:
    """A body that does what it is told (late by `latency_s`), among points; its scans come at 10 Hz."""

    def __init__(self, robot: RobotProfile, points: np.ndarray, latency_s: float = 0.0) -> None:
        self.drive, self.points, self.pose = Drive(robot), points, np.zeros(3)
        self.delay = round(latency_s / 0.02)
        self.nearest, self.trace = math.inf, [np.zeros(3)]

    def run(self, action: list[float], seconds: float, scans: bool = True) -> None:
        drive = self.drive
        for k in range(round(seconds / 0.02)):
            if scans and k % 5 == 0:
                drive.governor.ranges(ANGLES, self.scan(), drive.now_s)
            drive.governor.pose(*self.pose, drive.now_s)
            drive.tick(action)
            past = drive.commands[max(0, len(drive.commands) - 1 - self.delay)].values
            yaw = self.pose[2]
            turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
            self.pose = np.array([*(self.pose[:2] + turn @ past[:2] * 0.02), yaw + past[3] * 0.02])
            self.trace.append(self.pose)
            if len(self.points):
                self.nearest = min(self.nearest, float(np.linalg.norm(self.points - self.pose[:2], axis=1).min()))

    def scan(self) -> np.ndarray:
        """Distance of the nearest point in each beam of 2 degrees; `inf` where none is."""
        metres = np.full(len(ANGLES), math.inf)
        way = self.points - self.pose[:2]
        beam = np.round((np.arctan2(way[:, 1], way[:, 0]) - self.pose[2] + math.pi) / (math.tau / 180)).astype(int) % 180
        np.minimum.at(metres, beam, np.linalg.norm(way, axis=1))
        return metres


def wall(x: float) -> np.ndarray:
    return np.stack([np.full(401, x), np.linspace(-2, 2, 401)], axis=1)


@pytest.mark.parametrize("robot", [WHEELED, DRONE], ids=lambda r: r.name)
@pytest.mark.parametrize("latency_s", [0.0, 0.14])
def test_a_wall_ahead_is_met_at_the_margin_without_hard_braking(robot: RobotProfile, latency_s: float) -> None:
    world = World(robot, wall(2.5), latency_s)
    world.run([2.0, 0.0, 0.0, 0.0], 8.0)
    assert robot.keep_out is not None
    free = world.nearest - robot.footprint_radius_m
    assert robot.keep_out.margin_m - 0.02 <= free <= robot.keep_out.margin_m + 0.1
    assert not any(command.braking for command in world.drive.commands)
    assert any(command.reasons and "ranges" in command.reasons for command in world.drive.commands)
    assert_limits_hold(world.drive, [0.0] * 4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_policy_drives_the_body_into_what_it_sees(seed: int) -> None:
    """Random points all round, random commands, a body as late as the profile says."""
    generator = np.random.default_rng(seed)
    distance, angle = generator.uniform(0.45, 2.0, 30), generator.uniform(-math.pi, math.pi, 30)
    world = World(WHEELED, np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1), 0.14)
    for _ in range(8):
        world.run([float(v) for v in generator.uniform(-1, 1, 4) * [1.0, 0.0, 0.0, 2.0]], 0.6)
    assert world.nearest >= WHEELED.footprint_radius_m + 0.05 - 0.01  # half of the margin, less the width of a beam


def test_what_appears_close_is_braked_for_at_once() -> None:
    world = World(WHEELED, np.zeros((0, 2)))
    world.run([0.5, 0.0, 0.0, 0.0], 1.5)
    drive = world.drive
    assert drive.commands[-1].outcome == "pass"
    world.points = world.pose[:2] + np.array([[0.42, 0.0]])  # 6 cm of room, 8 cm of braking
    world.run([0.5, 0.0, 0.0, 0.0], 0.3)
    braking = [command for command in drive.commands[-15:] if command.braking]
    assert braking[0].reasons == ("too close: ranges",)
    assert braking[0].values[0] == pytest.approx(0.5 - 2.5 * 0.02)
    world.run([0.5, 0.0, 0.0, 0.0], 3.0)
    assert world.nearest >= 0.26 + 0.05  # half of the margin


def test_a_used_up_chunk_does_not_ramp_gently_into_an_obstacle() -> None:
    world = World(WHEELED, np.zeros((0, 2)))
    world.run([0.5, 0.0, 0.0, 0.0], 1.5)
    world.points = world.pose[:2] + np.array([[0.42, 0.0]])
    drive = world.drive
    drive.governor.ranges(ANGLES, world.scan(), drive.now_s)
    command = drive.tick(None)
    assert (command.outcome, command.reasons, command.braking) == ("stop", ("chunk used up", "too close: ranges"), True)


def test_at_the_wall_the_body_still_turns_and_backs_away() -> None:
    world = World(WHEELED, wall(0.7))
    world.run([0.5, 0.0, 0.0, 0.0], 4.0)
    stuck = world.pose[0]
    world.run([0.5, 0.0, 0.0, 1.0], 1.0)
    assert world.pose[2] > 0.5
    world.run([0.0, 0.0, 0.0, -1.0], 1.0)
    world.run([-0.4, 0.0, 0.0, 0.0], 1.0)
    assert world.pose[0] < stuck - 0.2


def test_a_silent_scanner_stops_and_one_that_was_never_there_does_not() -> None:
    world = World(WHEELED, wall(9.0))
    world.run([0.5, 0.0, 0.0, 0.0], 2.0, scans=False)
    assert world.drive.commands[-1].values[0] == pytest.approx(0.5)
    world.run([0.5, 0.0, 0.0, 0.0], 0.2)
    world.run([0.5, 0.0, 0.0, 0.0], 1.0, scans=False)
    assert world.drive.commands[-1].reasons == ("ranges went silent",)
    assert is_still(world.drive.commands[-1].values)


def test_a_scan_without_a_measurement_has_not_looked() -> None:
    drive = Drive(WHEELED)
    nothing = np.full(180, math.nan)
    drive.governor.ranges(ANGLES, np.full(180, math.inf), drive.now_s)
    for _ in range(50):
        drive.governor.ranges(ANGLES, nothing, drive.now_s)
        drive.tick([0.5, 0.0, 0.0, 0.0])
    assert drive.commands[-1].reasons == ("ranges went silent",)


# Geometry, against points worked out by hand


def test_beams_are_points_of_the_base() -> None:
    mount = Mount(x=0.2, y=0.1, yaw=math.pi / 2)  # its ahead is the base's left
    planes = from_ranges(np.array([0.0, -math.pi / 2]), np.array([1.0, 2.0]), mount, 0.26, KEEP, 9.0, 0.0)
    assert planes is not None
    where = np.array([[0.2, 1.1, 0.0], [2.2, 0.1, 0.0]])
    distance = np.linalg.norm(where, axis=1)
    np.testing.assert_allclose(planes.toward, where / distance[:, None], atol=1e-12)
    np.testing.assert_allclose(planes.room, distance - 0.26 - 0.1, atol=1e-12)


def test_special_ranges() -> None:
    angles = np.arange(5) * 0.1
    planes = from_ranges(angles, np.array([math.nan, math.inf, -1.0, -math.inf, 1.0]), Mount(), 0.26, KEEP, 9.0, 0.0)
    assert planes is not None
    np.testing.assert_allclose(planes.room, [0.01 - 0.36, 0.64])  # -inf: too close to tell
    with pytest.raises(KineflowError, match="one angle per distance"):
        from_ranges(angles, np.ones(4), Mount(), 0.26, KEEP, 9.0, 0.0)


@pytest.mark.parametrize("millimetres", [True, False])
def test_pixels_are_points_of_the_base(millimetres: bool) -> None:
    depth = np.zeros((48, 64))
    depth[20, 40] = 2.0
    values = (depth * 1000).astype(np.uint16) if millimetres else np.where(depth > 0, depth, math.nan)
    planes = from_depth(values, Pinhole(50.0, 50.0, 32.0, 24.0), Mount(z=0.5), 0.26, KEEP, 9.0, 0.0)
    assert planes is not None
    left = -(40 - 32) / 50 * 2.0
    distance = math.hypot(2.0, left)
    np.testing.assert_allclose(planes.toward, [[2.0 / distance, left / distance, 0.0]], atol=1e-12)
    np.testing.assert_allclose(planes.room, [distance - 0.36], atol=1e-12)


def test_floor_and_ceiling_are_not_obstacles_for_a_camera_that_looks_down() -> None:
    rows, _ = np.mgrid[0:48, 0:64]
    pitch, height = 0.4, 0.6
    camera, mount = Pinhole(50.0, 50.0, 31.5, 23.5), Mount(z=height, pitch=pitch)
    ahead, down = 1.0, (rows - 23.5) / 50.0  # of a ray, per metre of depth
    falls = down * math.cos(pitch) + ahead * math.sin(pitch)
    floor = np.where(falls > 1e-6, height / np.maximum(falls, 1e-6), math.inf)
    clear = from_depth(floor, camera, mount, 0.26, KEEP, 9.0, 0.0)
    assert clear is not None
    assert len(clear.room) == 0
    box = floor.copy()
    box[30:34, 28:36] *= 0.6  # stands 24 cm high
    seen = from_depth(box, camera, mount, 0.26, KEEP, 9.0, 0.0)
    assert seen is not None
    assert len(seen.room) > 0
    assert from_depth(np.zeros((48, 64)), camera, mount, 0.26, KEEP, 9.0, 0.0) is None
    with pytest.raises(KineflowError, match=r"give \[H, W\]"):
        from_depth(np.zeros((48, 64, 1)), camera, mount, 0.26, KEEP, 9.0, 0.0)


@pytest.mark.parametrize("shape", [(50, 67), (48, 64), (7, 5)])
def test_the_last_rows_and_columns_of_a_depth_image_count(shape: tuple[int, int]) -> None:
    """Pictures whose size is no multiple of a block's."""
    height, width = shape
    depth = np.full(shape, 3.0)
    depth[height // 2, -1] = 0.5
    camera = Pinhole(50.0, 50.0, width / 2 - 0.5, height / 2 - 0.5)
    planes = from_depth(depth, camera, Mount(z=0.5), 0.26, KEEP, 9.0, 0.0)
    assert planes is not None
    expected = math.hypot(0.5, (width - 1 - camera.cx) / 50 * 0.5) - 0.26 - KEEP.margin_m
    assert planes.room.min() == pytest.approx(expected)


def test_depth_slows_like_ranges() -> None:
    drive = Drive(WHEELED)
    depth = np.full((48, 64), 1.9)
    for _ in range(200):
        drive.governor.depth(depth, Pinhole(50.0, 50.0, 31.5, 23.5), drive.now_s, Mount(z=0.5))
        drive.tick([0.5, 0.0, 0.0, 0.0])
    assert drive.commands[-1].values[0] == pytest.approx(0.5)
    assert drive.commands[-1].reasons == ()
    near = np.full((48, 64), 0.4)
    for _ in range(200):
        drive.governor.depth(near, Pinhole(50.0, 50.0, 31.5, 23.5), drive.now_s, Mount(z=0.5))
        drive.tick([0.5, 0.0, 0.0, 0.0])
    room, lag, late = 0.04, (1.5 + 2.5 / 2) / 10 + 0.02, 0.16 + 0.02  # late: 8 ticks of latency, one since the image
    slow = 1.5 * (lag + late)
    assert drive.commands[-1].values[0] == pytest.approx(math.sqrt(slow**2 + 3 * room) - slow, abs=1e-3)
    assert drive.commands[-1].reasons == ("depth",)


# Fence


@pytest.mark.parametrize(("x", "y", "inside"), [(2, 2, True), (-0.1, 2, False), (2, 4.1, False), (3.9, 0.1, True)])
def test_square_fence(x: float, y: float, inside: bool) -> None:
    assert (from_fence(SQUARE, x, y, 0.0, 0.3, 0.2, 0.0) is not None) == inside


def test_the_notch_of_a_hook_is_outside() -> None:
    assert from_fence(HOOK, 1.0, 3.0, 0.0, 0.0, 0.2, 0.0) is None
    assert from_fence(HOOK, 3.5, 3.0, 0.0, 0.0, 0.2, 0.0) is not None


def test_room_to_the_fence_is_in_the_body_frame() -> None:
    planes = from_fence(dataclasses.replace(SQUARE, high_m=2.0), 1.0, 2.0, 0.5, math.pi / 2, 0.2, 0.0)
    assert planes is not None
    nearest = int(planes.room.argmin())
    np.testing.assert_allclose(planes.toward[nearest], [0.0, 1.0, 0.0], atol=1e-12)  # the fence at x = 0 is on its left
    assert planes.room[nearest] == pytest.approx(0.7)  # 1 m, less footprint and margin
    np.testing.assert_allclose(planes.toward[-1], [0.0, 0.0, 1.0])
    assert planes.room[-1] == pytest.approx(1.4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_policy_leaves_the_fence(seed: int) -> None:
    generator = np.random.default_rng(seed)
    world = World(profile("wheeled", geofence=HOOK), np.zeros((0, 2)), 0.1)
    world.pose = np.array([0.6, 0.5, 0.0])
    for _ in range(8):
        world.run([float(v) for v in generator.uniform(-1, 1, 4) * [2.0, 0.0, 0.0, 1.0]], 1.0, scans=False)
    for x, y, _ in world.trace[1:]:
        planes = from_fence(HOOK, x, y, 0.0, 0.0, 0.0, 0.0)
        assert planes is not None
        assert planes.room.min() + 0.1 >= 0.26 - 0.005


def test_without_a_pose_or_outside_nothing_moves() -> None:
    drive = Drive(profile("wheeled", geofence=SQUARE))
    assert drive.tick([0.5, 0.0, 0.0, 0.0]).reasons == ("pose not known",)
    drive.governor.pose(2.0, 2.0, 0.0, drive.now_s)
    assert drive.run([0.5, 0.0, 0.0, 0.0], 0.4)[-1][0] > 0.2
    assert drive.run([0.5, 0.0, 0.0, 0.0], 1.0)[-1][0] == 0.0
    assert drive.commands[-1].reasons == ("fence went silent",)
    drive.governor.pose(-1.0, 2.0, 0.0, drive.now_s)
    drive.tick([0.5, 0.0, 0.0, 0.0])
    assert "outside the fence" in drive.governor.state(drive.now_s)["still_because"]
