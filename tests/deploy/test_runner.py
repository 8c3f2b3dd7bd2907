"""Threads and a real clock do what virtual time does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from kineflow.contracts import ActionChunk
from kineflow.deploy.asking import Question
from kineflow.deploy.control import Ticked
from kineflow.deploy.runner import Ask, Runner, ScaledClock
from kineflow.deploy.simulate import drive, simulated
from tests.deploy.closed_form import STEP_S, Counting, control, executor, tell_tale

RATE_HZ, LATENCY_S = 50.0, 0.15
# Slower than real time: a busy machine's 25 ms are half a tick; where it keeps threads waiting for longer, slower still.
SCALES = (0.4, 0.4, 0.2, 0.1, 0.04, 0.02)
LIMIT_S, LONGEST_S = 1.6, 60.0


class Waits:
    """A clock that knows by how much it woke whoever waited too late, in its own seconds."""

    def __init__(self, scale: float = SCALES[0]) -> None:
        self._clock, self.late_s = ScaledClock(scale), 0.0

    def now(self) -> float:
        return self._clock.now()

    def sleep_until(self, then_s: float) -> None:
        self._clock.sleep_until(then_s)
        self.late_s = max(self.late_s, self.now() - then_s)


def threaded(runner: Runner, done: Callable[[float], bool], each: Callable[[float], None] = lambda seconds: None) -> None:
    """Sense as the counting robot does until `done(seconds)`; `each`: what else is done each time."""
    clock, began_s = runner.clock, time.monotonic()
    start_s = clock.now()
    robot = Counting(np.inf, start_s)
    robot.advance(start_s)
    runner.observe(*next(robot.sense()), start_s)
    robot.told = 0
    with runner:
        while not done(clock.now() - start_s):
            assert time.monotonic() - began_s < LONGEST_S + LIMIT_S / SCALES[-1]
            now_s = clock.now()
            each(now_s - start_s)
            robot.advance(now_s)
            for stream, value, stamp_s in robot.sense():
                runner.observe(stream, value, stamp_s, now_s)
            clock.sleep_until(now_s + 0.005)


def asking(clock: Waits, answer: Ask) -> Ask:
    def ask(question: Question) -> ActionChunk:
        clock.sleep_until(question.asked_s + LATENCY_S)
        return answer(question)

    return ask


def moves(ticks: list[Ticked]) -> bool:
    return any(tick.intent.action is not None for tick in ticks)


@pytest.mark.real_time
@pytest.mark.parametrize("mode", ["async", "rtc", "receding"])
def test_the_same_commands_within_one_tick(mode: str) -> None:
    of = executor(mode)
    expected = drive(
        simulated(control(of), Counting(LIMIT_S), lambda question: LATENCY_S, RATE_HZ, LIMIT_S), partial(tell_tale, of.contract)
    )
    for scale in SCALES:
        clock, ticks, live = Waits(scale), list[Ticked](), executor(mode)
        runner = Runner(control(live), asking(clock, partial(tell_tale, live.contract)), ticks.append, RATE_HZ, clock)
        threaded(runner, lambda seconds: seconds >= LIMIT_S)
        if (late_s := max(*runner.late_s, clock.late_s)) < 0.5 / RATE_HZ:
            break
    assert late_s < 0.5 / RATE_HZ, "this machine kept a thread waiting for longer than half a tick in each run"
    plan = [tick.command.values for tick in expected.ticks]
    moved = 0
    for tick in ticks:
        at = (tick.now_s - ticks[0].now_s) * RATE_HZ
        near = [k for k in range(int(np.floor(at)) - 1, int(np.ceil(at)) + 2) if 0 <= k < len(plan)]
        assert any(np.array_equal(tick.command.values, plan[k], equal_nan=True) for k in near), at
        moved += tick.intent.action is not None
    assert moved > 0.6 * len(ticks)


def test_a_reset_during_inference_begins_anew() -> None:
    clock, ticks, live = Waits(), list[Ticked](), executor("async")
    asked, was_reset = threading.Event(), threading.Event()

    def ask(question: Question) -> ActionChunk:
        asked.set()
        assert was_reset.wait(LONGEST_S)
        return tell_tale(live.contract, question)

    def each(seconds: float) -> None:
        if seconds > 0.08 and asked.is_set() and not was_reset.is_set():
            runner.reset("operator")
            was_reset.set()

    runner = Runner(control(live), ask, ticks.append, RATE_HZ, clock)
    threaded(runner, lambda seconds: seconds >= 0.6 and moves(ticks), each)
    assert live.counts["answers of an earlier epoch"] == 1
    seen = [float(tick.intent.action[0]) for tick in ticks if tick.intent.action is not None]
    assert seen
    assert min(seen) >= 1  # nothing of the question that was asked before


def test_a_policy_that_fails_is_asked_again_and_publishing_that_fails_is_raised() -> None:
    clock, ticks, live = Waits(), list[Ticked](), executor("async")
    failed, was_broken = threading.Event(), threading.Event()

    def ask(question: Question) -> ActionChunk:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("no memory")
        return tell_tale(live.contract, question)

    runner = Runner(control(live), ask, ticks.append, RATE_HZ, clock)
    runner.warm_up(calls=0)
    threaded(runner, lambda seconds: moves(ticks))
    assert live.counts["failed answers"] == 1

    def broken(tick: Ticked) -> None:
        was_broken.set()
        raise OSError("bus off")

    runner = Runner(control(executor("async")), ask, broken, RATE_HZ, clock)
    runner.start()
    assert was_broken.wait(LONGEST_S)
    with pytest.raises(OSError, match="bus off"):
        runner.stop()


def test_warm_up_asks_in_the_shapes_to_come_and_counts_nowhere() -> None:
    live, asked = executor("bid", candidates=3), list[Question]()

    def ask(question: Question) -> ActionChunk:
        asked.append(question)
        return ActionChunk(np.zeros((3, 8, 2), np.float32), STEP_S, np.zeros(3))

    Runner(control(live), ask, lambda tick: None).warm_up(3)
    assert [q.observation.state.shape for q in asked] == [(3, 2, 1)] * 3
    assert live.delays.percentiles_s() == (0, 0)
    assert live.counts == {}
    prefix = executor("rtc").warm_up()[0].request.prefix
    assert prefix is not None
    assert prefix.actions.shape == (1, 8, 2)
    assert prefix.method == "guided"


def test_answers_that_are_none_are_failures_and_asking_goes_on() -> None:
    """A policy that gives nothing, or something else: said so, asked again, never a thread that is gone without a word."""
    clock, ticks, live, calls = Waits(), list[Ticked](), executor("async"), list[int]()

    def ask(question: Question) -> ActionChunk:
        calls.append(question.number)
        answers = (None, "left", ActionChunk(np.zeros(3, np.float32), STEP_S, np.zeros(1)))
        wrong = len(calls) <= len(answers)
        return answers[len(calls) - 1] if wrong else tell_tale(live.contract, question)  # type: ignore[return-value]

    runner = Runner(control(live), ask, ticks.append, RATE_HZ, clock)
    threaded(runner, lambda seconds: moves(ticks))
    assert live.counts["failed answers"] == 3
    assert runner.failure == ""


def test_a_tick_that_fails_is_told() -> None:
    """Whoever watches the runner must see that no commands leave any more."""
    runner = Runner(control(executor("async")), lambda question: tell_tale(executor().contract, question), lambda tick: None)
    runner.control.tick = lambda now_s: 1 / 0  # type: ignore[assignment, method-assign]
    runner.start()
    until = time.monotonic() + 10
    while not runner.failure and time.monotonic() < until:
        time.sleep(0.01)
    assert runner.failure == "ZeroDivisionError: division by zero"
    with pytest.raises(ZeroDivisionError):
        runner.stop()
