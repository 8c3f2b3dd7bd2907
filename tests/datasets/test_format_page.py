"""datasets/format.md against stores that the code writes: each name in both, and a reader written from the page alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from kineflow.contracts import Goal, Span, Stream
from kineflow.datasets import kept_totals, manifest as manifest_module, quantile_sketch, segment
from kineflow.datasets.annotations import GOAL_KINDS
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord, FileEntry, Manifest, SegmentEntry, TaskRecord
from kineflow.datasets.statistics import ROWS, Totals
from tests.datasets.sample_episodes import sample_episode
from tests.datasets.test_camera_check import GOOD
from tests.datasets.test_contents import EVERYTHING, GOAL

PAGE = (Path(manifest_module.__file__).resolve().parent / "format.md").read_text()
POSE = Goal("pose", np.array([1, 2, 3, 0, 0, 0, 1], np.float32), "map")
GOALS = {
    "end": replace(GOAL, frame="wrist"),
    "film": Goal("video", np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)),
    "at": POSE,
    "there": Goal("point", np.array([1, 2, 3], np.float32), "map"),
}
WORDS = {"instruction": "open", "success": True, "source": "log", "language": "en", "split": "train", "operator": "ana"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Everything the page names: an episode without and one with all fields, a camera with its own clock, JPEG and depth."""
    cameras = {"front": CameraRecord(calibration=GOOD), "wrist": CameraRecord("jpeg:90", lossy=True)}
    made = EpisodeStore.create(tmp_path_factory.mktemp("page") / "s.eps", EVERYTHING, cameras=cameras)
    words: Any = WORDS
    full = replace(sample_episode(1, EVERYTHING), spans=(Span("reach", 1, 2), Span("", 2, 4, "en")), goals=GOALS, seed=3, **words)
    front = full.streams["front"]
    own = {**full.streams, "front": Stream(front.values[:-1], front.stamp_ns[:-1] + 5)}
    with made.writer(2) as writer:
        writer.add(sample_episode(0, EVERYTHING))
        writer.add(replace(full, streams=own))
    return EpisodeStore.open(made.path)


