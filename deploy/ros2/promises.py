"""The promises of a policy node, each measured on real processes: what `kineflow bench node` prints and tests/ros2 assert.

Each function takes a `Session` that is up and at speed (unless it says otherwise), injects its fault, and gives a `Measured`.
Numbers and their reasons: the deployment notes, section 5.2. Times are of the observer, another process than the node.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Bool

from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Heard, wait_for
from kineflow.deploy.ros2.session import Session

SPEED, DECELERATION, JERK = 0.4, 2.5, 10.0  # of the toy policies, of robots/wheeled
RAMP_S = SPEED / DECELERATION
KEYS: tuple[str, ...] = (
    *("state", "outcome", "why", "fifo", "ages_s.front", "ages_s.pose", "latency_p50_s", "latency_p95_s", "delay_actions"),
    *("actions_left", "governor.fault", "governor.estop_latched", "governor.supervisor_age_s", "tick_late_p99_s", "sent"),
    *("received.front", "epoch"),
)


@dataclass(frozen=True)
class Measured:
    """One row: `value` against `limit` (both in `unit`); `held` is the promise itself, `note` what else was seen."""

    number: int
    promise: str
    value: float
    limit: float
    unit: str
    held: bool
    note: str = ""


def steady_rate(session: Session, seconds: float = 5.0) -> Measured:
    """1: commands leave at 50 Hz: p99 of the error of the interval between stamps, and the longest gap."""
    begin = time.monotonic()
    time.sleep(seconds)
    heard = session.rig.since(begin)
    error_ms, gap_ms = interval_errors(heard)
    received = 1e3 * np.diff([h.received_s for h in heard]) if len(heard) > 2 else np.array([np.inf])
    p99 = float(np.percentile(error_ms, 99))
    held = p99 <= 5 and gap_ms <= 100 and len(heard) >= 0.95 * 50 * seconds
    note = f"{len(heard)} commands, longest gap {gap_ms:.1f} ms (stamps), {received.max():.1f} ms (received)"
    return Measured(1, "50 Hz while active, p99 of the interval's error", p99, 5, "ms", held, note)


def interval_errors(heard: Sequence[Heard]) -> tuple[np.ndarray, float]:
    """|dt - 20 ms| of the stamps, and the longest gap; ms."""
    intervals = 1e3 * np.diff([h.stamp_s for h in heard]) if len(heard) > 2 else np.array([np.inf])
    return np.abs(intervals - 20), float(intervals.max())


def stale_observation(session: Session) -> Measured:
    """2: the camera falls silent at speed: braking begins within 0.25 s, zero 0.25 s + v / a after."""
    _at_speed(session)
    begin = session.rig.fault("camera off")
    wait_for(lambda: _stopped_since(session, begin), 3.0)
    slower, zero = _slower_after(session, begin), _zero_after(session, begin)
    held = slower <= 0.25 and zero <= 0.25 + RAMP_S + 0.04
    return Measured(2, "stale observation: braking begins", 1e3 * slower, 250, "ms", held, f"zero after {1e3 * zero:.0f} ms")


def shifted_stamps(session: Session) -> Measured:
    """3: header stamps older than 0.5 s or more than 0.1 s ahead are dropped and counted, so the robot stops."""
    counted = []
    for shift in ("-0.8", "0.4"):
        begin = session.rig.fault(f"stamp {shift}")
        wait_for(lambda begin=begin: _stopped_since(session, begin), 3.0)  # type: ignore[misc]
        wait_for(lambda begin=begin: _report_after(session, begin + 1.0), 3.0)  # type: ignore[misc]
        report = session.rig.report()
        words = "old stamp" if shift.startswith("-") else "stamp from the future"
        counted.append(sum(float(v) for k, v in (report.values if report else {}).items() if k.endswith(words)))
        counted[-1] *= session.rig.heard[-1].is_zero
        session.recover()
    return Measured(3, "old and future stamps are dropped and counted", min(counted), 1, "dropped", min(counted) >= 1)


def estop(session: Session) -> Measured:
    """7: zero within 50 ms; stays zero after release; moves only after reset and activation."""
    rig = session.rig
    begin = rig.press_estop(True)
    wait_for(lambda: _stopped_since(session, begin), 2.0)
    zero = _zero_after(session, begin)
    time.sleep(0.3)
    released = rig.press_estop(False)
    time.sleep(1.6)
    refused = not rig.change("activate")
    reset = rig.trigger("/policy/reset_estop")
    time.sleep(0.3)
    still = all(h.is_zero for h in rig.since(released))
    session.activate()
    held = zero <= 0.05 and refused and reset and still
    note = f"stays 0 after release: {still}, needs reset: {refused}, then activation: {reset}"
    return Measured(7, "e-stop: zero", 1e3 * zero, 50, "ms", held, note)


def latched_restart(session: Session, restarts: int = 2) -> Measured:
    """8: a node that starts by itself while the e-stop is pressed does not move."""
    rig, moved = session.rig, 0
    settings, session.node_settings = session.node_settings, {**session.node_settings, "autostart": True}
    for _ in range(restarts):
        rig.kill("node")
        rig.press_estop(True)
        begin = time.monotonic()
        session.start_node()
        wait_for(lambda: "cannot activate" in rig.log("node")[-3000:] or bool(rig.since(begin)), 20.0)  # noqa: B023
        time.sleep(1.0)
        moved += any(not h.is_zero for h in rig.since(begin + 0.1))
    session.node_settings = settings
    note = f"{restarts} restarts while pressed; {'refused to activate' if 'latched' in rig.log('node') else 'published zero'}"
    return Measured(8, "latched e-stop survives a restart: restarts that moved", moved, 0, "restarts", moved == 0, note)


def supervisor_lost(session: Session) -> Measured:
    """9: the supervisor's heartbeat ends: braking after 0.5 s, though a guard beats on the same topic."""
    _at_speed(session)
    begin = time.monotonic()
    session.rig.beating = False
    wait_for(lambda: _stopped_since(session, begin), 3.0)
    slower = _slower_after(session, begin)
    session.rig.beating = True
    return Measured(9, "supervisor lost: braking begins", 1e3 * slower, 700, "ms", 0.3 < slower <= 0.7, "heartbeat 10 Hz")


