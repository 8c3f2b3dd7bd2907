"""Real KITTI trajectories: the cars drive forward, stay upright, and are as long as the benchmark says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.axes import rotation_matrices

LENGTHS = [4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201]


def test_eleven_sequences(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    report = import_data("kitti-odometry", shared_data("kitti_odometry_poses"), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == LENGTHS
    assert "1 of 11 sequences have times" in report.carried["pose"]
    for index in range(11):
        episode = store.episode(index)
        pose = episode.streams["pose"].values.astype(np.float64)
        body, step = rotation_matrices(pose[:, 3:]), np.diff(pose[:, :3], axis=0)
        ahead = np.einsum("tji,tj->ti", body[:-1], step)  # in the axes of the camera at that moment
        moving = np.linalg.norm(step, axis=1) > 0.3
        assert (ahead[moving, 0] > 0.95 * np.linalg.norm(step[moving], axis=1)).mean() > 0.99
        assert (body[:, 2, 2] > 0.9).all()
        assert episode.clock == ("sensor" if index == 0 else "nominal_10hz")
    travelled = np.linalg.norm(np.diff(store.episode(0).streams["pose"].values[:, :3], axis=0), axis=1).sum()
    assert travelled == pytest.approx(3724, rel=0.01)  # metres of sequence 00
