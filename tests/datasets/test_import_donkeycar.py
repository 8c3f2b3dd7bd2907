"""Donkeycar tubs: pictures byte for byte, deleted records left out, no window across a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions, open_source

INPUTS = {
    "cam/image_array": "image_array",
    "user/angle": "float",
    "user/throttle": "float",
    "user/mode": "str",
    "imu/acl_x": "float",
}


def jpeg(number: int) -> bytes:
    frame = np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)
    return bytes(simplejpeg.encode_jpeg(frame, quality=60 + number))


def write_tub(path: Path, deleted: tuple[int, ...] = (), **changes: dict[str, Any]) -> Path:
    """12 records in two catalogs and two sessions; `r3={...}` changes record 3."""
    (path / "images").mkdir(parents=True)
    lines: list[list[str]] = [[], []]
    for i in range(12):
        record: dict[str, Any] = {"_index": i, "_timestamp_ms": 1_600_000_000_000 + 50 * i, "_session_id": "a" if i < 7 else "b"}
        record |= {"cam/image_array": f"{i}_cam.jpg", "user/angle": -0.1 * i, "user/throttle": 0.05 * i}
        record |= {"user/mode": "user", "imu/acl_x": 2.0 * i} | changes.get(f"r{i}", {})
        (path / "images" / f"{i}_cam.jpg").write_bytes(jpeg(i))
        lines[i >= 5].append(json.dumps(record))
    for number, catalog in enumerate(lines):
        (path / f"catalog_{number}.catalog").write_text("\n".join(catalog) + "\n")
    catalogs = {"paths": ["catalog_0.catalog", "catalog_1.catalog"], "deleted_indexes": list(deleted), "max_len": 1000}
    manifest = [list(INPUTS), list(INPUTS.values()), {}, {"created_at": 1.0}, catalogs]
    (path / "manifest.json").write_text("\n".join(json.dumps(line) for line in manifest))
    return path


def test_a_tub_comes_whole(tmp_path: Path) -> None:
    report = import_data("donkeycar-tub", write_tub(tmp_path / "tub", r8={"user/mode": "local"}), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [7, 5]  # two sessions
    assert store.jpegs(0, "image_array") == [jpeg(i) for i in range(7)]
    assert store.jpegs(1, "image_array") == [jpeg(i) for i in range(7, 12)]
    second = store.episode(1)
    np.testing.assert_array_equal(second.streams["image_array"].values[0], simplejpeg.decode_jpeg(jpeg(7)))
    np.testing.assert_allclose(second.streams["action"].values[0], [-0.7, 0.35], rtol=1e-6)
    np.testing.assert_array_equal(second.streams["imu_acl_x"].values[:, 0], 2.0 * np.arange(7, 12))
    assert second.streams["action"].stamp_ns[0] == (1_600_000_000_000 + 350) * 1_000_000
    assert (store.interface.action.rate_hz, store.interface.action.vector.low, report.clock) == (20.0, (-1.0, -1.0), "sensor")
    assert report.not_carried["what the pilot did"].startswith("1 records")
    assert "user/mode" in str(report.not_carried)
    assert "float32" in report.carried["values"]


def test_deleted_records_are_left_out_and_cut_the_episode(tmp_path: Path) -> None:
    report = import_data("donkeycar-tub", write_tub(tmp_path / "tub", deleted=(0, 3, 4)), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    assert store.lengths.tolist() == [2, 2, 5]
    assert [store.episode(i).source for i in range(3)] == ["tub records 1-2", "tub records 5-6", "tub records 7-11"]
    assert report.not_carried["deleted records"] == "3 records that the manifest marks as deleted"


def test_repeated_stamps_are_dropped_and_do_not_join_what_was_cut(tmp_path: Path) -> None:
    tub = write_tub(
        tmp_path / "tub", deleted=(3,), r4={"_timestamp_ms": 1_600_000_000_100}, r9={"_timestamp_ms": 1_600_000_000_400}
    )
    source = open_source("donkeycar-tub", tub, ImportOptions())
    assert source.facts.not_carried["repeated stamps"].startswith("2 records")
    assert [len(source.episode(i).streams["action"].values) for i in range(len(source))] == [3, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r2": {"cam/image_array": "lost.jpg"}}, r"record 2: .*lost.jpg is not there"),
        ({"r2": {"user/angle": None}}, r"record 2: \('user/angle', 'user/throttle'\) are \[None, 0.1\], not numbers"),
        ({"r2": {"_timestamp_ms": "soon"}}, r"catalog_0.catalog, line 3: not a record \(ValueError"),
    ],
)
def test_records_that_cannot_be_read_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tub = write_tub(tmp_path / "tub", **changes)
    with pytest.raises(KineflowError, match=message):
        open_source("donkeycar-tub", tub, ImportOptions()).episode(0)


def test_pictures_cannot_lead_out_of_the_tub(tmp_path: Path) -> None:
    tub = write_tub(tmp_path / "tub", r2={"cam/image_array": "../secret.jpg"})
    (tmp_path / "tub" / "secret.jpg").write_bytes(jpeg(1))
    with pytest.raises(KineflowError, match=r"images/secret.jpg is not there"):
        open_source("donkeycar-tub", tub, ImportOptions()).episode(0)


def test_damaged_tubs_are_refused(tmp_path: Path) -> None:
    tub = write_tub(tmp_path / "tub")
    (tub / "images" / "3_cam.jpg").write_bytes(jpeg(3)[:80])
    with pytest.raises(KineflowError, match=r"record 3, 3_cam.jpg: the picture cannot be decoded"):
        open_source("donkeycar-tub", tub, ImportOptions()).episode(0)
    with open(tub / "catalog_1.catalog", "a") as file:
        file.write('{"_index": 12, "_time')
    with pytest.raises(KineflowError, match=r"catalog_1.catalog, line 8: .*a torn last line may be removed"):
        open_source("donkeycar-tub", tub, ImportOptions())
    (tub / "catalog_1.catalog").unlink()
    with pytest.raises(KineflowError, match=r"catalog_1.catalog is not there, but manifest.json names it"):
        open_source("donkeycar-tub", tub, ImportOptions())
    (tub / "manifest.json").write_text("[]")
    with pytest.raises(KineflowError, match=r"not a Donkeycar tub of version 2"):
        open_source("donkeycar-tub", tub, ImportOptions())