def clean_exit(session: Session, number: int) -> Measured:
    """10 and 18: a signal at speed: three zeros, the first within 100 ms; exit code 0 within 1 s. The node is gone."""
    rig = session.rig
    begin = time.monotonic()
    code, seconds = rig.end("node", number)
    time.sleep(0.2)
    heard = rig.since(begin)
    zero = _zero_after(session, begin)
    zeros = sum(1 for h in heard if h.is_zero)
    last_is_zero = bool(heard) and heard[-1].is_zero
    held = zero <= 0.1 and code == 0 and seconds < 1 and zeros >= 3 and last_is_zero
    note = f"{signal.Signals(number).name}: {zeros} zeros, the last command {'0' if last_is_zero else 'NOT 0'}, rc {code}, "
    return Measured(10, "signal: first zero", 1e3 * zero, 100, "ms", held, note + f"exit in {1e3 * seconds:.0f} ms")


def clean_exits(rows: Sequence[Measured]) -> Measured:
    """18, of many exits by signals: none aborted, hung, or took 2 s."""
    good = sum(", rc 0," in row.note and float(row.note.rsplit("exit in ", 1)[1].split()[0]) < 2000 for row in rows)
    slowest = max(float(row.note.rsplit("exit in ", 1)[1].split()[0]) for row in rows)
    promise = f"exits of {len(rows)} with an abort, a hang, or beyond 2 s"
    return Measured(18, promise, len(rows) - good, 0, "exits", good == len(rows), f"rc 0 in {good}; the slowest {slowest:.0f} ms")


