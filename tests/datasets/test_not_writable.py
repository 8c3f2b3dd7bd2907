"""Folders that cannot be written, are gone, or hold what a killed process left: said in one line, or cleared away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kineflow.cli import main
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError
from kineflow.datasets.recorder import EpisodeRecorder
from kineflow.datasets.staged import staged_beside
from kineflow.datasets.store_statistics import kept_statistics, store_statistics
from tests.datasets.sample_episodes import LOW_DIM, sample_episode


def filled(path: Path, episodes: int = 2) -> EpisodeStore:
    store = EpisodeStore.create(path, LOW_DIM)
    with store.writer() as writer:
        for number in range(episodes):
            writer.add(sample_episode(number, LOW_DIM))
    return store


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with the store `s.eps` that nobody can write to, not even root."""
    folder = tmp_path / "read only"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a disk that is read-only needs root")
    filled(folder / "s.eps")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def add(store: EpisodeStore) -> None:
    with store.writer() as writer:
        writer.add(sample_episode(5, LOW_DIM))


WRITING: dict[str, Callable[[EpisodeStore], object]] = {
    "append": add,
    "record": EpisodeRecorder,
    "create": lambda store: EpisodeStore.create(store.path.parent / "new.eps", LOW_DIM),
}


@pytest.mark.parametrize("what", WRITING)
def test_writing_says_that_the_folder_is_read_only_and_what_to_do(read_only: Path, what: str) -> None:
    store = EpisodeStore.open(read_only / "s.eps")
    assert store.episode(1).source == "log 1"
    with pytest.raises(StoreError, match=r"read only.*Read-only file system.*work on a copy"):
        WRITING[what](store)


def test_a_disk_without_inodes_is_not_told_to_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s.eps")
    limits = os.statvfs_result([4096, 4096, 10**6, 10**6, 10**6, 1000, 0, 0, 0, 255])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: limits)
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match=r"no more files \(inodes\).*remove some"):
            add(store)
    add(store)
    assert store.num_episodes == 3


def test_statistics_that_cannot_be_kept_are_measured(read_only: Path) -> None:
    store = EpisodeStore.open(read_only / "s.eps")
    assert kept_statistics(store) == store_statistics(store)


def test_verbs_end_with_one_line(read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = str(read_only / "s.eps"), str(filled(tmp_path / "o.eps").path)
    for words in (["delete", store, "0"], ["gc", store], ["merge", store, other, str(read_only / "m.eps")]):
        assert main(["data", *words]) == 2
        assert "Read-only file system" in capsys.readouterr().err


def test_a_store_that_was_moved_while_it_is_open_is_said_to_be_gone(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.eps")
    store.path.rename(tmp_path / "moved.eps")
    with pytest.raises(StoreError, match="is gone: it was moved or removed"):
        add(store)


def test_a_destination_that_stopped_half_way_leaves_nothing_for_long(tmp_path: Path) -> None:
    with staged_beside(tmp_path / "m.eps", "merging") as living:
        code = (
            "import sys, time; from pathlib import Path; from kineflow.datasets.staged import staged_beside\n"
            f"with staged_beside(Path({str(tmp_path / 'm.eps')!r}), 'merging'): print(flush=True), time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (dead,) = set(tmp_path.iterdir()) - {living}
        os.utime(dead, (time.time() - 60, time.time() - 60))
        os.utime(living, (time.time() - 60, time.time() - 60))
        with staged_beside(tmp_path / "m.eps", "merging"):
            assert living.exists()
            assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_left_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_beside(tmp_path / "new" / "m.eps", "merging"):
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_fills_up_under_any_work_is_said_to_be_full(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no room for m.csv.*free some room"), staged_beside(tmp_path / "m.csv", "exporting"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PermissionError), staged_beside(tmp_path / "m.csv", "exporting"):
        raise PermissionError(errno.EACCES, "Permission denied", "the source")


def test_names_and_texts_are_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be broken into lines
    store = EpisodeStore.create(Path("ü [bold].eps"), LOW_DIM, provenance="[red]lab")
    with store.writer() as writer:
        writer.add(sample_episode(1, LOW_DIM))
        episode = sample_episode(2, LOW_DIM)
        writer.add(type(episode)(episode.streams, "push [/A] and [blue]", None))
    for verb in ("info", "repair", "compact", "gc", "doctor"):
        assert main(["data", verb, str(store.path)]) in (0, 1)
        shown = capsys.readouterr().out.replace("\n", "")
        assert verb == "doctor" or "ü [bold].eps" in shown
        if verb == "info":
            assert "push [/A] and [blue]" in shown
            assert "[red]lab" in shown
