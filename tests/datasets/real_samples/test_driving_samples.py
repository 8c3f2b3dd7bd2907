"""Real driving logs: what the importers claim about axes and units is how these cars moved; other readers see the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import Stream
from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.axes import rotation_matrices
from kineflow.datasets.importers.tfrecord import find_records, read_record, write_records


def imported(name: str, source: Path, path: Path) -> EpisodeStore:
    import_data(name, source, path)
    assert check_store(path) == []
    return EpisodeStore.open(path)


def motion(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Velocity [T-1, 3 or 2] from one position to the next, m/s, and where it is above 2 m/s."""
    position = stream.values[:, :3].astype(np.float64)
    velocity = np.diff(position, axis=0) / (np.diff(stream.stamp_ns) / 1e9)[:, None]
    return velocity, np.linalg.norm(velocity, axis=1) > 2


def assert_drives_forward(stream: Stream) -> None:
    """Pose with a quaternion: x of the car is where it goes, z is up."""
    body = rotation_matrices(stream.values[:-1, 3:].astype(np.float64))
    velocity, moving = motion(stream)
    assert moving.sum() > 30
    in_car = np.einsum("tji,tj->ti", body, velocity)[moving]
    assert (in_car[:, 0] > 0.95 * np.linalg.norm(in_car, axis=1)).mean() > 0.98
    assert (body[:, 2, 2] > 0.9).all()


def assert_heading_and_velocity(position: Stream, heading: np.ndarray, said: np.ndarray) -> None:
    velocity, moving = motion(Stream(position.values[:, :2], position.stamp_ns))
    assert moving.sum() > 30
    np.testing.assert_allclose(np.median(np.linalg.norm(velocity[moving] - said[:-1][moving], axis=1)), 0, atol=0.5)
    direction = np.arctan2(velocity[:, 1], velocity[:, 0])[moving]
    off = np.angle(np.exp(1j * (direction - heading[:-1][moving])))
    assert np.median(np.abs(off)) < 0.1


def test_argoverse2_motion(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = shared_data("av2_samples")
    store = imported("argoverse2-motion", source, tmp_path / "s.eps")
    streams = store.episode(0).streams
    (file,) = source.rglob("scenario_*.parquet")
    rows = [row for row in parquet.read_table(file).to_pylist() if row["track_id"] == "AV"]
    expected = [[row[name] for name in ("position_x", "position_y", "heading")] for row in rows]
    np.testing.assert_array_equal(streams["action"].values, np.float32(expected))
    np.testing.assert_array_equal(np.diff(streams["pose"].stamp_ns), 100_000_000)
    assert streams["pose"].stamp_ns[0] == int(rows[0]["start_timestamp"])  # a float64 of ns: good to 64 ns
    assert_heading_and_velocity(streams["pose"], streams["pose"].values[:, 2], streams["velocity"].values)
    assert streams["focal"].values.shape == (110, 5)
    assert store.manifest.licence == "CC-BY-NC-SA-4.0"
    assert store.episode(0).source == "0a1e6f0a-1817-4a98-b02e-db8c9327d151 (austin)"


def test_argoverse2_sensor(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    feather = pytest.importorskip("pyarrow.feather")
    source = shared_data("av2_samples")
    stream = imported("argoverse2-sensor", source, tmp_path / "s.eps").episode(0).streams["pose"]
    (file,) = source.rglob("city_SE3_egovehicle.feather")
    table = feather.read_table(file)
    np.testing.assert_array_equal(stream.stamp_ns, table.column("timestamp_ns").to_numpy())
    np.testing.assert_array_equal(stream.values[:, 2], table.column("tz_m").to_numpy().astype(np.float32))
    turns = np.stack([table.column(name).to_numpy() for name in ("qx", "qy", "qz", "qw")], 1)
    np.testing.assert_allclose(np.abs(np.sum(turns * stream.values[:, 3:], 1)), 1, atol=1e-6)
    assert_drives_forward(Stream(stream.values[::20], stream.stamp_ns[::20]))  # 10 ms apart, centimetres are noise


def test_l5kit(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    stream = imported("l5kit", shared_data("l5kit_single_scene"), tmp_path / "s.eps").episode(0).streams["pose"]
    assert stream.values.shape == (248, 7)
    assert 0.09 < np.median(np.diff(stream.stamp_ns)) / 1e9 < 0.11
    assert stream.stamp_ns[0] // 10**18 == 1  # of this century
    assert_drives_forward(stream)


def test_waymo_motion(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("womd_one_scenario")
    store = imported("waymo-motion", source, tmp_path / "s.eps")
    streams = store.episode(0).streams
    assert streams["pose"].values.shape == (91, 4)
    assert store.episode(0).source == "scenario 637f20cafde22ff8"
    assert 0.09 < np.median(np.diff(streams["pose"].stamp_ns)) / 1e9 < 0.11
    assert np.ptp(streams["pose"].values[:, :2], axis=0).max() < 0.05  # this car waits, so look through the eyes of others
    (record,) = find_records(next(source.glob("*.tfrecord")))
    others = [read_record(record) + bytes([6 << 3, track]) for track in (45, 41)]  # the last sdc_track_index counts
    write_records(tmp_path / "others.tfrecord", others)
    moving = imported("waymo-motion", tmp_path / "others.tfrecord", tmp_path / "t.eps")
    assert moving.lengths.tolist() == [91, 84]
    for index in range(2):
        streams = moving.episode(index).streams
        assert_heading_and_velocity(streams["pose"], streams["pose"].values[:, 3], streams["velocity"].values)
