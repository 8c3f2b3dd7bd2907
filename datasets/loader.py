"""Batches ahead of the training step: threads read the next windows while the current ones are learnt from.

Threads, not processes: a batch is one call that holds no GIL (datasets/frames.py), and a batch from another process must be
copied out of shared memory. A ring of buffers is used again and again, so memory stays what it is at the start.

    sampler --indices--> [thread reads into a buffer] --> in the order of the sampler, whatever the number of threads --> step

A thread draws indices and their number under one lock; the consumer waits for the number that is next. `state_dict` is the
sampler's state after the batch last handed out: what was only read ahead is read again after a resume.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError

_Read = TypeVar("_Read")


class Sampler(Protocol):
    """An order of windows that can be continued: `WindowSampler`, `PoolSampler`, `MixtureSampler`."""

    def __next__(self) -> Int64[np.ndarray, "B"]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class BatchReader(Protocol[_Read]):
    """Windows by index, into reused memory: `WindowReader`, `MixtureReader`."""

    def buffer(self, batch_size: int) -> _Read: ...

    def read(self, indices: Int64[np.ndarray, "B"], *, out: _Read | None = None) -> _Read: ...


@dataclass(frozen=True)
class Batch(Generic[_Read]):
    """Windows and their indices. The windows lie in a buffer that is used again when the next batch is asked for."""

    indices: Int64[np.ndarray, "B"]
    window: _Read


@dataclass
class _Ahead(Generic[_Read]):
    """What the threads share; they do not know the loader, so that a forgotten loader can end them."""

    reader: BatchReader[_Read]
    sampler: Sampler
    changed: threading.Condition = field(default_factory=threading.Condition)
    drawing: threading.Lock = field(default_factory=threading.Lock)
    free: list[_Read | None] = field(default_factory=list)
    drawn: int = 0
    ready: dict[int, tuple[Batch[_Read], dict[str, Any]] | BaseException] = field(default_factory=dict)
    stopped: bool = False

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def work(self) -> None:
        """Draw, read, hand over, until stopped or at an end."""
        while True:
            with self.drawing:  # one at a time: who draws first has the lower number and the earlier indices
                with self.changed:
                    self.changed.wait_for(lambda: self.free or self.stopped)
                    if self.stopped:
                        return
                    buffer, number = self.free.pop(), self.drawn
                    self.drawn += 1
                try:
                    indices, state = next(self.sampler), self.sampler.state_dict()
                except BaseException as error:
                    self._hand_over(number, error)
                    return
            try:
                buffer = self.reader.buffer(len(indices)) if buffer is None else buffer
                self._hand_over(number, (Batch(indices, self.reader.read(indices, out=buffer)), state))
            except BaseException as error:
                self._hand_over(number, error)
                return

    def _hand_over(self, number: int, what: tuple[Batch[_Read], dict[str, Any]] | BaseException) -> None:
        with self.changed:
            self.ready[number] = what
            self.stopped |= isinstance(what, BaseException)
            self.changed.notify_all()


class StreamLoader(Generic[_Read]):
    """Endless batches of `reader` in the order of `sampler`, read ahead by threads. A context manager; `close` ends the threads.

    An error in a thread is raised by the `next` whose batch it was, and by each one after it.
    """

    def __init__(self, reader: BatchReader[_Read], sampler: Sampler, threads: int = 1, depth: int = 2) -> None:
        """`depth` batches at most are read ahead. With 0 threads each batch is read when it is asked for.

        Raises:
            KineflowError: negative threads, or no depth.
        """
        if threads < 0 or depth < 1:
            raise KineflowError(f"a loader needs threads {threads} >= 0 and depth {depth} >= 1")
        self._reader, self._sampler, self._threads, self._depth = reader, sampler, threads, depth
        self._state = sampler.state_dict()
        self._workers: list[threading.Thread] = []
        self._ahead: _Ahead[_Read] | None = None
        self._given: _Read | None = None
        self._taken = 0
        self._waited_s, self._since_s = 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Batch[_Read]]:
        return self

    def __enter__(self) -> StreamLoader[_Read]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch[_Read]:
        start_s = time.perf_counter()
        try:
            batch, self._state = self._next() if self._threads else self._read_now()
        finally:
            self._waited_s += time.perf_counter() - start_s
        self._given = batch.window
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Of the sampler, after the batch last handed out."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; what was read ahead is dropped."""
        self.close()
        self._sampler.load_state_dict(state)
        self._state = self._sampler.state_dict()

    def wait_share(self) -> float:
        """Share of the time since the last call of this (or the start) that was spent waiting for batches, 0 to 1."""
        now_s = time.perf_counter()
        share = self._waited_s / max(now_s - self._since_s, 1e-9)
        self._waited_s, self._since_s = 0.0, now_s
        return share

    def close(self) -> None:
        """End the threads; the next batch, if one is asked for, is the one after that last handed out."""
        if self._ahead is None:
            return
        self._ahead.stop()
        for worker in self._workers:
            worker.join()
        self._ahead, self._workers, self._given, self._taken = None, [], None, 0
        self._sampler.load_state_dict(self._state)

    def _read_now(self) -> tuple[Batch[_Read], dict[str, Any]]:
        indices = next(self._sampler)
        buffer = self._reader.buffer(len(indices)) if self._given is None else self._given
        return Batch(indices, self._reader.read(indices, out=buffer)), self._sampler.state_dict()

    def _next(self) -> tuple[Batch[_Read], dict[str, Any]]:
        ahead = self._ahead or self._start()
        with ahead.changed:
            if self._given is not None:
                ahead.free.append(self._given)
                self._given = None
                ahead.changed.notify_all()
            ahead.changed.wait_for(lambda: self._taken in ahead.ready)
            found = ahead.ready[self._taken]
            if isinstance(found, BaseException):
                raise found
            del ahead.ready[self._taken]
            self._taken += 1
        return found

    def _start(self) -> _Ahead[_Read]:
        ahead = _Ahead(self._reader, self._sampler)
        ahead.free = [None] * (self._depth + 1)  # one more is with the consumer; made by the thread that first fills it
        self._ahead = ahead
        self._workers = [
            threading.Thread(target=ahead.work, name=f"windows-{number}", daemon=True) for number in range(self._threads)
        ]
        for worker in self._workers:
            worker.start()
        weakref.finalize(self, _end, ahead, self._workers)
        return ahead


def _end(ahead: _Ahead[Any], workers: list[threading.Thread]) -> None:
    """For a loader that nobody closed, and at the end of the process."""
    ahead.stop()
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join()
