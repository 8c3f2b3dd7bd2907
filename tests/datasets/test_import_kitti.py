"""KITTI odometry poses: camera axes turned to REP-103, times where they are, nothing read that is not a pose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions, open_source

FORWARD = [f"1 0 0 0 0 1 0 0 0 0 1 {z}" for z in range(4)]  # z is forward in camera axes


def write(file: Path, lines: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def test_forward_is_x_and_clocks_are_told_apart(tmp_path: Path) -> None:
    for number in ("00", "01"):
        write(tmp_path / "dataset" / "poses" / f"{number}.txt", FORWARD)
    write(tmp_path / "dataset" / "sequences" / "00" / "times.txt", ["0.0", "1.03e-01", "0.21", "0.3"])
    write(tmp_path / "dataset" / "poses" / "00_stats.txt", ["not a sequence"])
    report = import_data("kitti-odometry", tmp_path / "dataset", tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    first, second = store.episode(0), store.episode(1)
    np.testing.assert_array_equal(first.streams["pose"].values[3], [3, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(first.streams["pose"].stamp_ns, [0, 103_000_000, 210_000_000, 300_000_000])
    np.testing.assert_array_equal(second.streams["action"].stamp_ns, np.arange(4) * 100_000_000)
    assert (first.clock, second.clock, report.clock) == ("sensor", "nominal_10hz", "nominal_10hz")
    assert "turned to REP-103" in report.carried["pose"]
    assert "1 of 2 sequences have times" in report.carried["pose"]
    assert "commands" in report.not_carried


def test_one_file_with_its_times_beside_it(tmp_path: Path) -> None:
    poses = write(tmp_path / "07.txt", FORWARD)
    assert open_source("kitti-odometry", poses, ImportOptions(rate_hz=20.0)).facts.clock == "nominal_20hz"
    write(tmp_path / "07_times.txt", ["0", "1", "2", "3"])
    source = open_source("kitti-odometry", poses, ImportOptions())
    assert (source.facts.clock, source.episode(0).streams["pose"].stamp_ns[3]) == ("sensor", 3 * 10**9)


@pytest.mark.parametrize(
    ("lines", "times", "message"),
    [
        ([*FORWARD, "1 2 3"], None, r"07.txt, line 5: a pose needs 12 finite numbers, got '1 2 3'"),
        ([FORWARD[0].replace("0", "nan")], None, r"line 1: a pose needs 12 finite numbers"),
        ([*FORWARD, "2 0 0 0 0 1 0 0 0 0 1 0"], None, r"07.txt, pose 4: its 3 x 3 part is no rotation \(off by 3\)"),
        ([*FORWARD, "-1 0 0 0 0 1 0 0 0 0 1 0"], None, r"07.txt, pose 4: its 3 x 3 part is no rotation"),
        ([], None, r"07.txt is empty"),
        (FORWARD, ["0", "1"], r"07_times.txt has 2 times for 4 poses"),
        (FORWARD, ["0", "1", "1", "2"], r"07_times.txt: time 2 \(1.0 s\) does not come after 1.0 s"),
    ],
)
def test_files_that_are_no_poses_are_refused(tmp_path: Path, lines: list[str], times: list[str] | None, message: str) -> None:
    poses = write(tmp_path / "07.txt", lines)
    if times:
        write(tmp_path / "07_times.txt", times)
    with pytest.raises(KineflowError, match=message):
        open_source("kitti-odometry", poses, ImportOptions()).episode(0)


def test_a_folder_without_poses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match=r"holds no KITTI poses"):
        open_source("kitti-odometry", tmp_path, ImportOptions())
