"""What `data info` says, and what only `data doctor` can find: wrong contents inside intact files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kineflow.contracts import to_json
from kineflow.datasets import segment
from kineflow.datasets.doctor import Finding, check_store, inspect_store, render_findings, render_report
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import read_manifest, write_manifest
from kineflow.datasets.segment import EncodedEpisode
from kineflow.datasets.statistics import Moments
from tests.datasets.sample_episodes import INTERFACE, sample_episode


def write(path: Path, numbers: range = range(4)) -> EpisodeStore:
    store = EpisodeStore.create(path, INTERFACE, "sensor", "our robot", "CC0-1.0")
    with store.writer(2) as writer:
        for number in numbers:
            writer.add(sample_episode(number))
    return store


def test_info_says_what_is_there(tmp_path: Path) -> None:
    store = write(tmp_path / "s.eps")
    report = inspect_store(store.path)
    lengths = [len(sample_episode(n).streams["action"].stamp_ns) for n in range(4)]
    assert (report.episodes, report.steps, report.shortest, report.longest) == (4, sum(lengths), min(lengths), max(lengths))
    assert (report.clock, report.provenance, report.licence) == ("sensor", "our robot", "CC0-1.0")
    assert (report.version, report.generation, report.segments) == (2, 2, 2)
    assert (report.succeeded, report.failed, report.tasks) == (1, 1, {"open the door": 1, "wait": 1})
    assert report.duration_s == pytest.approx(sum(lengths) / 10)
    assert report.streams["pose"].samples == report.cameras["front"].frames == sum(lengths)
    assert report.streams["pose"].measured_hz == pytest.approx(10, rel=0.1)
    assert (report.cameras["front"].codec, report.cameras["front"].lossy) == ("lz4hc (lz4hc probe 0.88x)", False)
    assert report.bytes == sum(f.stat().st_size for f in (store.path / "segments").rglob("*") if f.is_file())
    assert report.statistics == store.statistics()
    assert json.loads(to_json(report))["fingerprint"] == store.fingerprint()


def test_statistics_hash_follows_the_data(tmp_path: Path) -> None:
    hashes = [inspect_store(write(tmp_path / str(n), range(n, n + 2)).path).statistics_hash for n in (0, 0 + 1, 2)]
    assert len(set(hashes)) == 3


def test_an_empty_store_is_sound(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    assert check_store(store.path) == []
    report = inspect_store(store.path)
    assert (report.episodes, report.steps, report.shortest, report.longest, report.statistics) == (0, 0, 0, 0, {})


def test_a_sound_store_has_no_findings_and_is_not_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.eps").path
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    calls: list[tuple[int, int]] = []
    assert check_store(path, lambda done, total: calls.append((done, total))) == []
    assert calls == [(1, 2), (2, 2)]
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def with_pose(episode: EncodedEpisode, change: Callable[[np.ndarray], None]) -> EncodedEpisode:
    pose = episode.episode.streams["pose"]
    values = pose.values.copy()
    change(values)
    return replace(
        episode, episode=replace(episode.episode, streams={**episode.episode.streams, "pose": replace(pose, values=values)})
    )


def nan_inside(episode: EncodedEpisode) -> EncodedEpisode:
    return with_pose(episode, lambda values: values.__setitem__((2, 1), np.nan))


def other_values(episode: EncodedEpisode) -> EncodedEpisode:
    return with_pose(episode, lambda values: values.__setitem__((1, 0), 0.123))


def stopped_clock(episode: EncodedEpisode) -> EncodedEpisode:
    streams = dict(episode.episode.streams)
    for name, stream in streams.items():
        stamps = stream.stamp_ns.copy()
        stamps[2] = stamps[1]
        streams[name] = replace(stream, stamp_ns=stamps)
    return replace(episode, episode=replace(episode.episode, streams=streams))


def wrong_statistics(episode: EncodedEpisode) -> EncodedEpisode:
    rows = episode.moments["pose"].rows.copy()
    rows[0, 0] += 1e-3
    return replace(episode, moments={**episode.moments, "pose": Moments(episode.moments["pose"].count, rows)})


def wrong_quantiles(episode: EncodedEpisode) -> EncodedEpisode:
    kept = episode.sketches["pose"]
    points = kept.points.copy()
    points[0, 5, 1] += 1e-3
    return replace(episode, sketches={**episode.sketches, "pose": replace(kept, points=points)})


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (nan_inside, "'pose' is not finite at step 2"),
        (other_values, "do not match the digest"),
        (stopped_clock, "timestamps do not increase at step 2"),
        (wrong_statistics, "'pose': stored statistics (mean, m2, min, max) do not match"),
        (wrong_quantiles, "'pose': stored quantiles do not match"),
    ],
)
def test_what_a_faulty_writer_wrote_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[EncodedEpisode], EncodedEpisode], problem: str
) -> None:
    store = write(tmp_path / "s.eps", range(2))
    real = segment.pack
    monkeypatch.setattr(
        "kineflow.datasets.episode_writer.pack", lambda schema, episodes: real(schema, [fault(e) for e in episodes])
    )
    with store.writer() as writer:
        writer.add(sample_episode(2))
    findings = check_store(store.path)
    assert any(problem in f.problem and "episode 2" in f.where and f.severity == "error" for f in findings), findings
    assert not [f for f in findings if "episode 0" in f.where or "episode 1" in f.where]


def test_values_outside_the_limits_are_warnings(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE)
    episode = sample_episode(0)
    pose = episode.streams["pose"].values.copy()
    pose[1:3, 2] = 4.5
    with store.writer() as writer:
        writer.add(replace(episode, streams={**episode.streams, "pose": replace(episode.streams["pose"], values=pose)}))
    (finding,) = check_store(store.path)
    assert finding.severity == "warning"
    assert f"'pose', yaw: 2 of {len(pose)} values outside [-4, 4], the first is 4.5 at step 1" in finding.problem


def test_manifest_statistics_and_schema_are_checked(tmp_path: Path) -> None:
    store = write(tmp_path / "s.eps")
    manifest = read_manifest(store.path)
    totals = manifest.stats["action"]
    write_manifest(store.path, replace(manifest, stats={**manifest.stats, "action": replace(totals, count=totals.count + 1)}))
    assert [f.problem for f in check_store(store.path)] == ["statistics of 'action' do not match those of its episodes"]
    renamed = replace(INTERFACE, action=replace(INTERFACE.action, rate_hz=11.0))
    write_manifest(store.path, replace(manifest, schema=renamed))
    assert any("another schema" in f.problem for f in check_store(store.path))


def test_leftovers_are_warnings(tmp_path: Path) -> None:
    store = write(tmp_path / "s.eps")
    first = sorted((store.path / "segments").iterdir())[0]
    shutil.copytree(first, store.path / "segments" / "01ORPHAN")
    shutil.copytree(first, store.path / "staging" / "01STAGED")
    (store.path / ".manifest.json.01X").write_text("{")
    (first / "steps" / "extra").write_text("x")
    findings = check_store(store.path)
    assert {f.severity for f in findings} == {"warning"}
    assert [Path(f.where).name for f in findings] == ["01ORPHAN", ".manifest.json.01X", "01STAGED", "extra"]
    assert inspect_store(store.path).episodes == 4


def test_a_manifest_that_counts_wrongly_is_found(tmp_path: Path) -> None:
    store = write(tmp_path / "s.eps")
    manifest = read_manifest(store.path)
    entries = (replace(manifest.segments[0], steps=manifest.segments[0].steps + 1), *manifest.segments[1:])
    write_manifest(store.path, replace(manifest, segments=entries))
    assert any("the manifest says 2 episodes" in f.problem for f in check_store(store.path))


def test_reports_are_printed_with_their_units(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    render_report(inspect_store(write(tmp_path / "s.eps").path), console)
    render_findings([Finding("error", "a/b", "it is [broken]", "mend it")], console)
    render_findings([], console)
    text = console.export_text()
    for part in ("x [m], y [m], yaw [rad]", "8 x 6, lz4hc", "CC0-1.0", "it is [broken]", "remedy: mend it", "sound"):
        assert part in text