def patterns() -> dict[str, re.Pattern[str]]:
    """The arrays of the second table, as patterns of paths."""
    table = PAGE.split("Inside a segment")[1].split("The optional columns")[0]
    names = [
        name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    names += ["episodes/<stream>_start", "episodes/<stream>_length"]
    found = {}
    for name in names:
        if name != "episodes/<column>":
            found[name] = re.compile(re.sub(r"<\w+>", lambda part: r"\d+" if part[0] in ("<H>", "<W>") else r"\w+", name))
    optional = PAGE.split("The optional columns are")[1].split(".")[0]
    found |= {f"episodes/{name}": re.compile(f"episodes/{name}") for name in re.findall(r"`(\w+)`", optional)}
    return found


def test_arrays_of_a_segment_and_those_of_the_page_are_the_same(store: EpisodeStore) -> None:
    (entry,) = store.manifest.segments
    arrays = {f.path.split("/c/")[0] for f in entry.files if "/c/" in f.path}
    known = patterns()
    assert {a for a in arrays if not any(p.fullmatch(a) for p in known.values())} == set(), "written, but not on the page"
    assert {n for n, p in known.items() if not any(p.fullmatch(a) for a in arrays)} == set(), "on the page, but not written"
    nodes = {f.path for f in entry.files if "/c/" not in f.path}
    assert {n.removesuffix("zarr.json") for n in nodes} - {f"{a}/" for a in arrays} == {
        "",
        "steps/",
        "cameras/",
        "episodes/",
        "goals/",
    }
    assert {p.name for p in store.path.iterdir()} <= {"manifest.json", "segments", "staging", "manifest.lock", "writers.lock"}


def test_types_and_shapes_are_those_of_the_page(store: EpisodeStore) -> None:
    group: Any = zarr.open_group(store.path / "segments" / store.manifest.segments[0].id, mode="r")
    arrays = {path: array for path, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
    rows = re.findall(r"^\| (`(?:steps|cameras|episodes|spans|goals)[^|]*) \| (\w+) \[([^\]]*)\]", PAGE, re.MULTILINE)
    assert len(rows) == 13
    exceptions = {"cameras/front_depth": ("uint16", 3), "episodes/success": ("int8", 1)}
    for names, dtype, dimensions in rows:
        for name in re.findall(r"`(\w+/[^`]+|spans)`", names):
            pattern = patterns().get(name) or re.compile(r"episodes/(task_id|split|seed|\w+_id|success)")
            for path in filter(pattern.fullmatch, arrays):
                if name != "steps/<stream>" or not path.endswith("timestamp"):
                    expected = exceptions.get(path, (dtype, len(dimensions.split(","))))
                    assert (arrays[path].dtype.name, arrays[path].ndim) == expected, path
    assert arrays["episodes/pose_moments"].shape == (2, 37, 3)


def test_fields_of_the_manifest_and_numbers_are_those_of_the_page(store: EpisodeStore) -> None:
    section = PAGE.split("## Manifest")[1].split("## Checksums")[0]
    named = set(re.findall(r"`(\w+)`", section))
    classes = (Manifest, SegmentEntry, FileEntry, CameraRecord, type(GOOD), TaskRecord, Totals)
    fields = {f.name for cls in classes for f in dataclasses.fields(cls)}
    assert fields - named == set()
    assert set(json.loads((store.path / "manifest.json").read_text())) - named == set()
    assert f"specification, version {manifest_module.VERSION}\n" in PAGE
    assert ", ".join(f"{number} {kind}" for number, kind in enumerate(GOAL_KINDS)) in PAGE
    assert f"{', '.join(ROWS)}; then {quantile_sketch.K + 1} kept samples" in PAGE
    assert set(segment.OPTIONAL_COLUMNS) == set(re.findall(r"`(\w+)`", PAGE.split("The optional columns are")[1].split(".")[0]))
    for file in re.findall(r"`(\w+\.py)`", PAGE):
        assert (Path(kept_totals.__file__).resolve().parent / file).exists(), file


def checked(path: Path, listed: dict[str, Any]) -> bytes:
    data = (path / listed["path"]).read_bytes()
    assert (len(data), google_crc32c.value(data)) == (listed["bytes"], listed["crc32c"])
    return data


def test_a_reader_written_from_the_page_agrees(store: EpisodeStore) -> None:
    text = json.loads((store.path / "manifest.json").read_text())
    checksum = text.pop("checksum")
    assert checksum == google_crc32c.value(json.dumps(text, separators=(",", ":")).encode())
    (entry,) = text["segments"]
    folder = store.path / "segments" / entry["id"]
    files = {listed["path"]: checked(folder, listed) for listed in entry["files"]}
    group: Any = zarr.open_group(folder, mode="r")
    assert group.attrs["format"] == "episode-store"
    labels = [*group["episodes"].attrs["labels"], ""]
    column = {name: np.asarray(array) for name, array in group["episodes"].arrays()}
    for row in range(2):
        digest = hashlib.sha256()
        instruction = text["tasks"][str(column["task_id"][row])]["text"] if column["task_id"][row] >= 0 else ""
        success = None if column["success"][row] < 0 else bool(column["success"][row])
        digest.update(repr((instruction, success, labels[column["source_id"][row]], labels[column["clock_id"][row]])).encode())
        for name in sorted([*text["schema"]["features"], "action", *text["schema"]["cameras"]]):
            array = group[f"cameras/{name}" if name in text["schema"]["cameras"] else f"steps/{name}"]
            own = f"{name}_" if f"{name}_start" in column else ""
            first, count = (int(column[f"{own}{what}"][row]) for what in ("start", "length"))
            stamps = np.asarray(group[f"steps/{own}timestamp"])[first : first + count]
            if array.attrs.get("codec") == "jpeg":
                payloads = shard_payloads(files, f"cameras/{name}", first, count)
                assert all(p[:2] == b"\xff\xd8" and p[-6:-4] == b"\xff\xd9" for p in payloads)
                digest.update(repr((name, "encoded", [len(p) for p in payloads])).encode())
                digest.update(stamps.tobytes() + b"".join(payloads))
            else:
                values = np.asarray(array)[first : first + count]
                digest.update(repr((name, values.dtype.name, values.shape)).encode() + stamps.tobytes() + values.tobytes())
        digest.update(annotation_bytes(group, column, labels, text, row))
        assert digest.digest() == column["digest"][row].tobytes()


def shard_payloads(files: dict[str, bytes], path: str, first: int, count: int) -> list[bytes]:
    node = json.loads(files[f"{path}/zarr.json"])
    frames = node["chunk_grid"]["configuration"]["chunk_shape"][0]
    shard = files[f"{path}/c/0/0/0/0"]
    assert struct.unpack("<I", shard[-4:])[0] == google_crc32c.value(shard[-4 - 16 * frames : -4])
    index = np.frombuffer(shard[-4 - 16 * frames : -4], "<u8").reshape(frames, 2).astype(int)
    return [shard[offset : offset + size] for offset, size in index[first : first + count].tolist()]


def annotation_bytes(group: Any, column: dict[str, np.ndarray], labels: list[str], text: dict[str, Any], row: int) -> bytes:
    spans = [
        (labels[what], start, stop, labels[language] or "und")
        for episode, start, stop, what, language in np.asarray(group["spans"]).tolist()
        if episode == row
    ]
    split = {code: name for name, code in text["splits"].items()}.get(int(column["split"][row]), "")
    seed = None if column["seed"][row] < 0 else int(column["seed"][row])
    more = (labels[column["language_id"][row]] or "und", spans, split, seed, labels[column["operator_id"][row]])
    found = b"" if more == ("und", [], "", None, "") else repr(more).encode()
    goals = {}
    for episode, name, kind, frame, height, width, first, count in np.asarray(group["goals/table"]).tolist():
        if episode == row:
            word = ("image", "video", "pose", "point")[kind]
            values = np.asarray(group[f"goals/frames_{height}x{width}" if kind < 2 else f"goals/{word}"])[first : first + count]
            goals[labels[name]] = (word, labels[frame], values if word == "video" else values[0])
    for name, (word, frame_name, value) in sorted(goals.items()):
        found += repr((name, word, frame_name, value.dtype.name, value.shape)).encode() + value.tobytes()
    return found
