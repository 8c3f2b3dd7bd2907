"""What is collected can be trained on, a stopped collection goes on, and a seed's episode is the same whoever drives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.config import CONFIG_ROOT, load_config
from kineflow.contracts import GoalSpec, KineflowError
from kineflow.datasets.doctor import diagnose
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.window_goals import GoalReader, Goals, GoalWindows
from kineflow.envs.navigation.demonstrate import Recording
from kineflow.envs.navigation.stage import Picture
from kineflow.policies.collect import CollectConfig, WorldDone, collect, worlds_held

TINY = CollectConfig(
    tasks=("language", "image"), worlds=2, trips_per_world=2, runs_per_trip=1, picture=Picture(12, 16, "ray"), codec="lossless"
)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("collect") / "nav.eps"
    seen: list[tuple[int, int]] = []
    report = collect(TINY, path, 1, lambda done, total: seen.append((done, total)))
    assert (report.episodes, report.worlds, report.skipped) == (8, 2, 0)
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)
    return EpisodeStore.open(path)


def test_episodes_hold_what_is_learned_from(collected: EpisodeStore) -> None:
    assert collected.num_episodes == 8
    assert [f for f in diagnose(collected.path) if f.severity == "error"] == []
    seeds = []
    for index in range(8):
        episode = collected.episode(index)
        seeds.append(episode.seed)
        facts = json.loads(episode.source.removeprefix("kineflow.navigation "))
        assert facts["run"] == ("clean" if episode.seed % 100 == 0 else "disturbed")
        assert facts["kind"] == ("indoor" if facts["world"] == 0 else "outdoor")
        assert (episode.instruction != "") == (facts["task"] == "language")
        assert episode.success
        assert episode.operator == "expert"
        values = {name: stream.values for name, stream in episode.streams.items()}
        assert set(values) == {"front", "velocity", "embodiment", "pose", "cursor", "stop", "action"}
        np.testing.assert_array_equal(values["embodiment"][:, 0], 1.0)
        assert values["cursor"].max() < len(episode.goals["video"].value)
        np.testing.assert_array_equal(episode.goals["image"].value, episode.goals["video"].value[-1])
        assert values["stop"].sum() == 16
        np.testing.assert_array_equal(np.diff(episode.streams["front"].stamp_ns), 10**8)
        assert np.hypot(*(episode.goals["point"].value[:2] - values["pose"][-1, :2])) < 0.3
    assert seeds == [w * 10_000 + t * 100 + r for w in (0, 1) for t in (0, 1) for r in (0, 1)]


def test_training_windows_can_be_told_where_to_go(collected: EpisodeStore) -> None:
    specs = {"video": GoalSpec("video", 12, 16, frames=3, rate_hz=2.5), "instruction": GoalSpec("instruction")}
    reader = GoalReader(collected, range(8), Goals(specs, GoalWindows("front", "cursor", 5.0)))
    goals = reader.read(np.array([0, 1, 2]), np.array([4, 4, 4]))
    clip = collected.episode(0).goals["video"].value
    np.testing.assert_array_equal(goals.values["video"][0], clip[[2, 4, 6]])
    assert list(goals.given["instruction"]) == [True, True, False]


def test_going_on_drives_only_what_is_missing(collected: EpisodeStore, tmp_path: Path) -> None:
    first = tmp_path / "nav.eps"
    collect(replace(TINY, worlds=1), first)
    before = EpisodeStore.open(first).fingerprint()
    again = collect(replace(TINY, worlds=1), first)
    assert (again.episodes, again.worlds) == (0, 0)
    assert EpisodeStore.open(first).fingerprint() == before
    more = collect(TINY, first, workers=2)
    assert (more.episodes, more.worlds) == (4, 1)
    grown = EpisodeStore.open(first)
    assert worlds_held(grown) == {0, 1}
    assert grown.fingerprint() == collected.fingerprint(), "in two goes and two processes the same as in one"


def test_another_configuration_is_not_mixed_in(collected: EpisodeStore) -> None:
    with pytest.raises(KineflowError, match=r"collected otherwise: runs_per_trip is 2, was 1\. Choose another path"):
        collect(replace(TINY, runs_per_trip=2), collected.path)


def test_a_worker_that_fails_is_heard(tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match=r"world 0: .*no embodiment 'submarine'"):
        collect(replace(TINY, worlds=1, embodiment="submarine"), tmp_path / "nav.eps", workers=2)


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_stopped_by_ctrl_c_what_is_committed_stays(tmp_path: Path) -> None:
    store = tmp_path / "nav.eps"
    overrides = ["--worlds", "50", "--trips_per_world", "1", "--runs_per_trip", "0", "--tasks", "point"]
    overrides += ["--picture.height", "12", "--picture.width", "16", "--picture.backend", "ray"]
    command = [
        sys.executable,
        "-m",
        "kineflow.cli",
        "collect",
        "collect/navigation_wheeled",
        str(store),
        "--workers",
        "2",
        *overrides,
    ]
    # A shell's background jobs, and so the tests that run in one, ignore SIGINT; what is tested here must not inherit that.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_take_interrupts)
    deadline = time.monotonic() + 300  # a busy machine takes its time
    while time.monotonic() < deadline and (not (store / "manifest.json").exists() or EpisodeStore.open(store).num_episodes < 2):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    held = EpisodeStore.open(store)
    assert 2 <= held.num_episodes < 50
    assert [f for f in diagnose(store, verify=True) if f.severity == "error"] == []


def test_runs_of_one_trip_differ_in_all_but_their_goal(tmp_path: Path) -> None:
    collect(replace(TINY, worlds=1, trips_per_world=1, runs_per_trip=2), tmp_path / "nav.eps")
    store = EpisodeStore.open(tmp_path / "nav.eps")
    starts = {tuple(store.episode(i).streams["pose"].values[0, :2]) for i in range(3)}
    lights = {round(float(store.episode(i).streams["front"].values[0].mean()), 3) for i in range(3)}
    assert len(starts) == len(lights) == 3
    assert len({store.episode(i).goals["video"].value.tobytes() for i in range(3)}) == 1


def test_depth_and_flow_are_cameras_of_the_store(tmp_path: Path) -> None:
    wanted = replace(TINY, worlds=1, trips_per_world=1, runs_per_trip=0, recording=Recording(depth=True, flow=True))
    collect(wanted, tmp_path / "nav.eps")
    values = EpisodeStore.open(tmp_path / "nav.eps").episode(0).streams
    assert values["front_depth"].values.dtype == np.uint16
    assert 200 < np.median(values["front_depth"].values) < 20_000
    assert (values["flow_x"].values[1:] > 0).mean() > 0.5


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--worlds", "1", "--trips_per_world", "1", "--runs_per_trip", "0", "--picture.backend", "ray"]
    small = ["--picture.height", "12", "--picture.width", "16"]
    assert (
        main(["collect", "collect/navigation_wheeled", str(tmp_path / "a.eps"), "--workers", "1", "--json", *options, *small])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["successes"]) == (1, 1)
    assert report["episodes_per_cpu_minute"] > 0
    assert main(["collect", "collect/navigation_wheeled", str(tmp_path / "b.eps"), "--worlds", "0"]) == 2
    assert "worlds is 0" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(CONFIG_ROOT.glob("collect/*.yaml")), ids=lambda f: f.stem)
def test_shipped_configurations_load(file: Path) -> None:
    assert load_config(CollectConfig, file).worlds >= 1


@pytest.mark.parametrize(
    ("values", "words"), [({"tasks": ("fly",)}, "fly"), ({"runs_per_trip": 100}, "runs_per_trip"), ({"worlds": 0}, "worlds")]
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        CollectConfig(**values)  # type: ignore[arg-type]


def test_a_trip_that_cannot_be_drawn_is_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KineflowError("no such trip")

    monkeypatch.setattr("kineflow.policies.collect.draw_trip", refuse)
    report = collect(replace(TINY, worlds=1), tmp_path / "nav.eps")
    assert (report.episodes, report.skipped) == (0, 2)
    assert WorldDone(0, 0, 0, 0, 0, 2, 0.0).skipped == report.skipped


def test_runs_of_one_trip_share_the_frames_of_its_clip(collected: EpisodeStore) -> None:
    """Two trips with two runs each: twice the clip's frames (and a last one for each image), not four times."""
    frames = next((collected.path / "segments").glob("*/goals/frames_12x16/zarr.json"))
    stored = json.loads(frames.read_text())["shape"][0]
    segment = {collected.episode(i).seed // 10_000: i for i in (0, 4)}
    sizes = {w: sum(len(collected.episode(first + t).goals["video"].value) + 1 for t in (0, 2)) for w, first in segment.items()}
    assert stored in sizes.values()
