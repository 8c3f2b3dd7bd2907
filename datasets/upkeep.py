"""Upkeep of a store: fewer segments (compact), fewer episodes (delete), several stores in one (merge), leftovers gone (gc).

Segments are immutable, so each of these writes new ones and publishes them by the same compare-and-swap of the manifest as a
commit: stopped anywhere, the store is the old one or the new one. Frames are carried over encoded, so that JPEG loses nothing
again. What the manifest no longer lists stays on disk until `collect`: readers that opened the store before still need it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from kineflow.contracts import Interface, Stream
from kineflow.datasets.committing import committing, discard
from kineflow.datasets.episode_writer import write_segment
from kineflow.datasets.journal import SUFFIX, lock_if_abandoned
from kineflow.datasets.kept_totals import recounted
from kineflow.datasets.manifest import (
    Manifest,
    SegmentEntry,
    StaleGeneration,
    StoreError,
    new_ulid,
    read_manifest,
    replace_manifest,
)
from kineflow.datasets.quantile_sketch import QuantileSketch
from kineflow.datasets.segment import EncodedEpisode, Segment, vector_streams
from kineflow.datasets.statistics import Moments

SEGMENT_BYTES = 128 * 2**20
Progress = Callable[[int, int], None]
Replacement = Mapping[str, tuple[SegmentEntry, ...]]  # segment -> what stands in its place


@dataclass(frozen=True)
class UpkeepReport:
    """What a store holds after `compact`, `delete` or `merge`."""

    store: str
    generation: int
    episodes: int
    segments: int
    segments_before: int


def compact(path: Path, segment_bytes: int = SEGMENT_BYTES, progress: Progress | None = None) -> UpkeepReport:
    """Join neighbouring segments smaller than half of `segment_bytes` into ones of up to that size.

    Episodes, their order, the fingerprint and the statistics stay. `progress(done, total)` counts segments made.

    Raises:
        StoreError: no store, a damaged segment (named), or no room; the store is as it was.
    """
    path = Path(path)
    before = read_manifest(path)
    while True:
        manifest = read_manifest(path)
        groups = _groups(path, manifest, segment_bytes)
        ids = [new_ulid() for _ in groups]
        with committing(path, *ids):
            replacement: dict[str, tuple[SegmentEntry, ...]] = {}
            for number, (group, segment_id) in enumerate(zip(groups, ids)):
                episodes = [e for s in group for e in encoded(s, manifest, range(s.entry.episodes))]
                made = write_segment(path, manifest.schema, episodes, segment_id)
                replacement |= {s.entry.id: () for s in group} | {group[0].entry.id: (made,)}
                if progress is not None:
                    progress(number + 1, len(groups))
            after = publish(path, manifest, replacement)
        if after is not None:
            return report(path, before, after)
        for segment_id in ids:  # somebody replaced the same segments: look again
            discard(path, segment_id)


def delete(path: Path, episodes: Sequence[int]) -> UpkeepReport:
    """Delete episodes by index; those behind them move up, and the statistics are those of what stays.

    Raises:
        StoreError: an index that the store does not have or that is named twice, the episodes were replaced meanwhile, or no
            room; the store is as it was.
    """
    path = Path(path)
    manifest = read_manifest(path)
    count = sum(entry.episodes for entry in manifest.segments)
    if not len(episodes) or len(set(episodes)) != len(episodes) or not all(0 <= index < count for index in episodes):
        raise StoreError(f"{path}: cannot delete {list(episodes)}; name each of 0 to {count - 1} once, at least one")
    busy, first, plan = being_committed(path, manifest), 0, {}
    for entry in manifest.segments:
        rows = [row for row in range(entry.episodes) if first + row not in set(episodes)]
        first += entry.episodes
        if len(rows) < entry.episodes:
            if entry.id in busy:
                raise StoreError(f"{path}: segment {entry.id} is being committed; try again when that is done")
            plan[entry] = (rows, new_ulid())
    with committing(path, *(segment_id for _, segment_id in plan.values())):
        replacement: dict[str, tuple[SegmentEntry, ...]] = {}
        for entry, (rows, segment_id) in plan.items():
            kept = encoded(Segment(path, entry), manifest, rows)
            replacement[entry.id] = (write_segment(path, manifest.schema, kept, segment_id),) if kept else ()
        after = publish(path, manifest, replacement)
        if after is None:
            raise StoreError(f"{path}: these episodes were replaced meanwhile; look at the store again and name them anew")
    return report(path, manifest, after)


def encoded(segment: Segment, manifest: Manifest, rows: Sequence[int]) -> list[EncodedEpisode]:
    """Episodes as they lie in their segment: frames still encoded, digest and moments those taken when they were written."""
    interface, names = manifest.schema, vector_streams(manifest.schema)
    bare = Interface(interface.features, interface.action)  # so that no frame is decoded
    moments, sketches = {n: segment.moments(n) for n in names}, {n: segment.sketch(n) for n in names}
    arrays = {camera: segment.frame_array(camera) for camera in interface.cameras}
    result = []
    for row in rows:
        episode = segment.episode(bare, row, manifest)
        streams, frames = dict(episode.streams), {}
        for name, array in arrays.items():
            first, length = (int(column[row]) for column in segment.extent(name))
            frames[name] = segment.payloads(name, first, first + length)
            no_frames = np.empty((0, *array.shape[1:]), array.dtype.newbyteorder("="))
            streams[name] = Stream(no_frames, segment.stamps(name, first, first + length))
        one = slice(row, row + 1)
        result.append(
            EncodedEpisode(
                episode=replace(episode, streams=streams),
                frames=frames,
                codecs={name: array.codec for name, array in arrays.items()},
                moments={n: Moments(m.count[one], m.rows[one]) for n, m in moments.items()},
                sketches={n: QuantileSketch(s.count[one], s.points[one]) for n, s in sketches.items()},
                digest=segment.column("digest")[row].tobytes(),
            )
        )
    return result


def publish(path: Path, manifest: Manifest, replacement: Replacement) -> Manifest | None:
    """Swap the segments of `manifest`; what others committed meanwhile stays. None when others replaced one of them."""
    while True:
        if not {entry.id for entry in manifest.segments} >= set(replacement):
            return None
        if not replacement:
            return manifest
        segments = [new for old in manifest.segments for new in replacement.get(old.id, (old,))]
        try:
            return replace_manifest(path, with_segments(path, manifest, segments), manifest.generation)
        except StaleGeneration:
            manifest = read_manifest(path)


def with_segments(path: Path, manifest: Manifest, entries: Sequence[SegmentEntry]) -> Manifest:
    """The manifest that lists these segments: statistics, tasks and splits are those of their episodes."""
    segments = [Segment(path, entry) for entry in entries]
    used = {int(code) for segment in segments for code in segment.column("task_id")}
    tasks = {key: task for key, task in manifest.tasks.items() if int(key) in used}
    return recounted(replace(manifest, segments=tuple(entries), tasks=tasks), segments)


def being_committed(path: Path, manifest: Manifest) -> set[str]:
    """Listed segments whose recorder has not removed its journal yet; the journals of dead ones are removed here.

    Their id must stay: a repair knows by it that the journal is committed.
    """
    busy = set()
    for entry in manifest.segments:
        journal = path / "staging" / f"{entry.id}{SUFFIX}"
        if journal.exists():
            lock = lock_if_abandoned(journal)
            if lock is None:
                busy.add(entry.id)
            else:
                journal.unlink(missing_ok=True)
                os.close(lock)
    return busy


def report(path: Path, before: Manifest, after: Manifest) -> UpkeepReport:
    episodes = sum(entry.episodes for entry in after.segments)
    return UpkeepReport(str(path), after.generation, episodes, len(after.segments), len(before.segments))


def render_upkeep(done: UpkeepReport, console: Console) -> None:
    was = f" (were {done.segments_before})" if done.segments_before != done.segments else ""
    console.print(f"{done.store}: {done.episodes} episodes in {done.segments} segments{was}", markup=False, highlight=False)
    if done.segments_before:
        console.print(f"what was replaced stays on disk until `kineflow data gc {done.store}`", markup=False, highlight=False)


def _groups(path: Path, manifest: Manifest, segment_bytes: int) -> list[list[Segment]]:
    """Runs of neighbours to be joined: small, with one codec for each camera, at least two."""
    busy = being_committed(path, manifest)
    groups: list[list[Segment]] = []
    open_group: list[Segment] = []
    size = 0
    for entry in manifest.segments:
        segment, own = Segment(path, entry), sum(file.bytes for file in entry.files)
        if entry.id in busy or own >= segment_bytes / 2:
            open_group, size = [], 0
            continue
        if not open_group or size + own > segment_bytes or not _same_codecs(open_group[0], segment, manifest.schema):
            open_group, size = [], 0
            groups.append(open_group)
        open_group.append(segment)
        size += own
    return [group for group in groups if len(group) > 1]


def _same_codecs(one: Segment, other: Segment, interface: Interface) -> bool:
    return all(one.frame_array(name).codec.same_bytes(other.frame_array(name).codec) for name in interface.cameras)
