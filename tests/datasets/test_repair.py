"""Journals of dead recorders: whatever their last byte is, the whole steps before it become an episode, once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings, strategies as st

from kineflow.contracts import Episode, Stream
from kineflow.datasets import recorder as recorder_module, repair as repair_module
from kineflow.datasets.collect import collect
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import HEAD_BYTES, MAGIC, read_journal
from kineflow.datasets.manifest import CameraRecord, StoreError
from kineflow.datasets.recorder import EpisodeRecorder
from kineflow.datasets.repair import repair
from tests.datasets.recordings import append_all, in_order, recorder_of
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

pytestmark = pytest.mark.usefixtures("quick_disk")


def two_rates(number: int) -> Episode:
    """`force` runs at five times the rate of the rest."""
    episode = sample_episode(number, LOW_DIM, length=8)
    stamps = episode.streams["action"].stamp_ns
    fast = np.arange(stamps[0] - 5_000_000, stamps[-1], 20_000_000)
    force = np.random.default_rng(number).uniform(-1, 1, (len(fast), 1)).astype(np.float32)
    return replace(episode, streams={**episode.streams, "force": Stream(force, fast)})


@lru_cache
def journal_bytes() -> bytes:
    """The journal of `two_rates(0)`, everything appended, not finished."""
    with TemporaryDirectory() as folder:
        store = EpisodeStore.create(Path(folder) / "s", LOW_DIM)
        recorder = recorder_of(store, two_rates(0))
        append_all(recorder, two_rates(0))
        (journal,) = (store.path / "staging").iterdir()
        data = journal.read_bytes()
        recorder.abort()
    return data


def left_behind(folder: Path, data: bytes) -> EpisodeStore:
    """A store with one abandoned journal of these bytes."""
    store = EpisodeStore.create(folder / "s.eps", LOW_DIM)
    (store.path / "staging" / "01AAAAAAAAAAAAAAAAAAAAAAAA.journal").write_bytes(data)
    return store


def expected_after(whole_bytes: int) -> dict[str, int]:
    """Samples of each stream up to the last whole step of the first `whole_bytes` of the journal; {}: there is none.

    `force` has a clock of its own: whatever came of it is kept.
    """
    episode = two_rates(0)
    at = len(MAGIC)
    at += HEAD_BYTES + int.from_bytes(journal_bytes()[at : at + 4], "little")
    seen: dict[str, list[int]] = {name: [] for name in episode.streams}
    for stamp, name, _ in in_order(episode):
        at += HEAD_BYTES + 4 * episode.streams[name].values.shape[1]
        if at > whole_bytes:
            break
        seen[name].append(stamp)
    if not all(seen.values()):
        return {}
    steps = min(len(seen["pose"]), len(seen["action"]))
    return {"pose": steps, "action": steps, "force": len(seen["force"])}


def assert_salvaged(store: EpisodeStore, counts: dict[str, int], whole: Episode) -> None:
    store.reload()
    assert store.num_episodes == bool(counts)
    if counts:
        found = store.episode(0)
        assert "repaired" in found.source
        assert found.source.startswith(whole.source)
        streams = {n: Stream(s.values[: counts[n]], s.stamp_ns[: counts[n]]) for n, s in whole.streams.items()}
        assert_equal_episodes(found, replace(whole, streams=streams, success=None, source=found.source))
        assert list((store.path / "staging").iterdir()) == []
    assert [f for f in check_store(store.path) if f.severity == "error"] == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_journal_cut_anywhere_is_salvaged_up_to_its_last_whole_step(data: st.DataObject) -> None:
    whole = journal_bytes()
    size = data.draw(st.integers(0, len(whole)))
    with TemporaryDirectory() as folder:
        store, counts = left_behind(Path(folder), whole[:size]), expected_after(size)
        (report,) = repair(store.path).journals
        assert report.outcome == ("salvaged" if counts else "no whole step")
        assert report.steps == counts.get("action", 0)
        assert_salvaged(store, counts, two_rates(0))
        assert repair(store.path).episodes == bool(counts)
        collect(store.path)
        assert list((store.path / "staging").iterdir()) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_flipped_bit_ends_the_salvage_there_and_is_reported(data: st.DataObject) -> None:
    whole = journal_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    with TemporaryDirectory() as folder:
        store = left_behind(Path(folder), bytes(flipped))
        counts = expected_after(bit // 8)
        report = repair(store.path)
        (one,) = report.journals
        assert one.outcome == ("salvaged" if counts else "no whole step")
        assert_salvaged(store, counts, two_rates(0))
        if counts:
            assert f"damaged at byte {read_end(bytes(flipped))}" in one.problem


def read_end(data: bytes) -> int:
    with TemporaryDirectory() as folder:
        (Path(folder) / "j").write_bytes(data)
        return read_journal(Path(folder) / "j").whole_bytes


def test_zeros_at_the_end_are_what_a_power_cut_leaves(tmp_path: Path) -> None:
    store = left_behind(tmp_path, journal_bytes() + bytes(4096))
    (report,) = repair(store.path).journals
    assert report.outcome == "salvaged"
    assert "damaged at byte" in report.problem
    assert_salvaged(store, expected_after(len(journal_bytes())), two_rates(0))


def test_samples_beyond_the_common_time_are_counted(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    episode = sample_episode(0, LOW_DIM, length=6)
    recorder = recorder_of(store, episode)
    append_all(recorder, episode)
    for after in (1, 2):
        recorder.append("pose", np.zeros(3), int(episode.streams["pose"].stamp_ns[-1]) + after)
    recorder._close()
    (report,) = repair(store.path).journals
    assert (report.outcome, report.steps, report.cut) == ("salvaged", 6, {"pose": 2})


def test_a_stream_that_stalled_or_is_slow_does_not_cost_the_others(tmp_path: Path) -> None:
    """A camera that stopped after 1 s and a force sensor with one sample: 40 s of actions and poses are kept."""
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord("lossless")})
    given = sample_episode(0, length=400)
    whole = dict.fromkeys(given.streams, 400) | {"front": 10, "force": 1}
    streams = {n: Stream(s.values[: whole[n]], s.stamp_ns[: whole[n]]) for n, s in given.streams.items()}
    recorder = recorder_of(store, given)
    append_all(recorder, replace(given, streams=streams))
    recorder.append("action", np.zeros(2), int(streams["action"].stamp_ns[-1]) + 100_000_000)  # the step that was interrupted
    recorder._close()
    (report,) = repair(store.path).journals
    assert (report.outcome, report.steps, report.cut) == ("salvaged", 400, {"action": 1})
    assert report.ends_early_s == {
        name: pytest.approx((streams["pose"].stamp_ns[-1] - streams[name].stamp_ns[-1]) / 1e9 + 0.1)
        for name in ("force", "front")
    }
    store.reload()
    found = store.episode(0)
    assert_equal_episodes(found, replace(given, streams=streams, success=None, source=found.source))
    assert [name for name in streams if store.has_own_clock(name)] == ["force", "front"]
    assert collect(store.path).kept == {}


def test_actions_that_ended_early_do_not_cost_the_others(tmp_path: Path) -> None:
    store, given = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM), sample_episode(0, LOW_DIM, length=60)
    action = given.streams["action"]
    given = replace(given, streams={**given.streams, "action": Stream(action.values[:20], action.stamp_ns[:20])})
    recorder = recorder_of(store, given)
    append_all(recorder, given)
    recorder._close()
    (report,) = repair(store.path).journals
    assert (report.steps, report.cut) == (20, {})
    store.reload()
    assert_equal_episodes(store.episode(0), replace(given, success=None, source=store.episode(0).source))


def test_a_living_recorder_is_left_alone_and_goes_on(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    with recorder_of(store, sample_episode(0, LOW_DIM)) as recorder:
        append_all(recorder, sample_episode(0, LOW_DIM), last=5)
        (report,) = repair(store.path).journals
        assert (report.outcome, "lives" in report.problem) == ("being recorded", True)
        append_all(recorder, sample_episode(0, LOW_DIM), first=5)
        recorder.finish(success=sample_episode(0).success)
    assert_equal_episodes(store.episode(0), sample_episode(0, LOW_DIM))


def test_a_journal_of_another_schema_is_refused_and_stays(tmp_path: Path) -> None:
    other = EpisodeStore.create(tmp_path / "other", INTERFACE)
    journal = left_behind(tmp_path, journal_bytes()).path / "staging" / "01AAAAAAAAAAAAAAAAAAAAAAAA.journal"
    os.rename(journal, other.path / "staging" / journal.name)
    report = repair(other.path)
    assert not report.ok
    assert "another schema" in report.journals[0].problem
    assert (other.path / "staging" / journal.name).exists()
    assert "repair" in str(collect(other.path).kept)


def test_a_frame_that_cannot_be_decoded_does_not_keep_others_from_being_salvaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's recorder refuses such a frame; journals of older ones may hold it."""
    store, episode = EpisodeStore.create(tmp_path / "s.eps", INTERFACE), sample_episode(0)
    monkeypatch.setattr(recorder_module, "check_jpeg", lambda data: (6, 8))
    for cut in (30, None):
        recorder = recorder_of(store, episode)
        for row, stamp in enumerate(episode.streams["action"].stamp_ns):
            jpeg = simplejpeg.encode_jpeg(episode.streams["front"].values[row])
            values = {name: stream.values[row] for name, stream in episode.streams.items()}
            recorder.append_step({**values, "front": jpeg[:-cut] if cut else jpeg}, stamp)
        if cut:
            with pytest.raises(StoreError, match="camera 'front', frame 0 of the recording: it is not a JPEG"):
                recorder.finish()
            recorder.append("force", np.zeros(1), stamp + 1)
        recorder._leave()
    first, second = repair(store.path).journals
    assert (first.outcome, second.outcome) == ("refused", "salvaged")
    assert "camera 'front', frame 0" in first.problem


