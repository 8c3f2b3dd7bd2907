"""Stores at a URL: a real S3 server (SeaweedFS) and plain HTTP; commits that collide, damage on the server, a full cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import NAME, StaleGeneration, StoreError
from kineflow.datasets.remote.frames import RemoteFrameReader
from kineflow.datasets.remote.objects import Missing, Objects
from kineflow.datasets.remote.store import RemoteStore, push
from kineflow.datasets.upkeep import compact
from tests.datasets.object_servers import BUCKET, http_server, s3_server
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

Served = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as options:
        yield options


def local_store(path: Path, episodes: int = 3, first: int = 0) -> EpisodeStore:
    store = EpisodeStore.create(path, INTERFACE)
    with store.writer() as writer:
        for number in range(first, first + episodes):
            writer.add(sample_episode(number))
    return store


@pytest.fixture
def remote(server: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> RemoteStore:
    url = f"s3://{BUCKET}/{request.node.name}"
    push(local_store(tmp_path / "local.eps"), url, **server)
    return RemoteStore.open(url, tmp_path / "cache", **server)


def again(store: RemoteStore, server: dict[str, Any], cache: Path, **more: Any) -> RemoteStore:
    return RemoteStore.open(store.objects.url, cache, **more, **server)


def test_a_pushed_store_is_the_local_one(remote: RemoteStore, tmp_path: Path) -> None:
    local = EpisodeStore.open(tmp_path / "local.eps")
    assert remote.fingerprint() == local.fingerprint()
    for number in range(3):
        assert_equal_episodes(remote.episode(number), sample_episode(number))
    np.testing.assert_array_equal(remote.low_dim("pose"), local.low_dim("pose"))
    assert remote.statistics() == local.statistics()


def test_only_what_is_asked_for_is_fetched_and_only_once(remote: RemoteStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert not [p for p in folder.rglob("*") if p.is_file()]
    remote.low_dim("pose")
    held = sorted(p.name for p in folder.rglob("*") if p.is_file())
    assert held
    assert not list(folder.rglob("cameras/front/c"))
    before = {p: p.stat().st_ino for p in folder.rglob("*") if p.is_file()}
    remote.low_dim("pose")
    assert {p: p.stat().st_ino for p in folder.rglob("*") if p.is_file()} == before
    remote.prefetch(shards=True)
    listed = sum(len(e.files) for e in remote.manifest.segments)
    assert len([p for p in folder.rglob("*") if p.is_file()]) == listed


def test_two_writers_lose_nothing(remote: RemoteStore, server: dict[str, Any], tmp_path: Path) -> None:
    other = again(remote, server, tmp_path / "other")
    with other.writer() as writer:
        writer.add(sample_episode(3))
    with remote.writer() as writer:  # its manifest is stale now: the server refuses it, and it looks again
        writer.add(sample_episode(4))
    assert remote.num_episodes == 5
    other.reload()
    assert other.num_episodes == 5
    for number in range(5):
        assert_equal_episodes(other.episode(number), sample_episode(number))
    assert other.manifest.generation == remote.manifest.generation
    assert other.statistics()["pose"].count == sum(len(sample_episode(n).streams["pose"].values) for n in range(5))


def test_the_server_compares_and_swaps(remote: RemoteStore) -> None:
    data, tag = remote.objects.get_tagged(NAME)
    remote.objects.put_if("twice", b"1", None)
    with pytest.raises(StaleGeneration, match="written by somebody else"):
        remote.objects.put_if("twice", b"2", None)
    remote.objects.put_if(NAME, data + b" ", tag)
    with pytest.raises(StaleGeneration):
        remote.objects.put_if(NAME, data, tag)


def test_a_writer_that_stops_before_the_manifest_leaves_the_store_as_it_was(
    remote: RemoteStore, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Objects, path: str, data: bytes, tag: str | None) -> None:
        raise KeyboardInterrupt

    writer, put_if = remote.writer(), Objects.put_if
    monkeypatch.setattr(Objects, "put_if", stop)
    with pytest.raises(KeyboardInterrupt):
        writer.add(sample_episode(7))
    monkeypatch.setattr(Objects, "put_if", put_if)
    seen = again(remote, server, tmp_path / "other")
    assert (seen.num_episodes, seen.manifest.generation) == (3, remote.manifest.generation)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    remote: RemoteStore, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server wrote the manifest, the answer got lost, and the client's retry finds the tag changed - by itself."""
    real = Objects.put_if

    def answer_lost(self: Objects, path: str, data: bytes, tag: str | None) -> None:
        monkeypatch.setattr(Objects, "put_if", real)
        real(self, path, data, tag)
        real(self, path, data, tag)

    monkeypatch.setattr(Objects, "put_if", answer_lost)
    with remote.writer() as writer:
        writer.add(sample_episode(3))
    seen = again(remote, server, tmp_path / "other")
    assert (remote.num_episodes, seen.num_episodes) == (4, 4)
    assert_equal_episodes(seen.episode(3), sample_episode(3))
    monkeypatch.setattr(Objects, "put_if", answer_lost)
    assert push(local_store(tmp_path / "second.eps"), f"{remote.objects.url}-second", **server).num_episodes == 3


