"""One segment: an immutable folder that is an ordinary Zarr v3 group of whole episodes.

    zarr.json                      format, schema hash, writer, consolidated metadata
    steps/timestamp                int64 ns [n], the clock of the action stream
    steps/<stream>                 float32 [n, D]
    steps/<stream>_timestamp       only for streams with a clock of their own, which may then have other lengths too
    cameras/<camera>               uint8 [n, H, W, 3], or depth uint16 [n, H, W]
    episodes/<column>              start, length, t0_ns, digest [E, 32], <stream>_moments [E, 37, D] (datasets/statistics.py),
                                   <stream>_start and <stream>_length where the stream has a clock of its own
    episodes/<optional column>     see OPTIONAL_COLUMNS: -1 is "not known", and a column in which nothing is known is absent
                                   (each file costs an fsync while recording)
    spans, goals/                  only where there are any (datasets/annotations.py)

`source_id`, `operator_id`, `clock_id` and `language_id` index the attribute `labels` of `episodes/`; `task_id` and `split`
are hashes of the text (`text_id`), which the manifest spells out.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from kineflow import __version__
from kineflow.contracts import Episode, Goal, Interface, Stream
from kineflow.datasets.annotations import NO_LANGUAGE, annotation_labels, decode_goals, decode_spans, encode_annotations, label_of
from kineflow.datasets.checksums import CorruptData
from kineflow.datasets.codecs import FrameCodec, encode_frames, keep_jpegs
from kineflow.datasets.manifest import FORMAT, VERSION, FileEntry, Manifest, SegmentEntry, StoreError, read_manifest, schema_plain
from kineflow.datasets.quantile_sketch import QuantileSketch, side_by_side, sketch
from kineflow.datasets.statistics import ROWS, Moments, measure
from kineflow.datasets.zarr_v3 import (
    Files,
    FrameArray,
    crc32c,
    decode_frames,
    decode_vectors,
    encode_shards,
    encode_vectors,
    frame_places,
    group,
    read_frame_array,
    read_payloads,
)

T = TypeVar("T")
ACTION = "action"
OPTIONAL_COLUMNS = ("task_id", "success", "split", "seed", "source_id", "operator_id", "clock_id", "language_id")
_ENCODING_THREADS = min(4, os.cpu_count() or 1)


def vector_streams(interface: Interface) -> dict[str, int]:
    """Low-dimensional streams and their widths, `action` last."""
    return {**{name: spec.vector.size for name, spec in interface.features.items()}, ACTION: interface.action.vector.size}


def schema_hash(interface: Interface) -> str:
    """Independent of the order in which features and cameras are named."""
    plain = schema_plain(interface)
    for camera in plain["cameras"].values():
        if camera["kind"] == "rgb":  # what every camera was in version 1, whose hashes stay valid
            del camera["kind"]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def text_id(text: str) -> int:
    """63-bit hash of an instruction or split, so that concurrent writers give one text one id; -1 for no text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 if text else -1


@dataclass(frozen=True)
class EncodedEpisode:
    """One checked episode: numbers as they are stored, frames already compressed, so that pending episodes stay small."""

    episode: Episode  # without frames: the camera streams have empty values
    frames: Mapping[str, Sequence[bytes]]
    codecs: Mapping[str, FrameCodec]  # of each camera
    moments: Mapping[str, Moments]
    sketches: Mapping[str, QuantileSketch]
    digest: bytes


def encode_episode(interface: Interface, episode: Episode, codecs: Mapping[str, FrameCodec]) -> EncodedEpisode:
    """Compress and measure an episode that has passed `episode_check.checked`; `codecs`: see `codecs.choose`."""
    streams, frames = dict(episode.streams), {}
    for name, camera in interface.cameras.items():
        stream = episode.streams[name]
        if codecs[name].name == "jpeg" and name in episode.jpeg:
            what = f"camera '{name}'" + (f" of {episode.source}" if episode.source else "")
            frames[name] = keep_jpegs(episode.jpeg[name], camera.height, camera.width, what)
        else:
            with ThreadPoolExecutor(_ENCODING_THREADS) as pool:  # blosc and simplejpeg release the GIL
                parts = [stream.values[first : first + 16] for first in range(0, len(stream.values), 16)]
                frames[name] = [payload for part in pool.map(encode_frames, parts, repeat(codecs[name])) for payload in part]
        streams[name] = Stream(np.empty((0, *stream.values.shape[1:]), stream.values.dtype), stream.stamp_ns)
    moments = {name: measure(episode.streams[name].values) for name in vector_streams(interface)}
    sketches = {name: sketch(episode.streams[name].values) for name in vector_streams(interface)}
    payloads = {name: frames[name] for name, codec in codecs.items() if codec.name == "jpeg"}
    stripped = replace(episode, streams=streams, jpeg={})
    return EncodedEpisode(stripped, frames, dict(codecs), moments, sketches, episode_digest(episode, payloads))


