"""Imports by many processes: the store of one process, whoever dies; nothing at all where the work cannot be done."""

from __future__ import annotations

import itertools
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import zarr

from kineflow.cli import main
from kineflow.contracts import KineflowError
from kineflow.datasets.convert import ImportReport, import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.engines import ATTEMPTS, Engine
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions

FORMAT = "diffusion-policy-zarr"
SCHEMA = """
features: {state: {vector: {names: [x], units: [m], frame: map, low: [-.inf], high: [.inf]}, rate_hz: 10.0}}
action: {vector: {names: [x], units: [m], frame: map, low: [-.inf], high: [.inf]}, rate_hz: 10.0}
cameras: {img: {height: 32, width: 32, rate_hz: 10.0}}
"""


def replay(path: Path, episodes: int = 40, nan_in: int | None = None) -> Path:
    """Noise and flat pictures in turn, so that a probe of another episode than the first would choose another codec."""
    rng, lengths = np.random.default_rng(5), [3 + n % 5 for n in range(episodes)]
    rows, ends = sum(lengths), np.cumsum(lengths)
    smooth = np.add.outer(np.arange(32) * 6, np.arange(32)).astype(np.uint8)[:, :, None] + np.zeros(3, np.uint8)
    noise = np.clip(smooth + rng.normal(0, 12, (rows, 32, 32, 3)), 0, 255).astype(np.uint8)
    flat = np.concatenate([np.full(n, k % 2, np.bool_) for k, n in enumerate(lengths)])
    noise[flat] = 7
    state = rng.normal(size=(rows, 1)).astype(np.float32)
    if nan_in is not None:
        state[ends[nan_in] - 1] = np.nan
    root = zarr.open_group(path, mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, values in {"state": state, "action": rng.normal(size=(rows, 1)).astype(np.float32), "img": noise}.items():
        data.create_array(name, data=values)
    meta.create_array("episode_ends", data=ends)
    (path.parent / "schema.yaml").write_text(SCHEMA)
    return path


def options(source: Path) -> ImportOptions:
    return ImportOptions(source.parent / "schema.yaml")


def assert_same_store(found: Path, expected: Path) -> None:
    ours, theirs = EpisodeStore.open(found), EpisodeStore.open(expected)
    assert ours.fingerprint() == theirs.fingerprint()
    np.testing.assert_array_equal(ours.digests(), theirs.digests())  # which also says: in the same order
    for name, total in theirs.totals().items():
        mine = ours.totals()[name]
        assert (mine.count, mine.min, mine.max) == (total.count, total.min, total.max)
        np.testing.assert_allclose([mine.mean, mine.m2], [total.mean, total.m2], rtol=1e-12)
    everything = np.arange(theirs.num_episodes)
    np.testing.assert_array_equal(ours.sketch("state", everything).points, theirs.sketch("state", everything).points)
    assert ours.manifest.tasks == theirs.manifest.tasks
    assert check_store(found) == check_store(expected)
    assert {f.name for f in (found / "segments").iterdir()} == {s.id for s in ours.manifest.segments}
    assert list((found / "staging").iterdir()) == []


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay(tmp_path_factory.mktemp("engines") / "replay.zarr")


@pytest.fixture(scope="module")
def alone(source: Path) -> Path:
    path = source.parent / "alone.eps"
    import_data(FORMAT, source, path, options(source))
    return path


def test_two_processes_make_the_store_of_one(source: Path, alone: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = import_data(FORMAT, source, tmp_path / "a.eps", options(source), lambda d, t: calls.append((d, t)), workers=2)
    assert_same_store(tmp_path / "a.eps", alone)
    store = EpisodeStore.open(tmp_path / "a.eps")
    assert len(store.segments) > 2  # the work was shared
    assert store.manifest.generation == 1  # and committed once
    assert calls == [(n, 40) for n in range(1, 41)]
    assert (report.episodes, report.steps) == (40, int(store.lengths.sum()))
    assert {s.frame_array("img").codec.name for s in store.segments} == {"jpeg"}  # the first episode's, also of flat pictures


def test_a_killed_worker_loses_nothing(source: Path, alone: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def kill(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) in (2, 12):
            for process in multiprocessing.active_children():
                process.kill()
            (staged,) = tmp_path.glob(".a.eps.importing-*/store")
            for place in ("staging", "segments"):  # as one leaves that is killed while it writes, or before it reports
                (staged / place / f"half{done}").mkdir()

    import_data(FORMAT, source, tmp_path / "a.eps", options(source), kill, workers=2)
    assert_same_store(tmp_path / "a.eps", alone)
    assert calls[-1] == 40
    assert any(later < earlier for earlier, later in itertools.pairwise(calls))  # episodes were taken back and done again


def test_what_kills_every_worker_ends_with_an_error_and_nothing_behind(source: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(KineflowError, match=rf"episodes \d+ to \d+: {ATTEMPTS} workers died .*exit code -9.*use fewer workers"):
        import_data(FORMAT, source, tmp_path / "a.eps", options(source), kill, workers=1 + 1)
    assert list(tmp_path.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_an_episode_that_cannot_be_carried_is_named_as_by_one_process(tmp_path: Path) -> None:
    bad = replay(tmp_path / "in" / "replay.zarr", 20, nan_in=17)
    messages = []
    for workers in (1, 2):
        with pytest.raises(KineflowError) as error:
            import_data(FORMAT, bad, tmp_path / "a.eps", options(bad), workers=workers)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "episode 17" in messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("workers", "engine", "message"), [(0, "pool", "workers is 0"), (2, "dask", "known are pool, ray")])
def test_what_makes_no_sense_is_refused(source: Path, tmp_path: Path, workers: int, engine: Engine, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        import_data(FORMAT, source, tmp_path / "a.eps", options(source), workers=workers, engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(source: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, path = str(source.parent / "schema.yaml"), tmp_path / "a.eps"
    told = ["--workers", "2", "--format", FORMAT, "--schema", schema, "--json"]
    assert main(["data", "import", *told, str(source), str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 40
    assert_same_store(path, alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::")  # Ray's own, of many kinds
def test_ray_makes_the_same_store_though_a_task_dies(source: Path, alone: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    import psutil  # Ray brings its own, on the path once it is imported

    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        for process in psutil.Process().children(recursive=True):
            if not killed and process.name().startswith("ray::ray_chunk"):
                process.kill()
                killed.append(process.pid)

    report: ImportReport = import_data(FORMAT, source, tmp_path / "a.eps", options(source), kill, 2, "ray")
    assert killed
    assert report.episodes == 40
    assert_same_store(tmp_path / "a.eps", alone)
    assert not ray.is_initialized()
