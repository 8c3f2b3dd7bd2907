"""Versions in an Icechunk repository: what is taken out is what was put in, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr

from kineflow.cli import main
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.remote.versions import load_version, save_version, versions
from kineflow.datasets.store_error import StoreError
from kineflow.datasets.upkeep import delete
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    with store.writer() as writer:
        for number in range(3):
            writer.add(sample_episode(number))
    return store


def test_each_version_comes_back(store: EpisodeStore, tmp_path: Path) -> None:
    repository = str(tmp_path / "repo")
    first, before = save_version(store, repository, "three episodes"), store.fingerprint()
    delete(store.path, [1])
    store = EpisodeStore.open(store.path)
    with store.writer() as writer:
        writer.add(sample_episode(5))
    second = save_version(store, repository, "one less, one more")
    assert [(v.id, v.message) for v in versions(repository)] == [(second, "one less, one more"), (first, "three episodes")]
    newest = load_version(repository, tmp_path / "new.eps")
    assert newest.fingerprint() == store.fingerprint()
    assert_equal_episodes(newest.episode(2), sample_episode(5))
    old = load_version(repository, tmp_path / "old.eps", first)
    assert old.fingerprint() == before != newest.fingerprint()
    assert check_store(old.path) == check_store(newest.path) == []


def test_zarr_reads_the_repository_itself(store: EpisodeStore, tmp_path: Path) -> None:
    save_version(store, str(tmp_path / "repo"), "all")
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    root = zarr.open_group(repo.readonly_session("main").store, mode="r")
    for number, entry in enumerate(store.manifest.segments):
        frames = root[f"segments/{entry.id}/cameras/front"]
        np.testing.assert_array_equal(np.asarray(frames[:]), sample_episode(number).streams["front"].values)


def test_refusals(store: EpisodeStore, tmp_path: Path) -> None:
    repository = str(tmp_path / "repo")
    with pytest.raises(StoreError, match="is no Icechunk repository"):
        versions(repository)
    save_version(store, repository, "all")
    with pytest.raises(StoreError, match="exists already"):
        load_version(repository, store.path)
    with pytest.raises(StoreError, match="has no version 'ZZZ'"):
        load_version(repository, tmp_path / "x.eps", "ZZZ")
    with pytest.raises(StoreError, match="in a folder or at s3"):
        save_version(store, "ftp://host/repo", "no")
    entry = store.manifest.segments[0]
    shard = next(f for f in entry.files if f.path.startswith("cameras/front/c"))
    damaged = bytearray((store.path / "segments" / entry.id / shard.path).read_bytes())
    damaged[5] ^= 1
    session = icechunk.Repository.open(icechunk.local_filesystem_storage(repository)).writable_session("main")
    zarr.core.sync.sync(
        session.store.set(f"segments/{entry.id}/{shard.path}", zarr.core.buffer.cpu.Buffer.from_bytes(bytes(damaged)))
    )
    session.commit("damage")
    with pytest.raises(StoreError, match=f"{shard.path} is missing or not what was committed"):
        load_version(repository, tmp_path / "x.eps")
    assert not (tmp_path / "x.eps").exists()


def test_on_the_command_line(store: EpisodeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = str(tmp_path / "repo")
    assert main(["data", "version", str(store.path), repository, "--message", "before the demo", "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert main(["data", "versions", repository, "--json"]) == 0
    assert [v["id"] for v in json.loads(capsys.readouterr().out)] == [saved["version"]]
    assert main(["data", "checkout", repository, str(tmp_path / "c.eps"), "--version", saved["version"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == store.fingerprint()
    assert main(["data", "checkout", repository, str(tmp_path / "d.eps"), "--version", "nope"]) == 2
