"""Recording step by step: what was appended survives, what does not fit is refused, and a full disk costs nothing."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from kineflow.contracts import CameraSpec, Episode, Goal, Span, Stream
from kineflow.datasets import journal_episode, manifest as manifest_module
from kineflow.datasets.collect import collect
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import read_journal
from kineflow.datasets.manifest import CameraRecord, StoreError
from kineflow.datasets.recorder import EpisodeRecorder
from kineflow.datasets.repair import repair
from kineflow.datasets.segment import Segment
from tests.datasets.recordings import append_all, record, recorder_of
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.create(tmp_path / "s.eps", INTERFACE)


def staged(store: EpisodeStore) -> list[str]:
    return sorted(os.listdir(store.path / "staging"))


def many_rates(number: int) -> Episode:
    """Force at 50 Hz, the camera at 5 Hz and late, the rest at 10 Hz."""
    episode = sample_episode(number, length=20)
    stamps, rng = episode.streams["action"].stamp_ns, np.random.default_rng(number)
    fast = np.arange(stamps[0], stamps[-1], 20_000_000)
    slow = stamps[::2] + 3_000_000
    own = {
        "force": Stream(rng.uniform(-1, 1, (len(fast), 1)).astype(np.float32), fast),
        "front": Stream(episode.streams["front"].values[::2], slow),
    }
    return replace(episode, streams={**episode.streams, **own})


@pytest.mark.parametrize("make", [sample_episode, many_rates])
def test_what_was_recorded_step_by_step_is_read_back(store: EpisodeStore, make: Callable[[int], Episode]) -> None:
    for number in range(3):
        record(store, make(number))
    found = EpisodeStore.open(store.path)
    for number in range(3):
        assert_equal_episodes(found.episode(number), make(number))
    assert staged(store) == []
    assert check_store(store.path) == []


def test_jpeg_bytes_of_a_camera_are_kept_byte_for_byte(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord("auto")})
    episode = sample_episode(1)
    jpegs = [simplejpeg.encode_jpeg(frame, quality=90) for frame in episode.streams["front"].values]
    recorder = recorder_of(store, episode)
    for row, stamp in enumerate(episode.streams["action"].stamp_ns):
        low = {name: episode.streams[name].values[row] for name in ("pose", "force", "action")}
        recorder.append_step({**low, "front": jpegs[row]}, stamp)
    recorder.finish()
    np.testing.assert_array_equal(store.episode(0).streams["front"].values, [simplejpeg.decode_jpeg(j) for j in jpegs])
    segment = Segment(store.path, store.manifest.segments[0])
    assert [payload[:-4] for payload in segment.payloads("front", 0, len(jpegs))] == jpegs


def test_depth_is_recorded_without_loss(tmp_path: Path) -> None:
    interface = replace(LOW_DIM, cameras={"range": CameraSpec(6, 8, 10.0, "depth")})
    store = EpisodeStore.create(tmp_path / "s.eps", interface)
    episode = sample_episode(1, LOW_DIM)
    stamps = episode.streams["action"].stamp_ns
    depth = np.random.default_rng(0).integers(0, 2**16, (len(stamps), 6, 8), np.uint16)
    episode = replace(episode, streams={**episode.streams, "range": Stream(depth, stamps)})
    record(store, episode)
    assert_equal_episodes(store.episode(0), episode)
    with pytest.raises(StoreError, match="the schema says depth"):
        recorder_of(store, episode).append("range", simplejpeg.encode_jpeg(np.zeros((6, 8, 3), np.uint8)), 1)


def test_what_is_only_known_at_the_end_is_kept(store: EpisodeStore) -> None:
    episode = sample_episode(0)
    recorder = EpisodeRecorder(store)
    append_all(recorder, episode)
    recorder.finish(success=False, instruction="wait", source="log 9", clock="nominal_10hz")
    found = store.episode(0)
    assert (found.success, found.instruction, found.source, found.clock) == (False, "wait", "log 9", "nominal_10hz")


def test_an_unknown_fact_is_refused_and_the_recording_goes_on(store: EpisodeStore) -> None:
    recorder = recorder_of(store, sample_episode(0))
    append_all(recorder, sample_episode(0))
    with pytest.raises(StoreError, match=r"no field \['sucess'\]"):
        recorder.finish(sucess=True)
    recorder.finish()
    assert_equal_episodes(store.episode(0), sample_episode(0))


def test_samples_that_do_not_fit_are_refused_at_once_and_not_recorded(store: EpisodeStore) -> None:
    episode = sample_episode(2)
    recorder = recorder_of(store, episode)
    frame = episode.streams["front"].values[0]
    wrong: list[tuple[str, Any, str]] = [
        ("pose", np.zeros(2), r"float64 \[2\], the schema says numbers \[3\]"),
        ("pose", np.array(["a", "b", "c"]), "the schema says numbers"),
        ("pose", [0.0, np.nan, 0.0], "not finite"),
        ("pose", [0.0, 1e39, 0.0], "not finite"),
        ("force", np.array([2**24 + 1]), "not exact"),
        ("front", frame[1:], r"uint8 \[5, 8, 3\], the schema says uint8 \[6, 8, 3\]"),
        ("front", frame.astype(np.float32), "float32"),
        ("front", [0, 0], "list"),
        ("front", b"not a picture", "not a JPEG"),
        ("front", simplejpeg.encode_jpeg(np.ascontiguousarray(frame[1:])), "JPEG of 5 x 8"),
        ("side", frame, "not in the store's schema"),
    ]
    first = int(episode.streams["action"].stamp_ns[0])
    for stream, value, message in wrong:
        with pytest.raises(StoreError, match=message):
            recorder.append_step({"pose": np.zeros(3), stream: value} if stream != "pose" else {stream: value}, first - 5)
    append_all(recorder, episode)
    with pytest.raises(StoreError, match="does not come after"):
        recorder.append("pose", np.zeros(3), int(episode.streams["pose"].stamp_ns[-1]))
    recorder.finish(success=episode.success)
    assert_equal_episodes(store.episode(0), episode)


@pytest.mark.parametrize("stamp", [2**63, -(2**63) - 1, float("nan"), 1.5, "12"])
def test_a_time_that_is_no_int64_is_refused(store: EpisodeStore, stamp: Any) -> None:
    recorder = recorder_of(store, sample_episode(0))
    with pytest.raises(StoreError, match=r"timestamp .*(whole number|int64)"):
        recorder.append("pose", np.zeros(3), stamp)
    recorder.append("pose", np.zeros(3), np.int64(-(2**63)))
    recorder.append("pose", np.zeros(3), 2**63 - 1)
    recorder.abort()


def test_a_cut_jpeg_is_refused_at_once_and_costs_no_other_frame(store: EpisodeStore) -> None:
    """A camera on a bad cable: found only at the end, it would cost the recording."""
    episode = sample_episode(0)
    whole = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), 95)
    recorder = recorder_of(store, episode)
    append_all(recorder, replace(episode, streams={n: s for n, s in episode.streams.items() if n != "front"}))
    for stamp, jpeg in enumerate([whole, whole[:-30], whole]):
        if jpeg is not whole:
            with pytest.raises(StoreError, match="stream 'front': this JPEG of 6 x 8 cannot be decoded"):
                recorder.append("front", jpeg, stamp)
        else:
            recorder.append("front", jpeg, stamp)
    recorder.finish()
    assert store.jpegs(0, "front") == [whole, whole]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"seed": -1}, "seed -1 is not in"),
        ({"language": ""}, "language: '' is not a text"),
        ({"instruction": b"open"}, "instruction: b'open' is not a text"),
        ({"goals": {"g": Goal("pose", np.zeros(7, np.float32), "map")}}, "goal 'g': its quaternion"),
    ],
)
def test_facts_that_cannot_be_stored_are_refused_before_anything_is_recorded(
    store: EpisodeStore, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        EpisodeRecorder(store, **facts)
    assert staged(store) == []
    recorder = recorder_of(store, sample_episode(0))
    append_all(recorder, sample_episode(0))
    with pytest.raises(StoreError, match=message):
        recorder.finish(**facts)
    recorder.finish()
    assert_equal_episodes(store.episode(0), replace(sample_episode(0), success=None))


def test_facts_may_be_numpys(store: EpisodeStore) -> None:
    recorder = EpisodeRecorder(store, seed=np.int64(3))
    append_all(recorder, sample_episode(0))
    recorder.finish(success=np.bool_(True), spans=[Span("reach", np.int64(1), np.int64(5))])
    found = store.episode(0)
    assert (found.seed, found.success, found.spans) == (3, True, (Span("reach", 1, 5),))


def test_what_is_appended_while_it_is_finished_is_kept_or_refused(store: EpisodeStore) -> None:
    episode = sample_episode(0, length=300)
    for number in range(5):
        recorder, kept, refused = recorder_of(store, episode), [0], []
        append_all(recorder, episode)

        def append(recorder: EpisodeRecorder = recorder, kept: list[int] = kept, refused: list[Exception] = refused) -> None:
            try:
                while True:
                    recorder.append("force", np.zeros(1), 2 * 10**18 + kept[0])
                    kept[0] += 1
            except Exception as error:
                refused.append(error)

        thread = threading.Thread(target=append)
        thread.start()
        while kept[0] < 20:
            time.sleep(0.001)
        recorder.finish()
        thread.join()
        assert isinstance(refused[0], StoreError)
        assert store.stream_lengths("force")[number] == 300 + kept[0]


def test_a_store_whose_empty_folders_were_not_copied(store: EpisodeStore) -> None:
    """S3, git and archives do not carry them."""
    for folder in ("staging", "segments"):
        (store.path / folder).rmdir()
    assert collect(store.path).removed == ()
    with recorder_of(EpisodeStore.open(store.path), sample_episode(0)) as recorder:
        append_all(recorder, sample_episode(0))
    for folder in ("staging", "segments"):
        (store.path / folder).rename(store.path / f"old {folder}")
    (store.path / "old segments").rename(store.path / "segments")
    with EpisodeStore.open(store.path).writer() as writer:
        writer.add(sample_episode(1))
    assert_equal_episodes(EpisodeStore.open(store.path).episode(1), sample_episode(1))


def test_a_recording_without_a_stream_cannot_be_finished(store: EpisodeStore) -> None:
    recorder = recorder_of(store, sample_episode(0))
    recorder.append("pose", np.zeros(3), 1)
    with pytest.raises(StoreError, match=r"no sample of \['force', 'action', 'front'\].*abort"):
        recorder.finish()
    recorder.abort()
    assert staged(store) == []
    with pytest.raises(StoreError, match="is over"):
        recorder.append("pose", np.zeros(3), 2)


def test_leaving_the_block_commits(store: EpisodeStore) -> None:
    with recorder_of(store, sample_episode(0)) as recorder:
        append_all(recorder, sample_episode(0))
    assert_equal_episodes(store.episode(0), sample_episode(0))


def test_an_exception_leaves_the_journal_and_says_so(store: EpisodeStore, caplog: pytest.LogCaptureFixture) -> None:
    episode = sample_episode(1)
    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.WARNING):  # noqa: PT012, SIM117
        with recorder_of(store, episode) as recorder:
            append_all(recorder, episode)
            raise ZeroDivisionError
    assert f"kineflow data repair {store.path}" in caplog.text
    assert EpisodeStore.open(store.path).num_episodes == 0
    (report,) = repair(store.path).journals
    assert report.outcome == "salvaged"
    found = EpisodeStore.open(store.path).episode(0)
    assert "repaired" in found.source
    assert_equal_episodes(replace(found, source=episode.source), replace(episode, success=None))


def test_streams_may_be_appended_from_several_threads(store: EpisodeStore) -> None:
    episode = many_rates(0)
    recorder = recorder_of(store, episode)

    def append(name: str) -> None:
        for row, stamp in enumerate(episode.streams[name].stamp_ns):
            recorder.append(name, episode.streams[name].values[row], stamp)

    threads = [threading.Thread(target=append, args=(name,)) for name in episode.streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.finish(success=episode.success)
    assert_equal_episodes(store.episode(0), episode)


def test_each_sample_is_in_the_file_when_append_returns(store: EpisodeStore) -> None:
    episode = sample_episode(0)
    recorder = recorder_of(store, episode)
    (journal,) = (store.path / "staging").iterdir()
    for row, stamp in enumerate(episode.streams["pose"].stamp_ns):
        recorder.append("pose", episode.streams["pose"].values[row], stamp)
        assert len(read_journal(journal).samples["pose"].stamp_ns) == row + 1
    recorder.abort()


def test_frames_beyond_ram_go_through_a_nameless_file(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_episode, "IN_RAM_BYTES", 100)
    record(store, sample_episode(0))
    assert_equal_episodes(store.episode(0), sample_episode(0))
    assert staged(store) == []


def test_syncing_happens_in_its_own_thread_and_its_failure_is_told(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, called = threading.Event(), os.fsync

    def fsync(descriptor: int) -> None:
        called(descriptor)
        if threading.current_thread() is not threading.main_thread():
            synced.set()
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fsync)
    recorder = EpisodeRecorder(store, sync_s=0.01)
    assert synced.wait(60)

    def append() -> None:
        for stamp in range(1, 12_001):  # the thread takes a moment to tell of it
            recorder.append("pose", np.zeros(3), stamp)
            time.sleep(0.005)

    with pytest.raises(StoreError, match=r"could not sync.*check the disk"):
        append()
    recorder.abort()


class FullDisk:
    """Lets `room` more bytes be written, then fails like a full disk, after a partial write as a real one does."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write, self._writev, self._write_bytes = os.write, os.writev, Path.write_bytes
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "writev", lambda file, parts: self.write(file, b"".join(parts)))
        patch.setattr(Path, "write_bytes", lambda path, data: self.write_bytes(path, data))

    def write(self, file: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, data[: self.room])
        self.room -= written
        return written

    def write_bytes(self, path: Path, data: bytes) -> int:
        self._write_bytes(path, data[: max(self.room, 0)])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def contents(store: EpisodeStore) -> list[str]:
    return sorted(str(p.relative_to(store.path)) for p in store.path.rglob("*") if p.suffix not in (".lock", ".journal"))


