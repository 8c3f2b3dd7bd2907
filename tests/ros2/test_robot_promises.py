"""Promises 19 and 20 by the whole node; `kineflow bench node` prints the same with exact limits."""

from __future__ import annotations

import pytest

from kineflow.deploy.ros2 import robot_promises
from tests.ros2.timed import in_time

pytestmark = pytest.mark.real_time


def test_19_an_autopilot_is_told_by_silence() -> None:
    measured = robot_promises.autopilot_hears_silence()
    in_time(measured)
    assert "outside OFFBOARD: 0;" in measured.note, measured
    assert "2 of 2" in measured.note, measured
    assert float(measured.note.split("the first in it ")[1].split()[0]) < robot_promises.BEGINS, measured


def test_20_a_humanoid_walks_by_short_velocities_and_stands_alone() -> None:
    measured = robot_promises.humanoid_stands()
    in_time(measured)
    assert "damped 0 times unasked, asked: StopMove first True" in measured.note, measured
