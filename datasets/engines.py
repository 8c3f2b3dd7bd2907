"""Imports by many processes: each opens the source itself and writes whole segments, the driver lists all in one manifest.

    driver     cuts the episodes into chunks, in order; hands one at a time to each worker; commits once, in episode order
    worker     reads and encodes the episodes of a chunk, writes segments below the staged store, reports their entries

A worker that dies (killed, out of memory) has reported nothing of its chunk, which another does again; what it left behind is
no part of any manifest and is removed. Codecs are chosen once, from the first episode, and nothing else depends on where a
chunk begins: the fingerprint is that of an import by one process. Statistics are kept per episode and merged by the driver.

Engines: "pool", processes of this machine; "ray", the extra `scale`: a Ray cluster whose nodes see source and destination
under the same paths.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kineflow.contracts import Episode, KineflowError
from kineflow.datasets.codecs import FrameCodec
from kineflow.datasets.committing import committing
from kineflow.datasets.episode_check import checked
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.episode_writer import write_segment
from kineflow.datasets.importers.source import ImportOptions, Source, open_source
from kineflow.datasets.manifest import SegmentEntry, new_ulid, read_manifest
from kineflow.datasets.segment import EncodedEpisode
from kineflow.extras import require

Engine: TypeAlias = Literal["pool", "ray"]
Progress: TypeAlias = Callable[[int, int], None]
EPISODES_PER_COMMIT = 64
CHUNKS_PER_WORKER = 4  # so that workers end together though episodes differ in length
ATTEMPTS = 3  # at one chunk; what kills three workers will kill the fourth


PATIENCE_S = 5.0  # for workers to end by themselves; an episode that takes longer to read is given up


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, whatever its machine: paths are absolute."""

    format: str
    source: Path
    options: ImportOptions
    store: Path  # staged: nobody else's yet
    codecs: Mapping[str, FrameCodec] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Episodes `[first, stop)` of the source."""

    first: int
    stop: int


@dataclass(frozen=True)
class Written:
    """Segments of one chunk, in episode order, and the episodes with an instruction or split, without their streams."""

    segments: tuple[SegmentEntry, ...]
    named: tuple[Episode, ...]


@dataclass(frozen=True)
class _Failed:
    """An episode that cannot be carried, said by a worker."""

    message: str


class _ChunkStore(EpisodeStore):
    """A staged store as one worker sees it: a commit writes a segment and lists it in no manifest."""

    def __init__(self, path: Path, first: int) -> None:
        super().__init__(path, read_manifest(path))
        self._next, self.written, self.named = first, list[SegmentEntry](), list[Episode]()

    @property
    def num_episodes(self) -> int:
        return self._next  # errors name the episode by its number in the source

    def commit(self, episodes: Sequence[EncodedEpisode], segment_id: str = "") -> None:
        segment_id = segment_id or new_ulid()
        with committing(self.path, segment_id):
            self.written.append(write_segment(self.path, self.interface, episodes, segment_id))
        self.named += [replace(e.episode, streams={}) for e in episodes if e.episode.instruction or e.episode.split]
        self._next += len(episodes)


def import_with(engine: Engine, workers: int, job: Job, store: EpisodeStore, source: Source, progress: Progress) -> None:
    """Fill the empty, staged `store` with all episodes of `source` (opened as `job` says) and commit them at once.

    Raises:
        KineflowError: an unknown engine, an episode that cannot be carried, or a chunk at which `ATTEMPTS` workers died.
    """
    if engine not in _ENGINES:
        raise KineflowError(f"unknown engine '{engine}'; known are {', '.join(sorted(_ENGINES))}")
    if workers < 1:
        raise KineflowError(f"workers is {workers}; it must be at least 1")
    total = len(source)
    size = max(1, min(EPISODES_PER_COMMIT, math.ceil(total / (workers * CHUNKS_PER_WORKER))))
    chunks = [Chunk(first, min(first + size, total)) for first in range(0, total, size)]
    if chunks and store.interface.cameras:
        first_episode = checked(store.interface, source.episode(0), 0)
        job = replace(job, codecs=store.writer(codecs={}).codecs_of(first_episode))
    done = _ENGINES[engine](job, chunks, min(workers, max(1, len(chunks))), progress)
    store.list_written([s for part in done for s in part.segments], [e for part in done for e in part.named])
    _remove_unlisted(store)


def write_chunk(job: Job, chunk: Chunk, source: Source, each: Callable[[], None]) -> Written:
    """The work of one worker: `each` is called after each episode."""
    store = _ChunkStore(job.store, chunk.first)
    with store.writer(EPISODES_PER_COMMIT, codecs=job.codecs) as writer:
        for index in range(chunk.first, chunk.stop):
            writer.add(source.episode(index))
            each()
    return Written(tuple(store.written), tuple(store.named))


def _remove_unlisted(store: EpisodeStore) -> None:
    listed = {segment.id for segment in store.manifest.segments}
    for place in (store.path / "staging", store.path / "segments"):
        for folder in place.iterdir():
            if folder.name not in listed:
                shutil.rmtree(folder)


def _died(chunk: Chunk, why: str) -> KineflowError:
    return KineflowError(
        f"episodes {chunk.first} to {chunk.stop - 1}: {ATTEMPTS} workers died at them ({why}); nothing was imported. "
        "Usually memory ran out: use fewer workers, or 1 to see the error itself"
    )


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    number: int  # of its chunk
    counted: int = 0  # episodes of that chunk reported so far


class _Pool:
    """Processes that are handed one chunk at a time, so that it is known whose work is lost when one dies."""

    def __init__(self, job: Job, chunks: Sequence[Chunk], progress: Progress) -> None:
        self._job, self._chunks, self._progress = job, chunks, progress
        self._waiting, self._attempts = list(reversed(range(len(chunks)))), [0] * len(chunks)
        self._done: dict[int, Written] = {}
        self._counted, self._total = 0, chunks[-1].stop if chunks else 0
        self._workers: list[_Worker] = []

    def run(self, workers: int) -> list[Written]:
        with self._stopped_at_the_end():
            while len(self._done) < len(self._chunks):
                while self._waiting and len(self._workers) < workers:
                    self._start()
                ready = set(wait([w.connection for w in self._workers]))  # ready too when its process has died: end of file
                for worker in [w for w in self._workers if w.connection in ready]:
                    self._hear(worker)
        return [self._done[number] for number in range(len(self._chunks))]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy threads' locks, and Ray's or CUDA's state
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()  # else its end would stay open here, and its death unseen
        worker = _Worker(process, ours, -1)
        self._workers.append(worker)
        self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        worker.counted = 0
        if self._waiting:
            worker.number = self._waiting.pop()
            self._attempts[worker.number] += 1
        else:
            worker.number = -1
        with suppress(OSError):  # it has died meanwhile, which `wait` says next
            worker.connection.send(self._chunks[worker.number] if worker.number >= 0 else None)

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        if isinstance(said, _Failed):
            raise KineflowError(said.message)
        if isinstance(said, Written):
            self._done[worker.number] = said
            self._hand_out(worker)
            return
        worker.counted += 1
        self._count(1)

    def _lost(self, worker: _Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        if worker.number < 0:
            return
        if self._attempts[worker.number] >= ATTEMPTS:
            raise _died(self._chunks[worker.number], f"exit code {worker.process.exitcode}")
        self._waiting.append(worker.number)
        self._count(-worker.counted)

    def _count(self, episodes: int) -> None:
        self._counted += episodes
        self._progress(self._counted, self._total)

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            for worker in self._workers:
                worker.connection.close()  # a worker ends when it next speaks or listens, and so leaves no semaphore behind
            deadline = time.monotonic() + PATIENCE_S
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
                worker.process.kill()
                worker.process.join()


def serve(connection: Connection, job: Job) -> None:
    """Body of a worker process: chunks come, what was written goes back, until None or the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its workers
    source: Source | None = None
    while True:
        try:
            chunk: Chunk | None = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if chunk is None:
            return
        try:
            source = source or open_source(job.format, job.source, job.options)
            connection.send(write_chunk(job, chunk, source, lambda: connection.send(1)))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(_Failed(_said(error)))


