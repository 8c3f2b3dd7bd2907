"""Compact, delete, merge and gc: after any sequence of them the store holds the episodes and statistics it should."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kineflow.cli import main
from kineflow.contracts import Interface
from kineflow.datasets import committing, episode_store, episode_writer, manifest as manifest_module, upkeep
from kineflow.datasets.collect import collect
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import lock_if_abandoned
from kineflow.datasets.manifest import Calibration, CameraRecord, Manifest, StoreError
from kineflow.datasets.merge import merge
from kineflow.datasets.repair import repair
from kineflow.datasets.segment import Segment
from kineflow.datasets.upkeep import compact, delete
from tests.datasets.recordings import append_all, record, recorder_of
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    return quick_path


pytestmark = pytest.mark.usefixtures("quick_disk")


def filled(path: Path, numbers: range, per_commit: int = 1, interface: Interface = LOW_DIM) -> EpisodeStore:
    store = EpisodeStore.create(path, interface, cameras={name: CameraRecord("lossless") for name in interface.cameras})
    with store.writer(per_commit) as writer:
        for number in numbers:
            writer.add(sample_episode(number, interface))
    return store


def assert_holds(path: Path, numbers: list[int], interface: Interface = LOW_DIM) -> None:
    """These episodes in this order, the statistics and fingerprint a store that was written so from the start has."""
    store = EpisodeStore.open(path)
    assert store.num_episodes == len(numbers)
    expected = [sample_episode(number, interface) for number in numbers]
    for index, episode in enumerate(expected):
        assert_equal_episodes(store.episode(index), episode)
    assert {task.text for task in store.manifest.tasks.values()} == {e.instruction for e in expected} - {""}
    if numbers:
        for name, found in store.statistics().items():
            values = np.concatenate([e.streams[name].values for e in expected]).astype(np.float64)
            np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.std, values.std(0), rtol=1e-9, atol=1e-12)
            total = store.manifest.stats[name]
            assert total.count == len(values)
            np.testing.assert_allclose(total.mean, values.mean(0), rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal([total.min, total.max], [values.min(0), values.max(0)])
    else:
        assert store.manifest.stats == {}
    with TemporaryDirectory() as folder:
        fresh = EpisodeStore.create(Path(folder) / "s", interface)
        with fresh.writer(100) as writer:
            for episode in expected:
                writer.add(episode)
        assert store.fingerprint() == fresh.fingerprint()
    assert [f for f in check_store(path) if f.severity == "error"] == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.integers(1, 3)),
        st.tuples(st.just("delete"), st.integers(0, 2**16), st.just(0)),
        st.tuples(st.just("compact"), st.sampled_from([1, 40_000, 10**9]), st.just(0)),
        st.tuples(st.just("merge"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("record"), st.booleans(), st.just(0)),
        st.tuples(st.just("gc"), st.just(0), st.just(0)),
    ),
    min_size=3,
    max_size=6,
)


class Model:
    """The store and the list of episode numbers it has to hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.held, self.next = folder, folder / "s.eps", list[int](), 0
        filled(self.path, range(0))
        self.add(3, 1)

    def take(self, count: int) -> range:
        self.next += count
        return range(self.next - count, self.next)

    def add(self, count: int, per_commit: int) -> None:
        numbers = self.take(count)
        with EpisodeStore.open(self.path).writer(per_commit) as writer:
            for number in numbers:
                writer.add(sample_episode(number, LOW_DIM))
        self.held += numbers

    def delete(self, bits: int, _: int) -> None:
        chosen = [index for index in range(len(self.held)) if bits >> index & 1]
        if chosen:
            delete(self.path, chosen[::-1])
            self.held = [number for index, number in enumerate(self.held) if index not in chosen]

    def compact(self, segment_bytes: int, _: int) -> None:
        before = EpisodeStore.open(self.path)
        report = compact(self.path, segment_bytes)
        assert report.segments <= len(before.manifest.segments)
        if segment_bytes == 10**9:
            assert report.segments == min(1, len(self.held))

    def merge(self, count: int, is_first: bool) -> None:
        numbers = self.take(count)
        other, both = self.folder / "other.eps", self.folder / "both.eps"
        filled(other, numbers)
        merge([other, self.path] if is_first else [self.path, other], both)
        self.held = [*numbers, *self.held] if is_first else [*self.held, *numbers]
        shutil.rmtree(self.path)
        shutil.rmtree(other)
        both.rename(self.path)

    def record(self, is_finished: bool, _: int) -> None:
        (number,) = self.take(1)
        store, episode = EpisodeStore.open(self.path), sample_episode(number, LOW_DIM)
        if is_finished:
            record(store, episode)
            self.held.append(number)
        else:
            recorder = recorder_of(store, episode)
            append_all(recorder, episode, last=2)
            recorder.abort()

    def gc(self, _: int, __: int) -> None:
        collect(self.path)
        assert {f.name for f in (self.path / "segments").iterdir()} == {
            entry.id for entry in EpisodeStore.open(self.path).manifest.segments
        }


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_any_sequence_of_upkeep_leaves_the_episodes_and_statistics_expected(steps: list[tuple[str, Any, Any]]) -> None:
    with TemporaryDirectory() as folder:
        model = Model(Path(folder))
        for name, one, other in steps:
            getattr(model, name)(one, other)
        assert_holds(model.path, model.held)


