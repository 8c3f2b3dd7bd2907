"""Questions of several clients in one call of the policy, each with its own seeds: no answer depends on who shares the call,
up to the rounding of sums over another number of rows (`max_batch: 1` is exact).

    ask() --> waiting, oldest first --> up to max_batch rows that are alike --> one call in the inference thread --> answers

Nobody waits for company that cannot come: a call begins when it is full, when the oldest has waited `max_wait_s`, or when all who
lately asked have asked. A question past its deadline is dropped before it costs anything. When a shared call fails, each question
is asked alone, so a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, Observation, SamplingRequest
from kineflow.deploy.server.config import ServerConfig
from kineflow.deploy.together import rows_of, stacked

T = TypeVar("T")
Predict = Callable[[Observation, SamplingRequest], ActionChunk]


class RefusedError(Exception):
    """A question without an answer; `code` is one that a client knows (deploy/client.py)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Answered:
    """`rows` shared the call that gave the chunk."""

    chunk: ActionChunk
    queued_s: float
    inference_s: float
    rows: int


@dataclass
class Job:
    observation: Observation
    request: SamplingRequest
    deadline_s: float
    is_wanted: Callable[[], bool]
    answer: asyncio.Future[Answered]
    came_s: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return len(self.request.seeds)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Questions of one kind can be one call."""
        seen, request = self.observation, self.request
        prefix = None if request.prefix is None else (request.prefix.delay, request.prefix.method)
        arrays = {"state": seen.state, **seen.images, **{f"goal {name}": value for name, value in seen.goal.items()}}
        shapes = tuple(sorted((name, value.dtype.str, value.shape[1:]) for name, value in arrays.items()))
        return request.steps, request.guidance_scale, prefix, shapes, bool(seen.instruction)


class Batcher:
    """Lives on one event loop; `predict` is called in a thread of its own, one call at a time."""

    def __init__(self, predict: Predict, config: ServerConfig, company: Callable[[], int]) -> None:
        """`company`: how many clients lately asked."""
        self._predict, self._config, self._company = predict, config, company
        self._waiting: deque[Job] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "kineflow-inference")
        self.counts: Counter[str] = Counter()
        self.in_work = 0  # jobs not yet answered
        self._began_s: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the call that is running has been running."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    async def ask(
        self, observation: Observation, request: SamplingRequest, budget_s: float, is_wanted: Callable[[], bool] = lambda: True
    ) -> Answered:
        """Raises RefusedError: no room, no answer within `budget_s`, or what the policy said."""
        if self.in_work >= self._config.questions:
            self.counts["overloaded"] += 1
            raise RefusedError("overloaded", f"{self.in_work} questions are waiting already; ask again later")
        loop = asyncio.get_running_loop()
        job = Job(observation, request, time.monotonic() + budget_s, is_wanted, loop.create_future())
        self._waiting.append(job)
        self._came.set()
        self.in_work += 1
        try:
            return await job.answer
        finally:
            self.in_work -= 1

    async def aside(self, function: Callable[[], T]) -> T:
        """`function` in the inference thread, between calls of the policy."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            await self._gather()
            jobs = self._take()
            if jobs:
                await self._answer(jobs)

    def close(self) -> None:
        """What waits is refused; a call that runs is left to end."""
        for job in self._waiting:
            _refuse(job, RefusedError("draining", "the server is going down"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        oldest = self._waiting[0]
        until_s = oldest.came_s + self._config.max_wait_s
        while sum(job.rows for job in self._waiting) < self._config.max_batch and len(self._waiting) < self._company():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left_s)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[Job]:
        """The oldest that is still wanted, and those of its kind for which there is room; the others stay in their order."""
        now_s, taken, left, rows = time.monotonic(), list[Job](), list[Job](), 0
        for job in self._waiting:
            if job.answer.done():  # its client is gone
                self.counts["abandoned"] += 1
            elif not job.is_wanted():
                self.counts["reset"] += 1
                _refuse(job, RefusedError("reset", "an epoch has begun since"))
            elif now_s > job.deadline_s:
                self.counts["deadline"] += 1
                _refuse(job, RefusedError("deadline", f"its time was up after {now_s - job.came_s:.3f} s of waiting"))
            elif not taken or (rows + job.rows <= self._config.max_batch and job.kind == taken[0].kind):
                taken.append(job)
                rows += job.rows
            else:
                left.append(job)
        self._waiting = deque(left)
        return taken

    async def _answer(self, jobs: list[Job]) -> None:
        began_s = self._began_s = time.monotonic()
        try:
            chunk = await self.aside(lambda: _whole(self._predict(*stacked(jobs)), sum(job.rows for job in jobs)))
        except Exception as error:  # whatever the policy raises is an answer to a client, and the server lives on
            self._began_s = None
            self.counts["failed calls"] += 1
            if len(jobs) == 1:
                _refuse(jobs[0], _said(error))
                return
            for job in jobs:
                await self._answer([job])
            return
        self._began_s = None
        took_s, rows, first = time.monotonic() - began_s, sum(job.rows for job in jobs), 0
        self.counts["calls"] += 1
        self.counts["rows"] += rows
        for job in jobs:
            last = first + job.rows
            if not job.answer.done():
                job.answer.set_result(Answered(rows_of(chunk, first, last), began_s - job.came_s, took_s, rows))
            first = last


def _whole(chunk: ActionChunk, rows: int) -> ActionChunk:
    """A policy that gives another number of rows would give clients each other's chunks."""
    if len(chunk.actions) != rows:
        raise ValueError(f"the policy gave {len(chunk.actions)} chunks for {rows} rows")
    return chunk


def _refuse(job: Job, why: RefusedError) -> None:
    if not job.answer.done():
        job.answer.set_exception(why)


def _said(error: Exception) -> RefusedError:
    if isinstance(error, ContractError):
        return RefusedError("contract", str(error))
    return RefusedError("failed", f"{type(error).__name__}: {error}")


def warm_up(predict: Predict, blank: Callable[[int], Observation], sizes: tuple[int, ...]) -> None:
    """One call of each batch size; a policy that fails here must not be served."""
    for rows in sizes:
        predict(blank(rows), SamplingRequest(np.arange(rows, dtype=np.int64)))
