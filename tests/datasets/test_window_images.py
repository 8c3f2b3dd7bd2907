"""Frames of windows: the same bits from RAM, disk, cache, pool and torch; what the cache survives; what the pool costs."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kineflow.contracts import CameraSpec, Horizons, KineflowError, Stream
from kineflow.datasets import decoded_cache, window_images
from kineflow.datasets.decoded_cache import DecodedCache, cache_key
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.resample import Resample
from kineflow.datasets.shuffle import DecodedEpisodes, PoolSampler
from kineflow.datasets.store_error import StoreError
from kineflow.datasets.window_images import Images
from kineflow.datasets.windows import WindowReader
from tests.datasets.sample_episodes import INTERFACE, sample_episode
from tests.datasets.sample_frames import natural_frames, simulated_frames

SIDE = 32
TWO_CAMERAS = replace(INTERFACE, cameras={"natural": CameraSpec(SIDE, SIDE, 10.0), "drawn": CameraSpec(SIDE, SIDE, 10.0)})
EPISODES = [3, 0, 2]
HORIZONS = Horizons(2, 4, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Five episodes in three segments; one camera becomes JPEG, the other stays lossless."""
    store = EpisodeStore.create(tmp_path_factory.mktemp("images") / "s.eps", TWO_CAMERAS)
    with store.writer(2) as writer:
        for number in range(5):
            episode = sample_episode(number, TWO_CAMERAS, 6 + 3 * number)
            stamps = episode.streams["action"].stamp_ns
            frames = {
                "natural": natural_frames(len(stamps), SIDE, SIDE, number),
                "drawn": simulated_frames(len(stamps), SIDE, SIDE),
            }
            writer.add(replace(episode, streams={**episode.streams, **{n: Stream(f, stamps) for n, f in frames.items()}}))
    assert {next(iter(FrameReader(store, name).codecs)).name for name in TWO_CAMERAS.cameras} == {"jpeg", "lz4hc"}
    return store


def reader_of(store: EpisodeStore, images: Images, episodes: list[int] = EPISODES) -> WindowReader:
    return WindowReader(store, ["pose"], HORIZONS, episodes, ["natural", "drawn"], images=images)


def assert_same_images(found: WindowReader, expected: WindowReader, indices: np.ndarray) -> None:
    mine, theirs = found.read(indices), expected.read(indices)
    for name in theirs.images:
        np.testing.assert_array_equal(mine.images[name], theirs.images[name])
    np.testing.assert_array_equal(mine.state, theirs.state)


@pytest.mark.parametrize("where", ["disk", "cache", "pool"])
@pytest.mark.parametrize("native", ["0", "1"])
def test_every_place_gives_the_pixels_of_ram(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, native: str
) -> None:
    ram = reader_of(store, Images("ram"))
    first = ram.read(np.arange(len(ram)))
    steps = [store.episode(e).streams["natural"].values for e in EPISODES]
    np.testing.assert_array_equal(first.images["natural"][:, -1], np.concatenate(steps))  # "now", against the plain reader
    monkeypatch.setenv("KINEFLOW_NATIVE", native)
    reader = reader_of(store, Images(where, cache=tmp_path, pool_episodes=1))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    out = reader.buffer(7)
    for _ in range(12):
        indices = rng.integers(0, len(ram), 7)
        assert_same_images(reader, ram, indices)
        assert reader.read(indices, out=out) is out
        np.testing.assert_array_equal(out.images["drawn"], ram.read(indices).images["drawn"])


