"""The crash bench: its rows, and that it would see a loss."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.datasets.bench import crash
from kineflow.datasets.bench.crash_writers import COMMITTED, STEPS, WRITERS, Ours, episode
from kineflow.datasets.episode_store import EpisodeStore


class Stop(Exception):
    """The writer has acknowledged enough."""


def stop_after(episodes: int) -> Callable[[int, int], None]:
    def acknowledge(number: int, steps: int) -> None:
        if steps == COMMITTED and number + 1 == episodes:
            raise Stop

    return acknowledge


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A store of three episodes of each kind."""
    if request.param == "lerobot":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "store"
    writer = WRITERS[request.param]()
    writer.create(path)
    with pytest.raises(Stop):
        writer.write(path, stop_after(3))
    return request.param, path


def test_a_sound_store_is_found_sound(written: tuple[str, Path]) -> None:
    kind, path = written
    found = WRITERS[kind]().check(path, 3, 0)
    assert (found.acknowledged, found.lost, found.torn, found.steps_lost) == (3, 0, "", 0)


def test_a_missing_episode_is_counted(written: tuple[str, Path]) -> None:
    kind, path = written
    assert WRITERS[kind]().check(path, 5, 0).lost == 2


def test_damaged_data_are_seen_by_every_reader(written: tuple[str, Path]) -> None:
    kind, path = written
    data = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    found = WRITERS[kind]().check(path, 3, 0)
    assert found.torn
    assert found.lost > 0


def test_values_that_were_never_written_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Ours()
    writer.create(tmp_path / "s")
    with pytest.raises(Stop):
        writer.write(tmp_path / "s", stop_after(1))
    other = {**episode(0), "state": np.zeros_like(episode(0)["state"])}
    monkeypatch.setattr("kineflow.datasets.bench.crash_writers.episode", lambda number: other)
    found = writer.check(tmp_path / "s", 1, 0)
    assert found.lost == 1
    assert "differ" in found.torn


def test_steps_that_a_repair_does_not_find_are_counted(tmp_path: Path) -> None:
    writer, half = Ours(), STEPS // 2

    def stop(number: int, steps: int) -> None:
        if steps == half:
            raise Stop

    def write() -> None:
        with suppress(Stop):
            writer.write(tmp_path / "s", stop)

    writer.create(tmp_path / "s")
    crash._in_child(write)  # so that the journal's writer is dead
    (journal,) = (tmp_path / "s" / "staging").iterdir()
    os.truncate(journal, journal.stat().st_size - 1)
    found = writer.check(tmp_path / "s", 0, half)
    assert (found.salvaged, found.steps_lost, found.torn) == (1, 1, "")
    assert EpisodeStore.open(tmp_path / "s").lengths.tolist() == [half - 1]


def test_kills_of_our_writer_lose_nothing_and_the_rows_say_so(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    rows = {row.name: row for row in crash.bench_crash(quick=True, kills=3)}
    lost, torn = rows["crash/ours: acknowledged episodes lost"], rows["crash/ours: kills that leave a torn store"]
    steps = rows["crash/ours: recorded steps lost"]
    for row in (lost, torn, steps):
        assert (row.value, row.goal, row.holds, row.n) == (0, "0", True, 3)
    peers = [row for name, row in rows.items() if not name.startswith("crash/ours")]
    assert {row.name.split(":")[0] for row in peers} == {"crash/zarr", "crash/lerobot"}
    assert all(row.goal is None and row.holds is None for row in peers)


def test_a_loss_misses_the_goal() -> None:
    outcome = {"acknowledged": 2, "lost": 1, "torn": "x", "salvaged": 0, "steps_acknowledged": 3, "steps_lost": 3, "open_ms": 1.0}
    rows = list(crash.rows("ours", [outcome]))
    assert [row.holds for row in rows] == [False, False, False, None]


def test_the_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def bench(*, quick: bool, kills: int | None = None) -> list[object]:
        asked.append((quick, kills))
        return []

    from kineflow.policies.bench import run

    monkeypatch.setitem(run.BENCHES, "crash", bench)
    assert main(["bench", "crash", "--kills", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert asked == [(False, 7)]
