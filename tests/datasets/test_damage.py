"""A damaged store: whatever file is cut, flipped, deleted or swapped, somebody says which one. Nothing reads as zeros."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.contracts import CameraSpec, Goal, KineflowError, Span, Stream
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import VERSION, CameraRecord, StoreError, read_manifest, write_manifest
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

EPISODES = 4


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    return quick_path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = EpisodeStore.create(tmp_path_factory.mktemp("sound") / "s.eps", INTERFACE)
    with store.writer(2) as writer:
        for number in range(EPISODES):
            writer.add(sample_episode(number))
    return store.path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.eps"))


def files(store: Path) -> list[Path]:
    return sorted(p for p in store.rglob("*") if p.is_file() and p.suffix != ".lock")


def read_all(store: Path) -> None:
    """Everything a training run may read; equal to what was written or an error."""
    opened = EpisodeStore.open(store)
    assert opened.num_episodes == EPISODES
    for number in range(EPISODES):
        assert_equal_episodes(opened.episode(number), sample_episode(number))
    opened.fingerprint()
    opened.statistics()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: random.Random(file.name).randrange(file.stat().st_size)])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def delete(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, grow, zero, delete])
def test_any_file_that_is_cut_grown_zeroed_or_deleted_is_named(store: Path, damage: Callable[[Path], None]) -> None:
    segment = max((store / "segments").iterdir())
    for file in [store / "manifest.json", *(f for f in files(segment))]:
        original = file.read_bytes()
        damage(file)
        findings = [f for f in check_store(store) if f.severity == "error"]
        assert any(str(file) in f.where + f.problem for f in findings), (file, findings)
        if damage is not zero:
            with pytest.raises(StoreError) as caught:
                EpisodeStore.open(store)
            assert str(file) in str(caught.value)
            assert "kineflow data" in str(caught.value)
        file.write_bytes(original)
    assert check_store(store) == []


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of everything one can hold: JPEG and depth cameras, own clocks, goals, spans, splits."""
    interface = replace(INTERFACE, cameras={**INTERFACE.cameras, "range": CameraSpec(6, 8, 10.0, "depth")})
    records = {"front": CameraRecord("jpeg:90")}
    store = EpisodeStore.create(tmp_path_factory.mktemp("everything") / "s.eps", interface, cameras=records)
    with store.writer(2) as writer:
        for number in range(3):
            given = sample_episode(number)
            stamps = given.streams["action"].stamp_ns
            depth = np.random.default_rng(number).integers(0, 2**16, (len(stamps), 6, 8), np.uint16)
            streams = {**given.streams, "range": Stream(depth, stamps + 1)}
            goals = {
                "end": Goal("image", np.full((2, 2, 3), number, np.uint8)),
                "door": Goal("point", np.ones(3, np.float32), "odom"),
            }
            spans = (Span("reach", int(stamps[0]), int(stamps[1])),)
            facts = {"split": "train", "seed": number, "operator": "ada", "language": "en"}
            writer.add(replace(given, streams=streams, goals=goals, spans=spans, **facts))
    return store.path


def read_values(store: Path) -> list[Any]:
    """Everything of every episode, to be compared with `==`."""
    opened = EpisodeStore.open(store)
    result: list[Any] = [opened.fingerprint(), opened.statistics()]
    for number in range(opened.num_episodes):
        found = opened.episode(number)
        arrays = {name: (s.values.tobytes(), s.stamp_ns.tobytes()) for name, s in found.streams.items()}
        goals = {name: (g.kind, g.frame, g.value.tobytes()) for name, g in found.goals.items()}
        result.append((arrays, goals, repr(replace(found, streams={}, goals={}))))
    return result


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_bit_flips_truncations_and_deletions_are_all_detected_and_located(
    everything: Path, tmp_path: Path, count: int
) -> None:
    store = Path(shutil.copytree(everything, tmp_path / "s.eps"))
    before, rng, every = read_values(store), random.Random(count), files(store)
    refused = 0
    for number in range(count):
        file = rng.choice(every)
        original = file.read_bytes()
        if number % 3 == 0:
            file.unlink()
        elif number % 3 == 1:
            file.write_bytes(original[: rng.randrange(len(original))])
        else:
            bit = rng.randrange(8 * len(original))
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
        errors = [f for f in check_store(store) if f.severity == "error"]
        assert any(str(file) in f.where + f.problem for f in errors), (number, file)
        try:
            assert read_values(store) == before, (number, file)  # right, or refused
        except StoreError as error:
            refused += "kineflow data" in str(error)
        file.write_bytes(original)
    assert check_store(store) == []
    assert refused > 0.8 * count, "too few damaged files are read: the test proves little"