def test_pushing_while_somebody_else_does_is_refused(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, real = f"s3://{BUCKET}/two-pushes", Objects.put_if

    def overtaken(self: Objects, path: str, data: bytes, tag: str | None) -> None:
        monkeypatch.setattr(Objects, "put_if", real)
        push(local_store(tmp_path / "first.eps"), url, **server)
        real(self, path, data, tag)

    monkeypatch.setattr(Objects, "put_if", overtaken)
    with pytest.raises(StoreError, match=r"written by somebody else meanwhile; .* push again"):
        push(local_store(tmp_path / "second.eps", first=7), url, **server)
    assert_equal_episodes(RemoteStore.open(url, tmp_path / "cache", **server).episode(0), sample_episode(0))


def test_damage_on_the_server_is_an_error_that_names_the_object(remote: RemoteStore) -> None:
    segment = remote.manifest.segments[1]
    shard = next(f for f in segment.files if "cameras/front/c" in f.path)
    path = f"segments/{segment.id}/{shard.path}"
    whole = remote.objects.get(path)
    for bad in (whole[:-1], whole[:10] + bytes([whole[10] ^ 4]) + whole[11:]):
        remote.objects.put(path, bad)
        with pytest.raises(StoreError, match=f"{shard.path} is not what was committed"):
            remote.episode(1)
    reader_error = "bytes do not match their crc32c"
    with pytest.raises(StoreError, match=reader_error):
        RemoteFrameReader(remote, "front").read(np.arange(len(remote.stamps("front"))))
    assert_equal_episodes(remote.episode(0), sample_episode(0))


def test_frames_come_by_ranges(remote: RemoteStore, tmp_path: Path) -> None:
    expected = np.concatenate([sample_episode(n).streams["front"].values for n in range(3)])
    reader = RemoteFrameReader(remote, "front")
    rows = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(reader.read(rows), expected[rows])
    assert not list((tmp_path / "cache").rglob("cameras/front/c"))  # no shard was fetched for it
    remote.prefetch(shards=True)
    np.testing.assert_array_equal(RemoteFrameReader(remote, "front").read(rows[:5]), expected[rows[:5]])
    assert reader.read(np.zeros(0, np.int64)).shape == (0, 6, 8, 3)
    with pytest.raises(IndexError):
        reader.read(np.array([len(expected)]))
    with pytest.raises(StoreError, match="no camera 'wrist'"):
        RemoteFrameReader(remote, "wrist")


def test_the_cache_keeps_its_limit(remote: RemoteStore, server: dict[str, Any], tmp_path: Path) -> None:
    largest = max(f.bytes for e in remote.manifest.segments for f in e.files)
    limit = 3 * largest
    small = again(remote, server, tmp_path / "small", limit_bytes=limit)
    for number in (0, 1, 2, 0, 2, 1):
        assert_equal_episodes(small.episode(number), sample_episode(number))
        held = sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file())
        assert held <= limit
    tiny = again(remote, server, tmp_path / "tiny", limit_bytes=largest - 1)
    with pytest.raises(StoreError, match="raise limit_bytes"):
        tiny.prefetch(shards=True)


