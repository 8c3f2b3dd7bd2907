"""The governor's promises: whatever arrives whenever, the stream keeps its limits, and what must stop stops in time."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.deploy.governor import Governor, Intent
from kineflow.deploy.robot_profile import RobotProfile
from tests.deploy.governed import FAST, Drive, assert_limits_hold, is_still, profile, seconds_until_still

HALF = [0.0, 0.1, -0.2, 0.3, -0.4, 0.5]


def intents(size: int) -> st.SearchStrategy[Any]:
    number = st.one_of(st.sampled_from([0.0, 1e9, -1e9, math.nan, math.inf]), st.floats(-2, 2))
    return st.one_of(
        st.none(),
        st.lists(st.floats(-2, 2), min_size=size, max_size=size),
        st.lists(number, min_size=size, max_size=size),
        st.sampled_from([np.zeros(size + 1), np.zeros(0), np.array("stop"), np.full(size, np.float16(3e4))]),
    )


EVENTS = st.sampled_from(["", "", "", "press", "recover", "observation", "supervisor", "fault", "scan", "quiet"])
TICKS = st.one_of(st.sampled_from([0.0, 1e-5, 0.02, 0.02, 0.02, 0.0201, 0.1, 0.1001, 0.3]), st.floats(1e-4, 0.12))
ROBOTS = [
    load_config(RobotProfile, "robots/wheeled"),
    profile("drone", limits={"acceleration": (1.0,) * 4, "deceleration": (3.0,) * 4}),
    profile("g1", direction="axis"),
    load_config(RobotProfile, "robots/arm"),
]


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda r: r.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_arrives_whenever_the_stream_keeps_its_limits(robot: RobotProfile, data: st.DataObject) -> None:
    size = robot.command.size
    start = [0.0] * size
    drive = Drive(robot, start)
    steps = st.tuples(EVENTS, intents(size), TICKS, st.integers(1, 10))
    for event, action, dt, repeat in data.draw(st.lists(steps, min_size=4, max_size=14)):
        _happen(drive, event)
        for _ in range(repeat):
            drive.tick(action, dt)
    assert_limits_hold(drive, start)


def _happen(drive: Drive, event: str) -> None:
    governor, now = drive.governor, drive.now_s
    if event == "press":
        governor.estop(True, now)
    elif event == "recover":  # what an operator does after any stop
        drive.alive = {"supervisor", "observation"}
        governor.estop(False, now)
        governor.reset_estop(now)
        governor.reset_fault(now)
        if not governor.state(now)["estop_latched"]:
            governor.activate(now, governor.state(now)["values"] if drive.robot.kind == "position" else None)
    elif event == "fault":
        governor.trip("test")
    elif event == "scan":
        angles = np.linspace(-math.pi, math.pi, 36)
        governor.ranges(angles, 0.6 + 0.3 * np.sin(3 * angles), now)
    elif event == "quiet":
        drive.alive = set()
    elif event:
        drive.alive ^= {event}


# Promise 2: stale observations


def test_stale_observation_stops_within_a_quarter_second_and_speed_over_deceleration() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 2.0)
    assert drive.commands[-1].values[0] == pytest.approx(1.0)
    drive.alive.discard("observation")
    last_heard = drive.observed_s
    values = drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    times = np.array(drive.times[-len(values) :]) - last_heard
    falling = times[np.flatnonzero(values[:, 0] < 1.0 - 1e-6)[0]]
    still = times[np.flatnonzero(np.abs(values).max(axis=1) < 1e-9)[0]]
    assert 0.2 <= falling <= 0.25
    assert still <= 0.25 + 1.0 / 2.5 + 1e-9
    assert drive.commands[-1].reasons == ("observation too old",)


def test_an_executor_that_never_says_when_it_observed_does_not_move() -> None:
    drive = Drive(FAST)
    command = drive.governor.govern(Intent(np.array([1.0, 0.0, 0.0, 0.0])), drive.now_s + 0.02)
    assert (command.outcome, command.reasons) == ("stop", ("observation too old",))
    ahead = drive.governor.govern(Intent(np.array([1.0, 0.0, 0.0, 0.0]), observed_s=drive.now_s + 9), drive.now_s + 0.04)
    assert ahead.outcome == "stop", "an observation from the future is none"


# Promise 3: stamps


@pytest.mark.parametrize(
    ("age", "refused"),
    [
        (0.0, ""),
        (0.49, ""),
        (0.51, "stamp too old"),
        (-0.09, ""),
        (-0.11, "stamp in the future"),
        (math.nan, "stamp too old"),
        (math.inf, "stamp too old"),
    ],
)
def test_old_and_future_stamps_are_refused_and_counted(age: float, refused: str) -> None:
    governor = Governor(FAST)
    assert governor.check_stamp(50.0 - age, 50.0) == refused
    assert governor.state(0.0)["reasons"] == ({refused: 1} if refused else {})


# Promise 4: no more actions


def test_used_up_chunk_ramps_down_from_the_next_tick_and_never_repeats() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.5], 2.0)
    before = drive.commands[-1].values
    values = np.concatenate([before[None], drive.run(None, 1.2)])[:, [0, 3]]
    moving = values[:-1] > 1e-9
    assert (np.diff(values, axis=0)[moving] < 0).all(), "the last velocity was repeated"
    assert is_still(np.round(values[-1], 12))
    assert drive.commands[-1].reasons == ("chunk used up",)
    assert not drive.commands[-1].braking
    optimum = 1.0 / 2.5 + 2.5 / 10  # time-optimal within acceleration and jerk
    assert seconds_until_still(np.round(values, 6)) <= optimum + 0.06


def test_an_arm_holds() -> None:
    drive = Drive(load_config(RobotProfile, "robots/arm"), HALF)
    drive.run([1.0] * 6, 0.5)
    values = drive.run(None, 0.6)
    assert (values[-1] == values[-2]).all()
    assert (values[-1] > values[0]).all(), "it must brake, not jump back"
    assert_limits_hold(drive, HALF)


# Promises 6: broken chunks and actions


GOOD = np.full((16, 4), 0.4)


def broken(kind: str) -> np.ndarray:
    chunk = GOOD.copy()
    if kind == "NaN or Inf":
        chunk[7, 3] = math.nan
    elif kind == "absurd size":
        chunk[3, 0] = 3.1
    elif kind == "wrong shape":
        return chunk[:, :3]
    return chunk


@pytest.mark.parametrize("kind", ["NaN or Inf", "absurd size", "wrong shape"])
def test_three_broken_chunks_in_a_row_are_a_fault_until_reset(kind: str) -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    for _ in range(2):
        assert kind in drive.governor.check_chunk(broken(kind), drive.now_s, drive.now_s)
    assert drive.governor.check_chunk(GOOD, drive.now_s, drive.now_s) == ""
    for _ in range(3):
        assert drive.tick([1.0, 0.0, 0.0, 0.0]).outcome != "stop"
        drive.governor.check_chunk(broken(kind), drive.now_s, drive.now_s)
    values = drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    assert is_still(values[-1])
    assert kind in drive.governor.state(drive.now_s)["fault"]
    with pytest.raises(KineflowError, match="find its cause and reset"):
        drive.governor.activate(drive.now_s)
    drive.governor.reset_fault(drive.now_s)
    assert is_still(drive.run([1.0, 0.0, 0.0, 0.0], 0.5)[-1]), "a reset alone must not move"
    drive.governor.activate(drive.now_s)
    assert drive.run([1.0, 0.0, 0.0, 0.0], 0.5)[-1][0] > 0


@pytest.mark.parametrize("chunk", [np.zeros((0, 4)), np.zeros(4), np.array([["a"] * 4]), np.full((2, 4), None)])
def test_what_is_no_chunk_is_refused(chunk: np.ndarray) -> None:
    assert Governor(FAST).check_chunk(chunk, 0.0, 0.0) == "chunk of wrong shape"


def test_missing_axes_may_carry_anything_finite() -> None:
    assert Governor(FAST).check_chunk(np.array([[0.4, 5.0, -5.0, 0.1]]), 0.0, 0.0) == ""


def test_late_and_future_chunks_are_refused_without_a_fault() -> None:
    governor = Governor(FAST)
    assert governor.check_chunk(GOOD, 10.0, 9.95) == "", "stamps of cameras may be a little ahead"
    for _ in range(5):
        assert governor.check_chunk(GOOD, 10.0, 12.1) == "chunk too late"
        assert governor.check_chunk(GOOD, 10.0, 9.0) == "chunk too late"
    state = governor.state(12.0)
    assert (state["fault"], state["reasons"], state["counts"]) == ("", {"chunk too late": 10}, {"chunk refused": 10})


@pytest.mark.parametrize("action", [np.array([math.nan, 0, 0, 0]), np.zeros(3), np.array("x"), np.full(4, 1e308)])
def test_an_intent_that_is_no_command_is_rejected_with_a_ramp(action: np.ndarray) -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    command = drive.tick(action)
    assert (command.outcome, command.reasons, command.braking) == ("reject", ("no command",), False)
    assert 0 < command.values[0] < 1.0


# Promises 7 and 8: e-stop


def test_estop_is_zero_at_once_latched_and_needs_reset_and_activation() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.5], 1.0)
    drive.governor.estop(True, drive.now_s)
    command = drive.tick([1.0, 0.0, 0.0, 0.5])
    assert (command.outcome, command.reasons, is_still(command.values)) == ("estop", ("e-stop",), True)
    assert "still pressed" in drive.governor.reset_estop(drive.now_s)
    drive.governor.estop(False, drive.now_s)
    assert is_still(drive.run([1.0, 0.0, 0.0, 0.5], 1.0)), "released is not reset"
    with pytest.raises(KineflowError, match="latched"):
        drive.governor.activate(drive.now_s)
    assert drive.governor.reset_estop(drive.now_s) == ""
    assert is_still(drive.run([1.0, 0.0, 0.0, 0.5], 1.0)), "reset is not activated"
    drive.governor.activate(drive.now_s)
    assert drive.run([1.0, 0.0, 0.0, 0.5], 1.0)[-1][0] > 0.9


def test_estop_holds_an_arm_where_it_was_sent_last() -> None:
    drive = Drive(load_config(RobotProfile, "robots/arm"), HALF)
    drive.run([1.0] * 6, 0.5)
    before = drive.commands[-1].values
    drive.governor.estop(True, drive.now_s)
    assert (drive.run([1.0] * 6, 0.5) == before).all()


def test_nothing_moves_before_the_estop_source_was_heard() -> None:
    governor = Governor(FAST)
    governor.activate(0.0)
    go = np.array([1.0, 0.0, 0.0, 0.0])
    for k in range(1, 100):
        governor.supervisor(0.02 * k)
        command = governor.govern(Intent(go, "", 0.02 * k), 0.02 * k)
        assert (command.outcome, command.reasons, is_still(command.values)) == ("stop", ("e-stop source not heard",), True)
    governor.estop(False, 2.0)
    governor.supervisor(2.0)
    assert governor.govern(Intent(go, "", 2.0), 2.0).values[0] > 0
    restarted = Governor(FAST)
    restarted.activate(0.0)
    restarted.estop(True, 0.01)  # the latched sample arrives after discovery
    assert restarted.govern(Intent(go, "", 0.02), 0.02).outcome == "estop"


def test_a_robot_may_have_no_estop_topic_and_no_supervisor() -> None:
    robot = profile("wheeled", keep_out=None, watchdogs={"estop": False, "supervisor_s": math.inf})
    governor = Governor(robot)
    governor.activate(0.0)
    assert governor.govern(Intent(np.array([1.0, 0, 0, 0]), "", 0.02), 0.02).values[0] > 0


# Promise 9: supervisor; and the output thread's own tick


def test_lost_supervisor_stops_and_its_return_moves_again() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    drive.alive.discard("supervisor")
    values = drive.run([1.0, 0.0, 0.0, 0.0], 2.0)
    falling = 0.02 * (np.flatnonzero(values[:, 0] < 1.0 - 1e-6)[0] + 1)
    assert 0.5 < falling <= 0.54
    assert is_still(values[-1])
    drive.alive.add("supervisor")
    assert drive.run([1.0, 0.0, 0.0, 0.0], 1.0)[-1][0] > 0.9


def test_an_unheard_supervisor_keeps_still() -> None:
    governor = Governor(FAST)
    governor.estop(False, 0.0)
    governor.activate(0.0)
    assert governor.govern(Intent(np.array([1.0, 0, 0, 0]), "", 0.02), 0.02).reasons == ("supervisor lost",)


def test_a_tick_after_a_freeze_brakes() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    command = drive.tick([1.0, 0.0, 0.0, 0.0], dt=5.0)
    assert command.reasons == ("tick came late",)
    assert command.values[0] == pytest.approx(1.0 - 2.5 * 0.1), "a freeze is no licence for a big step"


@pytest.mark.parametrize("dt", [-1e-3, -60.0, math.nan, math.inf])
def test_a_clock_that_runs_backwards_is_a_fault(dt: float) -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    now = drive.now_s
    assert drive.tick([1.0, 0.0, 0.0, 0.0], dt=dt).outcome == "stop"
    drive.now_s = now
    assert is_still(drive.run([1.0, 0.0, 0.0, 0.0], 1.0)[-1])
    assert drive.governor.state(now)["fault"] == "the clock ran backwards"


# Promise 17 and the counts


def test_a_seam_between_modes_jumps_by_at_most_one_limiter_step() -> None:
    drive = Drive(FAST)
    values = np.array([drive.tick([1.0 if (k // 7) % 2 else -1.0, 0.0, 0.0, 0.0]).values for k in range(300)])
    assert np.abs(np.diff(values[:, 0])).max() <= 2.5 * 0.02 + 1e-9
    assert_limits_hold(drive, [0.0] * 4)


def test_outcomes_and_reasons_are_counted_and_state_is_plain() -> None:
    drive = Drive(FAST)
    drive.tick([0.003, 0.0, 0.0, 0.0])
    assert (drive.commands[-1].outcome, drive.commands[-1].reasons) == ("pass", ())
    drive.tick([2.0, 0.0, 0.0, 0.0])
    drive.tick(None)
    drive.tick(np.zeros(2))
    state = drive.governor.state(drive.now_s)
    assert state["counts"] == {"pass": 1, "clamp": 1, "stop": 1, "reject": 1}
    assert state["reasons"] == {"limit": 1, "rate": 1, "chunk used up": 1, "no command": 1}
    import json

    json.dumps(state, allow_nan=False)


def test_activation_in_the_middle_of_braking_goes_on_from_there() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    drive.governor.deactivate()
    drive.run([1.0, 0.0, 0.0, 0.0], 0.1)
    drive.governor.activate(drive.now_s)
    drive.run([1.0, 0.0, 0.0, 0.0], 0.5)
    assert_limits_hold(drive, [0.0] * 4)
    drive.governor.activate(drive.now_s + 60.0)  # nobody ticked: the node stopped the robot by itself
    assert is_still(np.array(drive.governor.state(0.0)["values"]))


def test_activation_after_the_body_was_stopped_begins_at_rest() -> None:
    """A node that is deactivated says zero itself: activated at once, the stream goes on from zero, not from its old speed."""
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    drive.governor.deactivate()
    drive.governor.stopped()
    drive.governor.activate(drive.now_s)
    assert 0 < drive.tick([1.0, 0.0, 0.0, 0.0]).values[0] <= 10 * 0.02**2 + 1e-9


def test_deactivation_brakes() -> None:
    drive = Drive(FAST)
    drive.run([1.0, 0.0, 0.0, 0.0], 1.0)
    drive.governor.deactivate()
    assert drive.tick([1.0, 0.0, 0.0, 0.0]).values[0] == pytest.approx(1.0 - 0.05, abs=1e-3)


def test_an_arm_is_activated_where_it_is() -> None:
    robot = load_config(RobotProfile, "robots/arm")
    for held in (None, [0.0] * 5, [math.nan] * 6):
        with pytest.raises(KineflowError, match="activate it with its 6 present ones"):
            Governor(robot).activate(0.0, held)


def test_a_tick_costs_little() -> None:
    """Of this thread's CPU time, the quickest of some batches: other work on the machine does not count."""
    robot = dataclasses.replace(
        FAST, direction="common", limits=dataclasses.replace(FAST.limits, low=(-1.0,) * 4, high=(1.0,) * 4)
    )
    governor = Governor(robot)
    governor.estop(False, 0.0)
    governor.activate(0.0)
    actions = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    taken, now = [], 0.0
    for _ in range(8):
        started = time.thread_time()
        for action in actions:
            now += 0.02
            governor.supervisor(now)
            governor.govern(Intent(action, "", now), now)
        taken.append((time.thread_time() - started) / len(actions))
    assert min(taken) < 100e-6, f"{1e6 * min(taken):.0f} us"  # 30 us on a quiet core; the goal is 50


def test_the_robots_part_imports_numpy_alone() -> None:
    code = (
        "import sys, kineflow.deploy.governor, kineflow.deploy.guard, kineflow.deploy.robot_profile as p\n"
        "heavy = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'numpy', 'kineflow', '__main__'}\n"
        "print(sorted(m for m in heavy if not m.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", _with_paths(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _with_paths(code: str) -> str:
    """Without `site`, whose .pth files load what they like."""
    return f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n" + code
