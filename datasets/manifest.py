"""`manifest.json`: the one file that says what a store holds; replaced as a whole, never edited.

A reader that has a manifest sees exactly the segments it lists: immutable, each file with its size and crc32c. A writer
prepares everything aside, then swaps the manifest by write-tmp, fsync, rename, under a lock, and only if `generation` is
still the one it started from (compare-and-swap; on S3 the same step is a conditional PUT).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import Interface, to_plain
from kineflow.datasets.statistics import Totals
from kineflow.datasets.store_error import StoreError as StoreError, room_for
from kineflow.datasets.zarr_v3 import crc32c

FORMAT = "episode-store"
VERSION = 2  # 1: no depth, spans, goals, splits, languages, statistics by split; read as version 2 that has none
NAME = "manifest.json"


class StaleGeneration(StoreError):
    """Another writer has committed since this manifest was read."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a segment: path below the segment, size and crc32c of the whole file."""

    path: str
    bytes: int
    crc32c: int


@dataclass(frozen=True)
class SegmentEntry:
    """One immutable folder `segments/<id>/`; `steps` counts rows of the action stream."""

    id: str
    steps: int
    episodes: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Calibration:
    """Pinhole camera, OpenCV axes (x right, y down, z forward); `body_from_camera` is 4 x 4, row major."""

    intrinsics: tuple[tuple[float, ...], ...]  # K, 3 x 3, px
    distortion_model: str
    distortion: tuple[float, ...]
    body_from_camera: tuple[tuple[float, ...], ...]
    convention: str = "opencv"


@dataclass(frozen=True)
class CameraRecord:
    """How the frames of one camera are stored; size and rate are in the schema."""

    codec: str = "auto"  # the policy: "auto", "lossless" ("blosc-lz4hc" in version 1), "jpeg:<quality>" (datasets/codecs.py)
    lossy: bool = False
    calibration: Calibration | None = None


@dataclass(frozen=True)
class TaskRecord:
    """Instruction text and the BCP 47 language its first episode gave ("und": not known); the key is `text_id` of the text."""

    text: str
    language: str = "und"


@dataclass(frozen=True)
class Manifest:
    """Everything but the data. `splits` names the codes of the per-episode column `split` (-1: none given), as `tasks` does.

    `stats` and `split_stats` (by name of the split) are kept while writing, and are those of the segments whose hash
    (`segments_hash`) is `stats_of`: with any other they are not used.
    """

    schema: Interface
    cameras: Mapping[str, CameraRecord]
    clock: str
    provenance: str = ""
    licence: str = ""
    segments: tuple[SegmentEntry, ...] = ()
    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    stats: Mapping[str, Totals] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    split_stats: Mapping[str, Mapping[str, Totals]] = field(default_factory=dict)
    stats_of: str = ""
    generation: int = 0
    format: str = FORMAT
    version: int = VERSION


def read_manifest(store: Path) -> Manifest:
    """The manifest of the store at `store`.

    Raises:
        StoreError: no store there, a newer format version, or a file that is not what was written.
    """
    file = store / NAME
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise StoreError(
            f"{store} is not an episode store: {file} does not exist; give the folder of a store, "
            "or make one with `kineflow data import` or EpisodeStore.create"
        ) from None
    return parse_manifest(text, str(file), str(store))


