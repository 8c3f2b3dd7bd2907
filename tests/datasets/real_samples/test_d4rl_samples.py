"""Real D4RL demonstrations (Adroit door-human, kitchen-complete): their steps as a D4RL file, and back out of a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions
from kineflow.datasets.importers.tfrecord import find_records, read_example

FIRST, LAST = 0, 2  # step types
KNOWN = {"door-human-v0_0": (39, 28, 11), "kitchen-complete-v0_0": (60, 9, 4)}  # observed, acted, episodes


@pytest.mark.parametrize("name", KNOWN)
def test_real_demonstrations(shared_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    records = find_records(shared_data("d4rl_ibc_samples") / f"{name}.tfrecord")
    steps = [read_example(record) for record in records]
    observations, actions, rewards = (np.stack([s[key] for s in steps]) for key in ("observation", "action", "reward"))
    kinds = np.array([int.from_bytes(bytes(s["step_type"][0]), "little") for s in steps])
    assert (observations.shape[1], actions.shape[1], int((kinds == FIRST).sum())) == KNOWN[name]
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file.update({"observations": observations, "actions": actions, "rewards": rewards, "timeouts": kinds == LAST})
    import_data("d4rl", tmp_path / "d.hdf5", tmp_path / "s.eps", ImportOptions(rate_hz=25.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    np.testing.assert_array_equal(np.cumsum(store.lengths) - store.lengths, np.flatnonzero(kinds == FIRST))
    np.testing.assert_array_equal(store.low_dim("observation"), observations)
    np.testing.assert_array_equal(store.low_dim("action"), actions)
    np.testing.assert_array_equal(store.low_dim("reward"), rewards)
