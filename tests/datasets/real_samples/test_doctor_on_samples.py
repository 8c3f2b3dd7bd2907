"""What the doctor says of real recordings, and that it is so: counted once more from the files they came in."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import Finding, diagnose
from kineflow.datasets.importers.source import ImportOptions

Find = Callable[[str], Path]


def findings(format: str, source: Path, store: Path, codec: str = "") -> list[Finding]:
    import_data(format, source, store, ImportOptions(codec=codec))
    found = diagnose(store)
    assert not [f for f in found if f.severity == "error"]
    return found


def test_donkeycar_was_stamped_by_a_script_and_repeats_pictures(tmp_path: Path, shared_data: Find) -> None:
    """1000 pictures in 3.3 s: no camera of that car takes 300 a second. Eleven pictures are twice there, six while it steers."""
    with tarfile.open(shared_data("donkeycar_tub") / "tub.tar.gz") as archive:
        archive.extractall(tmp_path, [m for m in archive if not Path(m.name).name.startswith("._")], filter="data")
    irregular, gap, again = findings("donkeycar-tub", tmp_path / "tub", tmp_path / "s.eps")
    rows = [json.loads(line) for line in (tmp_path / "tub" / "catalog_0.catalog").read_text().splitlines()]
    stamps = np.array([row["_timestamp_ms"] for row in rows])
    assert (irregular.kind, irregular.stream) == ("jitter", "action")
    assert "irregular intervals" in irregular.problem
    assert "median of 3.0 ms" in irregular.problem
    assert (gap.kind, gap.step) == ("dropped", int(np.argmax(np.diff(stamps))) + 1)
    assert f"the longest {np.diff(stamps).max() / 1e3:.3g} s" in gap.problem
    pictures = [(tmp_path / "tub" / "images" / row["cam/image_array"]).read_bytes() for row in rows]
    same = [i for i in range(1, 1000) if pictures[i] == pictures[i - 1]]
    steered = [i for i in same if rows[i]["user/angle"] != rows[i - 1]["user/angle"]]
    assert len(same) == 11
    assert (again.kind, again.stream, again.step) == ("duplicate", "image_array", steered[0])
    assert f"steps {', '.join(map(str, steered))}" in again.problem


def test_comma2k19_stamps_messages_when_they_arrive_and_lost_satellite_fixes(tmp_path: Path, shared_data: Find) -> None:
    source = shared_data("comma2k19_example") / "segment_40"
    found = findings("comma2k19", source, tmp_path / "s.eps")
    assert [(f.kind, f.stream) for f in found] == [
        ("jitter", "action"),
        ("jitter", "speed"),
        ("jitter", "live_gnss_ublox"),
        ("dropped", "live_gnss_ublox"),
    ]
    assert "clock of speed, wheel_speed" in found[1].problem
    # CAN at 83 Hz, read from a queue: between a quarter of a millisecond and 26 ms apart.
    intervals = np.diff(np.load(source / "processed_log" / "CAN" / "speed" / "t", allow_pickle=False))
    assert np.quantile(intervals, 0.75) - np.quantile(intervals, 0.25) > 0.4 * np.median(intervals)
    assert all("irregular intervals" in f.problem for f in found[:2])
    # A receiver of 10 Hz that gave 579 fixes in the time of 598.
    fixes = np.load(source / "processed_log" / "GNSS" / "live_gnss_ublox" / "t", allow_pickle=False)
    missing = (fixes[-1] - fixes[0]) / np.median(np.diff(fixes)) - (len(fixes) - 1)
    assert round(missing) == 19
    assert "19 samples lost in 19 gaps" in found[3].problem


def test_gr00t_has_joints_that_never_move_and_one_that_starts_at_zero(tmp_path: Path, shared_data: Find) -> None:
    source = shared_data("gr00t_picknplace_lerobot_v2")
    found = findings("lerobot", source, tmp_path / "s.eps", "jpeg:90")  # lossless takes 10 s to write
    files = sorted(source.rglob("episode_*.parquet"))
    tables = [pq.read_table(file).to_pydict() for file in files]
    for finding, key in ((found[0], "observation.state"), (found[-1], "action")):
        values = np.concatenate([np.array(table[key], np.float32) for table in tables])
        still = int((np.ptp(values, axis=0) == 0).sum())
        assert finding.kind == "constant"
        assert finding.problem.startswith(f"{still} of 44 dimensions never change in 2096 samples")
    outliers = found[1:-1]
    assert {(f.kind, f.stream, f.step) for f in outliers} == {("outlier", "state", 0)}
    for finding in outliers:
        assert finding.episode is not None
        motor = np.array(tables[finding.episode]["observation.state"])[:, 34]
        assert "motor_34" in finding.problem
        assert abs(motor[0]) < 0.03
        assert np.median(motor) > 1.5, "its first sample is none of its own: the joint was not there"


def test_pusht_as_lerobot_wrote_it_is_as_sound_as_ours(tmp_path: Path, shared_data: Find) -> None:
    assert findings("lerobot", shared_data("lerobot_v3_pusht") / "image", tmp_path / "s.eps") == []