def parse_manifest(text: bytes, file: str, store: str) -> Manifest:
    """The contents of manifest.json; `file` and `store` are named in the StoreError when they are not as they were written."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{file} is damaged (not JSON: {error}); see `kineflow data doctor {store}`") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise StoreError(f"{file} is not the manifest of an episode store (format is not '{FORMAT}')")
    check_version(data.get("version"), file)
    if not _as_written(text, data):
        raise StoreError(f"{file} is damaged (its checksum does not match its contents); see `kineflow data doctor {store}`")
    try:
        segments = _segments(data.pop("segments", []))
        manifest: Manifest = from_plain(Manifest, data, file)
    except ConfigError as error:
        raise StoreError(f"{error}; see `kineflow data doctor {store}`") from error
    except (TypeError, LookupError) as error:
        raise StoreError(f"{file}: segments: not a list of segments ({error!r}); see `kineflow data doctor {store}`") from error
    return replace(manifest, segments=segments)


def _as_written(text: bytes, data: dict[str, Any]) -> bool:
    """Take the checksum out of `data`; True when it is that of the rest."""
    checksum = data.pop("checksum", None)
    end = b',"checksum":%d}' % checksum if isinstance(checksum, int) else b""
    # As we write it, the checksum is the last entry: its bytes can be left out without writing thousands of files anew.
    rest = text.rstrip().removesuffix(end) + b"}" if end and text.rstrip().endswith(end) else _canonical(data)
    return bool(checksum == crc32c(rest))


def _segments(data: Any) -> tuple[SegmentEntry, ...]:
    """By hand: `from_plain` takes 0.5 s for the 7,000 files of 200 recorded episodes, this a hundredth of it."""
    found = []
    for segment in data:
        files = tuple([FileEntry(f["path"], f["bytes"], f["crc32c"]) for f in segment["files"]])
        found.append(SegmentEntry(segment["id"], segment["steps"], segment["episodes"], files))
    return tuple(found)


def check_version(version: Any, file: Path | str) -> None:
    """Raise StoreError naming both versions when `file` was written by a newer Kineflow."""
    if not isinstance(version, int) or version > VERSION:
        raise StoreError(
            f"{file} has episode-store version {version}, this Kineflow reads up to version {VERSION}; "
            "upgrade with `pip install --upgrade kineflow`"
        )


def segments_hash(segments: Iterable[SegmentEntry]) -> str:
    """SHA-256 over the sorted ids and file checksums: changes when a segment is added, removed or rewritten."""
    lines = sorted(json.dumps([e.id, e.steps, e.episodes, [f.crc32c for f in e.files]]) for e in segments)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def replace_manifest(store: Path, new: Manifest, expected_generation: int) -> Manifest:
    """Swap in `new` as generation `expected_generation + 1`, durably; returns it.

    Raises:
        StaleGeneration: the manifest on disk is not `expected_generation`.
    """
    with _locked(store):
        on_disk = read_manifest(store).generation
        if on_disk != expected_generation:
            raise StaleGeneration(f"{store / NAME} is at generation {on_disk}, not {expected_generation}: read it again")
        new = replace(new, generation=expected_generation + 1, version=VERSION)
        write_manifest(store, new)
        return new


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write-tmp, fsync, rename. Callers other than `EpisodeStore.create` go through `replace_manifest`."""
    text = manifest_bytes(manifest)
    temporary = store / f".{NAME}.{new_ulid()}"
    try:
        with room_for("the manifest", store, len(text)):
            temporary.write_bytes(text)
            sync(temporary)
        os.replace(temporary, store / NAME)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    sync(store)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The contents of manifest.json, checksum last."""
    data = to_plain(manifest) | {"schema": schema_plain(manifest.schema)}
    data["checksum"] = crc32c(_canonical(data))
    return _canonical(data) + b"\n"


def schema_plain(interface: Interface) -> dict[str, Any]:
    """Without goals: those belong to each episode, not to the schema."""
    plain: dict[str, Any] = to_plain(interface)
    del plain["goals"]
    return plain


def new_ulid() -> str:
    """26 characters that sort by creation time: 48 bits of milliseconds, 80 random bits, Crockford base 32."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[value >> shift & 31] for shift in range(125, -1, -5))


def sync(path: Path) -> None:
    """Make the contents of a file, or the names and renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(file: Path) -> Iterator[int]:
    """Descriptor of a lock file of a store, made where it is not there yet.

    An flock, because the kernel drops it when its owner is killed: a stale lock file cannot block a store. At the end it is
    unlocked, not only closed: a process that was forked meanwhile has it open too.

    Raises:
        StoreError: the store has been moved or cannot be written.
    """
    try:
        with room_for("its lock", file.parent):
            lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
    except FileNotFoundError:
        raise StoreError(f"{file.parent} is gone: it was moved or removed since it was opened; open it where it is now") from None
    try:
        yield lock
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    with lock_file(store / "manifest.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
