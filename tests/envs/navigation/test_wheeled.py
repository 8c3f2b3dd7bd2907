from __future__ import annotations

import math
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.embodiment import Robot, attach
from kineflow.envs.navigation.embodiments.wheeled import TRACK_M, WHEEL_RADIUS_M, Wheeled
from tests.envs.navigation.flat_world import STOP, drive, on_floor, position, state_after, steady

TABLE = [
    (0.5, 0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0, 0.0),
    (-0.5, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
    (0.0, 0.0, 0.0, -1.5),
    (1.0, 0.0, 0.0, 1.5),
    (0.3, 0.0, 0.0, -0.5),
]
wild = st.floats(-1e4, 1e4, width=32)


@pytest.fixture(scope="module")
def robot() -> Robot:
    return on_floor(Wheeled())


@pytest.mark.parametrize("command", TABLE)
def test_steady_state_is_within_one_percent_of_the_command(robot: Robot, command: tuple[float, ...]) -> None:
    np.testing.assert_allclose(steady(robot, command), command, rtol=0.01, atol=0.002)


def test_the_command_is_in_the_frame_of_the_body(robot: Robot) -> None:
    robot.start(2.0, -1.0, math.pi / 2)
    drive(robot, (1.0, 0.0, 0.0, 0.0), 20)
    x, y, _ = position(robot) - (2.0, -1.0, 0.0)
    assert y > 1.5
    assert abs(x) < 0.01
    assert robot.yaw == pytest.approx(math.pi / 2, abs=0.01)


def test_it_turns_left_on_a_circle_of_the_commanded_radius(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    command = (0.5, 0.0, 0.0, 0.5)
    drive(robot, command, 20)
    path = []
    for _ in range(126):  # 2 pi / 0.5 s: once round
        drive(robot, command, 1)
        path.append(position(robot)[:2])
    centre = np.mean(path, axis=0)
    assert np.linalg.norm(path - centre, axis=1) == pytest.approx(1.0, rel=0.03)
    assert centre[1] > 0  # the centre of a left turn is on the left


def test_axes_that_it_lacks_are_ignored_and_reported_as_zero(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    velocities = drive(robot, (0.0, 1.0, 1.0, 0.0), 5)
    np.testing.assert_array_equal(velocities[:, 1:3], 0.0)
    np.testing.assert_array_equal(robot.applied, 0.0)
    assert np.abs(position(robot)).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(wild, wild, wild, wild), min_size=2, max_size=8))
def test_no_command_takes_it_beyond_its_limits(commands: list[tuple[float, ...]]) -> None:
    robot, limits = shared(), Wheeled().limits
    low, high = np.array(limits.low), np.array(limits.high)
    step = np.array(limits.max_rate) * 0.1
    robot.start(0.0, 0.0, 0.0)
    applied, measured = robot.applied, robot.velocity()
    for command in commands:
        robot.drive(np.array(command, dtype=np.float32))
        assert (robot.applied >= low - 1e-6).all()
        assert (robot.applied <= high + 1e-6).all()
        assert (np.abs(robot.applied - applied) <= step + 1e-5).all()
        # What it really does: the servos follow a ramp, with a little give in the tyres.
        velocity = robot.velocity()
        assert (np.abs(velocity - measured)[[0, 3]] <= 1.15 * step[[0, 3]] + 0.01).all()
        assert (np.abs(velocity) <= 1.03 * high + 0.01).all()
        applied, measured = robot.applied, velocity
    assert not robot.fallen()


def shared(robots: list[Robot] = []) -> Robot:  # noqa: B006 (made once, for the examples of a property)
    if not robots:
        robots.append(on_floor(Wheeled()))
    return robots[0]


def test_wheels_roll_and_do_not_slip(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    joints = robot.data.joint("robot/left_wheel"), robot.data.joint("robot/right_wheel")
    for command in [(1.0, 0.0, 0.0, 1.5)] * 8 + [(-0.5, 0.0, 0.0, -1.5)] * 12 + [STOP] * 6:
        drive(robot, command, 1)
        vx, _, _, yaw_rate = robot.motion()
        left, right = (float(joint.qvel[0]) * WHEEL_RADIUS_M for joint in joints)
        assert vx == pytest.approx((left + right) / 2, abs=0.03)
        assert yaw_rate == pytest.approx((right - left) / TRACK_M, abs=0.08)
        assert robot.tilt < 0.01


def test_it_drives_by_the_friction_of_the_ground() -> None:
    robot = on_floor(Wheeled())
    for friction, reached in ((1.0, 1.0), (0.7, 1.0), (0.001, 0.0)):
        robot.model.geom("floor").friction[0] = friction
        assert steady(robot, (1.0, 0.0, 0.0, 0.0))[0] == pytest.approx(reached, abs=0.3)


def test_the_same_commands_give_the_same_bits(robot: Robot) -> None:
    commands = np.random.default_rng(3).uniform(-1, 1, (15, 4)).tolist()
    first = state_after(robot, commands)
    assert state_after(robot, commands) == first  # whatever happened in this scene before
    assert state_after(on_floor(Wheeled()), commands) == first
    assert state_after(robot, [*commands[:-1], (0.9, 0.0, 0.0, 0.0)]) != first


def test_a_start_against_a_wall_does_not_depend_on_the_past_either() -> None:
    robot = on_floor(Wheeled(), wall_x=0.24)
    first = state_after(robot, [(0.5, 0.0, 0.0, 0.3)])
    robot.start(0.0, 0.0, 0.3)
    robot.data.qacc_warmstart[:] = 1.001 * robot.data.qacc  # the solver would begin closer to its answer
    assert state_after(robot, [(0.5, 0.0, 0.0, 0.3)]) == first


def test_a_wall_is_a_collision_and_the_ground_is_not() -> None:
    robot = on_floor(Wheeled(), wall_x=1.0)
    robot.start(0.0, 0.0, 0.0)
    drive(robot, (1.0, 0.0, 0.0, 0.0), 5)
    assert robot.touched == ()
    drive(robot, (1.0, 0.0, 0.0, 0.0), 10)
    assert robot.touched == (robot.model.geom("wall").id,)
    assert position(robot)[0] == pytest.approx(1.0 - 0.25, abs=0.01)  # stopped by the wall, not through it
    assert not robot.fallen()
    robot.start(-1.0, 0.0, 0.0)
    assert robot.touched == ()


def test_a_touch_between_two_control_steps_is_not_lost() -> None:
    robot = on_floor(Wheeled(), wall_x=0.2505)
    robot.start(0.0, 0.0, 0.0)
    robot.data.qvel[robot._v] = 0.1  # hits the wall 5 ms later and bounces off at once
    robot.drive(np.array((-0.5, 0.0, 0.0, 0.0), dtype=np.float32))
    wall = robot.model.geom("wall").id
    assert wall not in robot.data.contact.geom
    assert robot.touched == (wall,)


def test_lying_on_its_side_is_fallen(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    assert not robot.fallen()
    robot.data.qpos[2:7] = 0.3, math.cos(0.7), math.sin(0.7), 0, 0
    drive(robot, STOP, 5)
    assert robot.fallen()


@pytest.mark.parametrize("command", [(math.nan, 0, 0, 0), (0, 0, 0, math.inf), (1.0, 0.0), (0.0,) * 5])
def test_a_command_that_is_not_four_numbers_is_refused(robot: Robot, command: tuple[float, ...]) -> None:
    before = robot.data.time
    with pytest.raises(KineflowError, match="four finite numbers"):
        robot.drive(np.array(command, dtype=np.float32))
    assert robot.data.time == before


def test_unstable_physics_is_an_error_and_not_a_silent_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log where it runs
    robot = on_floor(Wheeled())
    for _ in range(2):
        robot.start(1.0, 0.0, 0.0)
        robot.data.qvel[0] = math.nan
        with pytest.raises(KineflowError, match="wheeled: the physics became unstable"):
            drive(robot, STOP, 1)
    robot.start(1.0, 0.0, 0.0)
    drive(robot, STOP, 1)
    np.testing.assert_allclose(position(robot), (1.0, 0.0, 0.0), atol=1e-3)


def test_a_scene_that_it_does_not_fit_is_refused() -> None:
    euler, implicit = mujoco.mjtIntegrator.mjINT_EULER, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for timestep, integrator in ((0.002, implicit), (0.005, euler)):
        world = mujoco.MjSpec()
        attach(world, Wheeled())
        world.option.timestep, world.option.integrator = timestep, integrator
        model = world.compile()
        with pytest.raises(KineflowError, match=rf"time step of 0\.005 s .* has {timestep} s"):
            Wheeled().bind(model, mujoco.MjData(model))
    world = mujoco.MjSpec()
    attach(world, Wheeled(), prefix="other/")
    model = world.compile()
    with pytest.raises(KineflowError, match="no site 'robot/base'"):
        Wheeled().bind(model, mujoco.MjData(model))
    assert Wheeled().bind(model, mujoco.MjData(model), prefix="other/").geoms


def test_the_camera_looks_forward_from_its_mast(robot: Robot) -> None:
    robot.start(0.0, 0.0, math.pi / 2)
    assert robot.data.cam_xpos[robot.front][2] == pytest.approx(0.45, abs=0.01)
    forward = -robot.data.cam_xmat[robot.front].reshape(3, 3)[:, 2]  # MuJoCo's cameras look along -z
    np.testing.assert_allclose(forward, (0, 1, 0), atol=0.02)


def test_it_is_fast_enough_to_collect_with(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    drive(robot, (0.5, 0.0, 0.0, 0.3), 5)
    began = time.process_time()
    drive(robot, (0.5, 0.0, 0.0, 0.3), 40)
    assert (time.process_time() - began) / 40 < 0.005  # 20 times real time