def episode_digest(episode: Episode, payloads: Mapping[str, Sequence[bytes]] | None = None) -> bytes:
    """SHA-256 over names, clocks and values: the same for equal contents whatever codec or segment holds them.

    `payloads` has the encoded frames (with crc32c) of each JPEG camera, which stand for its values: those depend on the decoder.
    What version 1 could not hold is hashed only where it is there, so that the digests of version 1 stay valid.
    """
    payloads = payloads or {}
    digest = hashlib.sha256(repr((episode.instruction, episode.success, episode.source, episode.clock)).encode())
    for name in sorted(episode.streams):
        stream = episode.streams[name]
        if name in payloads:
            digest.update(repr((name, "encoded", [len(payload) for payload in payloads[name]])).encode())
        else:
            digest.update(repr((name, stream.values.dtype.name, stream.values.shape)).encode())
        digest.update(np.ascontiguousarray(stream.stamp_ns).data)
        for part in payloads.get(name, [np.ascontiguousarray(stream.values).data]):
            digest.update(part)
    spans = [(span.text, span.start_ns, span.stop_ns, span.language) for span in episode.spans]
    more = repr((episode.language, spans, episode.split, episode.seed, episode.operator))
    if more != repr((NO_LANGUAGE, [], "", None, "")):
        digest.update(more.encode())
    for name, goal in sorted(episode.goals.items()):
        digest.update(repr((name, goal.kind, goal.frame, goal.value.dtype.name, goal.value.shape)).encode())
        digest.update(np.ascontiguousarray(goal.value).data)
    return digest.digest()


def pack(interface: Interface, episodes: Sequence[EncodedEpisode]) -> Files:
    """All files of the segment that holds `episodes`, by path below the segment."""
    labels = _labels(episodes)
    place = {label: number for number, label in enumerate(labels)} | {"": -1}
    columns = _columns(episodes, place)
    files: Files = {"steps/zarr.json": group({}), "cameras/zarr.json": group({}), "episodes/zarr.json": group({"labels": labels})}
    files |= encode_vectors("steps/timestamp", _stamps(episodes, ACTION))
    for name in vector_streams(interface):
        files |= encode_vectors(f"steps/{name}", np.concatenate([e.episode.streams[name].values for e in episodes]))
        rows = [np.concatenate([e.moments[name].rows, e.sketches[name].points], axis=1) for e in episodes]
        columns[f"{name}_moments"] = np.concatenate(rows)
    for name, camera in interface.cameras.items():
        payloads = [payload for e in episodes for payload in e.frames[name]]
        files |= encode_shards(f"cameras/{name}", payloads, camera.frame_shape, episodes[0].codecs[name])
    for name in _own_clocks(episodes):
        files |= encode_vectors(f"steps/{name}_timestamp", _stamps(episodes, name))
        columns[f"{name}_start"], columns[f"{name}_length"] = _extent(episodes, name)
    for name, column in columns.items():
        files |= encode_vectors(f"episodes/{name}", column)
    files |= encode_annotations([e.episode for e in episodes], place)
    writer = f"kineflow {__version__}"
    attributes = {"format": FORMAT, "version": VERSION, "schema_hash": schema_hash(interface), "writer": writer}
    files["zarr.json"] = group(attributes, files)
    return files


def entry(segment_id: str, episodes: Sequence[EncodedEpisode], files: Files) -> SegmentEntry:
    """The line of the manifest that lists these files."""
    steps = sum(len(e.episode.streams[ACTION].stamp_ns) for e in episodes)
    listed = tuple(FileEntry(path, len(data), crc32c(data)) for path, data in sorted(files.items()))
    return SegmentEntry(segment_id, steps, len(episodes), listed)


def _labels(episodes: Sequence[EncodedEpisode]) -> list[str]:
    own = ((e.episode.source, e.episode.clock, e.episode.operator, label_of(e.episode.language)) for e in episodes)
    return sorted({label for labels in (*own, *(annotation_labels(e.episode) for e in episodes)) for label in labels if label})


def _columns(encoded: Sequence[EncodedEpisode], place: Mapping[str, int]) -> dict[str, np.ndarray]:
    start, length = _extent(encoded, ACTION)
    episodes = [e.episode for e in encoded]
    columns = {
        "start": start,
        "length": length,
        "t0_ns": np.array([e.streams[ACTION].stamp_ns[0] for e in episodes], np.int64),
        "task_id": np.array([text_id(e.instruction) for e in episodes], np.int64),
        "success": np.array([-1 if e.success is None else int(e.success) for e in episodes], np.int8),
        "split": np.array([text_id(e.split) for e in episodes], np.int64),
        "seed": np.array([-1 if e.seed is None else e.seed for e in episodes], np.int64),
        "source_id": np.array([place[e.source] for e in episodes], np.int64),
        "operator_id": np.array([place[e.operator] for e in episodes], np.int64),
        "clock_id": np.array([place[e.clock] for e in episodes], np.int64),
        "language_id": np.array([place[label_of(e.language)] for e in episodes], np.int64),
        "digest": np.stack([np.frombuffer(e.digest, np.uint8) for e in encoded]),
    }
    return {name: column for name, column in columns.items() if name not in OPTIONAL_COLUMNS or (column != -1).any()}


