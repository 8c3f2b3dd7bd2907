"""The loader: the sampler's order whatever the threads, resume to the sample, errors where they belong, an end that ends."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import Horizons, KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.loader import StreamLoader
from kineflow.datasets.window_sampler import WindowSampler
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode


class Squares:
    """Reads slowly and unevenly, so that threads overtake each other; index 13 cannot be read if `bad`."""

    def __init__(self, *, bad: bool = False, slow_s: float = 0.001) -> None:
        self.bad, self.slow_s, self.buffers = bad, slow_s, 0

    def buffer(self, batch_size: int) -> np.ndarray:
        self.buffers += 1
        return np.empty(batch_size, np.int64)

    def read(self, indices: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        time.sleep(self.slow_s * (indices[0] % 3))
        if self.bad and 13 in indices:
            raise ValueError("13 is unlucky")
        assert out is not None
        return np.square(indices, out=out)


def threads_alive() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("windows-")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert threads_alive() == []


@settings(max_examples=30, deadline=None)
@given(
    threads=st.integers(0, 4),
    depth=st.integers(1, 5),
    stop=st.integers(0, 12),
    later=st.integers(0, 4),
    world=st.integers(1, 3),
)
def test_order_and_resume_are_exact_whatever_is_read_ahead(threads: int, depth: int, stop: int, later: int, world: int) -> None:
    def sampler() -> WindowSampler:
        return WindowSampler(17, 3, 5, world - 1, world)

    expected = list(itertools.islice(sampler(), stop + 6))
    reader = Squares(slow_s=0.0003)
    with StreamLoader(reader, sampler(), threads, depth) as loader:
        for indices in expected[:stop]:
            batch = next(loader)
            np.testing.assert_array_equal(batch.indices, indices)
            np.testing.assert_array_equal(batch.window, indices**2)
        state = json.loads(json.dumps(loader.state_dict()))
        time.sleep(0.0005 * later)  # the threads are ahead by now
        assert loader.state_dict() == state
        with StreamLoader(Squares(slow_s=0.0003), sampler(), later, depth) as resumed:
            resumed.load_state_dict(state)
            for indices in expected[stop:]:
                np.testing.assert_array_equal(next(resumed).indices, indices)
        loader.close()
        np.testing.assert_array_equal(next(loader).indices, expected[stop])  # and a closed one goes on there as well
    assert reader.buffers <= 2 * (depth + 1)


def test_an_error_comes_out_at_its_batch_and_stays() -> None:
    batches = list(itertools.islice(WindowSampler(20, 4, 1), 5))
    at = next(number for number, indices in enumerate(batches) if 13 in indices)
    for threads in (0, 1, 3):
        with StreamLoader(Squares(bad=True), WindowSampler(20, 4, 1), threads, 3) as loader:
            for indices in batches[:at]:
                np.testing.assert_array_equal(next(loader).indices, indices)
            for _ in range(1 if threads == 0 else 2):
                with pytest.raises(ValueError, match="13 is unlucky"):
                    next(loader)


def test_a_sampler_that_ends_ends_the_loader() -> None:
    class Short(WindowSampler):
        def __next__(self) -> np.ndarray:
            if self.state_dict()["cursor"] == 12:
                raise StopIteration
            return super().__next__()

    for threads in (0, 2):
        with StreamLoader(Squares(), Short(20, 4, 1), threads) as loader:
            assert len(list(loader)) == 3


def test_a_forgotten_loader_ends_its_threads() -> None:
    loader = StreamLoader(Squares(), WindowSampler(20, 4, 1), 2)
    next(loader)
    assert len(threads_alive()) == 2
    del loader
    gc.collect()
    assert threads_alive() == []


class Clocked(Squares):
    """Reads for a second of a clock that only it and the test move, when `may_read`; `on_look`: so often when somebody looked at
    the clock."""

    def __init__(self) -> None:
        super().__init__(slow_s=0.0)
        self.now_s, self.done, self.on_look, self.may_read = 0.0, 0, 0, threading.Semaphore(0)

    def clock(self) -> float:
        now_s = self.now_s
        if self.on_look:
            self.on_look -= 1
            self.may_read.release()
        return now_s

    def read(self, indices: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        assert self.may_read.acquire(timeout=60)
        self.now_s += 1.0
        self.done += 1
        return super().read(indices, out=out)


def test_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading that the consumer waits for is waiting, and reading ahead of it is none."""
    for threads in (0, 1):
        reader = Clocked()
        monkeypatch.setattr("kineflow.datasets.loader.time", SimpleNamespace(perf_counter=reader.clock))
        with StreamLoader(reader, WindowSampler(20, 1, 1), threads, depth=2) as loader:
            for _ in range(4):  # read while it waits
                reader.on_look = 1
                next(loader)
                reader.now_s += 3.0
            assert loader.wait_share() == pytest.approx(0.25)
            if threads:  # read before it asks
                reader.may_read.release(2)
                until_s = time.monotonic() + 60
                while reader.done < 6 and time.monotonic() < until_s:
                    time.sleep(0.001)
                next(loader), next(loader)
                assert loader.wait_share() == 0.0
            reader.may_read.release(100)
    with pytest.raises(KineflowError, match="threads -1 >= 0 and depth 0 >= 1"):
        StreamLoader(Squares(), WindowSampler(20, 1, 1), -1, 0)


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 50), batch=st.integers(1, 7), world=st.integers(1, 5), seed=st.integers(0, 99), epochs=st.integers(1, 3)
)
def test_ranks_are_disjoint_and_complete(num: int, batch: int, world: int, seed: int, epochs: int) -> None:
    ranks = [WindowSampler(num, batch, seed, rank, world) for rank in range(world)]
    alone = WindowSampler(num, batch * world, seed)
    stream = []
    for _ in range(-(-num * epochs // (batch * world))):
        parts = [next(rank) for rank in ranks]
        assert {len(part) for part in parts} == {batch}
        np.testing.assert_array_equal(np.concatenate(parts), next(alone))
        stream.append(np.concatenate(parts))
        assert all(rank.state_dict() == ranks[0].state_dict() for rank in ranks)
    whole = np.concatenate(stream)
    for epoch in range(epochs):
        assert sorted(whole[epoch * num : (epoch + 1) * num]) == list(range(num))
    late = WindowSampler(num, batch, seed, world - 1, world)
    late.load_state_dict(ranks[0].state_dict())
    np.testing.assert_array_equal(next(late), next(ranks[-1]))


def test_states_from_before_ranks_resume_and_other_worlds_are_refused() -> None:
    sampler = WindowSampler(9, 2, 0)
    next(sampler)
    old = {name: value for name, value in sampler.state_dict().items() if name != "world"}
    again = WindowSampler(9, 2, 0)
    again.load_state_dict(old)
    np.testing.assert_array_equal(next(again), next(sampler))
    with pytest.raises(KineflowError, match="the saved sampler has world 1, this one 2"):
        WindowSampler(9, 2, 0, 1, 2).load_state_dict(old)
    with pytest.raises(KineflowError, match="rank is 2 of 2"):
        WindowSampler(9, 2, 0, 2, 2)


def test_windows_of_the_store_through_threads(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer() as writer:
        for number in range(4):
            writer.add(sample_episode(number))
    reader = WindowReader(store, ["pose"], Horizons(2, 3, 1), range(4), ["front"])
    with StreamLoader(reader, WindowSampler(len(reader), 5, 0), 2) as loader:
        for batch in itertools.islice(loader, 20):
            expected = reader.read(batch.indices)
            np.testing.assert_array_equal(batch.window.images["front"], expected.images["front"])
            np.testing.assert_array_equal(batch.window.action, expected.action)
