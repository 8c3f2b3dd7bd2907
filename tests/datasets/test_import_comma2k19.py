"""comma2k19 segments: native clocks, radians and local metres, and arrays that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.axes import ecef_from_geodetic
from kineflow.datasets.importers.source import ImportOptions, open_source

BOOT = 4000.0


def save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as opened:
        np.save(opened, values)


def write_segment(path: Path, pose: str = "global_pose") -> Path:
    """Two seconds to the north at 10 m/s: forward is north, right is east, down is down."""
    logs = {
        "CAN/steering_angle": (50, 1),
        "CAN/speed": (50, 1),
        "CAN/wheel_speed": (40, 4),
        "IMU/accelerometer": (100, 3),
        "IMU/gyro": (100, 3),
    }
    for name, (rate, width) in logs.items():
        save(path / "processed_log" / name / "t", BOOT + np.arange(2 * rate) / rate)
        save(path / "processed_log" / name / "value", np.tile(np.arange(1.0, width + 1), (2 * rate, 1)) * 90)
    t = np.arange(40) / 20
    latitude = 48 + np.degrees(10 * t / 6_367_000)
    place = np.stack([latitude, np.full(40, 11.0), np.full(40, 500.0)], 1)
    save(path / pose / "frame_times", BOOT + t)
    save(path / pose / "frame_positions", ecef_from_geodetic(place))
    save(path / pose / "frame_velocities", np.gradient(ecef_from_geodetic(place), 0.05, axis=0))
    sf, cf, sl, cl = *(f(np.radians(48)) for f in (np.sin, np.cos)), *(f(np.radians(11)) for f in (np.sin, np.cos))
    north, east, down = [-sf * cl, -sf * sl, cf], [-sl, cl, 0.0], [-cf * cl, -cf * sl, -sf]
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(np.stack([north, east, down], 1)).as_quat()
    save(path / pose / "frame_orientations", np.tile([w, x, y, z], (40, 1)))
    save(path / "processed_log/GNSS/live_gnss_ublox/t", BOOT + np.arange(20) / 10)
    gnss = np.stack([latitude[::2], place[::2, 1], np.full(20, 10.0), np.full(20, 1.5e12), place[::2, 2], np.full(20, 90.0)], 1)
    save(path / "processed_log/GNSS/live_gnss_ublox/value", gnss)
    return path


@pytest.mark.parametrize("pose", ["global_pose", "global_pos"])
def test_units_axes_and_clocks(tmp_path: Path, pose: str) -> None:
    report = import_data("comma2k19", write_segment(tmp_path / "drive" / "3", pose), tmp_path / "s.eps")
    store = EpisodeStore.open(tmp_path / "s.eps")
    episode = store.episode(0)
    streams = {name: stream.values for name, stream in episode.streams.items()}
    np.testing.assert_allclose(streams["action"], np.pi / 2, rtol=1e-6)
    np.testing.assert_array_equal(streams["wheel_speed"][0], [90, 180, 270, 360])
    np.testing.assert_array_equal(streams["acceleration"][0], [90, -180, -270])  # forward, left, up
    np.testing.assert_array_equal(streams["angular_velocity"][0], [90, -180, -270])
    np.testing.assert_allclose(streams["pose"][-1][:3], [0, 19.5, 0], atol=0.05)
    np.testing.assert_allclose(streams["pose"][0][3:], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-5)  # forward is north: yaw +90
    np.testing.assert_allclose(streams["velocity"][5], [0, 10, 0], atol=0.05)
    np.testing.assert_allclose(streams["live_gnss_ublox"][-1], [0, 19, 0, 10, np.pi / 2], atol=0.05)
    np.testing.assert_array_equal(episode.streams["pose"].stamp_ns[:2], [4_000_000_000_000, 4_000_050_000_000])
    rates = {name: spec.rate_hz for name, spec in store.interface.features.items()}
    assert rates == {
        "speed": 50,
        "wheel_speed": 40,
        "acceleration": 100,
        "angular_velocity": 100,
        "live_gnss_ublox": 10,
        "pose": 20,
        "velocity": 20,
    }
    assert store.interface.features["pose"].vector.frame == "enu(WGS84 48.0 11.0 500.0)"
    assert (store.interface.action.vector.units, report.clock) == (("rad",), "sensor")
    assert report.carried["action"] == "CAN/steering_angle: degrees turned to radians"
    assert "float32" in report.carried["values"]


def test_several_segments_share_streams_and_origin(tmp_path: Path) -> None:
    write_segment(tmp_path / "route" / "0")
    second = write_segment(tmp_path / "route" / "1")
    for file in (second / "processed_log/IMU/gyro").iterdir():
        file.unlink()
    (second / "video.hevc").write_bytes(b"x")
    save(second / "processed_log/CAN/speed/t", np.concatenate([[BOOT, BOOT], BOOT + np.arange(1, 99) / 50]))
    source = open_source("comma2k19", tmp_path / "route", ImportOptions())
    rest = source.facts.not_carried
    assert (len(source), "angular_velocity" in source.facts.interface.features) == (2, False)
    assert rest["0: angular_velocity"] == "not all segments have it"
    assert rest["1: speed samples"] == "1 not later than the one before were dropped"
    assert rest["1/video.hevc"].startswith("HEVC video")
    assert len(source.episode(1).streams["speed"].values) == 99
    np.testing.assert_allclose(source.episode(1).streams["pose"].values[0, :3], 0, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("processed_log/CAN/speed/value", np.zeros((7, 1)), r"speed/value has 7 rows for 100 times"),
        ("processed_log/CAN/wheel_speed/value", np.zeros((80, 3)), r"wheel_speed/value: 3 columns instead of 4"),
        ("processed_log/CAN/speed/value", np.full((100, 1), np.nan), r"speed/value holds no finite numbers"),
        ("processed_log/CAN/speed/value", np.array([{}] * 100), r"speed/value is not a NumPy array of numbers \(Object arrays"),
        ("processed_log/CAN/speed/t", np.zeros(100), r"99 of 100 time stamps do not increase"),
    ],
)
def test_arrays_that_are_wrong_are_named(tmp_path: Path, file: str, values: np.ndarray, message: str) -> None:
    segment = write_segment(tmp_path / "3")
    save(segment / file, values)
    with pytest.raises(KineflowError, match=message):
        open_source("comma2k19", segment, ImportOptions()).episode(0)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match=r"holds no comma2k19 segment"):
        open_source("comma2k19", tmp_path, ImportOptions())
    segment = write_segment(tmp_path / "3")
    (segment / "processed_log/CAN/steering_angle/t").unlink()
    with pytest.raises(KineflowError, match=r"3 has no processed_log/CAN/steering_angle, the action"):
        open_source("comma2k19", segment, ImportOptions())


def test_a_rate_is_refused_because_the_segment_has_clocks(tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match=r"3 has time stamps of its own, so --rate-hz 10 has nothing to say; .*data resample"):
        open_source("comma2k19", write_segment(tmp_path / "3"), ImportOptions(rate_hz=10.0))