def test_a_disk_that_fills_up_anywhere_costs_nothing_that_was_acknowledged(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after 0, 100, 200, ... bytes: in the journal, in every file of the segment, in the manifest."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a power cut is not the subject here
    first, second = sample_episode(0, length=3), sample_episode(1, length=3)
    record(store, first)
    before, manifest = contents(store), (store.path / "manifest.json").read_bytes()
    refused: list[str] = []
    room, is_done = 0, False
    while not is_done:
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, 10**9)
            recorder = recorder_of(store, second)
            disk.room = room
            samples = [(t, n, i) for n, s in second.streams.items() for i, t in enumerate(s.stamp_ns)]
            for stamp, name, row in samples:
                try:
                    recorder.append(name, second.streams[name].values[row], stamp)
                except StoreError as error:
                    refused.append(str(error))
                    disk.room = 10**9
                    recorder.append(name, second.streams[name].values[row], stamp)  # the same sample, once there is room
            try:
                recorder.finish(success=second.success)
                is_done = disk.room < 10**8
            except StoreError as error:
                refused.append(str(error))
                disk.room = 10**9
                assert contents(store) == before
                assert (store.path / "manifest.json").read_bytes() == manifest
                recorder.finish(success=second.success)
        found = EpisodeStore.open(store.path)
        assert found.num_episodes == 2
        assert_equal_episodes(found.episode(0), first)
        assert_equal_episodes(found.episode(1), second)
        (store.path / "manifest.json").write_bytes(manifest)
        for folder in set(os.listdir(store.path / "segments")) - {s.id for s in EpisodeStore.open(store.path).manifest.segments}:
            subprocess.run(["rm", "-r", store.path / "segments" / folder], check=True)
        store.reload()
        room += 1500
    assert len(refused) > 8
    assert all("no room for" in line and "free at least" in line for line in refused)
    assert {line.split("no room for ")[1].split(" (")[0] for line in refused} == {
        "the recording",
        "a segment of 1 episodes",
        "the manifest",
    }
    assert check_store(store.path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    store = EpisodeStore.create(small_disk / "s.eps", LOW_DIM)
    record(store, sample_episode(0, LOW_DIM))
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreError, match=r"no room for .*free at least"):
        record(store, sample_episode(1, LOW_DIM))
    with pytest.raises(StoreError, match=r"no room for .*free at least"), store.writer() as writer:
        writer.add(sample_episode(1, LOW_DIM))
    assert_equal_episodes(EpisodeStore.open(store.path).episode(0), sample_episode(0, LOW_DIM))
    ballast.unlink()
    record(store, sample_episode(1, LOW_DIM))
    assert_equal_episodes(EpisodeStore.open(store.path).episode(1), sample_episode(1, LOW_DIM))
    assert [f for f in check_store(store.path) if f.severity == "error"] == []


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(store: EpisodeStore) -> None:
    episode = sample_episode(0)
    recorder = recorder_of(store, episode)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, old[1]))
    try:
        with pytest.raises(StoreError, match="no room for the recording"):
            append_all(recorder, episode)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    (journal,) = (store.path / "staging").iterdir()
    assert read_journal(journal).end == "whole"
    recorder.abort()