class PowerCut(BaseException):
    """Stands for the process ending here."""


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("stopped", ["before the commit", "segment without manifest", "before the removal"])
def test_a_repair_that_is_stopped_goes_on_and_commits_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str, is_finished: bool
) -> None:
    store, episode = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM), sample_episode(1, LOW_DIM)
    recorder = recorder_of(store, episode)
    append_all(recorder, episode)

    def cut(*_: Any, **__: Any) -> None:
        raise PowerCut

    def stop(patch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
        name = {
            "before the commit": "kineflow.datasets.episode_store.write_segment",
            "segment without manifest": "kineflow.datasets.episode_store.replace_manifest",
            "before the removal": "pathlib.Path.unlink",
        }[stopped]
        patch.setattr(name, cut)
        with pytest.raises(PowerCut):
            work()

    with pytest.MonkeyPatch.context() as patch:
        if is_finished:
            stop(patch, lambda: recorder.finish(success=episode.success))
    recorder._close()
    with pytest.MonkeyPatch.context() as patch:
        if not (is_finished and stopped == "before the removal"):
            stop(patch, lambda: repair(store.path))
    (report,) = repair(store.path).journals
    assert report.outcome == ("committed before" if stopped == "before the removal" else "salvaged")
    store.reload()
    assert store.num_episodes == 1
    found = store.episode(0)
    if is_finished:  # all of it was there: nothing had to be repaired
        assert_equal_episodes(found, episode)
    else:
        assert_equal_episodes(replace(found, source=episode.source), replace(episode, success=None))
    assert check_store(store.path) == []
    assert repair_module.repair(store.path).journals == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_recorder_killed_at_any_time_loses_no_acknowledged_step(tmp_path: Path, seed: int) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord("lossless")})
    episode = sample_episode(seed, length=400)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        recorder = EpisodeRecorder(store, source=episode.source, instruction=episode.instruction, sync_s=0.01)
        for row, stamp in enumerate(episode.streams["action"].stamp_ns):
            recorder.append_step({name: stream.values[row] for name, stream in episode.streams.items()}, stamp)
            os.write(send, b".")
        time.sleep(60)
        os._exit(0)
    os.close(send)
    os.read(receive, 1)
    time.sleep(0.007 * seed)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as pipe:
        acknowledged = 1 + len(pipe.read())
    (report,) = repair(store.path).journals
    assert report.outcome == "salvaged"
    assert report.steps in (acknowledged, acknowledged + 1)
    store.reload()
    found = store.episode(0)
    for name, stream in episode.streams.items():
        np.testing.assert_array_equal(found.streams[name].values, stream.values[: report.steps])
        np.testing.assert_array_equal(found.streams[name].stamp_ns, stream.stamp_ns[: report.steps])
