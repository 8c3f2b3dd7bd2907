"""A* against Dijkstra from scipy, and paths against what was asked of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.free_space import FreeSpace
from kineflow.envs.navigation.planner import SAFETY_M, NoPath, Path, Planner, shortest, straight
from kineflow.envs.navigation.world import WorldConfig, generate_world


def closed_in(costs: np.ndarray) -> np.ndarray:
    costs = costs.copy()
    costs[[0, -1]] = math.inf
    costs[:, [0, -1]] = math.inf
    return costs


def cheapest(costs: np.ndarray, start: int, goal: int) -> float:
    """The same grid as a graph, by somebody else's algorithm."""
    columns = costs.shape[1]
    flat, edges = costs.ravel(), []
    for cell in np.flatnonzero(np.isfinite(flat)):
        row, column = divmod(int(cell), columns)
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                other = (row + dr) * columns + column + dc
                if (dr or dc) and np.isfinite(flat[other]):
                    edges.append((cell, other, math.hypot(dr, dc) * (flat[cell] + flat[other]) / 2))
    a, b, weight = (np.array(column) for column in zip(*edges)) if edges else (np.zeros(0, int),) * 3
    graph = coo_array((weight, (a, b)), shape=(flat.size, flat.size)).tocsr()
    return float(dijkstra(graph, indices=start)[goal])


def spent(costs: np.ndarray, cells: list[int]) -> float:
    flat, columns = costs.ravel(), costs.shape[1]
    places = np.stack(np.divmod(np.array(cells), columns), axis=1)
    steps = np.hypot(*np.diff(places, axis=0).T)
    assert steps.max(initial=0.0) < 1.5, "neighbours only"
    return float((steps * (flat[cells[1:]] + flat[cells[:-1]]) / 2).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_way_found_is_the_cheapest_there_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    costs = np.where(generator.random((12, 15)) < 0.3, math.inf, 1 + 5 * generator.random((12, 15)))
    costs[1, 1] = costs[10, 13] = 1.0
    costs = closed_in(costs)
    start, goal = 16, 10 * 15 + 13
    found = shortest(costs.ravel().tolist(), costs.shape, start, goal)
    best = cheapest(costs, start, goal)
    if found is None:
        assert math.isinf(best)
    else:
        assert (found[0], found[-1]) == (start, goal)
        assert spent(costs, found) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_paths_keep_clear_of_everything_and_hardly_wind(kind: str) -> None:
    space = generate_world(WorldConfig(kind, 5)).free_space
    planner, generator = Planner(space, 0.3), np.random.default_rng(0)
    for start, goal in space.sample(generator, 0.5, 8).reshape(4, 2, 2):
        path = planner.plan(start, goal)
        np.testing.assert_allclose(path.points[[0, -1]], [start, goal], atol=1e-9)
        assert min(planner.free_at(x, y) for x, y in path.points) > SAFETY_M - 0.051  # to within half a cell
        assert np.diff(path.along).max() < 0.08
        if path.length > 1.0:
            assert np.abs(np.diff(path.headings)).max() < 0.25, "no corners are left"


def wall_with_gap() -> FreeSpace:
    """5 m x 5 m with a wall across at x = 2.5 m, open for 0.4 m at y = 1 m and for 1.2 m at y = 4 m."""
    occupied = np.zeros((51, 51), bool)
    occupied[[0, -1]] = occupied[:, [0, -1]] = True
    occupied[:, 25] = True
    occupied[9:12, 25] = occupied[35:46, 25] = False
    return FreeSpace(occupied, (0.0, 0.0), 0.1)


def test_a_body_takes_the_gap_that_it_fits_through() -> None:
    slim, wide = (Planner(wall_with_gap(), radius).plan((1.0, 1.0), (4.0, 1.0)) for radius in (0.05, 0.3))
    assert slim.length < 3.3
    assert wide.length > 6.0
    crossing = wide.points[np.abs(wide.points[:, 0] - 2.5).argmin()]
    assert crossing[1] == pytest.approx(4.0, abs=0.3), "through the middle of the wide one"
    with pytest.raises(NoPath, match=r"no way for a body of 0\.7 m radius"):
        Planner(wall_with_gap(), 0.7).plan((1.0, 1.0), (4.0, 1.0))


def test_discs_are_gone_around() -> None:
    planner = Planner(FreeSpace(closed_in(np.zeros((51, 51))) > 0, (0.0, 0.0), 0.1), 0.2)
    free, around = planner.plan((1.0, 2.5), (4.0, 2.5)), planner.plan((1.0, 2.5), (4.0, 2.5), discs=[(2.5, 2.5, 0.3)])
    assert free.length == pytest.approx(3.0, abs=0.01)
    assert np.hypot(*(around.points - (2.5, 2.5)).T).min() > 0.5


def test_places_in_between_are_passed_in_order() -> None:
    planner = Planner(FreeSpace(closed_in(np.zeros((51, 51))) > 0, (0.0, 0.0), 0.1), 0.2)
    path = planner.plan((1.0, 1.0), (4.0, 1.0), (4.0, 4.0), (1.0, 4.0))
    passed = [int(np.hypot(*(path.points - place).T).argmin()) for place in ((4.0, 1.0), (4.0, 4.0))]
    gaps = [float(np.hypot(*(path.points - place).T).min()) for place in ((4.0, 1.0), (4.0, 4.0))]
    assert passed[0] < passed[1]
    assert max(gaps) < 0.35, "smoothing cuts corners by a little only"


def test_a_path_that_crosses_itself_is_followed_in_order() -> None:
    eight = straight([(0.0, 0.0), (4.0, 0.0), (4.0, 2.0), (2.0, 2.0), (2.0, -2.0)])
    assert eight.project(2.0, 0.05, around=1.9) == pytest.approx(2.0, abs=0.06)
    assert eight.project(2.05, 0.0, around=9.9) == pytest.approx(10.0, abs=0.06)
    assert eight.at(eight.length + 1.0) == pytest.approx((2.0, -3.0))


def test_no_length_is_no_path() -> None:
    with pytest.raises(KineflowError, match="no length"):
        straight([(1.0, 1.0), (1.0, 1.0)])
    assert Path(np.array([[0.0, 0.0], [3.0, 4.0]])).length == 5.0