def test_over_http_neighbours_are_one_request(tmp_path: Path) -> None:
    local = local_store(tmp_path / "local.eps", 4)
    compact(local.path)
    with http_server(tmp_path / "local.eps") as (url, asked):
        store = RemoteStore.open(url, tmp_path / "cache")
        expected = np.concatenate([sample_episode(n).streams["front"].values for n in range(4)])
        reader = RemoteFrameReader(store, "front")
        asked.clear()
        np.testing.assert_array_equal(reader.read(np.arange(len(expected))), expected)
        assert len(asked) == 1
        assert asked[0][1].startswith("bytes=0-")
        asked.clear()
        np.testing.assert_array_equal(reader.read(np.arange(0, len(expected), 3)), expected[::3])
        assert len(asked) == 1  # the bytes between cost less than more requests
        assert_equal_episodes(store.episode(2), sample_episode(2))
        with pytest.raises(StoreError, match="can only be read"), store.writer() as writer:
            writer.add(sample_episode(9))


def test_nothing_there_and_nobody_there(server: dict[str, Any], tmp_path: Path, remote: RemoteStore) -> None:
    with pytest.raises(Missing, match=f"s3://{BUCKET}/nowhere/manifest.json does not exist"):
        RemoteStore.open(f"s3://{BUCKET}/nowhere", tmp_path, **server)
    with pytest.raises(StoreError, match="check address, credentials"):
        RemoteStore.open(f"s3://{BUCKET}/x", tmp_path, **{**server, "secret_access_key": "wrong"})
    with pytest.raises(StoreError, match=r"cannot be opened \([^\n]*\); give s3://"):
        RemoteStore.open("ftp://host/x", tmp_path)
    with pytest.raises(StoreError, match="holds another store"):
        push(local_store(tmp_path / "other.eps", 1, first=8), remote.objects.url, **server)
    with pytest.raises(StoreError, match="holds a store already"):
        RemoteStore.create(remote.objects.url, INTERFACE, remote, **server)


def test_pushing_again_sends_only_what_is_new(remote: RemoteStore, server: dict[str, Any], tmp_path: Path) -> None:
    local = EpisodeStore.open(tmp_path / "local.eps")
    with local.writer() as writer:
        writer.add(sample_episode(5))
    sent: list[tuple[int, int]] = []
    push(local, remote.objects.url, lambda done, total: sent.append((done, total)), **server)
    assert sent == [(1, 1)]
    remote.reload()
    assert_equal_episodes(remote.episode(3), sample_episode(5))


def test_push_and_pull_on_the_command_line(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local, url = local_store(tmp_path / "local.eps"), f"s3://{BUCKET}/by-hand"
    for name, key in {"ENDPOINT": "endpoint", "ACCESS_KEY_ID": "access_key_id", "SECRET_ACCESS_KEY": "secret_access_key"}.items():
        monkeypatch.setenv(f"AWS_{name}", server[key])
    monkeypatch.setenv("AWS_REGION", server["region"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["data", "push", str(local.path), url, "--json"]) == 0
    assert main(["data", "pull", url, str(tmp_path / "copy.eps"), "--json"]) == 0
    assert capsys.readouterr().out.count(local.fingerprint()) == 2
    assert check_store(tmp_path / "copy.eps") == []
    assert main(["data", "pull", url, str(tmp_path / "copy.eps")]) == 2
    assert main(["data", "pull", f"s3://{BUCKET}/none", str(tmp_path / "none.eps")]) == 2
    assert not (tmp_path / "none.eps").exists()