def killed(session: Session, number: int) -> Measured:
    """11: the node is killed or frozen at speed: the guard sends zero within 0.25 s of the last command, and goes on."""
    rig = session.rig
    at = rig.send_signal("node", number)
    wait_for(lambda: _stopped_since(session, at + 0.1), 3.0)
    time.sleep(0.5)
    moving = [h for h in rig.heard if not h.is_zero]
    last, zeros = moving[-1].received_s, [h for h in rig.since(moving[-1].received_s) if h.is_zero]
    seconds = zeros[0].received_s - last if zeros else float("inf")
    resumed = False
    if number == signal.SIGSTOP:
        woken = rig.send_signal("node", signal.SIGCONT)
        time.sleep(1.0)
        resumed = any(not h.is_zero for h in rig.since(woken + 0.2))
    rig.kill("node")
    held = seconds <= 0.25 and len(zeros) > 3 and not resumed
    note = f"{signal.Signals(number).name}: {len(zeros)} zeros" + (", moves again when thawed" if resumed else "")
    return Measured(11, "killed or frozen: the guard's zero after the last command", 1e3 * seconds, 250, "ms", held, note)


def silent_unless_active(session: Session) -> Measured:
    """12: before configure, while inactive and after deactivation nothing is published; stale observations refuse activation."""
    rig = session.rig
    session.restart_node(settle=False)
    begin = time.monotonic()
    unconfigured = not rig.change("activate")
    session.configure()
    time.sleep(0.5)
    rig.fault("camera off")
    time.sleep(0.6)
    stale = not rig.change("activate")
    spoken = len(rig.since(begin + 0.1))
    rig.fault("camera on")
    time.sleep(0.3)
    session.activate()
    rig.change("deactivate")
    time.sleep(0.2)
    after = time.monotonic()
    time.sleep(0.5)
    spoken += len(rig.since(after))
    held = spoken == 0 and unconfigured and stale
    note = f"activation refused: unconfigured {unconfigured}, camera silent {stale}"
    session.activate()
    return Measured(12, "not active: commands published", spoken, 0, "commands", held, note)


def wiring(session: Session) -> Measured:
    """15: wrong type, best-effort e-stop, half the rate, a silent topic, a bad domain or middleware: none configures."""
    from sensor_msgs.msg import CompressedImage

    rig, accepted, words = session.rig, list[str](), list[str]()
    session.restart_node(settle=False)

    def refused(what: str, sign: str) -> None:
        before = len(rig.log("node"))
        (accepted if rig.change("configure") else words).append(what)
        if sign not in rig.log("node")[before:]:
            accepted.append(f"{what} (no message)")

    for what, kind, topic, quality, sign in (
        ("other type", CompressedImage, "front", Quality(False), "sensor_msgs/msg/CompressedImage"),
        ("best effort e-stop", Bool, "estop", Quality(False), "best effort"),
    ):
        publisher = rig.node.create_publisher(kind, topic, profile(quality))
        time.sleep(0.5)
        try:
            refused(what, sign)
        finally:
            rig.node.destroy_publisher(publisher)
        time.sleep(0.5)
    for fault, sign in (("camera half", "'/front' arrives at"), ("odom off", "'/odom' arrives at 0.0 Hz")):
        rig.fault(fault)
        time.sleep(0.2)
        refused(fault, sign)
        rig.fault(f"{fault.split()[0]} on")
    for name, value in (("ROS_DOMAIN_ID", "233"), ("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")):
        done = _start_with(name, value)
        good = done.returncode == 2 and f"{name} is '{value}'" in done.stderr
        (words if good else accepted).append(name)
    session.configure()
    session.activate()
    return Measured(
        15, "faults of wiring that configured", len(accepted), 0, "faults", not accepted, f"refused: {', '.join(words)}"
    )


