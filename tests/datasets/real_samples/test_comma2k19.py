"""A real minute of highway: the axes that the importer claims are the ones that the car drove with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.axes import rotation_matrices


def test_the_car_drives_forward(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    report = import_data("comma2k19", shared_data("comma2k19_example"), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    streams = store.episode(0).streams
    lengths = {"action": 4974, "speed": 4974, "acceleration": 6256, "live_gnss_ublox": 579, "pose": 1200, "velocity": 1200}
    assert {name: len(streams[name].stamp_ns) for name in lengths} == lengths
    body = rotation_matrices(streams["pose"].values[:, 3:].astype(np.float64))
    velocity = np.einsum("tji,tj->ti", body, streams["velocity"].values)  # in the axes of the car
    moving = np.linalg.norm(velocity, axis=1) > 5
    assert moving.mean() > 0.9
    assert (velocity[moving, 0] > 0.97 * np.linalg.norm(velocity[moving], axis=1)).all()  # x is forward
    assert (body[:, 2, 2] > 0.9).all()  # z is up
    assert 8.5 < np.median(streams["acceleration"].values[:, 2]) < 10.5  # gravity is felt upwards
    # Three independent sensors: the wheels, the pose filter and the satellite receiver.
    at = np.searchsorted(streams["speed"].stamp_ns, streams["velocity"].stamp_ns).clip(0, 4973)
    wheels, filtered = streams["speed"].values[at, 0], np.linalg.norm(streams["velocity"].values, axis=1)
    assert np.median(np.abs(wheels - filtered)) < 0.3
    near = np.searchsorted(streams["pose"].stamp_ns, streams["live_gnss_ublox"].stamp_ns).clip(0, 1199)
    apart = np.linalg.norm(streams["live_gnss_ublox"].values[:, :2] - streams["pose"].values[near, :2], axis=1)
    assert np.median(apart) < 15
    # Turning the wheel turns the car the same way: left is positive in both.
    spin = np.interp(streams["action"].stamp_ns, streams["angular_velocity"].stamp_ns, streams["angular_velocity"].values[:, 2])
    assert np.corrcoef(spin, streams["action"].values[:, 0])[0, 1] > 0.6
    assert report.not_carried == {
        "segment_40/global_pose/frame_gps_times": "GPS week and second need more digits than float32 has"
    }
    assert check_store(store.path) == []
