"""Processes forked while something is locked: they inherit the open file, and must not hold the lock for their owner."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kineflow.datasets.collect import collect
from kineflow.datasets.committing import committing
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError, _locked
from kineflow.datasets.repair import repair
from tests.datasets.recordings import append_all, record, recorder_of
from tests.datasets.sample_episodes import LOW_DIM, sample_episode

LIVES_S = 120.0


def forked() -> int:
    """A process that only lives."""
    child = os.fork()
    if child == 0:
        time.sleep(LIVES_S)
        os._exit(0)
    return child


@contextmanager
def ended(child: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_does_not_keep_a_commit_going(store: EpisodeStore) -> None:
    with committing(store.path), _locked(store.path):
        child = forked()
    with ended(child):
        began = time.monotonic()
        record(store, sample_episode(1, LOW_DIM))
        assert collect(store.path, wait_s=0.2).removed == ()
        assert time.monotonic() - began < LIVES_S / 2
    assert store.num_episodes == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_does_not_keep_a_dead_recorder_alive(store: EpisodeStore) -> None:
    reads, writes = os.pipe()
    recording = os.fork()
    if recording == 0:
        recorder = recorder_of(store, sample_episode(1, LOW_DIM))
        append_all(recorder, sample_episode(1, LOW_DIM))
        os.write(writes, b"%d\n" % forked())
        time.sleep(60)
        os._exit(0)
    with ended(recording):
        helper = int(os.read(reads, 20))
        assert repair(store.path).journals[0].outcome == "being recorded"
    assert repair(store.path).journals[0].outcome == "salvaged"
    os.kill(helper, signal.SIGKILL)
    for end in (reads, writes):
        os.close(end)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_recorder_is_of_the_process_that_made_it(store: EpisodeStore) -> None:
    recorder = recorder_of(store, sample_episode(1, LOW_DIM))
    child = os.fork()
    if child == 0:
        try:
            append_all(recorder, sample_episode(1, LOW_DIM))
        except StoreError as error:
            os._exit(7 if "made in another process" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    append_all(recorder, sample_episode(1, LOW_DIM))
    recorder.finish()
    assert store.num_episodes == 1