def diagnostics(session: Session) -> Measured:
    """16: once a second and on change, with every key."""
    begin = time.monotonic()
    time.sleep(3.2)
    reports = [r for r in session.rig.reports if r.name == "policy" and r.received_s >= begin]
    times = [begin, *(r.received_s for r in reports), time.monotonic()]
    longest = float(np.diff(times).max())
    lacking = [key for key in KEYS if not reports or key not in reports[-1].values]
    at = session.rig.fault("camera off")
    wait_for(lambda: any(r.received_s > at and "observation" in r.summary for r in session.rig.reports), 2.0)
    change = [r.received_s - at for r in session.rig.reports if r.received_s > at and "observation" in r.summary]
    session.recover()
    held = 2 <= len(reports) <= 40 and longest < 1.3 and not lacking and bool(change) and change[0] < 0.5
    note = (
        f"longest pause {longest:.1f} s; keys lacking: {lacking or 'none'}; a change is told after {1e3 * change[0]:.0f} ms"
        if change
        else "no change told"
    )
    return Measured(16, "diagnostics in 3.2 s", len(reports), 2, "reports", held, note)


def limits_on_output(session: Session, seconds: float = 4.0) -> Measured:
    """5: a wild policy: velocity, acceleration and jerk between the stamps of what was received. Session of policy `wild`."""
    begin, braked = time.monotonic(), _braked(session)
    time.sleep(seconds)
    heard = session.rig.since(begin)
    wait_for(lambda: _report_after(session, begin + seconds), 2.0)
    braked, worst, jerk = _braked(session) - braked, 0.0, 0.0
    for axis, bound, rate, change in (("vx", 0.5, 2.5, 10.0), ("yaw_rate", 1.0, 3.2, 12.8)):
        values, dt = np.array([getattr(h, axis) for h in heard]), np.diff([h.stamp_s for h in heard])
        # 1 ms for the two clocks that a stamp is made of
        worst = max(worst, float((np.abs(np.diff(values)) / (rate * (dt + 1e-3) + 1e-5)).max()))
        worst = max(worst, float(np.abs(values).max()) / (bound + 1e-6))
        rates, dt = np.diff(values) / np.maximum(dt, 1e-3), np.maximum(dt[1:], 1e-3)
        jerk = max(jerk, float((np.abs(np.diff(rates)) / (change * dt + 2 * rate * 1e-3 / dt)).max()))
    note = f"{len(heard)} commands; of jerk {jerk:.2f}" + (f", {braked:g} ticks braked: exempt from it" if braked else "")
    return Measured(5, "wild policy: share of the limits used", worst, 1, "1", worst <= 1 and (jerk <= 1 or braked > 0), note)


def _braked(session: Session) -> float:
    """Ticks that stopped, which a busy machine makes."""
    report = session.rig.report()
    return float(report.values.get("governor.counts.stop", 0)) if report else 0.0


def broken_chunks(session: Session) -> Measured:
    """6: NaN: whole chunks refused, three in a row are a fault. Session of policy `broken`."""
    rig = session.rig
    wait_for(lambda: "FAULT" in _fault_of(session) or bool(_fault_of(session)), 8.0)
    fault = _fault_of(session)
    wait_for(lambda: rig.heard[-1].is_zero, 3.0)
    finite = all(np.isfinite([h.vx, h.yaw_rate]).all() for h in rig.heard)
    held = bool(fault) and finite and rig.heard[-1].is_zero
    return Measured(6, "three chunks with NaN: fault", float(bool(fault)), 1, "fault", held, fault or "no fault")


def chunk_exhausted(session: Session) -> Measured:
    """4: the policy hangs for 5 s: the plan runs out and the velocity ramps to zero. Session of policy `stuck`."""
    rig = session.rig
    found = wait_for(lambda: any("chunk used up" in text for _, text in rig.status), 15) and wait_for(
        lambda: rig.heard[-1].is_zero, 2
    )
    moving = [h for h in rig.heard if h.vx >= SPEED - 1e-3]
    zeros = [h for h in rig.since(moving[-1].received_s) if h.is_zero] if moving else []
    seconds = zeros[0].received_s - moving[-1].received_s if zeros else float("inf")
    limit = 2 * (SPEED / JERK) ** 0.5 + 0.2  # within jerk, and a share for the machine
    held, note = found and seconds < limit, rig.status[-1][1] if found else f"status: {rig.status[-6:]}"
    return Measured(4, "chunk used up: ramp to zero takes", 1e3 * seconds, 1e3 * limit, "ms", held, note)


