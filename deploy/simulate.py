"""An executor in virtual time: the code path of the robot, with latencies as stated and a clock that only this file moves.

    sense -> answers that have arrived -> question -> tick -> command -> the world moves on by one tick

An episode is a generator: it yields each question and is sent the answer, so that one caller can drive one robot, or many
with one batched call. Which world it is does not matter: `SimulatedRobot`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from kineflow.contracts import ActionChunk, KineflowError
from kineflow.deploy.asking import Question
from kineflow.deploy.control import Control, Ticked

Answer: TypeAlias = ActionChunk | Exception | None  # a chunk, the policy's failure, or nothing at all: lost
Latency: TypeAlias = Callable[[Question], float]  # seconds from question to answer
Episode: TypeAlias = Generator[Question, Answer, "Trace"]
_SAME_S = 1e-9


class SimulatedRobot(Protocol):
    """A world with sensors that can be commanded; times are the caller's."""

    def advance(self, now_s: float) -> None:
        """Move the world to `now_s` under the commands given so far."""
        ...

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        """Samples since the last call: stream, value, stamp in seconds."""
        ...

    def command(self, values: np.ndarray, now_s: float) -> None: ...

    def arrived(self) -> None:
        """The policy said that it is where it was to go."""
        ...

    @property
    def is_done(self) -> bool: ...


@dataclass(frozen=True)
class Trace:
    """What an episode did, tick by tick, and its numbers."""

    ticks: tuple[Ticked, ...] = field(repr=False)
    diagnostics: Mapping[str, Any]
    jumps: tuple[float, ...]  # |action - action before| where a new chunk took over, as wanted
    limited_jumps: tuple[float, ...]  # the same of the published command

    @property
    def commands(self) -> np.ndarray:
        """float `[ticks, A]`."""
        return np.stack([tick.command.values for tick in self.ticks])


def simulated(
    control: Control,
    robot: SimulatedRobot,
    latency: Latency,
    rate_hz: float,
    limit_s: float,
    start_s: float = 0.0,
    watch: Callable[[Ticked], None] | None = None,
) -> Episode:
    """One episode, until the robot is done or `limit_s` have passed. Answers arrive at the first tick after their latency.
    `watch` is told of each tick (`live/feed.py`).

    Raises:
        KineflowError: a latency below zero.
    """
    flights: list[tuple[float, Question, Answer]] = []
    ticks: list[Ticked] = []
    executor, has_arrived = control.executor, False
    for k in itertools.count():
        now_s = start_s + k / rate_hz
        if robot.is_done or now_s - start_s > limit_s + _SAME_S:
            break
        robot.advance(now_s)
        for stream, value, stamp_s in robot.sense():
            executor.observe(stream, value, stamp_s, now_s)
        if robot.is_done:
            break
        flights = _delivered(control, flights, now_s)
        question = executor.question(now_s)
        if question is not None:
            answer, seconds = (yield question), latency(question)
            if seconds < 0:
                raise KineflowError(f"the latency of question {question.number} is {seconds:g} s; answers come after questions")
            flights = _delivered(control, [*flights, (now_s + seconds, question, answer)], now_s)
        if executor.has_arrived and not has_arrived:
            has_arrived = True
            robot.arrived()
        ticks.append(control.tick(now_s))
        robot.command(ticks[-1].command.values, now_s)
        if watch is not None:
            watch(ticks[-1])
    last_s = ticks[-1].now_s if ticks else start_s
    return Trace(tuple(ticks), control.diagnostics(last_s), tuple(executor.jumps), tuple(control.limited_jumps))


def drive(episode: Episode, ask: Callable[[Question], ActionChunk]) -> Trace:
    """One episode with one policy; what it raises is a failed answer."""
    try:
        question = next(episode)
        while True:
            question = episode.send(_asked(ask, question))
    except StopIteration as end:
        trace: Trace = end.value
        return trace


def _asked(ask: Callable[[Question], ActionChunk], question: Question) -> Answer:
    try:
        return ask(question)
    except KineflowError:
        raise  # a question that does not fit the policy is a mistake here, not weather
    except Exception as error:
        return error


def _delivered(
    control: Control, flights: list[tuple[float, Question, Answer]], now_s: float
) -> list[tuple[float, Question, Answer]]:
    """Hand in what has arrived, in the order of arrival, at its own time; what is left."""
    arrived = sorted((f for f in flights if f[0] <= now_s + _SAME_S), key=lambda flight: flight[0])
    for at_s, question, answer in arrived:
        if isinstance(answer, Exception):
            control.executor.reject(question, f"{type(answer).__name__}: {answer}", at_s)
        elif answer is not None:
            control.hear(question, answer, at_s)
    return [flight for flight in flights if flight[0] > now_s + _SAME_S]
