from __future__ import annotations

import math
import time

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.drone import FLIGHT_HEIGHT_M, Drone, DroneRobot, mixer
from kineflow.envs.navigation.embodiments.embodiment import Robot
from tests.envs.navigation.flat_world import STOP, drive, on_floor, position, state_after, steady

TABLE = [
    (0.5, 0.0, 0.0, 0.0),
    (2.0, 0.0, 0.0, 0.0),
    (-1.0, 0.0, 0.0, 0.0),
    (0.0, 1.5, 0.0, 0.0),
    (0.0, 0.0, 0.5, 0.0),
    (0.0, 0.0, -0.2, 0.0),
    (0.0, 0.0, 0.0, 1.5),
    (2.0, 0.0, 0.0, 0.5),
    (1.0, -0.5, 0.3, -1.0),
]
# Round the body: behind right, behind left, front left, front right.
ARMS = np.array([(-0.14, -0.18, 0), (-0.14, 0.18, 0), (0.14, 0.18, 0), (0.14, -0.18, 0)])
wild = st.floats(-1e4, 1e4, width=32)


@pytest.fixture(scope="module")
def robot() -> Robot:
    return on_floor(Drone())


@pytest.mark.parametrize("command", TABLE)
def test_steady_state_is_within_two_percent_of_the_command(robot: Robot, command: tuple[float, ...]) -> None:
    np.testing.assert_allclose(steady(robot, command, settle=18), command, rtol=0.02, atol=0.006)


def test_it_starts_in_a_hover_and_stays_there(robot: Robot) -> None:
    robot.start(3.0, -2.0, 1.0)
    np.testing.assert_allclose(position(robot), (3.0, -2.0, FLIGHT_HEIGHT_M))
    drive(robot, STOP, 30)
    np.testing.assert_allclose(position(robot), (3.0, -2.0, FLIGHT_HEIGHT_M), atol=1e-3)
    assert robot.yaw == pytest.approx(1.0, abs=1e-3)
    assert not robot.fallen()


def test_the_command_is_in_the_frame_of_the_body(robot: Robot) -> None:
    robot.start(0.0, 0.0, math.pi / 2)
    drive(robot, (1.0, 0.0, 0.0, 0.0), 20)
    x, y, z = position(robot)
    assert y > 1.2
    assert abs(x) < 0.02
    assert z == pytest.approx(FLIGHT_HEIGHT_M, abs=0.02)


def test_it_tilts_to_accelerate_and_against_the_air(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    drive(robot, (2.0, 0.0, 0.0, 0.0), 5)
    assert robot.tilt == pytest.approx(math.atan(2.5 / 9.81), abs=0.05)
    drive(robot, (2.0, 0.0, 0.0, 0.0), 20)
    assert robot.tilt == pytest.approx(math.atan(0.2 * 2.0 / 9.81), abs=0.01)


def test_a_push_is_ridden_out(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    robot.data.xfrc_applied[robot.base, :3] = 2.0, -2.0, 1.0
    assert np.abs(drive(robot, STOP, 4)[-1]).max() > 0.1
    robot.data.xfrc_applied[robot.base] = 0.0
    drive(robot, STOP, 20)
    np.testing.assert_allclose(drive(robot, STOP, 1)[0], 0.0, atol=0.05)
    assert not robot.fallen()


def test_the_mixer_turns_all_ways_and_the_published_signs_do_not() -> None:
    thrusts = np.linalg.inv(mixer(ARMS, 0.02 * np.array([-1, 1, -1, 1]))) @ (12.0, 0.0, 0.0, 0.1)
    np.testing.assert_allclose(thrusts.sum(), 12.0)
    np.testing.assert_allclose(thrusts[0] - thrusts[1], -2.5)  # yaw to the left by the rotors that turn right
    with pytest.raises(KineflowError, match="opposite signs"):
        mixer(ARMS, 0.0201 * np.array([-1, 1, 1, -1]))  # yaw torque is a multiple of roll torque


def test_the_mixer_gives_the_wrench_that_the_model_feels(robot: Robot) -> None:
    """Thrusts for a yaw torque alone turn the simulated body about z and nothing else."""
    assert isinstance(robot, DroneRobot)
    robot.start(0.0, 0.0, 0.0)
    thrusts = np.array(robot._thrusts_of) @ (1.3 * 9.81, 0.0, 0.0, 0.1)
    robot.data.act[:] = robot.data.ctrl[:] = thrusts
    mujoco.mj_forward(robot.model, robot.data)
    np.testing.assert_allclose(robot.data.qacc, (0, 0, 0, 0, 0, 0.1 / 0.038), atol=1e-9)


def test_where_thrust_runs_out_the_torque_shrinks_and_keeps_its_axis(robot: Robot) -> None:
    assert isinstance(robot, DroneRobot)
    wanted = np.array((12.0, 3.0, -1.0, 0.2))
    thrusts = np.array(robot._thrusts(wanted[0], (wanted[1], wanted[2], wanted[3])))
    assert thrusts.min() == pytest.approx(0.0, abs=1e-9)
    got = mixer(ARMS, 0.02 * np.array([-1, 1, -1, 1])) @ thrusts
    assert got[0] == pytest.approx(12.0)
    np.testing.assert_allclose(got[1:] / wanted[1:], (got[1] / 3.0,) * 3)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(wild, wild, wild, wild), min_size=2, max_size=8))
