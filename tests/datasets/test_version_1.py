"""A store that format version 1 wrote (the code before spans, goals and depth) is read as it was, and goes on as version 2.

`version_1.tar.xz` was written by commit 741046a: sample_episodes 0 to 4 in two segments, a calibrated camera.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kineflow.datasets.doctor import check_store, inspect_store
from kineflow.datasets.episode_store import EpisodeStore
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

FINGERPRINT = "0fdb786547955de697d11ad5fc53bd29430981bafd5d6c79f04701596a3453b1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("version_1.tar.xz")) as archive:
        archive.extractall(tmp_path / "s.eps", filter="data")
    assert json.loads((tmp_path / "s.eps" / "manifest.json").read_text())["version"] == 1
    return tmp_path / "s.eps"


def test_every_episode_and_the_fingerprint_are_those_of_version_1(path: Path) -> None:
    store = EpisodeStore.open(path)
    assert store.interface == INTERFACE
    for number in range(5):
        assert_equal_episodes(store.episode(number), sample_episode(number))
    assert store.fingerprint() == FINGERPRINT
    assert check_store(path) == []
    assert inspect_store(path).version == 1


def test_statistics_are_those_of_the_samples(path: Path) -> None:
    found = EpisodeStore.open(path).statistics()["pose"]
    samples = np.concatenate([sample_episode(n).streams["pose"].values for n in range(5)]).astype(np.float64)
    np.testing.assert_allclose(found.std, samples.std(0), rtol=1e-12)
    np.testing.assert_allclose([found.q01, found.q99], np.quantile(samples, [0.01, 0.99], axis=0), rtol=1e-12)


def test_recording_goes_on_as_version_2(path: Path) -> None:
    store = EpisodeStore.open(path)
    with store.writer() as writer:
        writer.add(sample_episode(5))
    reopened = EpisodeStore.open(path)
    assert reopened.manifest.version == 2
    for number in range(6):
        assert_equal_episodes(reopened.episode(number), sample_episode(number))
    assert check_store(path) == []