def test_every_fact_of_an_episode_is_kept(store: EpisodeStore) -> None:
    door, end = Goal("point", np.ones(3, np.float32), "odom"), Goal("image", np.full((2, 2, 3), 7, np.uint8))
    goals = {"door": door, "end": end}
    recorder = EpisodeRecorder(store, split="train", seed=3, operator="ada", language="en", goals=goals)
    append_all(recorder, sample_episode(0))
    first = int(sample_episode(0).streams["action"].stamp_ns[0])
    recorder.finish(success=True, spans=[Span("reach", first, first + 5)])
    found = store.episode(0)
    assert (found.split, found.seed, found.operator, found.language) == ("train", 3, "ada", "en")
    assert found.spans == (Span("reach", first, first + 5),)
    assert found.goals.keys() == goals.keys()
    for name, goal in goals.items():
        assert (found.goals[name].kind, found.goals[name].frame) == (goal.kind, goal.frame)
        np.testing.assert_array_equal(found.goals[name].value, goal.value)


def test_finishing_again_after_the_swap_commits_once(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_of(store, sample_episode(0))
    append_all(recorder, sample_episode(0))
    real = manifest_module.sync

    def broken(path: Path) -> None:
        if path == store.path:
            raise OSError(errno.EIO, "broken")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "sync", broken)
        with pytest.raises(OSError, match="broken"):
            recorder.finish(success=sample_episode(0).success)
    recorder.finish(success=sample_episode(0).success)
    assert store.num_episodes == 1
    assert_equal_episodes(store.episode(0), sample_episode(0))