def _own_clocks(episodes: Sequence[EncodedEpisode]) -> list[str]:
    names = episodes[0].episode.streams
    return [n for n in names if not all(np.array_equal(e.episode.streams[n].stamp_ns, _clock(e)) for e in episodes)]


def _clock(encoded: EncodedEpisode) -> np.ndarray:
    return encoded.episode.streams[ACTION].stamp_ns


def _stamps(episodes: Sequence[EncodedEpisode], stream: str) -> np.ndarray:
    return np.concatenate([e.episode.streams[stream].stamp_ns for e in episodes])


def _extent(episodes: Sequence[EncodedEpisode], stream: str) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(e.episode.streams[stream].stamp_ns) for e in episodes], np.int64)
    return np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64), lengths


class Segment:
    """Verified read access to one committed segment.

    Every read raises StoreError, naming file and remedy, instead of returning data that are not what was written.
    """

    def __init__(self, store: Path, listed: SegmentEntry) -> None:
        """Check that every listed file is there with its size; contents are checked when they are read."""
        self.entry = listed
        self.folder = store / "segments" / listed.id
        self.name = str(self.folder)  # in messages
        self._store = store
        self._listed = {f.path: f for f in listed.files}
        self._columns: dict[str, np.ndarray] = {}
        for file in listed.files:
            self._check_size(file)

    def has_own_clock(self, stream: str) -> bool:
        return f"steps/{stream}_timestamp/zarr.json" in self._listed

    def column(self, name: str) -> np.ndarray:
        """One per-episode column `[E, ...]`, kept in memory."""
        if name in OPTIONAL_COLUMNS and f"episodes/{name}/zarr.json" not in self._listed:
            return np.full(self.entry.episodes, -1, np.int64)
        if name not in self._columns:
            self._columns[name] = self._decode(lambda: decode_vectors(f"episodes/{name}", self.read))
        return self._columns[name]

    def extent(self, stream: str) -> tuple[Int64[np.ndarray, "E"], Int64[np.ndarray, "E"]]:
        """First row and number of rows of each episode in `stream`."""
        prefix = f"{stream}_" if self.has_own_clock(stream) else ""
        return self.column(f"{prefix}start"), self.column(f"{prefix}length")

    def moments(self, stream: str) -> Moments:
        return Moments(self.extent(stream)[1], self.column(f"{stream}_moments")[:, : len(ROWS)])

    def sketch(self, stream: str) -> QuantileSketch:
        """As kept while writing; from the samples where version 1 wrote the segment."""
        lengths, points = self.extent(stream)[1], self.column(f"{stream}_moments")[:, len(ROWS) :]
        if points.shape[1]:
            return QuantileSketch(lengths, points)
        return side_by_side([sketch(values) for values in np.split(self.vectors(stream), np.cumsum(lengths)[:-1])])

    def vectors(self, stream: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `[start, stop)` of a low-dimensional stream, float32 `[n, D]`."""
        return self._decode(lambda: decode_vectors(f"steps/{stream}", self.read, start, stop))

    def stamps(self, stream: str, start: int = 0, stop: int | None = None) -> Int64[np.ndarray, "n"]:
        name = f"{stream}_timestamp" if self.has_own_clock(stream) else "timestamp"
        return self._decode(lambda: decode_vectors(f"steps/{name}", self.read, start, stop))

    def frame_array(self, camera: str) -> FrameArray:
        """Shape and codec of a camera's frames."""
        return self._decode(lambda: read_frame_array(f"cameras/{camera}", self.read))

    def payloads(self, camera: str, start: int, stop: int) -> list[bytes]:
        """Encoded frames `[start, stop)`, each checked by its own crc32c, which is still behind it."""
        return self._decode(lambda: read_payloads(f"cameras/{camera}", self._read_shard, start, stop))

    def payload_sizes(self, camera: str, start: int, stop: int) -> Int64[np.ndarray, "n"]:
        """Bytes of each encoded frame `[start, stop)`, crc32c included, as the shards' indices say; no frame is read."""

        def sizes(array: FrameArray, number: int) -> np.ndarray:
            base, shard = number * array.shard_frames, memoryview(self._read_shard(array.shards()[number]))
            return frame_places(array, number, shard)[max(start - base, 0) : stop - base, 1]

        array = self.frame_array(camera)
        shards = range(start // array.shard_frames, -(-stop // array.shard_frames))
        return self._decode(lambda: np.concatenate([np.zeros(0, np.int64), *(sizes(array, number) for number in shards)]))

    def frames(self, camera: str, start: int, stop: int) -> np.ndarray:
        """Frames `[start, stop)`, uint8 `[n, H, W, 3]` or uint16 `[n, H, W]`; each is checked by its own crc32c."""
        return self._decode(lambda: decode_frames(f"cameras/{camera}", self._read_shard, start, stop))

    def labels(self) -> list[str]:
        """The attribute `labels` of `episodes/`, and behind it the empty one, which -1 so picks."""
        return [*json.loads(self.read("episodes/zarr.json"))["attributes"]["labels"], ""]

    def episode(self, interface: Interface, row: int, manifest: Manifest) -> Episode:
        """Episode `row` of this segment; `manifest` gives the texts of its task and split."""
        streams = {}
        for name in [*vector_streams(interface), *interface.cameras]:
            first, length = (int(column[row]) for column in self.extent(name))
            read = self.frames if name in interface.cameras else self.vectors
            streams[name] = Stream(read(name, first, first + length), self.stamps(name, first, first + length))
        labels = self.labels()
        known = {name: int(self.column(name)[row]) for name in OPTIONAL_COLUMNS}
        return Episode(
            streams=streams,
            instruction=self.instruction(row, manifest),
            success=bool(known["success"]) if known["success"] >= 0 else None,
            source=labels[known["source_id"]],
            clock=labels[known["clock_id"]],
            language=labels[known["language_id"]] or NO_LANGUAGE,
            spans=decode_spans(self._table("spans", 5), row, labels),
            goals=self.goals(row, labels),
            split=next((name for name, code in manifest.splits.items() if code == known["split"]), ""),
            seed=known["seed"] if known["seed"] >= 0 else None,
            operator=labels[known["operator_id"]],
        )

    def instruction(self, row: int, manifest: Manifest) -> str:
        """Of episode `row`; "" where it has none."""
        task = int(self.column("task_id")[row])
        return manifest.tasks[str(task)].text if task >= 0 else ""

    def goals(self, row: int, labels: Sequence[str] | None = None) -> dict[str, Goal]:
        """Of episode `row` by name, every byte checked; `labels`: those of `labels()`, where they are read already."""
        known, table = self.labels() if labels is None else labels, self._table("goals/table", 8)
        return self._decode(lambda: decode_goals(table, row, known, self._read_shard))

    def _table(self, path: str, width: int) -> np.ndarray:
        if f"{path}/zarr.json" not in self._listed:
            return np.zeros((0, width), np.int64)
        if path not in self._columns:
            self._columns[path] = self._decode(lambda: decode_vectors(path, self.read))
        return self._columns[path]

    def read(self, path: str) -> bytes:
        """Contents of one listed file, checked against size and crc32c of the manifest."""
        data = self.checked_path(path).read_bytes()
        if crc32c(data) != self._listed[path].crc32c:
            raise self.damaged(path, "its bytes are not the ones that were committed (crc32c differs)")
        return data

    def _read_shard(self, path: str) -> bytes | memoryview:
        # A shard carries a checksum per frame: reading one episode must not pay for the whole 32 MiB.
        if path.endswith("zarr.json"):
            return self.read(path)
        with open(self.checked_path(path), "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def checked_path(self, path: str) -> Path:
        """Where a listed file is; it has the size it should have."""
        if path not in self._listed:
            raise self.damaged(path, "the manifest does not list it")
        self._check_size(self._listed[path])
        return self.folder / path

    def _check_size(self, file: FileEntry) -> None:
        try:
            size = os.stat(f"{self.folder}/{file.path}").st_size  # pathlib takes four times as long, for 7,000 files on opening
        except (FileNotFoundError, NotADirectoryError):
            raise self.damaged(file.path, "the file is missing") from None
        if size != file.bytes:
            raise self.damaged(file.path, f"the file has {size} bytes instead of {file.bytes}")

    def _decode(self, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except CorruptData as error:
            raise StoreError(f"{self.name}: {error}; {self._remedy()}") from error

    def damaged(self, path: str, problem: str) -> StoreError:
        """The error to raise for a file below the segment."""
        return StoreError(f"{self.name}/{path}: {problem}; {self._remedy()}")

    def _remedy(self) -> str:
        try:
            if all(listed.id != self.entry.id for listed in read_manifest(self._store).segments):
                return "its segment was replaced since the store was opened, and `kineflow data gc` ran: open the store again"
        except StoreError:  # the manifest is damaged too, and the doctor says so
            pass
        return f"run `kineflow data doctor {self._store} --verify` and restore the file from a copy or import again"
