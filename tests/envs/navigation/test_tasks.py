"""What is drawn is what the table at the top of tasks.py says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.planner import Planner
from kineflow.envs.navigation.tasks import DETOUR, IN_VIEW_RAD, KINDS, START_YAW_RAD, Kind, Task, Trip, draw_trip
from kineflow.envs.navigation.world import World, WorldConfig, generate_world


@pytest.fixture(scope="module", params=["indoor", "outdoor"])
def place(request: pytest.FixtureRequest) -> tuple[World, Planner]:
    world = generate_world(WorldConfig(request.param, 2))
    return world, Planner(world.free_space, 0.3)


def trips(kind: Kind, place: tuple[World, Planner], count: int = 4) -> list[Trip]:
    return [draw_trip(Task(kind), *place, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_as_long_as_the_kind_says(kind: Kind, place: tuple[World, Planner]) -> None:
    low, high = Task(kind).path_range()
    for trip in trips(kind, place):
        assert low <= trip.path.length <= high
        assert trip.path.points[0] == pytest.approx(trip.start[:2])
        if kind != "language":
            assert abs(math.remainder(trip.start[2] - trip.path.headings[0], math.tau)) <= START_YAW_RAD + 1e-6
        assert len(trip.via) == (2 if kind == "route" else 0)


def test_an_image_is_of_a_place_hardly_round_a_corner(place: tuple[World, Planner]) -> None:
    for trip in trips("image", place):
        assert trip.path.length <= DETOUR * math.dist(trip.start[:2], trip.goal)


def test_words_name_a_thing_that_is_in_view_and_faced_at_the_end(place: tuple[World, Planner]) -> None:
    world, _ = place
    for trip in trips("language", place):
        thing = world.goal(trip.thing)
        assert thing.name in trip.instruction
        bearing = math.atan2(thing.position[1] - trip.start[1], thing.position[0] - trip.start[0])
        assert abs(math.remainder(bearing - trip.start[2], math.tau)) <= IN_VIEW_RAD + 1e-6
        assert world.free_space.is_clear(trip.start[:2], thing.stand_off[:2], 0.0)
        facing = math.atan2(thing.position[1] - trip.goal[1], thing.position[0] - trip.goal[0])
        assert abs(math.remainder(facing - trip.end_yaw, math.tau)) < 0.2
        assert math.dist(trip.goal, thing.position[:2]) < 3.0


def test_several_phrasings_are_used(place: tuple[World, Planner]) -> None:
    words = {trip.instruction.replace(trip.thing, "{}") for trip in trips("language", place, 8)}
    assert len(words) >= 3
    assert words <= set(Task("language").phrases)


def test_pictures_of_goals_show_more_than_a_bare_wall(place: tuple[World, Planner]) -> None:
    world, _ = place
    for trip in trips("video", place):
        ahead = np.array(trip.goal) + 1.4 * np.array([math.cos(trip.end_yaw), math.sin(trip.end_yaw)])
        assert world.free_space.is_clear(trip.goal, ahead, 0.0)


def test_the_same_generator_draws_the_same_trip(place: tuple[World, Planner]) -> None:
    first, again = (draw_trip(Task("language"), *place, np.random.default_rng(9)) for _ in range(2))
    assert (first.start, first.instruction) == (again.start, again.instruction)
    np.testing.assert_array_equal(first.path.points, again.path.points)


def test_worlds_alternate_when_mixed() -> None:
    assert [Task(world="mixed").world_config(n).kind for n in range(3)] == ["indoor", "outdoor", "indoor"]
    assert {Task(world="outdoor").world_config(n).kind for n in range(3)} == {"outdoor"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "dance"}, "Task.kind is 'dance'"),
        ({"radius_m": 0.0}, "radius_m"),
        ({"path_m": (5.0, 2.0)}, "path_m"),
        ({"phrases": ("go",)}, "phrases"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        Task(**values)  # type: ignore[arg-type]


def test_a_world_without_such_a_trip_is_said_so(place: tuple[World, Planner]) -> None:
    with pytest.raises(KineflowError, match="widen path_m"):
        draw_trip(Task("video", path_m=(500.0, 600.0)), *place, np.random.default_rng(0))
