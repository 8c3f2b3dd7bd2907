"""Whether every byte of a store is still what was written, and its statistics are those of its values. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from kineflow.contracts import Interface, Stream
from kineflow.datasets.doctor_checks.finding import Finding
from kineflow.datasets.kept_totals import recounted
from kineflow.datasets.manifest import NAME, Manifest, SegmentEntry, StoreError, read_manifest, segments_hash
from kineflow.datasets.quantile_sketch import sketch
from kineflow.datasets.segment import ACTION, Segment, episode_digest, schema_hash, vector_streams
from kineflow.datasets.statistics import ROWS, Totals, join, measure, totals
from kineflow.datasets.zarr_v3 import crc32c

RESTORE = "restore it from a copy, or import or record these episodes again"
REVIEW = "correct the limits in the schema, or the data"
_TOLERANCE = 1e-9


def check_integrity(path: Path, verify: bool = True, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Every problem of the store at `path`, worst first: files, checksums, contents, statistics; [] when it is sound.

    Without `verify` the files of frames are looked at for their size only, and the digests of episodes are not computed.
    `progress(done, total)` counts segments.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except StoreError as error:
        return [Finding("error", NAME, str(error), "restore manifest.json from a copy, or upgrade when its version is newer")]
    findings = [*_orphans(path, manifest), *_totals(path, manifest)]
    for number, entry in enumerate(manifest.segments):
        damaged = list(_files(path, entry, verify))
        first = sum(e.episodes for e in manifest.segments[:number])
        findings += damaged or _contents(path, manifest, entry, first, verify)
        if progress is not None:
            progress(number + 1, len(manifest.segments))
    return sorted(findings, key=lambda finding: finding.severity)


def _orphans(store: Path, manifest: Manifest) -> Iterator[Finding]:
    listed = {entry.id for entry in manifest.segments}
    for folder in sorted((store / "segments").glob("*")):
        if folder.name not in listed:
            yield Finding(
                "warning",
                str(folder),
                "the manifest does not list it: it was replaced, or a writer was stopped before its commit",
                f"run `kineflow data gc {store}`",
            )
    for left in sorted([*(store / "staging").glob("*"), *store.glob(f".{NAME}.*")]):
        problem, verb = "left by a writer that was stopped, never read", "gc"
        if left.suffix == ".journal":
            problem, verb = "a recording that was not finished, or is going on", "repair"
        yield Finding("warning", str(left), problem, f"run `kineflow data {verb} {store}`")


def _files(store: Path, entry: SegmentEntry, verify: bool) -> Iterator[Finding]:
    folder = store / "segments" / entry.id
    for file in entry.files:
        frames = file.path.startswith("cameras/") and not file.path.endswith("zarr.json")
        try:
            if frames and not verify:
                size, data = (folder / file.path).stat().st_size, None
            else:
                data = (folder / file.path).read_bytes()
                size = len(data)
        except OSError as error:
            yield Finding("error", str(folder / file.path), f"cannot be read ({error.strerror})", RESTORE)
            continue
        if size != file.bytes:
            yield Finding("error", str(folder / file.path), f"{size} bytes instead of {file.bytes}", RESTORE)
        elif data is not None and crc32c(data) != file.crc32c:
            yield Finding("error", str(folder / file.path), "its crc32c is not the one that was committed", RESTORE)
    listed = {file.path for file in entry.files}
    for found in sorted(p for p in folder.rglob("*") if p.is_file()):
        if found.relative_to(folder).as_posix() not in listed:
            yield Finding("warning", str(found), "the manifest does not list this file; it is never read", "remove it")


def _contents(store: Path, manifest: Manifest, entry: SegmentEntry, first: int, verify: bool) -> Iterator[Finding]:
    """Problems of a segment whose files are intact: only a faulty writer can cause them."""
    try:
        segment = Segment(store, entry)
        lengths = segment.column("length")
        if len(lengths) != entry.episodes or lengths.sum() != entry.steps:
            found = f"{len(lengths)} episodes, {lengths.sum()} steps"
            problem = f"{found}; the manifest says {entry.episodes} episodes, {entry.steps} steps"
            yield Finding("error", str(segment.folder), problem, RESTORE)
        streams = _streams(segment, manifest.schema)
        for row in range(len(lengths)):
            where = f"{store}, episode {first + row} (segment {entry.id})"
            if lengths[row] < 1:
                yield Finding("error", where, "it has no steps", RESTORE, "empty", first + row)
                continue
            if verify and not _has_its_digest(segment, manifest, row):
                problem = "its contents do not match the digest taken when it was written"
                yield Finding("error", where, problem, RESTORE, episode=first + row)
            for problem in (*_stopped_clocks(streams, row), *_wrong_values(segment, streams, row)):
                yield Finding("error", where, problem, RESTORE, episode=first + row)
            for name, problem in _out_of_bounds(streams, manifest.schema, row):
                yield Finding("warning", where, problem, REVIEW, "limits", first + row, name)
    except StoreError as error:
        yield Finding("error", str(store / "segments" / entry.id), str(error), RESTORE)


def _has_its_digest(segment: Segment, manifest: Manifest, row: int) -> bool:
    interface = manifest.schema
    episode = segment.episode(interface, row, manifest)
    jpeg = [name for name in interface.cameras if segment.frame_array(name).codec.name == "jpeg"]
    extents = {name: [int(column[row]) for column in segment.extent(name)] for name in jpeg}
    payloads = {name: segment.payloads(name, first, first + length) for name, (first, length) in extents.items()}
    return bool(episode_digest(episode, payloads) == segment.column("digest")[row].tobytes())


def _streams(segment: Segment, interface: Interface) -> dict[str, list[Stream]]:
    """Of each stream its episodes; cameras without their frames. The arrays are read once."""
    streams = {}
    for name in (*vector_streams(interface), *interface.cameras):
        ends = np.cumsum(segment.extent(name)[1])[:-1]
        stamps = np.split(segment.stamps(name), ends)
        none = [np.zeros((0, 0))] * len(stamps)
        values = none if name in interface.cameras else np.split(segment.vectors(name), ends)
        streams[name] = [Stream(v, t) for v, t in zip(values, stamps, strict=True)]
    return streams


def _stopped_clocks(streams: Mapping[str, Sequence[Stream]], row: int) -> Iterator[str]:
    for name, episodes in streams.items():
        late = np.flatnonzero(np.diff(episodes[row].stamp_ns) <= 0)
        if len(late):
            yield f"stream '{name}': timestamps do not increase at step {late[0] + 1}"


def _wrong_values(segment: Segment, streams: Mapping[str, Sequence[Stream]], row: int) -> Iterator[str]:
    for name, episodes in streams.items():
        values = episodes[row].values
        if values.size == 0:  # a camera
            continue
        if not np.isfinite(values).all():
            yield f"stream '{name}' is not finite at step {np.flatnonzero(~np.isfinite(values).all(1))[0]}"
        elif not np.allclose(measure(values).rows[0], segment.moments(name).rows[row], rtol=_TOLERANCE, atol=_TOLERANCE):
            yield f"stream '{name}': stored statistics ({', '.join(ROWS)}) do not match its values"
        elif not np.array_equal(sketch(values).points[0], segment.sketch(name).points[row]):
            yield f"stream '{name}': stored quantiles do not match its values"


def _out_of_bounds(streams: Mapping[str, Sequence[Stream]], interface: Interface, row: int) -> Iterator[tuple[str, str]]:
    for name, spec in {**interface.features, ACTION: interface.action}.items():
        values, vector = streams[name][row].values, spec.vector
        for dimension, (low, high) in enumerate(zip(vector.low, vector.high, strict=True)):
            outside = np.flatnonzero((values[:, dimension] < low) | (values[:, dimension] > high))
            if len(outside):
                first_bad = f"{values[outside[0], dimension]:g} at step {outside[0]}"
                what = f"stream '{name}', {vector.names[dimension]}: {len(outside)} of {len(values)} values"
                yield name, f"{what} outside [{low:g}, {high:g}], the first is {first_bad}"


def _totals(store: Path, manifest: Manifest) -> Iterator[Finding]:
    try:
        segments = [Segment(store, entry) for entry in manifest.segments]
        if any(schema_hash(manifest.schema) not in segment.read("zarr.json").decode() for segment in segments):
            yield Finding("error", NAME, "a segment was written with another schema than the manifest has", RESTORE)
        for name in vector_streams(manifest.schema) if segments else ():
            merged = totals(join([segment.moments(name) for segment in segments]))
            if name not in manifest.stats or not _same(merged, manifest.stats[name]):
                yield Finding("error", NAME, f"statistics of '{name}' do not match those of its episodes", RESTORE)
        if manifest.stats_of == segments_hash(manifest.segments):  # else they are not used
            for split, merged_streams in recounted(manifest, segments).split_stats.items():
                kept = manifest.split_stats.get(split, {})
                if any(name not in kept or not _same(merged, kept[name]) for name, merged in merged_streams.items()):
                    yield Finding("error", NAME, f"statistics of split '{split}' do not match those of its episodes", RESTORE)
    except StoreError:
        return  # reported with the file that causes it


def _same(one: Totals, other: Totals) -> bool:
    mine, theirs = (np.array([t.mean, t.m2, t.min, t.max]) for t in (one, other))
    return one.count == other.count and np.allclose(mine, theirs, rtol=_TOLERANCE, atol=_TOLERANCE)