def test_a_camera_with_its_own_clock_reads_the_same_rows_everywhere(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", TWO_CAMERAS)
    with store.writer() as writer:
        for number in range(3):
            episode = sample_episode(number, TWO_CAMERAS, 12)
            stamps = episode.streams["action"].stamp_ns
            own = np.sort(np.concatenate([stamps[::2] - 5_000_000, stamps[1:-2:2] + 3_000_000]))
            frames = np.random.default_rng(number).integers(0, 256, (len(own), SIDE, SIDE, 3), np.uint8)
            writer.add(replace(episode, streams={**episode.streams, "natural": Stream(frames, own)}))
    rules = {"natural": Resample("hold", 0.12)}
    readers = [
        WindowReader(store, [], HORIZONS, [2, 0], ["natural"], rules, Images(where, cache=tmp_path / "c"))  # type: ignore[arg-type]
        for where in ("ram", "disk", "cache", "pool")
    ]
    assert len({len(reader) for reader in readers}) == 1
    for reader in readers[1:]:
        assert_same_images(reader, readers[0], np.arange(len(readers[0])))


def test_auto_takes_ram_where_it_fits_then_cache_for_jpeg_or_disk(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(camera: str) -> str:
        reader = WindowReader(store, [], HORIZONS, EPISODES, [camera], images=Images("auto", cache=tmp_path))
        source = reader._cameras[camera].source
        return type(getattr(source, "_reader", source)).__name__

    needed = int(store.lengths[EPISODES].sum()) * SIDE * SIDE * 3
    monkeypatch.setattr(window_images, "free_memory_bytes", lambda: 2 * needed)
    assert [place("natural"), place("drawn")] == ["_Ram", "_Ram"]
    monkeypatch.setattr(window_images, "free_memory_bytes", lambda: 2 * needed - 2)
    assert [place("natural"), place("drawn")] == ["DecodedCache", "FrameReader"]
    with pytest.raises(KineflowError, match="must be above 0"):
        Images(cache_gb=0)


# --- the decoded cache ---------------------------------------------------------------------------------------------------


class CountingReader:
    """A FrameReader that counts the frames it decodes."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader, self.count = reader, 0

    def __len__(self) -> int:
        return len(self._reader)

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    def read(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        self.count += rows.size
        return self._reader.read(rows, out)


@pytest.fixture
def open_cache(store: EpisodeStore, tmp_path: Path) -> Callable[..., tuple[DecodedCache, CountingReader]]:
    def opened(budget: int = 10**9, key: str | None = None) -> tuple[DecodedCache, CountingReader]:
        counting = CountingReader(FrameReader(store, "natural"))
        return DecodedCache(counting, tmp_path, key or cache_key(store, "natural"), budget), counting  # type: ignore[arg-type]

    return opened


def read_all(cache: DecodedCache, store: EpisodeStore) -> None:
    rows = np.arange(int(store.lengths.sum()))
    expected, found = FrameReader(store, "natural").read(rows), np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    for some in np.array_split(rows, 4):
        part = np.empty((len(some), 1, SIDE, SIDE, 3), np.uint8)
        cache.read(some[:, None], part)
        found[some] = part[:, 0]
    np.testing.assert_array_equal(found, expected)


def test_a_frame_is_decoded_once_even_by_the_next_process(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]]
) -> None:
    cache, reader = open_cache()
    total = int(store.lengths.sum())
    read_all(cache, store)
    assert (reader.count, cache.filled) == (total, total)
    again, unlisted = open_cache()
    assert again.filled == 0  # nothing was listed, as after SIGKILL
    cache.flush()
    again, unlisted = open_cache()
    read_all(again, store)
    assert unlisted.count == 0


def test_the_budget_holds_and_what_is_over_it_is_decoded_each_time(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path
) -> None:
    budget = 20 * 4096
    cache, reader = open_cache(budget)
    read_all(cache, store)
    kept, before = cache.filled, reader.count
    assert 0 < kept < 20
    assert cache.used_bytes <= budget
    cache.flush()
    assert sum(f.stat().st_blocks * 512 for f in tmp_path.rglob("frames")) <= budget
    read_all(cache, store)
    assert reader.count - before == int(store.lengths.sum()) - kept


def taken_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("frames"))


def read_part(cache: DecodedCache, rows: np.ndarray) -> None:
    cache.read(rows, np.empty((len(rows), SIDE, SIDE, 3), np.uint8))


def test_the_budget_bounds_what_all_processes_write(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path
) -> None:
    budget = 20 * 4096
    cache, _ = open_cache(budget)
    context = multiprocessing.get_context("fork")
    parts = np.array_split(np.arange(int(store.lengths.sum())), 3)
    workers = [context.Process(target=read_part, args=(cache, part)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert 0 < taken_bytes(tmp_path) <= cache.used_bytes <= budget
    read_all(cache, store)
    assert taken_bytes(tmp_path) <= cache.used_bytes <= budget


def test_the_budget_counts_what_killed_processes_wrote_and_their_rows_are_used_again(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path
) -> None:
    budget, context = 20 * 4096, multiprocessing.get_context("fork")
    for part in np.arange(40).reshape(-1, 5)[[0, 7]]:
        worker = context.Process(target=read_part, args=(open_cache(budget)[0], part))
        worker.start()
        worker.join()  # ends without listing anything
    cache, _ = open_cache(budget)
    assert cache.filled == 0
    assert 0 < taken_bytes(tmp_path) <= cache.used_bytes <= budget
    read_all(cache, store)
    assert cache.filled > 10
    assert taken_bytes(tmp_path) <= cache.used_bytes <= budget


def test_a_smaller_budget_empties_the_cache_that_nobody_else_has_open(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path
) -> None:
    cache, _ = open_cache()
    read_all(cache, store)
    whole = taken_bytes(tmp_path)
    small, _ = open_cache(5 * 4096)  # `cache` still reads from it
    read_all(small, store)
    assert taken_bytes(tmp_path) == whole
    read_all(cache, store)
    del cache, small
    small, _ = open_cache(5 * 4096)
    read_all(small, store)
    assert 0 < taken_bytes(tmp_path) <= 5 * 4096


def test_a_cache_that_is_closed_is_listed(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]]
) -> None:
    cache, _ = open_cache()
    read_all(cache, store)
    del cache
    assert open_cache()[0].filled == int(store.lengths.sum())


def test_a_cache_folder_that_is_removed_ends_the_caching_not_the_reading(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path
) -> None:
    cache, _ = open_cache()
    shutil.rmtree(tmp_path / next(tmp_path.iterdir()).name)
    read_all(cache, store)
    assert cache.filled == 0


@pytest.mark.parametrize("damage", ["torn", "flipped", "other key", "no frames", "short frames"])
def test_a_cache_that_cannot_be_trusted_starts_empty(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], tmp_path: Path, damage: str
) -> None:
    cache, _ = open_cache()
    read_all(cache, store)
    cache.flush()
    (folder,) = tmp_path.iterdir()
    filled, frames = folder / "filled", folder / "frames"
    data = filled.read_bytes()
    if damage == "torn":
        filled.write_bytes(data[:-5])
    elif damage == "flipped":
        filled.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    elif damage == "other key":
        other, _ = open_cache(key=cache_key(store, "natural")[:32] + "0" * 32)  # the folder of ours, another key
        assert other.filled == 0
        return
    elif damage == "no frames":
        frames.unlink()
    else:
        os.truncate(frames, 4096)
    fresh, reader = open_cache()
    assert fresh.filled == 0
    read_all(fresh, store)
    assert reader.count == int(store.lengths.sum())


def test_a_full_disk_ends_the_caching_not_the_reading(
    store: EpisodeStore, open_cache: Callable[..., tuple[DecodedCache, CountingReader]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, _ = open_cache()
    real, written = os.pwrite, []

    def full(file: int, data: object, offset: int) -> int:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(offset)
        return real(file, data, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(decoded_cache.os, "pwrite", full)
    read_all(cache, store)
    assert cache.filled == 3


def test_other_data_have_another_key(store: EpisodeStore, tmp_path: Path) -> None:
    other = EpisodeStore.create(tmp_path / "o.eps", TWO_CAMERAS)
    keys = {cache_key(s, camera) for s in (store, other) for camera in TWO_CAMERAS.cameras}
    with other.writer() as writer:
        writer.add(sample_episode(0, TWO_CAMERAS))
    assert len(keys | {cache_key(other, "natural")}) == 5


def test_a_damaged_frame_is_an_error_through_the_cache_too(store: EpisodeStore, tmp_path: Path) -> None:
    copy = tmp_path / "c.eps"
    shutil.copytree(store.path, copy)
    shard = next(f for f in sorted((copy / "segments").rglob("cameras/natural/c/**/*")) if f.is_file())
    reader = reader_of(EpisodeStore.open(copy), Images("cache", cache=tmp_path / "cache"), [0, 1, 2, 3, 4])
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    with shard.open("r+b") as file:
        file.write(data)
    with pytest.raises(StoreError):
        reader.read(np.arange(len(reader)))


# --- the pool ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    pool=st.integers(1, 6),
    seed=st.integers(0, 99),
    batch=st.integers(1, 9),
    stop=st.integers(0, 9),
)
def test_the_pool_order_has_each_window_once_few_episodes_open_and_resumes(
    lengths: list[int], pool: int, seed: int, batch: int, stop: int
) -> None:
    episodes = np.repeat(np.arange(len(lengths)) * 7, lengths)
    sampler = PoolSampler(episodes, 1, seed, pool)
    order = np.concatenate([next(sampler) for _ in episodes])
    assert sorted(order) == list(range(len(episodes)))
    seen, left = set(), dict(zip((np.arange(len(lengths)) * 7).tolist(), lengths))
    for index in order:
        seen.add(episodes[index])
        left[int(episodes[index])] -= 1
        assert sum(left[int(e)] > 0 for e in seen) <= pool + 1
    first, second = PoolSampler(episodes, batch, seed, pool), PoolSampler(episodes, batch, seed, pool)
    for _ in range(stop):
        next(first)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        np.testing.assert_array_equal(next(first), next(second))


def test_with_its_order_the_pool_decodes_each_frame_once(store: EpisodeStore) -> None:
    chosen = [4, 1, 0, 3]
    reader = reader_of(store, Images("pool", pool_episodes=2), chosen)
    ram = reader_of(store, Images("ram"), chosen)
    sampler = PoolSampler(reader.episodes, 4, 0, 2)
    for _ in range(len(reader) // 4):
        assert_same_images(reader, ram, next(sampler))
    source = reader._cameras["natural"].source
    assert isinstance(source, DecodedEpisodes)
    assert source.decoded <= int(store.lengths[chosen].sum())
    with pytest.raises(KineflowError, match="at least 1"):
        PoolSampler(reader.episodes, 4, 0, 0)
