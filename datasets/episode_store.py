"""The episode store: demonstrations on disk that survive crashes and never return wrong values silently.

    my_data.eps/
      manifest.json      what the store holds; replaced atomically (datasets/manifest.py)
      segments/<ulid>/   immutable, one or many episodes, ordinary Zarr v3 (datasets/segment.py)
      staging/           segments being written; never read

A commit writes the segment to `staging/`, syncs it, renames it into `segments/`, then swaps the manifest. A process killed
before the swap leaves the store as it was; after the swap the episodes are durable. Readers check size and crc32c of
every file they use. Recording commits each episode, an import many at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from kineflow.contracts import Episode, FeatureStatistics, Goal, Interface
from kineflow.datasets.camera_check import check_cameras
from kineflow.datasets.codecs import FrameCodec
from kineflow.datasets.committing import committing
from kineflow.datasets.episode_check import check_interface
from kineflow.datasets.episode_writer import EpisodeWriter as EpisodeWriter, named, write_segment
from kineflow.datasets.kept_totals import extended, kept_totals, recounted
from kineflow.datasets.manifest import (
    CameraRecord,
    Manifest,
    SegmentEntry,
    StaleGeneration,
    StoreError,
    new_ulid,
    read_manifest,
    replace_manifest,
    write_manifest,
)
from kineflow.datasets.quantile_sketch import QuantileSketch, side_by_side
from kineflow.datasets.segment import EncodedEpisode, Segment, schema_hash, vector_streams
from kineflow.datasets.statistics import Moments, Totals, feature_statistics, join
from kineflow.datasets.store_error import room_for

T = TypeVar("T")


class EpisodeStore:
    """Committed episodes by index, in commit order. What others commit later is seen after `reload()`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._segments: list[Segment] = []
        self._show(manifest)

    @classmethod
    def create(
        cls,
        path: Path | str,
        interface: Interface,
        clock: str = "sensor",
        provenance: str = "",
        licence: str = "",
        cameras: Mapping[str, CameraRecord] | None = None,
    ) -> EpisodeStore:
        """Make an empty store; `clock` says what the timestamps are ("sensor", or e.g. "nominal_10hz").

        Raises:
            StoreError: something exists at `path`, or a stream name or a camera's codec or calibration cannot be stored.
        """
        path = Path(path)
        check_interface(interface)
        if path.exists():
            raise StoreError(f"{path} exists already; open it with EpisodeStore.open, or choose another path or remove it")
        records = {name: CameraRecord() for name in interface.cameras} | dict(cameras or {})
        check_cameras(interface, records)
        with room_for("a store", path):
            for folder in ("segments", "staging"):
                (path / folder).mkdir(parents=True)
        write_manifest(path, Manifest(replace(interface, goals={}), records, clock, provenance, licence))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> EpisodeStore:
        """Open for reading and writing; checks that each listed file is there with its size.

        Raises:
            StoreError: no store, a newer version, or a missing, truncated or changed file; names it and the remedy.
        """
        return _newest(Path(path), lambda manifest: cls(Path(path), manifest))

    def reload(self) -> None:
        """See what other writers have committed since."""
        _newest(self.path, self._show)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def segments(self) -> Sequence[Segment]:
        """In commit order; rows of a stream go through them one after the other."""
        return self._segments

    @property
    def interface(self) -> Interface:
        return self._manifest.schema

    @property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        """Steps of each episode, counted on the action stream."""
        return self._per_episode([s.extent("action")[1] for s in self._segments])

    @property
    def num_episodes(self) -> int:
        return len(self._place)

    def episode(self, index: int) -> Episode:
        """Read episode `index` (0 .. num_episodes - 1), every byte checked against its checksum."""
        segment, row = self._locate(index)
        return segment.episode(self.interface, row, self._manifest)

    def told(self, index: int) -> tuple[str, dict[str, Goal]]:
        """Instruction and goals of episode `index`, without its streams."""
        segment, row = self._locate(index)
        return segment.instruction(row, self._manifest), segment.goals(row)

    def jpegs(self, index: int, camera: str) -> list[bytes] | None:
        """The JPEG bytes of `camera` in episode `index` as they are stored, checked; None where its codec is another one."""
        segment, row = self._locate(index)
        if segment.frame_array(camera).codec.name != "jpeg":
            return None
        first, length = (int(column[row]) for column in segment.extent(camera))
        return [payload[:-4] for payload in segment.payloads(camera, first, first + length)]  # the crc32c is behind it

    def low_dim(self, name: str) -> Float32[np.ndarray, "N D"]:
        """A whole low-dimensional stream in RAM, episode after episode, checked against its checksums.

        Raises:
            StoreError: the store has no such stream; the message lists what it has.
        """
        widths = vector_streams(self.interface)
        if name not in widths:
            raise StoreError(f"{self.path}: no low-dimensional stream '{name}'; it has {sorted(widths)}; choose one or import it")
        parts = [segment.vectors(name) for segment in self._segments]
        return np.concatenate(parts) if parts else np.zeros((0, widths[name]), np.float32)

    def stream_lengths(self, name: str) -> Int64[np.ndarray, "E"]:
        """Samples of stream or camera `name` in each episode; equals `lengths` where it shares the action's clock."""
        return self._per_episode([s.extent(name)[1] for s in self._segments])

    def stamps(self, name: str) -> Int64[np.ndarray, "N"]:
        """Sensor times of stream or camera `name`, int64 ns, episode after episode."""
        return np.concatenate([np.zeros(0, np.int64), *(segment.stamps(name) for segment in self._segments)])

    def split(self, name: str) -> Int64[np.ndarray, "K"]:
        """Indices of the episodes recorded or imported as split `name` ("" : those without one), sorted.

        Raises:
            StoreError: no episode is in such a split; the message lists those there are.
        """
        splits = self._manifest.splits
        found = np.flatnonzero(self._per_episode([s.column("split") for s in self._segments]) == splits.get(name, -1))
        if (name and name not in splits) or len(found) == 0:
            raise StoreError(f"{self.path}: no episode in split '{name}'; it has {sorted(splits) or 'none'}; choose one of them")
        return found

    def has_own_clock(self, name: str) -> bool:
        """True when samples of `name` were not taken together with the actions, so that row i is not step i."""
        return any(segment.has_own_clock(name) for segment in self._segments)

    def statistics(self, episodes: Sequence[int] | None = None) -> dict[str, FeatureStatistics]:
        """Statistics of each low-dimensional stream over the given episodes (default: all); keys include "action".

        Moments merge from the per-episode ones kept while writing; quantiles are exact over the samples. More, and of splits:
        `datasets/store_statistics.py`.
        """
        chosen = self.distinct(range(self.num_episodes) if episodes is None else episodes)
        result = {}
        for name in vector_streams(self.interface):
            moments, lengths = self.moments(name), self.stream_lengths(name)
            of_episode = np.repeat(np.arange(self.num_episodes), lengths)
            values = self.low_dim(name)[np.isin(of_episode, chosen)]
            result[name] = feature_statistics(Moments(moments.count[chosen], moments.rows[chosen]), values)
        return result

    def moments(self, stream: str) -> Moments:
        """Count, mean, M2, minimum and maximum of each episode, kept while writing."""
        return join([segment.moments(stream) for segment in self._segments])

    def sketch(self, stream: str, episodes: Int64[np.ndarray, "K"]) -> QuantileSketch:
        """Quantile sketches of the given episodes, kept while writing."""
        whole = side_by_side([segment.sketch(stream) for segment in self._segments])
        return QuantileSketch(whole.count[episodes], whole.points[episodes])

    def totals(self, split: str | None = None) -> Mapping[str, Totals]:
        """Moments of each stream over all episodes or those of `split`, as the manifest keeps them for these segments."""
        return kept_totals(self._manifest, self._segments, split)

    def digests(self) -> UInt8[np.ndarray, "E 32"]:
        """SHA-256 of the contents of each episode."""
        return np.concatenate([np.zeros((0, 32), np.uint8), *(segment.column("digest") for segment in self._segments)])

    def frames(self, camera: str, index: int, first: int, stop: int) -> np.ndarray:
        """Frames `[first, stop)` of episode `index`, uint8 [n, H, W, 3] or uint16 [n, H, W], without reading the others."""
        segment, row = self._locate(index)
        start = int(segment.extent(camera)[0][row])
        return segment.frames(camera, start + first, start + stop)

    def fingerprint(self) -> str:
        """Hash of schema and episode contents: equal for equal contents, however they were split into segments."""
        digests = sorted(row.tobytes() for row in self.digests())
        return hashlib.sha256(schema_hash(self.interface).encode() + b"".join(digests)).hexdigest()

    def writer(
        self, episodes_per_commit: int = 1, segment_id: str = "", codecs: Mapping[str, FrameCodec] | None = None
    ) -> EpisodeWriter:
        """Append episodes: 1 a commit while recording, many for an import; `segment_id` names the one segment of a recording.

        `codecs` are those of all segments where they fit ({}: those of the first episode); without it each segment is probed.
        """
        return EpisodeWriter(self, episodes_per_commit, segment_id, codecs)

    def commit(self, episodes: Sequence[EncodedEpisode], segment_id: str = "") -> None:
        """Append one segment durably; a commit by another writer meanwhile is kept, ours comes after it.

        Raises:
            StoreError: the disk is full; the store is as it was.
        """
        segment_id = segment_id or new_ulid()
        with committing(self.path, segment_id):
            added = write_segment(self.path, self.interface, episodes, segment_id)
            while True:
                try:
                    self._show(replace_manifest(self.path, self._extended(added, episodes), self._manifest.generation))
                    return
                except StaleGeneration:
                    self.reload()

    def list_written(self, written: Sequence[SegmentEntry], episodes: Sequence[Episode]) -> None:
        """Append segments that others wrote below this store (`write_segment`), in this order and in one commit.

        `episodes` are those in them that have an instruction or a split; their streams are not needed.
        """
        while True:
            listed = replace(named(self._manifest, episodes), segments=(*self._manifest.segments, *written))
            segments = [*self._segments, *(Segment(self.path, entry) for entry in written)]
            try:
                self._show(replace_manifest(self.path, recounted(listed, segments), self._manifest.generation))
                return
            except StaleGeneration:
                self.reload()

    def _extended(self, added: SegmentEntry, episodes: Sequence[EncodedEpisode]) -> Manifest:
        return named(extended(self._manifest, self._segments, added, episodes), [e.episode for e in episodes])

    def _show(self, manifest: Manifest) -> None:
        known = {s.entry.id: s for s in self._segments}
        self._segments = [known.get(e.id) or self._segment(e) for e in manifest.segments]
        self._place = [(segment, row) for segment in self._segments for row in range(segment.entry.episodes)]
        self._manifest = manifest

    def _segment(self, listed: SegmentEntry) -> Segment:
        return Segment(self.path, listed)

    def _locate(self, index: int) -> tuple[Segment, int]:
        if not 0 <= index < self.num_episodes:
            raise StoreError(f"{self.path}: no episode {index}; it has {self.num_episodes}, numbered from 0")
        return self._place[index]

    def distinct(self, episodes: Sequence[int]) -> Int64[np.ndarray, "K"]:
        """`episodes` sorted; raises StoreError when there are none, one is named twice or is unknown."""
        chosen = np.unique(np.asarray(episodes, np.int64))
        if len(chosen) == 0 or len(chosen) != len(episodes):
            raise StoreError(f"{self.path}: statistics need at least one episode, each named once; got {len(episodes)} entries")
        for index in chosen[[0, -1]]:
            self._locate(int(index))
        return chosen

    def _per_episode(self, parts: Sequence[np.ndarray]) -> Int64[np.ndarray, "E"]:
        return np.concatenate([np.zeros(0, np.int64), *parts])


def _newest(path: Path, show: Callable[[Manifest], T]) -> T:
    """`show` of the manifest; again when its segments were replaced and removed by gc while `show` looked at them."""
    while True:
        manifest = read_manifest(path)
        try:
            return show(manifest)
        except StoreError:
            if read_manifest(path).generation == manifest.generation:
                raise