def _said(error: Exception) -> str:
    if isinstance(error, KineflowError):
        return str(error)
    return f"a worker failed with {type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"


def _run_pool(job: Job, chunks: Sequence[Chunk], workers: int, progress: Progress) -> list[Written]:
    return _Pool(job, chunks, progress).run(workers)


def _run_ray(job: Job, chunks: Sequence[Chunk], workers: int, progress: Progress) -> list[Written]:
    """One Ray task a chunk; Ray does a task again whose worker or node has died. Uses the cluster the caller is connected to,
    or one of `workers` processes on this machine, which ends with the import."""
    ray: Any = require("ray", "to import with engine 'ray'")
    own = not ray.is_initialized()
    if own:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        task = ray.remote(max_retries=ATTEMPTS - 1, num_cpus=1)(ray_chunk)
        number_of = {task.remote(job, chunk): number for number, chunk in enumerate(chunks)}
        done: dict[int, Written] = {}
        waiting = list(number_of)
        while waiting:
            (ready, *_), waiting = ray.wait(waiting)
            chunk = chunks[number_of[ready]]
            try:
                said = ray.get(ready)
            except ray.exceptions.RayError as error:
                raise _died(chunk, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
            if isinstance(said, _Failed):
                raise KineflowError(said.message)
            done[number_of[ready]] = said
            progress(sum(chunks[n].stop - chunks[n].first for n in done), chunks[-1].stop)
    finally:
        if own:
            ray.shutdown()
    return [done[number] for number in range(len(chunks))]


def ray_chunk(job: Job, chunk: Chunk) -> Written | _Failed:
    """Body of a Ray task."""
    try:
        return write_chunk(job, chunk, open_source(job.format, job.source, job.options), lambda: None)
    except Exception as error:
        return _Failed(_said(error))


_ENGINES: Mapping[Engine, Callable[[Job, Sequence[Chunk], int, Progress], list[Written]]] = {
    "pool": _run_pool,
    "ray": _run_ray,
}
