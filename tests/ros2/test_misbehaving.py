"""Promises that need a policy, clock or supervisor that misbehaves: each with processes of its own."""

from __future__ import annotations

import pytest

from kineflow.deploy.ros2 import promises
from kineflow.deploy.ros2.bench import one

pytestmark = pytest.mark.slow


def test_04_a_used_up_chunk_ramps_to_zero() -> None:
    measured = one("stuck", promises.chunk_exhausted)
    assert measured.held, measured


def test_05_limits_hold_on_the_output_of_a_wild_policy() -> None:
    measured = one("wild", promises.limits_on_output)
    assert measured.held, measured


def test_06_three_chunks_with_nan_are_a_fault() -> None:
    measured = one("broken", promises.broken_chunks)
    assert measured.held, measured


def test_09_without_its_supervisor_the_robot_stops() -> None:
    measured = one("forward", promises.supervisor_lost)
    assert measured.held, measured


def test_13_inference_that_becomes_too_slow_stops_the_robot() -> None:
    measured = one("slow", promises.delay_adapts)
    assert measured.held, measured


def test_14_a_frozen_clock_stops_nothing_and_a_jump_flushes() -> None:
    measured = one("forward", promises.clock_jumps, clock=True)
    assert measured.held, measured


def test_17_seams_stay_within_the_limiter() -> None:
    measured = one("bimodal", promises.seam_jump)
    assert measured.held, measured