def test_no_command_takes_it_beyond_its_limits(commands: list[tuple[float, ...]]) -> None:
    robot, limits = shared(), Drone().limits
    low, high = np.array(limits.low), np.array(limits.high)
    step = np.array(limits.max_rate) * 0.1
    robot.start(0.0, 0.0, 0.0)
    robot.data.qpos[2] = 5.0  # room to go down
    applied, measured, heading = robot.applied, robot.velocity(), 0.0
    for command in commands:
        robot.drive(np.array(command, dtype=np.float32))
        assert (robot.applied >= low - 1e-6).all()
        assert (robot.applied <= high + 1e-6).all()
        assert (np.abs(robot.applied - applied) <= step + 1e-5).all()
        # What it really does. In a turn the body's axes move under its velocity; a swing of the tilt moves the nose a little.
        velocity = robot.velocity()
        turning = abs(velocity[3]) * np.hypot(velocity[0], velocity[1]) * 0.1
        assert (np.abs(velocity - measured)[:3] <= 1.4 * step[:3] + [turning + 0.05, turning + 0.05, 0.05]).all()
        assert (np.abs(velocity)[:3] <= 1.06 * high[:3] + 0.05).all()
        # The ramp of a control step: at the limit first, then level.
        change = robot.applied[3] - applied[3]
        heading += 0.1 * (robot.applied[3] - change * abs(change) / (2 * step[3]))
        assert abs(math.remainder(robot.yaw - heading, math.tau)) < 0.2
        applied, measured = robot.applied, velocity
    assert not robot.fallen()


def shared(robots: list[Robot] = []) -> Robot:  # noqa: B006 (made once, for the examples of a property)
    if not robots:
        robots.append(on_floor(Drone()))
    return robots[0]


def test_the_same_commands_give_the_same_bits(robot: Robot) -> None:
    commands = np.random.default_rng(3).uniform(-1, 1, (15, 4)).tolist()
    first = state_after(robot, commands)
    assert state_after(robot, commands) == first  # whatever happened in this scene before
    assert state_after(on_floor(Drone()), commands) == first
    assert state_after(robot, [*commands[:-1], (0.9, 0.0, 0.0, 0.0)]) != first


@pytest.mark.parametrize(("speed", "broken"), [(0.3, False), (1.5, True)])
def test_a_wall_is_a_collision_and_at_speed_a_crash(speed: float, broken: bool) -> None:
    robot = on_floor(Drone(), wall_x=1.5)
    robot.start(0.0, 0.0, 0.0)
    drive(robot, (speed, 0.0, 0.0, 0.0), 3)
    assert robot.touched == ()
    hit = False
    for _ in range(round(1.5 / speed * 10)):
        drive(robot, (speed, 0.0, 0.0, 0.0), 1)
        hit |= robot.touched == (robot.model.geom("wall").id,)
    assert hit
    assert robot.fallen() == broken


def test_a_landing_is_gentle_and_a_fall_is_a_crash() -> None:
    robot = on_floor(Drone())
    robot.start(0.0, 0.0, 0.0)
    drive(robot, (0.0, 0.0, -0.5, 0.0), 35)
    assert position(robot)[2] == pytest.approx(0.05, abs=0.01)
    assert not robot.fallen()
    assert robot.touched == ()  # standing on the ground is not a collision
    drive(robot, (0.0, 0.0, 0.5, 0.0), 20)
    assert position(robot)[2] > 0.5  # and it takes off again
    robot.model.actuator_gainprm[:, 0] = 0.0  # the battery is empty
    drive(robot, STOP, 12)
    assert robot.fallen()
    robot.model.actuator_gainprm[:, 0] = 1.0
    robot.start(0.0, 0.0, 0.0)
    assert not robot.fallen()


def test_upside_down_is_fallen(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    robot.data.qpos[3:7] = 0, 1, 0, 0
    assert robot.fallen()


def test_commands_that_are_no_numbers_are_refused(robot: Robot) -> None:
    with pytest.raises(KineflowError, match="drone: a command is four finite numbers"):
        robot.drive(np.array((0, 0, math.nan, 0), dtype=np.float32))


def test_it_is_fast_enough_to_collect_with(robot: Robot) -> None:
    robot.start(0.0, 0.0, 0.0)
    began = time.process_time()
    drive(robot, (0.5, 0.0, 0.0, 0.3), 30)
    assert (time.process_time() - began) / 30 < 0.005  # 20 times real time
