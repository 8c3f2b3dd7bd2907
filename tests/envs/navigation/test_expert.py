"""The expert arrives, touches nothing, and knows the way back from where it was pushed; its pictures are a clip."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.demonstrate import Demonstration, Disturbance, Recording, flow_units, millimetres, record
from kineflow.envs.navigation.expert import Expert, speed_profile
from kineflow.envs.navigation.free_space import FreeSpace
from kineflow.envs.navigation.goal_clip import Cursor, clip_frames, cut, film
from kineflow.envs.navigation.planner import Planner, straight
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import Task, Trip, draw_trip
from kineflow.envs.navigation.world import WorldConfig, generate_world

TINY = Picture(12, 16, "ray")
AT_REST = np.zeros(4, np.float32)


def open_floor(size: int = 121) -> Planner:
    occupied = np.zeros((size, size), bool)
    occupied[[0, -1]] = occupied[:, [0, -1]] = True
    return Planner(FreeSpace(occupied, (0.0, 0.0), 0.1), 0.26)


def glide(expert: Expert, x: float, y: float, yaw: float, steps: int = 400) -> np.ndarray:
    """The expert on a body that does at once what it is told: x, y, yaw, vx, yaw rate of each step."""
    rows, velocity = [], AT_REST
    for _ in range(steps):
        command = expert.command(x, y, 0.0, yaw, velocity)
        rows.append((x, y, yaw, command[0], command[3]))
        if expert.is_resting:
            break
        velocity = command
        yaw += command[3] * 0.1
        x, y = x + 0.1 * command[0] * math.cos(yaw), y + 0.1 * command[0] * math.sin(yaw)
    return np.array(rows)


@pytest.fixture(scope="module", params=["indoor", "outdoor"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(generate_world(WorldConfig(request.param, 4, movers=1)), embodiment_of("wheeled"), TINY)


def test_it_stops_at_the_end_and_never_drives_faster_than_it_can_brake() -> None:
    path = straight([(2.0, 2.0), (9.0, 2.0)])
    rows = glide(Expert(path, embodiment_of("wheeled"), open_floor()), 2.0, 2.0, 0.0)
    assert rows[:, 3].max() == pytest.approx(0.8)
    left = 9.0 - rows[:, 0]
    assert (rows[:, 3] ** 2 <= 2 * 0.6 * np.maximum(left, 0) + 0.01).all()  # no more than 0.6 m/s^2 from where it is
    assert left[-1] == pytest.approx(0.0, abs=0.06)
    np.testing.assert_array_equal(rows[-1, 3:], 0.0)


@pytest.mark.parametrize("start", [(2.0, 1.5, 0.0), (2.5, 2.6, -2.0), (1.5, 2.0, math.pi), (6.0, 2.5, 2.0)])
def test_it_comes_back_to_the_path_from_beside_it(start: tuple[float, float, float]) -> None:
    path = straight([(2.0, 2.0), (9.0, 2.0)])
    rows = glide(Expert(path, embodiment_of("wheeled"), open_floor()), *start)
    assert math.dist(rows[-1, :2], (9.0, 2.0)) < 0.1
    late = rows[rows[:, 0] > 8.0]
    assert np.abs(late[:, 1] - 2.0).max() < 0.05


@pytest.mark.parametrize("place", [(9.3, 2.0), (9.0, 2.4), (8.8, 1.5), (9.2, 2.3)])
def test_pushed_past_the_end_it_goes_back_to_it(place: tuple[float, float]) -> None:
    path, expert = straight([(7.0, 2.0), (9.0, 2.0)]), None
    expert = Expert(path, embodiment_of("wheeled"), open_floor(), goal_yaw=1.0)
    glide(expert, 7.0, 2.0, 0.0, steps=30)
    rows = glide(expert, *place, 0.5)
    assert expert.is_resting
    assert math.dist(rows[-1, :2], (9.0, 2.0)) < 0.26
    assert math.remainder(rows[-1, 2] - 1.0, math.tau) == pytest.approx(0.0, abs=0.2)


def test_it_turns_on_the_spot_before_it_sets_out_backwards() -> None:
    rows = glide(Expert(straight([(2.0, 2.0), (9.0, 2.0)]), embodiment_of("wheeled"), open_floor()), 2.0, 2.0, 3.0)
    turning = rows[:12]
    assert (turning[:, 3] == 0.0).all()
    assert (turning[:, 4] < 0.0).all(), "the short way round"


def test_pushed_away_after_it_had_arrived_it_comes_again() -> None:
    expert = Expert(straight([(7.0, 2.0), (9.0, 2.0)]), embodiment_of("wheeled"), open_floor())
    glide(expert, 7.0, 2.0, 0.0)
    assert expert.is_resting
    expert.command(9.1, 2.1, 0.0, 0.0, AT_REST)
    assert expert.is_resting, "a few centimetres do not matter"
    rows = glide(expert, 8.3, 1.6, 0.0)
    assert len(rows) > 10
    assert math.dist(rows[-1, :2], (9.0, 2.0)) < 0.2


def test_turned_round_on_its_way_it_stops_to_turn_back() -> None:
    expert = Expert(straight([(2.0, 2.0), (9.0, 2.0)]), embodiment_of("wheeled"), open_floor())
    glide(expert, 2.0, 2.0, 0.0, steps=20)
    vx, _, _, yaw_rate = expert.command(3.5, 2.0, 0.0, 2.5, AT_REST)
    assert vx == 0.0
    assert yaw_rate == pytest.approx(-1.2)


def test_narrow_places_and_curves_are_slow() -> None:
    planner = open_floor()
    wide, rim = (speed_profile(straight([(2.0, y), (9.0, y)]), planner, 0.8, 1.2) for y in (6.0, 0.45))
    corner = speed_profile(straight([(2.0, 2.0), (6.0, 2.0), (6.0, 6.0)]), planner, 0.8, 1.2)
    assert wide.max() == pytest.approx(0.8)
    assert rim.max() < 0.55
    assert corner[80] < 0.35 < 0.7 < corner[30]
    assert (np.diff(wide[-20:]) <= 1e-9).all()


def test_it_waits_for_who_walks_ahead_and_then_goes_around() -> None:
    expert = Expert(straight([(2.0, 6.0), (9.0, 6.0)]), embodiment_of("wheeled"), open_floor())
    somebody = [(3.0, 6.0, 0.25)]
    ahead = [expert.command(2.3, 6.0, 0.0, 0.0, AT_REST, somebody) for _ in range(10)]
    assert max(c[0] for c in ahead) < 0.1
    free = Expert(straight([(2.0, 6.0), (9.0, 6.0)]), embodiment_of("wheeled"), open_floor())
    assert free.command(2.3, 6.0, 0.0, 0.0, AT_REST, [(3.0, 7.5, 0.25)])[0] > 0.7, "who is beside does not matter"
    for _ in range(10):
        expert.command(2.3, 6.0, 0.0, 0.0, AT_REST, somebody)
    assert expert.replanned == 1
    assert np.hypot(*(expert.path.points - somebody[0][:2]).T).min() > 0.5


def test_stuck_it_backs_off_and_plans_anew() -> None:
    expert = Expert(straight([(2.0, 6.0), (9.0, 6.0)]), embodiment_of("wheeled"), open_floor())
    commands = [expert.command(4.0, 6.0, 0.0, 0.0, AT_REST) for _ in range(40)]
    assert min(c[0] for c in commands) < -0.2
    assert expert.replanned >= 1


def test_in_real_physics_it_arrives_and_touches_nothing(stage: Stage) -> None:
    task = Task("video", path_m=(3.0, 5.0))
    for seed in range(2):
        trip = draw_trip(task, stage.world, stage.planner, np.random.default_rng(seed))
        driven = record(stage, trip, Recording(), look=RandomisationRanges().draw(seed), seed=seed)
        assert driven.success
        assert driven.touches == 0


def test_a_disturbed_run_keeps_what_the_expert_meant(stage: Stage) -> None:
    trip = draw_trip(Task("video", path_m=(3.0, 5.0)), stage.world, stage.planner, np.random.default_rng(3))
    clean = record(stage, trip, Recording(), seed=1)
    often = Disturbance(kicks_per_s=2.0)
    driven = record(stage, trip, Recording(), clean.clip, often, seed=2)
    assert driven.success
    start = math.dist(driven.streams["pose"][0, :2], trip.start[:2])
    assert 0.01 < start <= math.hypot(0.3, 0.3)
    # Asked again at the states that were recorded, the expert says what was recorded, whatever was done there.
    again = Expert(trip.path, stage.embodiment, stage.planner)
    states = zip(driven.streams["pose"], driven.streams["velocity"])
    asked = [again.command(*pose[:3], 2 * math.atan2(pose[5], pose[6]), velocity) for pose, velocity in states]
    np.testing.assert_allclose(driven.streams["action"], asked, atol=1e-3)
    assert missed(driven) > 1.3 * missed(clean)
    nothing = Disturbance(kicks_per_s=0.0, noise=0.0, start_m=0.0, start_rad=0.0)
    calm = record(stage, trip, Recording(), clean.clip, nothing, seed=1)
    np.testing.assert_array_equal(calm.streams["pose"], clean.streams["pose"])
    kicked = record(stage, trip, Recording(), clean.clip, replace(nothing, kicks_per_s=2.0), seed=1)
    both = min(len(kicked.streams["pose"]), len(calm.streams["pose"]))
    assert np.abs(kicked.streams["pose"][:both, :2] - calm.streams["pose"][:both, :2]).max() > 0.05
    frames, stop = driven.streams["cursor"][:, 0], driven.streams["stop"][:, 0]
    assert (np.diff(frames) >= 0).all()
    assert frames[-1] >= len(clean.clip.frames) - 3  # frames of braking and rest are centimetres apart
    assert stop[:10].sum() == 0
    np.testing.assert_array_equal(stop[-15:], 1.0)
    np.testing.assert_array_equal(driven.streams["action"][-15:], 0.0)


def missed(driven: Demonstration) -> float:
    """How far (rad/s, on average) the turn that followed was from the one that was recorded."""
    return float(np.abs(driven.streams["action"][:-1, 3] - driven.streams["velocity"][1:, 3]).mean())


def test_a_clean_run_is_its_own_clip(stage: Stage) -> None:
    trip = draw_trip(Task("video", path_m=(3.0, 5.0)), stage.world, stage.planner, np.random.default_rng(3))
    driven = record(stage, trip, Recording(clip_rate_hz=2.5), seed=1)
    cursor = driven.streams["cursor"][:, 0].astype(int)
    assert list(cursor[:9]) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    for step in (0, 4, 8):
        np.testing.assert_array_equal(driven.clip.frames[cursor[step]], driven.streams["front"][step])
    np.testing.assert_array_equal(driven.clip.image, driven.streams["front"][np.argmax(driven.streams["stop"][:, 0])])
    filmed = film(stage, trip, 2.5, seed=1)
    np.testing.assert_array_equal(filmed.frames, driven.clip.frames)


def test_clips_are_even_and_hold_the_end() -> None:
    assert list(clip_frames(10, 5.0)) == [0, 2, 4, 6, 8, 9]
    assert list(clip_frames(11, 5.0)) == [0, 2, 4, 6, 8, 10]
    assert list(clip_frames(1, 5.0)) == [0]
    with pytest.raises(KineflowError, match="20"):
        clip_frames(10, 20.0)


def test_a_cursor_goes_through_turns_on_the_spot_and_never_back() -> None:
    turn = [(0.0, 0.0, yaw) for yaw in np.linspace(0, 1.5, 6)]
    drive = [(0.0, y, 1.5) for y in np.linspace(0.2, 3, 15)]
    clip = cut([np.zeros((2, 2, 3), np.uint8)] * 21, [*turn, *drive], 10.0)
    cursor = Cursor(clip.places, 10.0)
    assert [cursor.advance(*place) for place in clip.places] == list(range(21))
    assert cursor.advance(0.0, 0.0, 0.0) == 20
    ahead = Cursor(clip.places, 1.0)
    assert ahead.advance(0.0, 3.0, 1.5) <= 3, "not farther than the clip is near in time"


def test_ground_truth_is_stored_in_whole_numbers() -> None:
    np.testing.assert_array_equal(millimetres(np.array([[1.2345, np.inf, 99.0]])), [[1234, 0, 65535]])
    np.testing.assert_array_equal(flow_units(np.array([[-1.5, 0.0, 9.0]]), np.array([[True, True, False]])), [[32672, 32768, 0]])


def test_depth_and_flow_are_recorded_when_asked(stage: Stage) -> None:
    trip = Trip(
        (*draw_trip(Task("point"), stage.world, stage.planner, np.random.default_rng(0)).start,), straight([(0, 0), (1, 0)])
    )
    driven = record(stage, trip, Recording(depth=True, flow=True, limit_s=0.5))
    assert driven.streams["front_depth"].shape == (5, 12, 16)
    assert (driven.streams["flow_x"][0] == 0).all(), "there is no picture before the first"
    assert (driven.streams["flow_x"][3] > 0).mean() > 0.5
    assert not driven.success


def test_an_expert_that_is_too_fast_is_refused() -> None:
    with pytest.raises(KineflowError, match="cruise"):
        Expert(straight([(0, 0), (1, 0)]), embodiment_of("wheeled"), open_floor(), cruise=3.0)
