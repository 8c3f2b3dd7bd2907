"""What is in a store, and whether every byte of it is still what was written. Reads only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from kineflow.contracts import FeatureStatistics, Interface, to_json
from kineflow.datasets.codecs import FrameCodec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.kept_totals import recounted
from kineflow.datasets.manifest import NAME, Manifest, SegmentEntry, StoreError, read_manifest, segments_hash
from kineflow.datasets.quantile_sketch import sketch
from kineflow.datasets.segment import ACTION, Segment, episode_digest, schema_hash, vector_streams
from kineflow.datasets.statistics import ROWS, Totals, join, measure, totals
from kineflow.datasets.zarr_v3 import crc32c

RESTORE = "restore it from a copy, or import or record these episodes again"
REVIEW = "correct the limits in the schema, or the data"
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class StreamReport:
    """`measured_hz` is the median over episodes, from the stored timestamps; 0 where episodes have one sample."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    rate_hz: float
    measured_hz: float
    samples: int


@dataclass(frozen=True)
class CameraReport:
    height: int
    width: int
    rate_hz: float
    measured_hz: float
    frames: int
    codec: str
    lossy: bool
    bytes: int


@dataclass(frozen=True)
class StoreReport:
    """Everything `kineflow data info` prints; `splits` and `tasks` count episodes."""

    path: str
    version: int
    generation: int
    episodes: int
    steps: int
    shortest: int
    longest: int
    duration_s: float
    segments: int
    bytes: int
    clock: str
    provenance: str
    licence: str
    streams: Mapping[str, StreamReport]
    cameras: Mapping[str, CameraReport]
    splits: Mapping[str, int]
    tasks: Mapping[str, int]
    succeeded: int
    failed: int
    fingerprint: str
    statistics_hash: str
    statistics: Mapping[str, FeatureStatistics]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`: data lost or not trustworthy) or odd (`warning`)."""

    severity: Literal["error", "warning"]
    where: str
    problem: str
    remedy: str


def inspect_store(path: Path) -> StoreReport:
    """Summary of the store at `path`.

    Raises:
        StoreError: it cannot be opened; the message names file and remedy.
    """
    store = EpisodeStore.open(path)
    manifest, lengths = store.manifest, store.lengths
    statistics = store.statistics() if store.num_episodes else {}
    segments = [Segment(store.path, e) for e in manifest.segments]
    success = _column(segments, "success")
    return StoreReport(
        path=str(path),
        version=manifest.version,
        generation=manifest.generation,
        episodes=store.num_episodes,
        steps=int(lengths.sum()),
        shortest=int(lengths.min(initial=lengths.max(initial=0))),
        longest=int(lengths.max(initial=0)),
        duration_s=float(lengths.sum() / store.interface.action.rate_hz),
        segments=len(segments),
        bytes=sum(f.bytes for e in manifest.segments for f in e.files),
        clock=manifest.clock,
        provenance=manifest.provenance,
        licence=manifest.licence,
        streams=_streams(store, segments),
        cameras=_cameras(store, segments),
        splits=_counts(_column(segments, "split"), {code: name for name, code in manifest.splits.items()}),
        tasks=_counts(_column(segments, "task_id"), {int(key): task.text for key, task in manifest.tasks.items()}),
        succeeded=int((success == 1).sum()),
        failed=int((success == 0).sum()),
        fingerprint=store.fingerprint(),
        statistics_hash=hashlib.sha256(to_json(statistics).encode()).hexdigest(),
        statistics=statistics,
    )


def check_store(path: Path, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Every problem of the store at `path`, worst first: files, checksums, contents, statistics; [] when it is sound.

    `progress(done, total)` counts segments.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except StoreError as error:
        return [Finding("error", NAME, str(error), "restore manifest.json from a copy, or upgrade when its version is newer")]
    findings = [*_orphans(path, manifest), *_totals(path, manifest)]
    for number, entry in enumerate(manifest.segments):
        damaged = list(_files(path, entry))
        first = sum(e.episodes for e in manifest.segments[:number])
        findings += damaged or _contents(path, manifest, entry, first)
        if progress is not None:
            progress(number + 1, len(manifest.segments))
    return sorted(findings, key=lambda finding: finding.severity)


def render_report(report: StoreReport, console: Console) -> None:
    """Print `inspect_store`'s result."""
    facts = Table(title=report.path, show_header=False, title_justify="left")
    facts.add_row("episodes", f"{report.episodes} of {report.shortest} to {report.longest} steps, {report.steps} steps in all")
    facts.add_row("duration", f"{report.duration_s / 60:.1f} minutes, clock {report.clock}")
    facts.add_row("outcome", f"{report.succeeded} succeeded, {report.failed} failed, the rest not recorded")
    facts.add_row("size", f"{report.bytes / 1e6:.1f} MB in {report.segments} segments")
    facts.add_row("format", f"version {report.version}, generation {report.generation}")
    facts.add_row("splits", ", ".join(f"{name}: {count}" for name, count in report.splits.items()) or "none recorded")
    facts.add_row("tasks", ", ".join(f"{text}: {count}" for text, count in report.tasks.items()) or "no instructions")
    facts.add_row("source", report.provenance or "not recorded")
    facts.add_row("licence", report.licence or "not recorded")
    facts.add_row("fingerprint", report.fingerprint)
    facts.add_row("statistics", report.statistics_hash)
    console.print(facts, _stream_table(report))


def render_findings(findings: list[Finding], console: Console) -> None:
    """Print `check_store`'s result."""
    if not findings:
        console.print("[green]sound[/green]: every file, checksum, timestamp and statistic is as it was written")
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{colour}]{finding.severity}[/{colour}]", finding.where, markup=True, highlight=False)
        console.print(f"  {finding.problem}\n  remedy: {finding.remedy}", markup=False, highlight=False)


def _stream_table(report: StoreReport) -> Table:
    table = Table("stream", "contents", "nominal Hz", "measured Hz", "samples", title="streams", title_justify="left")
    for name, stream in report.streams.items():
        pairs = [f"{n} [{u}]" for n, u in zip(stream.names, stream.units, strict=True)]
        shown = ", ".join(pairs[:5]) + (f", ... ({len(pairs)} in all)" if len(pairs) > 5 else "")
        # rich reads [px] as a style
        table.add_row(name, shown.replace("[", "\\["), f"{stream.rate_hz:g}", f"{stream.measured_hz:g}", str(stream.samples))
    for name, camera in report.cameras.items():
        loss = "lossy" if camera.lossy else "lossless"
        shown = f"{camera.width} x {camera.height}, {camera.codec}, {loss}, {camera.bytes / 1e6:.1f} MB"
        table.add_row(name, shown, f"{camera.rate_hz:g}", f"{camera.measured_hz:g}", str(camera.frames))
    return table


def _streams(store: EpisodeStore, segments: list[Segment]) -> dict[str, StreamReport]:
    specs = {**store.interface.features, "action": store.interface.action}
    return {
        name: StreamReport(
            spec.vector.names,
            spec.vector.units,
            spec.rate_hz,
            _measured_hz(segments, name),
            int(store.stream_lengths(name).sum()),
        )
        for name, spec in specs.items()
    }


def _cameras(store: EpisodeStore, segments: list[Segment]) -> dict[str, CameraReport]:
    result = {}
    for name, spec in store.interface.cameras.items():
        frames, codecs = int(store.stream_lengths(name).sum()), [s.frame_array(name).codec for s in segments]
        size = sum(f.bytes for s in segments for f in s.entry.files if f.path.startswith(f"cameras/{name}/"))
        rate = _measured_hz(segments, name)
        codec = _codec_names(codecs) or store.manifest.cameras[name].codec
        lossy = any(codec.lossy for codec in codecs)
        result[name] = CameraReport(spec.height, spec.width, spec.rate_hz, rate, frames, codec, lossy, size)
    return result


def _codec_names(codecs: Sequence[FrameCodec]) -> str:
    """Each different codec once; of the probes the range."""
    found = []
    for name in sorted({codec.name_and_quality for codec in codecs}):
        probes = [c.probe_ratio for c in codecs if c.name_and_quality == name and c.probe_ratio is not None]
        low, high = min(probes, default=0), max(probes, default=0)
        ratio = f"{low:g}x" if low == high else f"{low:g}x to {high:g}x"
        found.append(f"{name} (lz4hc probe {ratio})" if probes else name)
    return ", ".join(found)


def _measured_hz(segments: list[Segment], stream: str) -> float:
    rates = []
    for segment in segments:
        stamps = segment.stamps(stream)
        for first, length in zip(*segment.extent(stream), strict=True):
            if length > 1:
                rates.append((length - 1) * 1e9 / (stamps[first + length - 1] - stamps[first]))
    return round(float(np.median(rates)), 6) if rates else 0.0


def _column(segments: list[Segment], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(segment.column(name) for segment in segments)])


def _counts(codes: np.ndarray, names: Mapping[int, str]) -> dict[str, int]:
    return {name: int((codes == code).sum()) for code, name in sorted(names.items())}


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


def _files(store: Path, entry: SegmentEntry) -> Iterator[Finding]:
    folder = store / "segments" / entry.id
    for file in entry.files:
        try:
            data = (folder / file.path).read_bytes()
        except OSError as error:
            yield Finding("error", str(folder / file.path), f"cannot be read ({error.strerror})", RESTORE)
            continue
        if len(data) != file.bytes:
            yield Finding("error", str(folder / file.path), f"{len(data)} bytes instead of {file.bytes}", RESTORE)
        elif crc32c(data) != file.crc32c:
            yield Finding("error", str(folder / file.path), "its crc32c is not the one that was committed", RESTORE)
    listed = {file.path for file in entry.files}
    for found in sorted(p for p in folder.rglob("*") if p.is_file()):
        if found.relative_to(folder).as_posix() not in listed:
            yield Finding("warning", str(found), "the manifest does not list this file; it is never read", "remove it")


def _contents(store: Path, manifest: Manifest, entry: SegmentEntry, first: int) -> Iterator[Finding]:
    """Problems of a segment whose files are intact: only a faulty writer can cause them."""
    try:
        segment = Segment(store, entry)
        lengths = segment.column("length")
        if len(lengths) != entry.episodes or lengths.sum() != entry.steps:
            found = f"{len(lengths)} episodes, {lengths.sum()} steps"
            problem = f"{found}; the manifest says {entry.episodes} episodes, {entry.steps} steps"
            yield Finding("error", str(segment.folder), problem, RESTORE)
        for row in range(len(lengths)):
            where = f"{store}, episode {first + row} (segment {entry.id})"
            yield from (Finding("error", where, problem, RESTORE) for problem in _episode(segment, manifest, row))
            yield from (Finding("warning", where, problem, REVIEW) for problem in _out_of_bounds(segment, manifest.schema, row))
    except StoreError as error:
        yield Finding("error", str(store / "segments" / entry.id), str(error), RESTORE)


def _episode(segment: Segment, manifest: Manifest, row: int) -> Iterator[str]:
    interface = manifest.schema
    if segment.column("length")[row] < 1:
        yield "it has no steps"
        return
    episode = segment.episode(interface, row, manifest)
    jpeg = [name for name in interface.cameras if segment.frame_array(name).codec.name == "jpeg"]
    extents = {name: [int(column[row]) for column in segment.extent(name)] for name in jpeg}
    payloads = {name: segment.payloads(name, first, first + length) for name, (first, length) in extents.items()}
    if episode_digest(episode, payloads) != segment.column("digest")[row].tobytes():
        yield "its contents do not match the digest taken when it was written"
    for name, stream in episode.streams.items():
        late = np.flatnonzero(np.diff(stream.stamp_ns) <= 0)
        if len(late):
            yield f"stream '{name}': timestamps do not increase at step {late[0] + 1}"
    for name in vector_streams(interface):
        values = episode.streams[name].values
        if not np.isfinite(values).all():
            yield f"stream '{name}' is not finite at step {np.flatnonzero(~np.isfinite(values).all(1))[0]}"
        elif not np.allclose(measure(values).rows[0], segment.moments(name).rows[row], rtol=_TOLERANCE, atol=_TOLERANCE):
            yield f"stream '{name}': stored statistics ({', '.join(ROWS)}) do not match its values"
        elif not np.array_equal(sketch(values).points[0], segment.sketch(name).points[row]):
            yield f"stream '{name}': stored quantiles do not match its values"


def _out_of_bounds(segment: Segment, interface: Interface, row: int) -> Iterator[str]:
    for name, spec in {**interface.features, ACTION: interface.action}.items():
        first, length = (int(column[row]) for column in segment.extent(name))
        values, vector = segment.vectors(name, first, first + length), spec.vector
        for dimension, (low, high) in enumerate(zip(vector.low, vector.high, strict=True)):
            outside = np.flatnonzero((values[:, dimension] < low) | (values[:, dimension] > high))
            if len(outside):
                first_bad = f"{values[outside[0], dimension]:g} at step {outside[0]}"
                what = f"stream '{name}', {vector.names[dimension]}: {len(outside)} of {length} values"
                yield f"{what} outside [{low:g}, {high:g}], the first is {first_bad}"


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
