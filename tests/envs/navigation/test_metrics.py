"""Every metric on ways whose value is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.metrics import (
    direction_accuracy,
    distances_to_path,
    events,
    false_stops,
    is_at_rest,
    path_length,
    spl,
    trip_metrics,
)

LINE = np.array([[0.0, 0.0], [10.0, 0.0]])
CORNER = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])


def still(count: int) -> np.ndarray:
    return np.zeros((count, 4))


def test_spl_is_that_of_the_paper() -> None:
    assert spl([True, True, False], [10.0, 20.0, 10.0], [10.0, 10.0, 10.0]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert spl([True], [8.0], [10.0]) == 1.0, "shorter than the reference is no more than perfect"
    with pytest.raises(KineflowError, match="SPL"):
        spl([], [], [])


def test_distance_is_to_the_pieces_and_not_to_their_corners() -> None:
    np.testing.assert_allclose(
        distances_to_path(np.array([[2.0, 1.0], [5.0, 1.0], [4.0, 5.0], [-3.0, 4.0]]), CORNER), [1, 1, 2, 5]
    )


def test_ate_of_a_parallel_way_is_its_offset() -> None:
    way = np.stack([np.linspace(0, 10, 50), np.full(50, 0.3)], axis=1)
    found = trip_metrics(way, still(50), np.zeros(50, bool), LINE)
    assert found.ate == pytest.approx(0.3)
    assert found.ate_straight == pytest.approx(0.3)
    assert found.goal_error == pytest.approx(0.3)
    assert found.direction_accuracy == 1.0
    assert found.path_length == pytest.approx(10.0)


def test_the_straight_line_is_another_reference_than_the_path() -> None:
    corner = np.concatenate(
        [np.stack([np.linspace(0, 4, 41), np.zeros(41)], 1), np.stack([np.full(30, 4.0), np.linspace(0.1, 3, 30)], 1)]
    )
    found = trip_metrics(corner, still(71), np.zeros(71, bool), CORNER)
    assert found.ate == pytest.approx(0.0, abs=1e-9)
    # Half the height (4 * 3 / 5) of the triangle on each leg, up to sampling.
    assert found.ate_straight == pytest.approx(1.2, abs=0.05)
    assert found.spl == 1.0


@pytest.mark.parametrize(("degrees", "share"), [(0, 1.0), (40, 1.0), (43, 0.0), (180, 0.0)])  # acos 0.75 = 41.4 degrees
def test_direction_counts_from_a_cosine_of_three_quarters(degrees: float, share: float) -> None:
    angle = math.radians(degrees)
    way = np.arange(20)[:, None] * 0.1 * np.array([math.cos(angle), math.sin(angle)]) + [3.0, 0.0]
    assert direction_accuracy(way, LINE) == share


def test_standing_has_no_direction() -> None:
    way = np.concatenate([np.zeros((50, 2)), np.stack([np.linspace(0.1, 1, 10), np.zeros(10)], 1)])
    assert direction_accuracy(way, LINE) == 1.0
    assert direction_accuracy(np.zeros((5, 2)), LINE) == 0.0


def test_a_touch_that_lasts_is_one() -> None:
    assert events(np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)) == 3
    assert events(np.zeros(4, bool)) == 0


def test_stops_elsewhere_are_counted_and_the_one_at_the_goal_is_good() -> None:
    way = np.concatenate([np.zeros(10), np.linspace(0, 4, 41), np.full(10, 4.0), np.linspace(4, 10, 61), np.full(10, 10.0)])
    positions = np.stack([way, np.zeros_like(way)], axis=1)
    velocities = still(len(way))
    velocities[1:, 0] = np.diff(way) * 10  # at rest for a second before it begins, which is no stop
    found = trip_metrics(positions, velocities, np.zeros(len(way), bool), LINE)
    assert (found.false_stops, found.stop_ok, found.success_05m) == (1, True, True)
    cut = 55
    early = trip_metrics(positions[:cut], velocities[:cut], np.zeros(cut, bool), LINE)
    assert (early.stop_ok, early.success_1m) == (False, False)
    assert false_stops(positions, is_at_rest(velocities), LINE[-1], 1.0, 30) == 0, "too short to be a stop"


def test_turning_on_the_spot_is_no_rest() -> None:
    velocities = still(3)
    velocities[1, 3], velocities[2, 1] = 0.2, 0.06
    np.testing.assert_array_equal(is_at_rest(velocities), [True, False, False])


def test_success_does_not_need_the_way_and_the_way_is_measured() -> None:
    found = trip_metrics(np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 0.7]]), still(3), np.array([0, 1, 0], bool), LINE)
    assert (found.success_1m, found.success_05m, found.collisions) == (True, False, 1)
    assert path_length(LINE) == 10.0
    with pytest.raises(KineflowError, match="at least 2"):
        trip_metrics(np.zeros((1, 2)), still(1), np.zeros(1, bool), LINE)
