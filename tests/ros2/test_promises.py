"""The promises of the node: real processes, Fast DDS, loopback. `kineflow bench node` prints the same with exact limits."""

from __future__ import annotations

import signal

import pytest

from kineflow.deploy.guard import GuardConfig
from kineflow.deploy.ros2 import promises
from kineflow.deploy.ros2.session import Session
from tests.ros2.timed import exactly, in_time

pytestmark = pytest.mark.real_time


def test_01_commands_leave_at_a_fixed_rate(session: Session) -> None:
    """In CI the longest gap counts: 100 ms, and as much again on a busy machine."""
    measured = promises.steady_rate(session, 4.0)
    print(measured)
    commands = int(measured.note.split()[0])
    gap_ms = float(measured.note.split("longest gap ")[1].split()[0])
    assert commands >= 0.9 * 200, measured
    assert gap_ms <= 200, measured


def test_02_stale_observation_ramps_down(session: Session) -> None:
    in_time(promises.stale_observation(session))
    session.recover()


def test_03_shifted_stamps_are_dropped_and_counted(session: Session) -> None:
    exactly(promises.shifted_stamps(session))


def test_07_estop_is_immediate_latched_and_needs_reset_and_activation(session: Session) -> None:
    measured = promises.estop(session)
    in_time(measured)
    assert "False" not in measured.note, measured


def test_16_diagnostics_once_a_second_and_on_change(session: Session) -> None:
    exactly(promises.diagnostics(session))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_11_the_guard_stops_a_dead_or_frozen_node(session: Session, number: signal.Signals) -> None:
    measured = promises.killed(session, number)
    session.restart_node()
    in_time(measured)
    assert "moves again" not in measured.note, measured


def test_12_silent_unless_active(session: Session) -> None:
    exactly(promises.silent_unless_active(session))


def test_15_faults_of_wiring_do_not_configure(session: Session) -> None:
    exactly(promises.wiring(session))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_10_signals_stop_the_robot_and_end_cleanly(session: Session, number: signal.Signals) -> None:
    """With 18: exit code 0, no abort, no hang."""
    measured = promises.clean_exit(session, number)
    if number == signal.SIGINT:  # the last test needs no node
        session.restart_node()
    assert ", rc 0," in measured.note, measured
    assert "the last command 0" in measured.note, measured
    assert measured.value < 1e3 * GuardConfig.silence_s, measured  # its own zeros: the guard's come later


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_18_twenty_exits_without_abort_or_hang(session: Session) -> None:
    rows = []
    for number in [signal.SIGINT, signal.SIGTERM] * 10:
        if "node" not in session.rig.processes:
            session.restart_node()
        rows.append(promises.clean_exit(session, number))
    exactly(promises.clean_exits(rows))


def test_08_a_latched_estop_survives_a_restart(session: Session) -> None:
    exactly(promises.latched_restart(session, restarts=1))
