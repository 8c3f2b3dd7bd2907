"""Copies of remote files: never more than the limit, whatever arrives at once; one that is gone or damaged is fetched again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.datasets.checksums import crc32c
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import FileEntry, StoreError
from kineflow.datasets.remote.frames import RemoteFrameReader
from kineflow.datasets.remote.segment_cache import SegmentCache
from kineflow.datasets.remote.store import RemoteStore
from tests.datasets.object_servers import http_server
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

EPISODES = 3
Served = tuple[RemoteStore, list[tuple[str, str]]]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A store over HTTP, and the requests so far."""
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer() as writer:
        for number in range(EPISODES):
            writer.add(sample_episode(number))
    with http_server(store.path) as (url, asked):
        yield RemoteStore.open(url, tmp_path / "cache"), asked


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def bytes_of(files: list[Path]) -> int:
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # evicted meanwhile
            total += file.stat().st_size
    return total


def flip(file: Path, at: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


class AllAtOnce:
    """A server whose answers to `count` requests come at the same moment."""

    url = "s3://robots/s.eps"

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)

    def get(self, path: str) -> bytes:
        self._barrier.wait(60)
        return bytes(1000)


def test_files_that_arrive_together_stay_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("01A", FileEntry(f"steps/{n}", 1000, crc32c(bytes(1000)))) for n in range(12)]
    objects: Any = AllAtOnce(len(files))
    cache, most, real = SegmentCache(objects, tmp_path / "cache", 2500), [0], os.replace

    measuring = threading.Lock()

    def slow(source: Path, target: Path) -> None:
        time.sleep(0.01)
        with measuring:  # none becomes a copy while they are counted
            most[0] = max(most[0], bytes_of(copies(tmp_path)))
            real(source, target)

    monkeypatch.setattr(os, "replace", slow)
    cache.prefetch(files)
    assert 1000 <= most[0] <= 2500
    assert cache.held_bytes == bytes_of(copies(tmp_path)) <= 2500


def test_the_longest_unused_copy_makes_room(tmp_path: Path) -> None:
    objects: Any = AllAtOnce(1)
    cache = SegmentCache(objects, tmp_path / "cache", 2500)
    one, two, three = (FileEntry(name, 1000, crc32c(bytes(1000))) for name in "abc")
    for age_s, file in ((20, one), (10, two)):
        os.utime(cache.path("01A", file), (time.time() - age_s, time.time() - age_s))
    assert cache.held("01A", one) is not None  # used just now
    cache.path("01A", three)
    assert sorted(path.name for path in copies(tmp_path)) == ["a", "c"]


def test_a_copy_that_is_evicted_before_it_is_opened_is_fetched_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = served
    real, evicted = SegmentCache.path, set[Path]()

    def path(cache: SegmentCache, segment: str, file: FileEntry) -> Path:
        found = real(cache, segment, file)
        if found not in evicted:
            evicted.add(found)
            found.unlink()
        return found

    monkeypatch.setattr(SegmentCache, "path", path)
    for number in range(EPISODES):
        assert_equal_episodes(store.episode(number), sample_episode(number))
    assert evicted


def test_a_damaged_copy_is_fetched_again(served: Served, tmp_path: Path) -> None:
    store, asked = served
    store.prefetch(shards=True)
    for copy in copies(tmp_path):
        flip(copy)
    asked.clear()
    store = RemoteStore.open(store.objects.url, tmp_path / "cache")
    for number in range(EPISODES):
        assert_equal_episodes(store.episode(number), sample_episode(number))
    assert len(asked) > EPISODES


@pytest.mark.parametrize("at", [0.1, 0.999])  # a frame, the index
def test_frames_of_a_damaged_copy_come_from_the_server(served: Served, tmp_path: Path, at: float) -> None:
    store, _ = served
    store.prefetch(shards=True)
    for copy in copies(tmp_path):
        if "/cameras/front/c/" in copy.as_posix():
            flip(copy, at)
    expected = np.concatenate([sample_episode(number).streams["front"].values for number in range(EPISODES)])
    np.testing.assert_array_equal(RemoteFrameReader(store, "front").read(np.arange(len(expected))), expected)


def test_damage_on_the_server_is_told_with_the_url(served: Served, tmp_path: Path) -> None:
    store, _ = served
    reader = RemoteFrameReader(store, "front")
    (shard,) = (tmp_path / "s.eps" / "segments" / store.manifest.segments[0].id).glob("cameras/front/c/*/*/*/*")
    flip(shard, 0.1)
    with pytest.raises(StoreError, match=rf"{store.objects.url}/segments/.*/cameras/front/c/.*upload it again"):
        reader.read(np.arange(3))


def test_what_a_killed_process_left_half_written_is_removed(served: Served, tmp_path: Path) -> None:
    store, _ = served
    store.episode(0)
    left, now = copies(tmp_path)[0].with_name(".0.01AAAAAAAAAAAAAAAAAAAAAAAA"), time.time()
    for age_s, stays in ((60, True), (7200, False)):
        left.write_bytes(bytes(10))
        os.utime(left, (now - age_s, now - age_s))
        RemoteStore.open(store.objects.url, tmp_path / "cache")
        assert left.exists() is stays
