"""`kineflow bench data` on tiny frames: every reader reads the same windows, goals are judged where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.datasets.bench import data as bench
from kineflow.datasets.bench.data_process import in_own_process
from kineflow.datasets.bench.data_readers import BATCH, contestants, open_memmap
from kineflow.datasets.bench.data_sets import DataSet, donkeycar, natural
from kineflow.datasets.bench.frames_made import natural_frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return natural(tmp_path_factory.mktemp("bench"), 48, 3, 20)


def test_frames_are_made_by_seed_and_compress_like_a_camera() -> None:
    frames = natural_frames(6, 96, 3)
    np.testing.assert_array_equal(frames, natural_frames(6, 96, 3))
    assert (frames != natural_frames(6, 96, 4)).mean() > 0.9
    moved = np.abs(np.diff(frames.astype(int), axis=0)).mean()
    assert 0.3 < moved < 60  # noise at least, and no two frames alike
    assert 20 < frames.std() < 90


def test_every_reader_reads_the_same_windows(data: DataSet) -> None:
    assert data.missing == {}
    known = contestants(data)
    memmap, rng = open_memmap(data), np.random.default_rng(0)
    batches = [np.concatenate([rng.integers(0, 60, BATCH - 5), [0, 19, 20, 59, 40]]) for _ in range(2)]
    read = 0
    for name, contestant in known.items():
        try:
            reader = contestant.open(data)
        except (KineflowError, ModuleNotFoundError):
            assert name in ("robomimic", "tensorstore", "ours_jpeg_native", "ours_lz4hc_native"), name
            continue
        read += 1
        for indices in batches:
            found, expected = np.asarray(reader(indices)), memmap(indices)
            if contestant.lossy:
                assert np.abs(found.astype(int) - expected).mean() < 8, name
                assert found.shape == expected.shape
            else:
                np.testing.assert_array_equal(found, expected, err_msg=name)
    assert read >= 11


def test_rows_have_costs_and_goals_where_they_belong(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.002)
    monkeypatch.setattr(bench, "_QUICK_PROCESSES", ("ours_lz4hc_pure",))
    monkeypatch.setattr(bench, "measure_lerobot", lambda data, samples: (1.0, 1.0, "lerobot 0"))
    found = {row.name: row for row in bench.rows(replace(data, name="natural_96"), quick=True)}
    cached = found["data.natural_96.ours_cache"]
    assert cached.goal == "ratio <= 1.2"
    assert cached.holds == (cached.ratio is not None and cached.ratio <= 1.2)
    assert "opens in" in found["data.natural_96.ours_lz4hc_pure"].note
    assert "opens in" not in cached.note
    assert found["data.natural_96.zarr_python"].goal is None
    jpeg = found["data.natural_96.ours_jpeg_pure"]
    assert jpeg.reference_version.startswith("simplejpeg")
    assert all(row.value > 0 for row in found.values() if row.n)
    peers = [row for name, row in found.items() if ".vs_" in name]
    assert len(peers) >= 2
    assert all(row.holds == (row.ratio <= (1 / 40 if "lerobot" in row.name else 1 / 8)) for row in peers if row.ratio)
    assert json.loads(json.dumps([row.value for row in found.values()]))


def test_disk_loader_and_memory_rows(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SAMPLES_HELD, True, 2_000)
    monkeypatch.setitem(bench.TURNS, True, 2)
    assert bench._disk_row(data, True).holds is None
    assert bench._disk_row(data, False).holds is True
    loader, held = bench._loader_row(data, True), bench._held_row(data, True)
    assert loader.ratio is not None
    assert loader.holds == (loader.ratio >= 0.85)
    assert held.holds is True


def test_a_reader_that_fails_in_its_process_says_so(data: DataSet) -> None:
    with pytest.raises(KineflowError, match=r"robomimic_bare failed: .*not exported"):
        in_own_process(replace(data, missing={"robomimic.hdf5": "not exported"}), "robomimic_bare")


def test_real_frames_of_donkeycar(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    data = donkeycar(tmp_path, shared_data("donkeycar_tub") / "tub.tar.gz")
    known = contestants(data)
    assert "robomimic" not in known
    indices = np.arange(BATCH)
    expected = open_memmap(data)(indices)
    for name in ("ours_jpeg_pure", "ours_cache", "ours_ram", "jpeg_decode"):
        np.testing.assert_array_equal(known[name].open(data)(indices), expected)
