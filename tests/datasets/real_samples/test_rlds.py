"""25 real BridgeData episodes: their JPEGs byte for byte, their instructions, and nothing of it through TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions, open_source
from kineflow.datasets.importers.tfrecord import find_records, read_record


def test_bridge(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("bridge_rlds_debug")
    report = import_data("rlds", folder, tmp_path / "s.eps", ImportOptions(rate_hz=5.0))
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert (report.episodes, report.steps, report.clock) == (25, 250, "nominal_5hz")
    assert report.not_carried["split val"] == "dataset_info.json lists 25 episodes, the folder has none of its shards"
    assert check_store(store.path) == []
    records = find_records(folder / "bridge_dataset-train.tfrecord-00000-of-00001")
    raw = read_record(records[7])
    episode = store.episode(7)
    jpegs = store.jpegs(7, "image_0")
    assert jpegs is not None
    assert all(jpeg in raw for jpeg in jpegs)
    assert episode.streams["action"].values.astype("<f4").tobytes() in raw
    assert episode.streams["state"].values.astype("<f4").tobytes() in raw
    assert episode.streams["image_0"].values.shape == (10, 64, 64, 3)
    assert episode.instruction.encode() in raw
    assert episode.source.encode() in raw
    assert len({store.episode(i).instruction for i in range(25)}) == 4
    assert np.abs(episode.streams["language_embedding"].values).max() > 0
    source = open_source("rlds", folder, ImportOptions())
    np.testing.assert_array_equal(source.episode(7).streams["image_0"].values, episode.streams["image_0"].values)
