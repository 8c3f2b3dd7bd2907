"""What a store holds: the facts that `kineflow data info` prints. Reads only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kineflow.contracts import FeatureStatistics, to_json
from kineflow.datasets.codecs import FrameCodec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.native.library import native_status
from kineflow.datasets.segment import Segment


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


def render_report(report: StoreReport, console: Console) -> None:
    """Print `inspect_store`'s result."""
    facts = Table(title=escape(report.path), show_header=False, title_justify="left")
    facts.add_row("episodes", f"{report.episodes} of {report.shortest} to {report.longest} steps, {report.steps} steps in all")
    facts.add_row("duration", f"{report.duration_s / 60:.1f} minutes, clock {report.clock}")
    facts.add_row("outcome", f"{report.succeeded} succeeded, {report.failed} failed, the rest not recorded")
    facts.add_row("size", f"{report.bytes / 1e6:.1f} MB in {report.segments} segments")
    facts.add_row("format", f"version {report.version}, generation {report.generation}")
    facts.add_row("reader", native_status().summary)
    facts.add_row("splits", escape(", ".join(f"{name}: {count}" for name, count in report.splits.items()) or "none recorded"))
    facts.add_row("tasks", escape(", ".join(f"{text}: {count}" for text, count in report.tasks.items()) or "no instructions"))
    facts.add_row("source", escape(report.provenance or "not recorded"))
    facts.add_row("licence", escape(report.licence or "not recorded"))
    facts.add_row("fingerprint", report.fingerprint)
    facts.add_row("statistics", report.statistics_hash)
    console.print(facts, _stream_table(report))


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