def test_reading_never_returns_other_values_than_were_written(store: Path) -> None:
    rng = random.Random(1)
    every = [f for f in files(store) if f.name != "zarr.json"]
    refused = 0
    for _ in range(40):
        file = rng.choice(every)
        original = file.read_bytes()
        bit = rng.randrange(8 * len(original))
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            read_all(store)  # a column that nobody reads (t0_ns) may be damaged; what is returned must be right
        except StoreError as error:
            refused += "kineflow data doctor" in str(error)
        finally:
            file.write_bytes(original)
    assert refused > 25


def test_a_shard_swapped_for_a_valid_one_of_another_camera_frame_is_found(store: Path) -> None:
    first, second = sorted(store.glob("segments/*/cameras/front/c/0/0/0/0"))
    first.write_bytes(second.read_bytes())
    assert [f for f in check_store(store) if f.severity == "error" and f.where == str(first)]


def test_deleted_shard_is_an_error_on_an_open_store(store: Path) -> None:
    opened = EpisodeStore.open(store)
    for shard in store.glob("segments/*/cameras/front/c/0/0/0/0"):
        shard.unlink()
    with pytest.raises(StoreError, match=r"cameras/front/c/0/0/0/0: the file is missing.*kineflow data doctor"):
        opened.episode(0)


def test_an_older_manifest_shows_the_older_store(store: Path) -> None:
    before = (store / "manifest.json").read_bytes()
    with EpisodeStore.open(store).writer() as writer:
        writer.add(sample_episode(EPISODES))
    (store / "manifest.json").write_bytes(before)
    read_all(store)
    (finding,) = check_store(store)
    assert finding.severity == "warning"
    assert "does not list it" in finding.problem


def test_a_manifest_that_lists_a_lost_segment_names_it(store: Path) -> None:
    lost = sorted((store / "segments").iterdir())[-1]
    shutil.rmtree(lost)
    with pytest.raises(StoreError, match=f"{lost.name}.*missing"):
        EpisodeStore.open(store)


def test_a_newer_store_names_both_versions_and_the_remedy(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["version"], manifest["brand_new_key"] = VERSION + 1, 1
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        StoreError, match=rf"version {VERSION + 1}, this Kineflow reads up to version {VERSION}; upgrade"
    ) as caught:
        EpisodeStore.open(store)
    assert isinstance(caught.value, KineflowError)
    (finding,) = check_store(store)
    assert "upgrade" in finding.problem


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "episode-store", "version": "one"}'])
def test_files_that_are_no_manifest_are_refused(store: Path, text: str) -> None:
    (store / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        EpisodeStore.open(store)


def test_a_hand_edited_manifest_is_refused(store: Path) -> None:
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text(text.replace('"clock":"sensor"', '"clock":"sundial"'))
    with pytest.raises(StoreError, match="checksum does not match"):
        EpisodeStore.open(store)


def test_no_damaged_chunk_reads_as_zeros(store: Path) -> None:
    for chunk in store.glob("segments/*/steps/pose/c/0/0"):
        zero(chunk)
    with pytest.raises(StoreError, match="steps/pose/c/0/0"):
        EpisodeStore.open(store).low_dim("pose")


def test_changed_metadata_of_the_same_size_is_not_believed(store: Path) -> None:
    # No checksum of its own protects zarr.json: only the manifest's does.
    node = min(store.glob("segments/*/steps/pose/zarr.json"))
    text = node.read_text()
    rows = json.loads(text)["shape"][0]
    node.write_text(text.replace(str(rows), str(rows - 1)))
    assert node.stat().st_size == len(text)
    with pytest.raises(StoreError, match=r"steps/pose/zarr\.json: .*crc32c differs"):
        EpisodeStore.open(store).low_dim("pose")


def test_a_manifest_field_of_the_wrong_type_names_its_path(store: Path) -> None:
    manifest = read_manifest(store)
    object.__setattr__(manifest, "clock", 3)
    write_manifest(store, manifest)
    with pytest.raises(StoreError, match=r"manifest\.json: clock: expected str"):
        EpisodeStore.open(store)
    assert np.isfinite(manifest.generation)
