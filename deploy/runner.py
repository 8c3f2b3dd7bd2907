"""Threads around a `Control`: one asks the policy, one ticks at a fixed rate. The clock comes from outside.

    output thread     every 1 / rate_hz, by absolute times: tick, publish
    asking thread     waits for a question, asks the policy, which may take its time and may fail, hands the answer in
    any thread        observe, set_goal, reset: short, under the same lock

Native inference releases the interpreter's lock, so the output thread keeps its times meanwhile (deployment notes, 2.2).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from kineflow.contracts import ActionChunk, KineflowError
from kineflow.deploy.asking import FollowsGoal, Question
from kineflow.deploy.control import Control, Ticked

Ask = Callable[[Question], ActionChunk]


class Clock(Protocol):
    """Monotonic seconds, and a way to wait for them."""

    def now(self) -> float: ...

    def sleep_until(self, then_s: float) -> None: ...


@dataclass(frozen=True)
class ScaledClock:
    """The machine's monotonic clock, `scale` times as fast."""

    scale: float = 1.0

    def now(self) -> float:
        return time.monotonic() * self.scale

    def sleep_until(self, then_s: float) -> None:
        left = then_s - self.now()
        if left > 0:
            time.sleep(left / self.scale)


class Runner:
    """`with Runner(control, ask, publish): ...` runs until the block ends; `publish` is called in the output thread.

    An exception of `ask` is a failed answer; one of `publish` ends the output thread and is raised again by `stop`: a robot that
    cannot be told anything must be seen to by its guard.
    """

    def __init__(
        self, control: Control, ask: Ask, publish: Callable[[Ticked], None], rate_hz: float = 50.0, clock: Clock | None = None
    ) -> None:
        if not rate_hz > 0:
            raise KineflowError(f"rate_hz is {rate_hz:g}; commands leave at a positive rate")
        self.control, self.clock = control, clock or ScaledClock()
        self._ask, self._publish, self._period_s = ask, publish, 1 / rate_hz
        self._lock, self._due = threading.Lock(), threading.Event()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._output, name="kineflow-output", daemon=True),
            threading.Thread(target=self._asking, name="kineflow-asking", daemon=True),
        ]
        self._error: BaseException | None = None
        self.late_s: deque[float] = deque(maxlen=1000)  # by how much ticks missed their times
        self.took_s: deque[float] = deque(maxlen=1000)  # executor and governor, with the wait for the lock

    def warm_up(self, calls: int = 3) -> None:
        """Ask the policy what it will be asked, before anything moves; these answers count nowhere.

        Raises:
            Whatever the policy raises: a policy that fails here must not be started.
        """
        for _ in range(calls):
            for question in self.control.executor.warm_up():
                self._ask(question)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End both threads; the asking one may be within the policy and is then left behind. Publishes nothing: the caller
        says stop to the robot when no thread contradicts it any more."""
        self._ending.set()
        self._due.set()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout_s)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Runner:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def failure(self) -> str:
        """Why no commands leave any more, or ""."""
        return "" if self._error is None else f"{type(self._error).__name__}: {self._error}"

    def observe(self, stream: str, value: np.ndarray, stamp_s: float, received_s: float) -> str:
        with self._lock:
            return self.control.executor.observe(stream, value, stamp_s, received_s)

    def set_goal(self, told: FollowsGoal | None) -> None:
        """None: no goal, rest."""
        with self._lock:
            if told is None:
                self.control.executor.clear_goal(self.clock.now())
            else:
                self.control.executor.set_goal(told, self.clock.now())

    def reset(self, reason: str, seed: int | None = None) -> None:
        with self._lock:
            self.control.executor.reset(self.clock.now(), reason, seed)

    def ahead(self) -> np.ndarray:
        """The plan from now on `[N, A]`."""
        with self._lock:
            ahead: np.ndarray = self.control.executor.ahead()
            return ahead

    def diagnostics(self) -> dict[str, Any]:
        with self._lock:
            late, took = (float(np.percentile(np.array(times or [0.0]), 99)) for times in (self.late_s, self.took_s))
            return {**self.control.diagnostics(self.clock.now()), "tick_late_p99_s": late, "tick_took_p99_s": took}

    def _output(self) -> None:
        try:
            due_s = self.clock.now()
            while not self._ending.is_set():
                now_s = self.clock.now()
                self.late_s.append(now_s - due_s)
                with self._lock:
                    ticked = self.control.tick(now_s)
                    has_question = self.control.executor.has_question
                self.took_s.append(self.clock.now() - now_s)
                if has_question:
                    self._due.set()
                self._publish(ticked)
                # Absolute times do not drift; after a long pause ticks are not made up for.
                due_s = max(due_s + self._period_s, self.clock.now() - self._period_s)
                self.clock.sleep_until(due_s)
        except BaseException as error:  # handed to whoever stops the runner
            self._error = error

    def _asking(self) -> None:
        while not self._ending.is_set():
            self._due.wait()
            self._due.clear()
            with self._lock:
                question = self.control.executor.take_question()
            if question is None or self._ending.is_set():
                continue
            try:
                chunk = self._ask(question)
            except Exception as error:  # whatever it is, the robot is told that there is no answer
                with self._lock:
                    self.control.executor.reject(question, f"{type(error).__name__}: {error}", self.clock.now())
                continue
            with self._lock:
                try:
                    self.control.hear(question, chunk, self.clock.now())
                except Exception as error:  # an answer that is none: the next one is asked for all the same
                    why = f"an answer that cannot be used, {type(error).__name__}: {error}"
                    self.control.executor.reject(question, why, self.clock.now())
