"""Promises that need a policy, clock or supervisor that misbehaves: each with processes of its own."""

from __future__ import annotations

import pytest

from kineflow.deploy.ros2 import promises
from kineflow.deploy.ros2.bench import one
from kineflow.deploy.ros2.rig import Rig, wait_for
from kineflow.deploy.ros2.session import Session
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


def test_an_output_thread_that_fails_ends_the_node_with_zeros() -> None:
    """Without a guard, too: no command is the last one that moves."""
    with Rig() as rig:
        session = Session(rig, policy="tests.ros2.breaking:forward_then_break", guarded=False)
        session.up()
        assert wait_for(lambda: rig.processes["node"].poll() is not None, 60.0)
        assert rig.processes["node"].returncode == 1
        assert "no more commands: RuntimeError: the executor broke" in rig.log("node")
        assert wait_for(lambda: rig.heard[-1].is_zero, 5.0)


def test_17_seams_stay_within_the_limiter() -> None:
    exactly(one("bimodal", promises.seam_jump))
