"""Promises that need a policy, clock or supervisor that misbehaves: each with processes of its own."""

from __future__ import annotations

import pytest

from kineflow.deploy.ros2 import promises
from kineflow.deploy.ros2.bench import one
from tests.ros2.timed import exactly, in_time

pytestmark = [pytest.mark.slow, pytest.mark.real_time]


def test_04_a_used_up_chunk_ramps_to_zero() -> None:
    in_time(one("stuck", promises.chunk_exhausted))


def test_05_limits_hold_on_the_output_of_a_wild_policy() -> None:
    exactly(one("wild", promises.limits_on_output))


def test_06_three_chunks_with_nan_are_a_fault() -> None:
    exactly(one("broken", promises.broken_chunks))


def test_09_without_its_supervisor_the_robot_stops() -> None:
    measured = one("forward", promises.supervisor_lost)
    in_time(measured)
    assert measured.value > 300, "not before its time"


def test_13_inference_that_becomes_too_slow_stops_the_robot() -> None:
    exactly(one("slow", promises.delay_adapts))


def test_14_a_frozen_clock_stops_nothing_and_a_jump_flushes() -> None:
    exactly(one("forward", promises.clock_jumps, clock=True))


def test_17_seams_stay_within_the_limiter() -> None:
    exactly(one("bimodal", promises.seam_jump))
