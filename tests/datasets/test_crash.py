"""Writers killed at random instants, and stopped before each single system call of a commit; writers that race."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kineflow.datasets import episode_writer, manifest
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM, assert_equal_episodes, sample_episode

SCRIPT = Path(__file__).with_name("crash_writers.py")
KILLS, MOST_KILLS = 8, 48


def test_acknowledged_episodes_survive_kill_9(tmp_path: Path) -> None:
    """By eight kills, and as many more as it takes until one hits a commit: where is a matter of the machine."""
    stopped_inside_a_commit = 0
    for seed in range(MOST_KILLS):
        if seed % KILLS == 0:
            if stopped_inside_a_commit:
                break
            seeds = map(str, range(seed, seed + KILLS))
            subprocess.run([sys.executable, SCRIPT, "kill", tmp_path, *seeds], check=True, timeout=500)
        path = tmp_path / f"{seed}.eps"
        acknowledged = path.with_suffix(".ack").read_text().count("\n")
        store = EpisodeStore.open(path)
        # One more may be committed: killed between the commit and the acknowledgement.
        assert store.num_episodes in (acknowledged, acknowledged + 1)
        for number in range(store.num_episodes):
            assert_equal_episodes(store.episode(number), sample_episode(number))
        findings = check_store(path)
        assert all(finding.severity == "warning" for finding in findings), findings
        stopped_inside_a_commit += bool(findings)
        with store.writer() as writer:
            writer.add(sample_episode(store.num_episodes))
        reopened = EpisodeStore.open(path)
        assert_equal_episodes(reopened.episode(reopened.num_episodes - 1), sample_episode(reopened.num_episodes - 1))
    assert stopped_inside_a_commit > 0, "no kill hit a commit: the test proves nothing; widen the delays"


class PowerCut(BaseException):
    """Stands for the process ending here."""


def cut_before_call(patch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """The `number`-th write, sync or rename raises instead of happening; returns the count of calls so far."""
    calls = 0

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise PowerCut
            return original(*arguments, **options)

        return wrapper

    patch.setattr(Path, "write_bytes", guarded(Path.write_bytes))
    patch.setattr(os, "rename", guarded(os.rename))
    patch.setattr(os, "replace", guarded(os.replace))
    patch.setattr(episode_writer, "sync", guarded(episode_writer.sync))
    patch.setattr(manifest, "sync", guarded(manifest.sync))
    return lambda: calls


def test_a_stop_before_any_call_of_a_commit_leaves_the_old_or_the_new_store(tmp_path: Path) -> None:
    path = tmp_path / "s.eps"
    with EpisodeStore.create(path, LOW_DIM).writer() as writer:
        writer.add(sample_episode(0, LOW_DIM))
    committed, number, is_done = 1, 0, False
    while not is_done:
        store = EpisodeStore.open(path)
        with pytest.MonkeyPatch.context() as patch:
            cut_before_call(patch, number)
            try:
                with store.writer() as writer:
                    writer.add(sample_episode(committed, LOW_DIM))
                is_done = True
            except PowerCut:
                pass
        found = EpisodeStore.open(path).num_episodes
        assert found in (committed, committed + 1)
        assert_equal_episodes(EpisodeStore.open(path).episode(found - 1), sample_episode(found - 1, LOW_DIM))
        # Near the end every step matters; the plain writes before are alike.
        committed, number = found, number + (7 if number < 42 else 1)
    assert number > 50
    assert {f.severity for f in check_store(path)} == {"warning"}


def test_everything_is_synced_before_the_manifest_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    real_sync, real_replace, real_rename = manifest.sync, os.replace, os.rename
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)

    def record(path: Path) -> None:
        log.append(str(path))
        real_sync(path)

    monkeypatch.setattr(episode_writer, "sync", record)
    monkeypatch.setattr(manifest, "sync", record)
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("RENAME"), real_rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append("REPLACE"), real_replace(a, b)))
    with store.writer() as writer:
        writer.add(sample_episode(0))
    rename, replace = log.index("RENAME"), log.index("REPLACE")
    (segment,) = store.manifest.segments
    staged = {line.split(f"/staging/{segment.id}/")[-1] for line in log[:rename]}
    assert {file.path for file in segment.files} <= staged
    assert str(store.path / "segments") in log[rename:replace]
    assert ".manifest.json." in log[replace - 1]
    assert log[-1] == str(store.path)


def test_a_writer_with_a_stale_generation_keeps_what_the_other_wrote(tmp_path: Path) -> None:
    first = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    second = EpisodeStore.open(first.path)
    for number, store in enumerate((first, second, second, first)):
        with store.writer() as writer:
            writer.add(sample_episode(number, LOW_DIM))
    found = EpisodeStore.open(first.path)
    assert found.manifest.generation == 4
    for number in range(4):
        assert_equal_episodes(found.episode(number), sample_episode(number, LOW_DIM))
    assert second.num_episodes == 3
    second.reload()
    assert second.num_episodes == 4
    assert {task.text for task in found.manifest.tasks.values()} == {"open the door", "wait"}
    assert check_store(first.path) == []


def test_swapping_a_stale_manifest_is_refused(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", LOW_DIM)
    stale = store.manifest
    with store.writer() as writer:
        writer.add(sample_episode(0, LOW_DIM))
    with pytest.raises(manifest.StaleGeneration, match="generation 1, not 0"):
        manifest.replace_manifest(store.path, stale, 0)
    assert EpisodeStore.open(store.path).num_episodes == 1


def test_racing_processes_lose_nothing(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    subprocess.run([sys.executable, SCRIPT, "race", store.path, "3"], check=True, timeout=300)
    store.reload()
    assert sorted(store.episode(i).source for i in range(12)) == sorted(f"log {10 * w + n}" for w in range(3) for n in range(4))
    assert store.manifest.generation == 12
    assert check_store(store.path) == []


def test_readers_of_a_busy_store_never_see_a_torn_state(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord("lossless")})
    with store.writer(6) as writer:
        for number in range(6):
            writer.add(sample_episode(number))
    subprocess.run([sys.executable, SCRIPT, "read", store.path, "3"], check=True, timeout=300)
    rounds = [int(file.read_text()) for file in tmp_path.glob("read-*")]
    assert len(rounds) == 3
    assert min(rounds) >= 3