def _start_with(name: str, value: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kineflow.deploy.ros2.start", "guard"]
    environment = {**os.environ, name: value}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def _fault_of(session: Session) -> str:
    report = session.rig.report()
    return report.values.get("governor.fault", "") if report else ""


def _report_after(session: Session, when_s: float) -> bool:
    report = session.rig.report()
    return report is not None and report.received_s > when_s


def _stopped_since(session: Session, begin_s: float) -> bool:
    heard = session.rig.since(begin_s)
    return bool(heard) and heard[-1].is_zero


def _zero_after(session: Session, begin_s: float) -> float:
    return next((h.received_s for h in session.rig.since(begin_s) if h.is_zero), float("inf")) - begin_s


def _at_speed(session: Session) -> None:
    wait_for(lambda: session.rig.heard[-1].vx > 0.99 * SPEED, 5.0)


def _slower_after(session: Session, begin_s: float) -> float:
    """Seconds until a command is slower than the speed at `begin_s`."""
    return next((h.received_s for h in session.rig.since(begin_s) if h.vx < 0.98 * SPEED), float("inf")) - begin_s


def delay_adapts(session: Session) -> Measured:
    """13: inference slows down: the forecast grows with it, and where no chunk can bridge it the robot stops. Policy `slow`."""
    rig, delays = session.rig, list[float]()
    until = time.monotonic() + 40
    while time.monotonic() < until:
        time.sleep(0.25)
        report = rig.report()
        if report:
            delays.append(float(report.values.get("delay_actions", 0)))
        if "too slow" in "".join(text for _, text in rig.status):
            break
    said = "too slow" in "".join(text for _, text in rig.status)
    stopped = said and wait_for(lambda: rig.heard[-1].is_zero, 2.0)
    note = f"forecast grew to {max(delays, default=0):g} actions; stopped: {stopped}"
    return Measured(13, "inference too slow: stops", float(stopped), 1, "fault", stopped and max(delays, default=0) > 2, note)


def seam_jump(session: Session, seconds: float = 5.0) -> Measured:
    """17: a policy that changes its mind at every chunk: no jump of the output is above the limiter's step. Policy `bimodal`."""
    begin = time.monotonic()
    time.sleep(seconds)
    heard = session.rig.since(begin)
    wait_for(lambda: _report_after(session, begin + seconds), 2.0)
    report = session.rig.report()
    values, stamps = np.array([h.yaw_rate for h in heard]), np.array([h.stamp_s for h in heard])
    share = float((np.abs(np.diff(values)) / (3.2 * (np.diff(stamps) + 1e-3) + 1e-5)).max())
    raw, limited = (report.values.get(f"{which}_jump_p99", "?") if report else "?" for which in ("seam", "limited"))
    note = f"p99 at seams: raw {raw}, limited {limited} rad/s"
    return Measured(17, "seams: largest step, share of the limiter's", share, 1, "1", share <= 1 and float(raw) > 0.5, note)


def clock_jumps(session: Session) -> Measured:
    """14: simulated time stands still, then jumps: commands go on, the jump throws the plan away. Session with --clock."""
    rig = session.rig
    report = rig.report()
    before = int(report.values["epoch"]) if report else 0
    begin = rig.fault("clock freeze")
    time.sleep(1.5)
    frozen = len([h for h in rig.since(begin) if h.received_s < begin + 1.5])
    flushes = []
    for jump in ("4", "-55"):
        rig.fault("clock run")
        at = rig.fault(f"clock {jump}")
        wait_for(lambda at=at: _report_after(session, at + 1.2), 4.0)  # type: ignore[misc]
        report = rig.report()
        flushes.append(int(report.values["epoch"]) - before if report else 0)
        before += flushes[-1]
    held = frozen >= 60 and min(flushes) >= 1
    note = f"{frozen} commands in 1.5 s of frozen time; epochs begun by +4 s and -55 s: {flushes}"
    return Measured(14, "clock jumps that flushed the plan", float(sum(f >= 1 for f in flushes)), 2, "reports", held, note)