def test_compact_keeps_the_encoded_frames_of_each_codec(tmp_path: Path) -> None:
    records = {"front": CameraRecord("jpeg:90")}
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras=records)
    for number in range(4):
        with store.writer() as writer:
            writer.add(sample_episode(number))
    segments = [Segment(store.path, entry) for entry in store.manifest.segments]
    before = [payload for s in segments for payload in s.payloads("front", 0, int(s.extent("front")[1].sum()))]
    fingerprint, statistics = store.fingerprint(), store.statistics()
    read = [store.episode(number) for number in range(4)]
    report = compact(store.path)
    assert (report.segments_before, report.segments, report.generation) == (4, 1, 5)
    store.reload()
    (entry,) = store.manifest.segments
    segment = Segment(store.path, entry)
    assert segment.payloads("front", 0, len(before)) == before
    assert segment.frame_array("front").codec == segments[0].frame_array("front").codec
    assert store.fingerprint() == fingerprint
    assert store.statistics() == statistics
    for number in range(4):
        assert_equal_episodes(store.episode(number), read[number])
    assert [f for f in check_store(store.path) if f.severity == "error"] == []


def test_segments_of_other_codecs_are_not_joined(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.eps", range(2), 1, INTERFACE)
    changed = replace(store.manifest, cameras={"front": CameraRecord("jpeg:80")})
    manifest_module.replace_manifest(store.path, changed, store.manifest.generation)
    store.reload()
    with store.writer() as writer:
        for number in (2, 3):
            writer.add(sample_episode(number))
    assert compact(store.path).segments == 2


def test_readers_of_the_old_generation_go_on_until_gc(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.eps", range(3)).path
    reader = EpisodeStore.open(path)
    compact(path)
    delete(path, [0])
    for number in range(3):
        assert_equal_episodes(reader.episode(number), sample_episode(number, LOW_DIM))
    report = collect(path, dry_run=True)
    assert len(report.removed) == 4
    assert report.bytes > 0
    assert_equal_episodes(EpisodeStore.open(path).episode(0), sample_episode(1, LOW_DIM))
    assert collect(path).removed == report.removed
    assert collect(path).removed == ()
    with pytest.raises(StoreError, match=r"the file is missing; its segment was replaced .* open the store again"):
        reader.low_dim("pose")
    assert check_store(path) == []


def test_opening_while_segments_are_replaced_and_removed_shows_the_newer_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "s.eps", range(3)).path
    early, real = EpisodeStore.open(path), episode_store.read_manifest

    def overtaken(store: Path) -> Manifest:
        manifest = real(store)
        monkeypatch.setattr(episode_store, "read_manifest", real)
        delete(path, [0])
        compact(path)
        collect(path)
        return manifest

    monkeypatch.setattr(episode_store, "read_manifest", overtaken)
    assert EpisodeStore.open(path).num_episodes == 2
    monkeypatch.setattr(episode_store, "read_manifest", overtaken)
    early.reload()
    assert early.num_episodes == 1
    assert_equal_episodes(early.episode(0), sample_episode(2, LOW_DIM))
    shutil.rmtree(path / "segments" / early.manifest.segments[0].id)
    with pytest.raises(StoreError, match="missing; run `kineflow data doctor"):  # damaged: not looked at for ever
        EpisodeStore.open(path)


@pytest.mark.parametrize("episodes", [[], [3], [-1], [0, 0]])
def test_episodes_that_cannot_be_deleted_are_named(tmp_path: Path, episodes: list[int]) -> None:
    path = filled(tmp_path / "s.eps", range(3)).path
    with pytest.raises(StoreError, match=r"cannot delete .*0 to 2"):
        delete(path, episodes)
    assert_holds(path, [0, 1, 2])


def test_merging_refuses_what_differs_and_says_what(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "1", range(1), 1, INTERFACE), filled(tmp_path / "2", range(1, 2))
    with pytest.raises(StoreError, match=r"(?s)2 cannot be merged with .*1, their schemas differ:.*front"):
        merge([one.path, two.path], tmp_path / "m")
    calibration = Calibration(((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), "none", (), tuple(map(tuple, np.eye(4).tolist())))
    three = EpisodeStore.create(tmp_path / "3", INTERFACE, cameras={"front": CameraRecord(calibration=calibration)})
    with pytest.raises(StoreError, match="'front' is calibrated otherwise"):
        merge([one.path, three.path], tmp_path / "m")
    with pytest.raises(StoreError, match="each named once"):
        merge([one.path, one.path], tmp_path / "m")
    shutil.copytree(one.path, tmp_path / "copy")
    with pytest.raises(StoreError, match="both hold segment"):
        merge([one.path, tmp_path / "copy"], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".m*"))


def test_merging_does_not_spread_damage(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "1", range(1)), filled(tmp_path / "2", range(1, 2))
    chunk = next(two.path.glob("segments/*/steps/pose/c/0/0"))
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with pytest.raises(StoreError, match="steps/pose/c/0/0"):
        merge([one.path, two.path], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_merged_stores_say_where_they_come_from(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = EpisodeStore.create(tmp_path / name, LOW_DIM, "sensor", f"log {name}", "CC BY 4.0")
        with store.writer() as writer:
            writer.add(sample_episode(ord(name), LOW_DIM))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    found = EpisodeStore.open(tmp_path / "m").manifest
    assert (found.provenance, found.licence, found.clock) == ("log a; log b", "CC BY 4.0", "sensor")
    assert_holds(tmp_path / "m", [ord("a"), ord("b")])


def test_an_append_during_compaction_or_deletion_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "s.eps", range(3)).path
    held, real = [0, 1, 2], upkeep.write_segment

    def interrupted(*arguments: Any) -> Any:
        made = real(*arguments)
        with EpisodeStore.open(path).writer() as writer:
            writer.add(sample_episode(len(held), LOW_DIM))
        held.append(len(held))
        return made

    monkeypatch.setattr(upkeep, "write_segment", interrupted)
    compact(path)
    assert_holds(path, held)
    delete(path, [1])
    held.remove(1)
    monkeypatch.setattr(upkeep, "write_segment", real)
    assert_holds(path, [0, 2, 3, 4])


def test_episodes_replaced_during_a_deletion_are_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "s.eps", range(3), 3).path
    real = upkeep.write_segment

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(upkeep, "write_segment", real)
        delete(path, [0])
        return real(*arguments)

    monkeypatch.setattr(upkeep, "write_segment", interrupted)
    with pytest.raises(StoreError, match="were replaced meanwhile"):
        delete(path, [1])
    assert_holds(path, [1, 2])
    collect(path)
    assert check_store(path) == []


class PowerCut(BaseException):
    """Stands for the process ending here."""


def cut_before_call(patch: pytest.MonkeyPatch, number: float) -> Callable[[], int]:
    """The call `number` of those that change the disk does not happen; returns the count of calls."""
    calls = 0

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise PowerCut
            return original(*arguments, **options)

        return call

    patch.setattr(Path, "write_bytes", guarded(Path.write_bytes))
    for name in ("rename", "replace"):
        patch.setattr(os, name, guarded(getattr(os, name)))
    for module in (episode_writer, manifest_module):
        patch.setattr(module, "sync", guarded(module.sync))
    return lambda: calls


@pytest.mark.parametrize(("work", "after"), [(compact, [0, 1, 2]), (lambda path: delete(path, [1]), [0, 2])])
def test_upkeep_stopped_anywhere_leaves_the_old_or_the_new_store(
    tmp_path: Path, work: Callable[[Path], Any], after: list[int]
) -> None:
    path = filled(tmp_path / "s.eps", range(3), per_commit=1 if work is compact else 3).path
    with pytest.MonkeyPatch.context() as patch:
        calls = cut_before_call(patch, float("inf"))
        work(Path(shutil.copytree(path, tmp_path / "whole.eps")))
    last = calls()
    published = []
    for number in (*range(0, last - 5, last // 8), *range(last - 5, last)):
        copy = Path(shutil.copytree(path, tmp_path / f"{number}.eps"))
        with pytest.MonkeyPatch.context() as patch:
            cut_before_call(patch, number)
            with pytest.raises(PowerCut):
                work(copy)
        store = EpisodeStore.open(copy)
        published.append(store.manifest.generation > EpisodeStore.open(path).manifest.generation)
        assert_holds(copy, after if published[-1] else [0, 1, 2])
        collect(copy)
        assert check_store(copy) == []
    assert published[0] is False
    assert published[-1] is True, "the last call is the sync after the manifest was replaced"


def test_gc_leaves_living_writers_alone_and_clears_what_dead_ones_left(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.eps", range(1))
    living = recorder_of(store, sample_episode(1, LOW_DIM))
    append_all(living, sample_episode(1, LOW_DIM))
    dead = recorder_of(store, sample_episode(2, LOW_DIM))
    append_all(dead, sample_episode(2, LOW_DIM))
    dead._close()  # as the kernel does when a process dies
    empty = recorder_of(store, sample_episode(3, LOW_DIM))
    empty._close()
    for left in ("staging/01ABC/steps", "segments/01ABD"):
        (store.path / left).mkdir(parents=True)
    (store.path / ".manifest.json.01ABE").write_text("{")
    report = collect(store.path)
    assert set(report.removed) == {"segments/01ABD", "staging/01ABC", f"staging/{empty.id}.journal", ".manifest.json.01ABE"}
    assert report.kept[f"staging/{living.id}.journal"] == "it is being recorded"
    assert "repair" in report.kept[f"staging/{dead.id}.journal"]
    living.finish(success=sample_episode(1).success)
    repair(store.path)
    assert EpisodeStore.open(store.path).num_episodes == 3
    assert check_store(store.path) == []


def test_gc_waits_for_a_commit_in_progress(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.eps", range(1))
    with committing.committing(store.path, "01ABC"):
        (store.path / "staging" / "01ABC").mkdir()
        with pytest.raises(StoreError, match="has been committing for more than"):
            collect(store.path, wait_s=0.05)
        assert (store.path / "staging" / "01ABC").exists()
    assert collect(store.path).removed == ("staging/01ABC",)


def test_a_segment_whose_recorder_has_not_let_go_keeps_its_name(tmp_path: Path) -> None:
    """Otherwise a repair could not see that the journal is committed, and would commit it again."""
    store = filled(tmp_path / "s.eps", range(0))
    for number in range(2):
        record(store, sample_episode(number, LOW_DIM))
    journal = store.path / "staging" / f"{store.manifest.segments[0].id}.journal"
    journal.write_bytes(b"")
    lock = lock_if_abandoned(journal)
    assert lock is not None
    assert compact(store.path).segments == 2
    with pytest.raises(StoreError, match="is being committed"):
        delete(store.path, [0])
    os.close(lock)
    assert compact(store.path).segments == 1
    assert not journal.exists()
    assert_holds(store.path, [0, 1])


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = filled(tmp_path / "1", range(6)), filled(tmp_path / "2", range(6, 8))
    dead = recorder_of(one, sample_episode(9, LOW_DIM))
    append_all(dead, sample_episode(9, LOW_DIM))
    dead._close()
    assert main(["data", "repair", str(one.path)]) == 0
    assert "salvaged" in capsys.readouterr().out
    assert main(["data", "delete", str(one.path), "0", "2-3", "6"]) == 0
    assert main(["data", "compact", str(one.path), "--json"]) == 0
    assert '"segments": 1' in capsys.readouterr().out
    assert main(["data", "merge", str(one.path), str(two.path), str(tmp_path / "m")]) == 0
    assert main(["data", "gc", str(one.path)]) == 0
    assert "removed" in capsys.readouterr().out
    assert main(["data", "doctor", str(one.path), "--verify"]) == 0
    assert main(["data", "delete", str(one.path), "99"]) == 2
    assert "cannot delete" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "delete", str(one.path), "5-3"])
    assert_holds(tmp_path / "m", [1, 4, 5, 6, 7])
