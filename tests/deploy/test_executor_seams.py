"""The toy of the deployment notes as a regression test: who gets round the obstacle, and how hard the seams jerk."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kineflow.deploy.governor import Governor
from kineflow.deploy.robot_profile import AxisLimits, CommandAxes, RobotProfile, Watchdogs
from tests.deploy.detour import score

CONTINUES = ["rtc", "rtc_exact", "bid", "trained_rtc"]


@pytest.mark.parametrize("delay", [2, 4, 6])
def test_chunks_that_continue_the_old_one_get_round_without_jerks(delay: int) -> None:
    """At delay 4 the notes have success 1.00, jumps 0.1, and 0.71 and 1.75 without; here it is 0.98, 0.3, 0.56 and 1.7."""
    free = score("async", delay)
    assert free.jump > 1.4
    for mode in CONTINUES:
        ours = score(mode, delay)
        assert ours.success >= max(0.95, free.success), mode
        assert ours.jump < 0.5, mode
        assert sum(trace.diagnostics.get("starved", 0) for trace in ours.traces) == 0


def test_late_chunks_fail_without_a_plan_and_averages_fail_always() -> None:
    assert score("async", 4).success < 0.75
    assert all(score("ensemble", delay).success < 0.75 for delay in (0, 2, 4))


def test_without_delay_a_trained_start_does_nothing_for_the_seams() -> None:
    """Nothing is committed, so nothing is known of the old plan; guidance knows all of it."""
    assert score("trained_rtc", 0).jump > 1.0
    assert score("rtc", 0).jump < 0.5


def test_the_limiter_bounds_every_seam() -> None:
    """Promise 17: the raw jumps and the limited ones are both reported; the latter stay below one step of the limiter."""
    rate_hz, acceleration, forever = 50.0, 3.0, math.inf
    limits = AxisLimits((-2.0, -2.0), (2.0, 2.0), (acceleration,) * 2, (acceleration,) * 2, (60.0,) * 2)
    profile = RobotProfile(
        "point",
        "velocity",
        CommandAxes(("vx", "vy"), ("m/s", "m/s")),
        limits,
        "stop",
        "twist",
        0.1,
        rate_hz,
        watchdogs=Watchdogs(observation_s=0.3, supervisor_s=forever, estop=False),
    )

    def active() -> Governor:
        governor = Governor(profile)
        governor.activate(0.0)
        return governor

    bound = acceleration / rate_hz * math.sqrt(2)
    for mode in ("async", "rtc"):
        done = score(mode, 2, episodes=4, governor=active, rate_hz=rate_hz)
        assert done.limited <= bound + 1e-6, mode
        assert done.jump > 2 * bound
        commands = np.concatenate([np.diff(trace.commands, axis=0) for trace in done.traces])
        assert np.abs(commands).max() <= acceleration / rate_hz + 1e-6
        said = done.traces[0].diagnostics
        assert said["seam_jump_p99"] > said["limited_jump_p99"] > 0
        assert any(np.abs(tick.command.values).max() > 0.1 for tick in done.traces[0].ticks)
