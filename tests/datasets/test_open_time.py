"""A recorded store, one segment an episode, opens at once: 200 episodes in less than 100 ms, every file checked for its size."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError, new_ulid, read_manifest, segments_hash, write_manifest
from tests.datasets.sample_episodes import INTERFACE, sample_episode

EPISODES = 200
PROMISED_S = 0.1
SLOWER = 3  # machines that are busy or older than ours, where it takes 0.05 s of processor time


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recorded segment under 200 names: the files of 200 commits without their 7,000 syncs."""
    store = EpisodeStore.create(tmp_path_factory.mktemp("open") / "s.eps", INTERFACE)
    with store.writer() as writer:
        writer.add(sample_episode(1))
    (segment,) = store.manifest.segments
    names = [segment.id, *(new_ulid() for _ in range(EPISODES - 1))]
    for name in names[1:]:
        shutil.copytree(store.path / "segments" / segment.id, store.path / "segments" / name, copy_function=os.link)
    write_manifest(store.path, replace(store.manifest, segments=tuple(replace(segment, id=name) for name in names)))
    return store.path


def test_a_store_of_200_episodes_opens_in_100_ms(recorded: Path) -> None:
    taken = []
    gc.collect()
    for _ in range(5):
        began = time.process_time()
        store = EpisodeStore.open(recorded)
        taken.append(time.process_time() - began)
    assert store.num_episodes == EPISODES
    assert min(taken) < SLOWER * PROMISED_S, f"opening took {min(taken):.3f} s of processor time at best"


def test_one_short_file_among_7000_is_found(recorded: Path) -> None:
    file = max((recorded / "segments").iterdir()) / "steps" / "pose" / "c" / "0" / "0"
    data = file.read_bytes()
    file.unlink()  # the other names of this file keep their contents
    file.write_bytes(data[:-1])
    with pytest.raises(StoreError, match=f"{file}: the file has {len(data) - 1} bytes instead of {len(data)}"):
        EpisodeStore.open(recorded)
    file.write_bytes(data)


def test_a_manifest_in_another_spelling_is_the_same_manifest(recorded: Path, tmp_path: Path) -> None:
    text = (recorded / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(text), indent=1))
    assert read_manifest(tmp_path) == read_manifest(recorded)
    data = json.loads(text)
    data["segments"][0]["steps"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(data, separators=(",", ":")))
    with pytest.raises(StoreError, match="checksum does not match"):
        read_manifest(tmp_path)


def test_segments_that_are_none_are_refused(recorded: Path, tmp_path: Path) -> None:
    manifest = read_manifest(recorded)
    for broken in (3, [3], [{"id": "x"}]):
        object.__setattr__(manifest, "segments", broken)
        write_manifest(tmp_path, manifest)
        with pytest.raises(StoreError, match=r"manifest\.json: segments: not a list of segments"):
            read_manifest(tmp_path)


def test_the_hash_of_segments_knows_no_order_but_every_segment(recorded: Path) -> None:
    segments = read_manifest(recorded).segments
    assert segments_hash(reversed(segments)) == segments_hash(segments)
    others = [segments[1:], (*segments, segments[0]), (replace(segments[0], id=new_ulid()), *segments[1:])]
    file = replace(segments[0].files[0], crc32c=segments[0].files[0].crc32c ^ 1)
    others.append((replace(segments[0], files=(file, *segments[0].files[1:])), *segments[1:]))
    assert len({segments_hash(other) for other in (segments, *others)}) == 5
