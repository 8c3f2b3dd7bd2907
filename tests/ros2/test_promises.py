"""The promises of the node: real processes, Fast DDS, loopback. `kineflow bench node` prints the same with exact limits."""

from __future__ import annotations

import signal

import pytest

from kineflow.deploy.guard import GuardConfig
from kineflow.deploy.ros2 import promises
from kineflow.deploy.ros2.rig import Heard, wait_for
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


def test_09_the_supervisors_silence_is_not_covered_by_the_guard(session: Session) -> None:
    """Both beat on one topic; the person's end must be seen though the guard lives."""
    in_time(promises.supervisor_lost(session))
    session.recover()


def test_without_its_guard_the_node_does_not_move(session: Session) -> None:
    """Nor is the guard's end covered by the supervisor."""
    session.rig.kill("guard")
    assert wait_for(lambda: session.rig.heard[-1].is_zero, 5.0)
    assert wait_for(lambda: "supervisor lost: guard" in session.rig.status[-1][1], 5.0), session.rig.status[-3:]
    session.rig.start("guard", "guard")
    assert wait_for(lambda: not session.rig.heard[-1].is_zero, 20.0), session.rig.status[-3:]


def test_activated_again_at_once_it_begins_at_rest(session: Session) -> None:
    """Deactivation says zero at speed; the commands go on from there, not from the speed before."""
    session.recover()
    assert session.rig.change("deactivate")
    assert session.rig.change("activate")
    assert wait_for(lambda: bool(after := _after_last_zero(session)) and after[-1].vx > 0.3, 10.0)
    first, second = _after_last_zero(session)[:2]
    assert first.vx <= 10 * 0.03**2  # jerk, for a late tick
    assert second.vx - first.vx <= 2.5 * (second.stamp_s - first.stamp_s + 1e-3)


def _after_last_zero(session: Session) -> list[Heard]:
    """Of the last 3 s."""
    heard = session.rig.heard[-150:]
    zeros = [k for k, command in enumerate(heard) if command.is_zero]
    return heard[zeros[-1] + 1 :] if zeros else []


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
