"""Each fault that the doctor looks for, planted into one recording: found there, with its number, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import Episode, KineflowError, Stream
from kineflow.datasets.doctor import DoctorConfig, Finding, diagnose
from kineflow.datasets.doctor_checks.motion import still_runs
from kineflow.datasets.doctor_checks.pictures import exchange_scores
from kineflow.datasets.episode_store import EpisodeStore
from tests.datasets.faulty_recordings import (
    INTERFACE,
    Fault,
    changed,
    on_clock,
    recording,
    with_values,
    without,
    write_recordings,
)

LOW, CAMERAS = ("pose", "action"), ("left", "right")
PERIOD = 50_000_000


def found(path: Path, faults: dict[int, Fault], config: DoctorConfig | None = None, episodes: int = 6) -> list[Finding]:
    return diagnose(write_recordings(path / "s.eps", faults, episodes).path, config)


def test_clean_recordings_have_no_findings(tmp_path: Path) -> None:
    store = write_recordings(tmp_path / "s.eps", {})
    assert diagnose(store.path) == diagnose(store.path, verify=True) == []


def slow(episode: Episode) -> Episode:
    return on_clock(episode, LOW, lambda t: t[0] + ((t - t[0]) * 1.05).astype(np.int64))


def drifting(episode: Episode) -> Episode:
    """Periods grow by 8 % from the first to the last."""
    return on_clock(
        episode, LOW, lambda t: t[0] + np.cumsum(np.diff(t, prepend=t[0]) * np.linspace(0.98, 1.06, len(t))).astype(int)
    )


def jittered(episode: Episode) -> Episode:
    late = np.random.default_rng(5).integers(0, int(0.45 * PERIOD), 1000)
    return on_clock(episode, LOW, lambda t: t + np.where(np.arange(len(t)) % 7 == 3, late[: len(t)], 0))


def dropped(episode: Episode) -> Episode:
    return without(episode, CAMERAS, np.array([30, 31, 32, 50]))


def clock_jump(episode: Episode) -> Episode:
    return on_clock(episode, CAMERAS, lambda t: t + np.where(np.arange(len(t)) >= 40, 3_000_000_000, 0))


def other_epoch(episode: Episode) -> Episode:
    return on_clock(episode, CAMERAS, lambda t: t - t[0])


def late_start(episode: Episode) -> Episode:
    return without(episode, CAMERAS, np.arange(15))


def early_end(episode: Episode) -> Episode:
    return without(episode, CAMERAS, np.arange(60, 80))


def duplicates(episode: Episode) -> Episode:
    return with_values(episode, "left", lambda v: v.__setitem__(slice(21, 24), v[20]))


def idle(episode: Episode) -> Episode:
    for name in LOW:
        episode = with_values(episode, name, lambda v: v.__setitem__(slice(20, 141), v[20]))
    return episode


def outlier(episode: Episode) -> Episode:
    return with_values(episode, "pose", lambda v: v.__setitem__((77, 2), 20.0))


def spike(episode: Episode) -> Episode:
    """A value that others have, too, but not between these neighbours."""
    return with_values(episode, "pose", lambda v: v.__setitem__((77, 0), v[:, 0].max() + v[:, 0].min() - v[77, 0]))


def saturated(episode: Episode) -> Episode:
    return with_values(episode, "action", lambda v: v.__setitem__((slice(30, 110), 0), 2.0))


def swapped(episode: Episode) -> Episode:
    return changed(episode, {"left": episode.streams["right"], "right": episode.streams["left"]})


def one_step(episode: Episode) -> Episode:
    return changed(episode, {n: Stream(s.values[:1], s.stamp_ns[:1]) for n, s in episode.streams.items()})


def no_split(episode: Episode) -> Episode:
    return replace(episode, split="")


# fault, kind, stream, first sample, from and to in seconds (None: the whole episode or none), lowest and highest value
CASES: list[tuple[Fault, str, str, int | None, tuple[float, float] | None, tuple[float, float]]] = [
    (slow, "rate", "action", None, None, (0.045, 0.049)),
    (drifting, "rate_drift", "action", None, (0.0, 8.1), (0.045, 0.06)),
    (jittered, "jitter", "action", None, None, (0.3, 0.5)),
    (dropped, "dropped", "left", 30, (2.91, 3.31), (3.9, 4.1)),
    (clock_jump, "clock_jump", "left", 40, (3.91, 7.01), (2.95, 3.05)),
    (late_start, "late_start", "left", None, (0.0, 1.51), (1.5, 1.52)),
    (early_end, "early_end", "left", None, (5.91, 7.95), (2.0, 2.1)),
    (duplicates, "duplicate", "left", 21, (2.01, 2.11), (0.03, 0.04)),
    (idle, "idle", "action", 20, (1.0, 7.0), (5.9, 6.1)),
    (outlier, "outlier", "pose", 77, (3.85, 3.85), (15, 40)),
    (spike, "outlier", "pose", 77, (3.85, 3.85), (8, 200)),
    (saturated, "saturation", "action", 30, (1.5, 5.45), (0.08, 0.09)),
    (swapped, "camera_swap", "left", 0, (0.01, 7.91), (0.3, 1.0)),
    (one_step, "short", "", None, None, (1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_planted_fault_is_found_where_it_is_and_nothing_else(tmp_path: Path, case: tuple[object, ...]) -> None:
    fault, kind, stream, step, span, (low, high) = case  # type: ignore[misc]
    findings = found(tmp_path, {3: fault})  # type: ignore[dict-item]
    allowed = {kind, "limits"} if kind == "outlier" else {kind}  # type: ignore[call-overload]
    assert {f.kind for f in findings} - allowed == set(), findings
    first = next(f for f in findings if f.kind == kind and f.stream == stream)
    assert {f.episode for f in findings} == {3}
    assert {f.severity for f in findings} == {"warning"}
    assert "episode 3" in first.where
    if step is not None:
        assert first.step == step
    if span is not None:
        assert first.spans_s[0] == pytest.approx(span, abs=0.06)
    assert first.value is not None
    assert low <= first.value <= high
    assert first.problem
    assert first.remedy


def test_an_angle_that_passes_the_half_turn_is_no_spike(tmp_path: Path) -> None:
    def turned(episode: Episode) -> Episode:
        return with_values(episode, "pose", lambda v: v.__setitem__((slice(None), 2), (v[:, 2] + 5.5) % (2 * np.pi) - np.pi))

    def to_and_fro(episode: Episode) -> Episode:
        return with_values(turned(episode), "pose", lambda v: v.__setitem__((slice(60, 63), 2), [3.14, -3.14, 3.14]))

    faults = {**dict.fromkeys(range(6), turned), 2: to_and_fro}
    assert [f for f in found(tmp_path, faults) if f.kind == "outlier"] == []


def test_positions_of_all_lost_and_repeated_samples(tmp_path: Path) -> None:
    gap = next(f for f in found(tmp_path / "a", {3: dropped}) if f.stream == "left")
    assert "4 samples lost in 2 gaps" in gap.problem
    assert gap.spans_s[1] == pytest.approx((4.91, 5.11), abs=0.01)
    (again,) = found(tmp_path / "b", {3: duplicates})
    assert "steps 21, 22, 23" in again.problem
    assert len(again.spans_s) == 3


def test_a_repeated_frame_of_a_resting_robot_is_no_fault(tmp_path: Path) -> None:
    def both(episode: Episode) -> Episode:
        for name in LOW:
            episode = with_values(episode, name, lambda v: v.__setitem__(slice(30, 60), v[30]))
        return with_values(episode, "left", lambda v: v.__setitem__(slice(18, 25), v[18]))

    assert found(tmp_path, {3: both}) == []


def test_a_gap_on_the_only_clock_is_lost_samples(tmp_path: Path) -> None:
    def gap(episode: Episode) -> Episode:
        return without(episode, LOW, np.arange(60, 120))

    findings = found(tmp_path, {3: gap})
    assert [(f.kind, f.step) for f in findings] == [("dropped", 60)]
    assert "60 samples lost" in findings[0].problem


def test_a_lost_frame_in_a_stream_that_lasts_longer_is_no_jump(tmp_path: Path) -> None:
    def both(episode: Episode) -> Episode:
        return without(without(episode, CAMERAS, np.array([30])), LOW, np.arange(120, 160))

    findings = found(tmp_path, {3: both})
    assert [(f.kind, f.stream) for f in findings] == [("dropped", "left"), ("early_end", "action")]


def test_clocks_that_share_no_time_are_an_error(tmp_path: Path) -> None:
    findings = found(tmp_path, {3: other_epoch})
    assert [(f.kind, f.severity, f.episode, f.stream) for f in findings] == [
        ("clock_jump", "error", 3, "left"),
    ]
    assert "no time in common with the action" in findings[0].problem
    assert "clock of left, right" in findings[0].problem


def test_a_rate_that_changes_between_episodes(tmp_path: Path) -> None:
    config = replace(DoctorConfig(), rate_tolerance=0.04)
    faults: dict[int, Fault] = {n: lambda e: on_clock(e, LOW, lambda t: t[0] + ((t - t[0]) * 1.03).astype(int)) for n in (0, 1)}
    faults |= {n: lambda e: on_clock(e, LOW, lambda t: t[0] + ((t - t[0]) * 0.97).astype(int)) for n in (4, 5)}
    (drift,) = found(tmp_path, faults, config)
    assert (drift.kind, drift.episode, drift.stream) == ("rate_drift", None, "action")
    assert drift.value == pytest.approx(0.06, abs=0.003)
    assert "19.42 Hz in the first third" in drift.problem


def test_dimensions_in_which_nothing_happens(tmp_path: Path) -> None:
    faults: dict[int, Fault] = {
        n: lambda e: with_values(e, "pose", lambda v: v.__setitem__((slice(None), 1), 0.25)) for n in range(6)
    }
    (constant,) = found(tmp_path, faults)
    assert (constant.kind, constant.stream, constant.episode) == ("constant", "pose", None)
    assert "1 of 3 dimensions never change in 960 samples: y = 0.25" in constant.problem


def test_splits_that_are_missing(tmp_path: Path) -> None:
    (some,) = found(tmp_path / "a", {3: no_split, 5: no_split})
    assert (some.kind, some.episode) == ("split", None)
    assert "2 of 6 episodes have no split, the others have one: episodes 3, 5" in some.problem
    (expected,) = found(tmp_path / "b", {}, replace(DoctorConfig(), expect_splits=("train", "validation")))
    assert "no episode is in split 'validation'; there is train" in expected.problem
    assert found(tmp_path / "c", dict.fromkeys(range(6), no_split)) == []


# --- cameras -----------------------------------------------------------------------------------------------------------


@given(
    swapped_ones=st.sets(st.integers(0, 10), max_size=5),
    noise=st.floats(0, 0.15),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_exchanged_signatures_score_negative_whichever_they_are(swapped_ones: set[int], noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.uniform(0, 1, 48) + noise * rng.standard_normal((11, 48)) for _ in range(2))
    for episode in swapped_ones:
        one[episode], other[episode] = other[episode].copy(), one[episode].copy()
    assert set(np.flatnonzero(exchange_scores(one, other) < 0)) == swapped_ones


def test_cameras_that_see_another_place_each_time_are_left_alone(tmp_path: Path) -> None:
    def elsewhere(number: int) -> Fault:
        rng = np.random.default_rng([31, number])
        return lambda e: changed(
            e,
            {
                n: replace(e.streams[n], values=np.broadcast_to(rng.integers(0, 256, (12, 16, 3), np.uint8), (80, 12, 16, 3)) ^ k)
                for n in CAMERAS
                for k in [np.arange(80, dtype=np.uint8)[:, None, None, None] % 8]
            },
        )

    assert found(tmp_path, {n: elsewhere(n) for n in range(9)}, episodes=9) == []


def test_two_of_seven_episodes_with_exchanged_cameras(tmp_path: Path) -> None:
    findings = found(tmp_path, {0: swapped, 4: swapped}, episodes=7)
    assert {(f.kind, f.episode) for f in findings} == {("camera_swap", 0), ("camera_swap", 4)}
    assert "'left' and 'right' look exchanged" in findings[0].problem
    assert "5 other episodes" in findings[0].problem


# --- standing still ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_still_runs_are_those_of_a_slow_search(parts: list[tuple[bool, int]]) -> None:
    steps = np.concatenate([np.zeros(n) if still else np.ones(n) for still, n in parts])
    values = np.cumsum(steps)[:, None].astype(np.float32)
    stamps = np.arange(len(values), dtype=np.int64) * 10
    runs = still_runs(values, stamps, np.array([0.5]), 40)
    expected = []
    start = 0
    for stop in range(1, len(values) + 1):
        if stop == len(values) or values[stop, 0] != values[start, 0]:
            expected += [(start, stop - 1)] if (stop - 1 - start) * 10 >= 40 else []
            start = stop
    assert runs == expected


def test_creeping_is_not_standing_still() -> None:
    creep = np.linspace(0, 1, 200, dtype=np.float32)[:, None]
    stamps = np.arange(200, dtype=np.int64)
    assert still_runs(creep, stamps, np.array([0.02]), 20) == []
    rests = np.concatenate([creep[:100], np.full((60, 1), creep[99], np.float32)])  # each step alone is small enough
    ((start, stop),) = still_runs(rests, stamps[:160], np.array([0.02]), 20)
    assert (95 <= start <= 100, stop) == (True, 159)
    assert still_runs(np.zeros((200, 1), np.float32), stamps, np.array([0.02]), 20) == [(0, 199)]


# --- thresholds and commands -------------------------------------------------------------------------------------------


def test_the_shipped_thresholds_are_the_defaults() -> None:
    assert load_config(DoctorConfig, "data/doctor") == DoctorConfig()
    shipped = yaml.safe_load(Path("configs/data/doctor.yaml").read_text())
    assert list(shipped) == [f.name for f in fields(DoctorConfig)]


@pytest.mark.parametrize("wrong", [{"idle_s": 0.0}, {"saturated_share": 1.0}, {"min_samples": 2}, {"dropped_from": 1.0}])
def test_thresholds_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(KineflowError, match=next(iter(wrong))):
        replace(DoctorConfig(), **wrong)  # type: ignore[arg-type]


def test_command_line_warnings_pass_errors_do_not_thresholds_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_recordings(tmp_path / "s.eps", {3: idle}).path)
    assert main(["data", "doctor", path, "--json"]) == 0
    assert {f["kind"] for f in json.loads(capsys.readouterr().out)} == {"idle"}
    assert main(["data", "doctor", path, "--json", "--idle_s", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["data", "doctor", path]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the action does not change for 6.0 s" in text
    assert "0 errors, 2 warnings" in text
    path = str(write_recordings(tmp_path / "e.eps", {3: other_epoch}).path)
    assert main(["data", "doctor", path]) == 1


def test_only_verify_reads_every_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resting(episode: Episode) -> Episode:  # so that no frame need be compared with the one before it
        for name in LOW:
            episode = with_values(episode, name, lambda v: v.__setitem__(slice(None), 0.25))
        return episode

    store = write_recordings(tmp_path / "s.eps", dict.fromkeys(range(6), resting))
    shard = next(p for p in sorted(store.path.rglob("cameras/left/c/0/*/*/*")) if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) * 170 // 320] ^= 1  # in frame 10 of episode 2, which no signature of the camera looks at
    shard.write_bytes(bytes(data))
    assert main(["data", "doctor", str(store.path)]) == 0
    assert main(["data", "doctor", str(store.path), "--verify"]) == 1
    assert "crc32c" in capsys.readouterr().out
    vectors = next(p for p in sorted(store.path.rglob("steps/pose/c/*")) if p.is_file() or True)
    victim = next(p for p in [vectors, *vectors.rglob("*")] if p.is_file())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    assert main(["data", "doctor", str(store.path)]) == 1, "values are always read"


def test_statistics_that_do_not_match_are_found_without_verify(tmp_path: Path) -> None:
    from kineflow.datasets.manifest import read_manifest, write_manifest

    store = write_recordings(tmp_path / "s.eps", {})
    manifest = read_manifest(store.path)
    wrong = replace(manifest.stats["pose"], count=manifest.stats["pose"].count + 1)
    write_manifest(store.path, replace(manifest, stats={**manifest.stats, "pose": wrong}))
    assert [(f.severity, f.problem) for f in diagnose(store.path)] == [
        ("error", "statistics of 'pose' do not match those of its episodes")
    ]


def test_an_empty_store_is_sound_and_odd_in_nothing(tmp_path: Path) -> None:
    assert diagnose(EpisodeStore.create(tmp_path / "s.eps", INTERFACE).path) == []


def test_recordings_are_what_they_say() -> None:
    """The faults are planted into recordings that differ from each other."""
    assert not np.array_equal(recording(0).streams["left"].values, recording(1).streams["left"].values)
