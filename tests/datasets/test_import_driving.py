"""Argoverse 2, L5Kit and Waymo motion from small files made to the published layouts, and what is wrong with others."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numcodecs import Blosc

from kineflow.contracts import KineflowError
from kineflow.datasets.convert import import_data
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.l5kit import StructuredArray
from kineflow.datasets.importers.tfrecord import write_records


def imported(name: str, source: Path, path: Path) -> EpisodeStore:
    import_data(name, source, path)
    assert check_store(path) == []
    return EpisodeStore.open(path)


def table(file: Path, columns: dict[str, Any]) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    made = arrow.table(columns)
    parquet.write_table(made, file) if file.suffix == ".parquet" else feather.write_feather(made, file)


def scenario(file: Path, steps: int = 6, **changed: Any) -> dict[str, Any]:
    """Rows of three tracks, shuffled; the focal one is there from its third step on."""
    rng = np.random.default_rng(steps)
    rows = [(track, step) for track in ("7", "AV", "42") for step in range(2 if track == "42" else 0, steps)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    columns: dict[str, Any] = {
        "track_id": [track for track, _ in rows],
        "timestep": np.array([step for _, step in rows], np.int64),
        **{name: rng.normal(size=len(rows)) for name in ("position_x", "position_y", "heading", "velocity_x", "velocity_y")},
        "start_timestamp": np.full(len(rows), 3e17),
        "end_timestamp": np.full(len(rows), 3e17 + 1e8 * (steps - 1)),
        "num_timestamps": np.full(len(rows), steps),
        "focal_track_id": ["42"] * len(rows),
        "city": ["miami"] * len(rows),
        "scenario_id": [file.stem] * len(rows),
    } | changed
    table(file, {name: values for name, values in columns.items() if values is not None})
    return columns


def test_argoverse2_motion_takes_the_rows_of_ego_and_focal(tmp_path: Path) -> None:
    columns = scenario(tmp_path / "in" / "train" / "scenario_a.parquet")
    scenario(tmp_path / "in" / "val" / "scenario_b.parquet", 4)
    store = imported("argoverse2-motion", tmp_path / "in", tmp_path / "s.eps")
    assert store.lengths.tolist() == [6, 4]
    streams = store.episode(0).streams
    for name, track, first in (("pose", "AV", 0), ("focal", "42", 2)):
        for step in range(first, 6):
            (row,) = np.flatnonzero((np.array(columns["track_id"]) == track) & (columns["timestep"] == step))
            found = streams[name].values[step - first]
            expected = [columns[c][row] for c in ("position_x", "position_y", "heading", "velocity_x", "velocity_y")]
            np.testing.assert_array_equal(found, np.float32(expected)[: len(found)])
            assert streams[name].stamp_ns[step - first] == 3 * 10**17 + step * 10**8
    assert store.episode(1).source == "scenario_b (miami)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heading": None}, r"scenario_a\.parquet has no column 'heading'"),
        ({"focal_track_id": ["9"] * 16}, "track '9' has the timesteps"),
        ({"num_timestamps": np.full(16, 1)}, "of 1 from 3e"),
        ({"timestep": np.zeros(16, np.int64)}, r"track 'AV' has the timesteps \[0, 0"),
        ({"city": ["miami"] * 15 + [None]}, "column 'city': 1 cells are empty"),
    ],
)
def test_argoverse2_scenarios_that_are_not_whole_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    scenario(tmp_path / "scenario_a.parquet", **changed)
    with pytest.raises(KineflowError, match=message):
        import_data("argoverse2-motion", tmp_path / "scenario_a.parquet", tmp_path / "s.eps")
    assert not (tmp_path / "s.eps").exists()


def sensor_log(log: Path, pictures: bool = True, fx: float = 700.0) -> list[bytes]:
    """A quarter turn to the left per step; a camera that looks backwards, with a clock of its own."""
    angles = np.arange(4) * np.pi / 2
    zero = np.zeros(4)
    turns = {"qw": np.cos(angles / 2), "qx": zero, "qy": zero, "qz": np.sin(angles / 2)}
    moves = {"tx_m": np.arange(4.0), "ty_m": -np.arange(4.0), "tz_m": zero + 2}
    table(log / "city_SE3_egovehicle.feather", {"timestamp_ns": np.array([400, 100, 200, 300]) * 10**6, **turns, **moves})
    mount = {"qw": [0.5, 1.0], "qx": [-0.5, 0.0], "qy": [0.5, 0.0], "qz": [-0.5, 0.0]}
    table(
        log / "calibration" / "egovehicle_SE3_sensor.feather",
        {"sensor_name": ["ring", "lidar"], **mount, "tx_m": [1.5, 0.0], "ty_m": [0.0, 0.0], "tz_m": [1.4, 2.0]},
    )
    lens = {"fx_px": [fx], "fy_px": [701.0], "cx_px": [8.0], "cy_px": [6.0], "k1": [-0.2], "k2": [0.1], "k3": [0.05]}
    table(log / "calibration" / "intrinsics.feather", {"sensor_name": ["ring"], **lens})
    jpegs = [simplejpeg.encode_jpeg(np.full((12, 16, 3), 40 * n, np.uint8)) for n in range(3)]
    for number, jpeg in enumerate(jpegs if pictures else []):
        folder = log / "sensors" / "cameras" / "ring"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{(99, 150, 1000)[number] * 10**6}.jpg").write_bytes(jpeg)
    return jpegs


def test_argoverse2_sensor_logs_keep_clocks_pictures_and_calibration(tmp_path: Path) -> None:
    jpegs = sensor_log(tmp_path / "in" / "log_a")
    sensor_log(tmp_path / "in" / "log_b")
    store = imported("argoverse2-sensor", tmp_path / "in", tmp_path / "s.eps")
    streams = store.episode(0).streams
    assert streams["pose"].stamp_ns.tolist() == [100_000_000, 200_000_000, 300_000_000, 400_000_000]
    np.testing.assert_array_equal(streams["pose"].values[:, 0], [1, 2, 3, 0])  # sorted by time
    np.testing.assert_allclose(np.abs(streams["pose"].values[0, 3:]), [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-6)
    assert streams["ring"].stamp_ns.tolist() == [99_000_000, 150_000_000, 1_000_000_000]  # as numbers, not as text
    assert store.jpegs(1, "ring") == jpegs
    calibration = store.manifest.cameras["ring"].calibration
    assert calibration is not None
    assert calibration.intrinsics == ((700.0, 0.0, 8.0), (0.0, 701.0, 6.0), (0.0, 0.0, 1.0))
    assert calibration.distortion == (-0.2, 0.1, 0.0, 0.0, 0.05)
    # The mount of a forward camera: its z is the car's x, its x the car's -y.
    np.testing.assert_allclose(calibration.body_from_camera, [[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]])


def test_argoverse2_cameras_that_differ_and_damaged_tables_are_named(tmp_path: Path) -> None:
    sensor_log(tmp_path / "in" / "log_a")
    sensor_log(tmp_path / "in" / "log_b", fx=650.0)
    report = import_data("argoverse2-sensor", tmp_path / "in", tmp_path / "s.eps")
    assert "differs between the logs" in report.not_carried["calibration of ring"]
    assert EpisodeStore.open(tmp_path / "s.eps").manifest.cameras["ring"].calibration is None
    sensor_log(tmp_path / "in" / "log_c", pictures=False)
    report = import_data("argoverse2-sensor", tmp_path / "in", tmp_path / "t.eps")
    assert "no pictures" in report.not_carried["calibration of ring"]
    file = tmp_path / "in" / "log_b" / "city_SE3_egovehicle.feather"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(KineflowError, match=r"log_b/city_SE3_egovehicle\.feather: not a whole feather table"):
        import_data("argoverse2-sensor", tmp_path / "in", tmp_path / "u.eps")


RECORD = np.dtype([("timestamp", "<i8"), ("ego_translation", "<f8", (3,)), ("ego_rotation", "<f8", (3, 3)), ("x", "<U4")])
SCENE = np.dtype([("frame_index_interval", "<i8", (2,)), ("host", "<U16")])


def structured(folder: Path, values: np.ndarray, chunk: int, **changed: Any) -> None:
    """Zarr v2 as the specification says it: the last chunk is padded."""
    folder.mkdir(parents=True)
    described = [[n, f[0].base.str, *([list(f[0].shape)] if f[0].shape else [])] for n, f in values.dtype.fields.items()]  # type: ignore[union-attr]
    said = {"zarr_format": 2, "shape": [len(values)], "chunks": [chunk], "dtype": described, "filters": None, "order": "C"}
    (folder / ".zarray").write_text(json.dumps(said | {"compressor": Blosc("lz4").get_config(), "fill_value": None} | changed))
    for number in range(-(-len(values) // chunk)):
        part = np.zeros(chunk, values.dtype)
        rows = values[number * chunk : (number + 1) * chunk]
        part[: len(rows)] = rows
        (folder / str(number)).write_bytes(Blosc("lz4").encode(part.view(np.uint8)))


def l5kit(folder: Path, chunk: int = 4, **changed: Any) -> np.ndarray:
    frames, scenes = np.zeros(11, RECORD), np.zeros(2, SCENE)
    frames["timestamp"] = 10**18 + np.arange(11) * 10**8
    frames["ego_translation"] = np.arange(33).reshape(11, 3)
    frames["ego_rotation"] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter turn to the left
    scenes["frame_index_interval"], scenes["host"] = [[0, 5], [5, 11]], ["host-a", ""]
    structured(folder / "frames", frames, chunk, **changed)
    structured(folder / "scenes", scenes, 100)
    return frames


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_l5kit_scenes_are_read_across_chunks(tmp_path: Path, chunk: int) -> None:
    frames = l5kit(tmp_path / "in" / "a.zarr", chunk)
    np.testing.assert_array_equal(StructuredArray(tmp_path / "in" / "a.zarr" / "frames").read(3, 9), frames[3:9])
    store = imported("l5kit", tmp_path / "in", tmp_path / "s.eps")
    assert store.lengths.tolist() == [5, 6]
    streams = store.episode(1).streams
    np.testing.assert_array_equal(streams["pose"].values[:, :3], frames["ego_translation"][5:])
    np.testing.assert_allclose(streams["action"].values[:, 3:], [[0, 0, np.sqrt(0.5), np.sqrt(0.5)]] * 6, atol=1e-7)
    np.testing.assert_array_equal(streams["pose"].stamp_ns, frames["timestamp"][5:])
    assert store.episode(0).source == "a.zarr scene 0, host-a"


def test_l5kit_data_that_are_damaged_or_unsafe_are_refused(tmp_path: Path) -> None:
    for name, changed, message in (
        ("pickle", {"compressor": {"id": "pickle"}}, "compressor 'pickle' is not one of"),
        ("object", {"dtype": [["timestamp", "|O"]]}, "without filters and objects"),
        ("filters", {"filters": [{"id": "pickle"}]}, "without filters and objects"),
        ("fields", {"dtype": [["timestamp", "<i8"]]}, "an L5Kit data set has"),
        ("size", {"chunks": [5]}, "bytes instead of 5 x"),
        ("word", {"compressor": "blosc"}, "not a Zarr v2 array of records"),
        ("option", {"compressor": {"id": "blosc", "bogus": 1}}, "not a Zarr v2 array of records"),
    ):
        l5kit(tmp_path / f"{name}.zarr", **changed)
        with pytest.raises(KineflowError, match=message):
            import_data("l5kit", tmp_path / f"{name}.zarr", tmp_path / "s.eps")
    l5kit(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "frames" / "1").write_bytes(b"rubbish")
    with pytest.raises(KineflowError, match="frames/1: missing or damaged"):
        import_data("l5kit", tmp_path / "a.zarr", tmp_path / "s.eps")
    with pytest.raises(KineflowError, match=r"scenes/\.zarray is not there; give the \.zarr folder"):
        import_data("l5kit", tmp_path / "a.zarr" / "frames", tmp_path / "s.eps")


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def state(x: float, heading: float, valid: bool = True) -> bytes:
    body = b"".join(varint(n << 3 | 1) + struct.pack("<d", v) for n, v in ((2, x), (3, -x), (4, 7.0)))
    body += b"".join(varint(n << 3 | 5) + struct.pack("<f", v) for n, v in ((5, 4.5), (8, heading), (9, 2 * x), (10, 0.5)))
    return message(3, body + (varint(11 << 3) + b"\x01" if valid else b""))


def waymo(steps: int = 4, ego: int = 1, invalid: int = 2, packed: bool = False, states: int | None = None) -> bytes:
    times = [struct.pack("<d", 0.1 * step) for step in range(steps)]
    data = message(1, b"".join(times)) if packed else b"".join(varint(1 << 3 | 1) + time for time in times)
    data += message(2, varint(1 << 3) + varint(900) + state(5.0, 0.0) * steps)
    track = b"".join(state(float(step), 0.25 * step, step != invalid) for step in range(states or steps))
    return data + message(2, varint(1 << 3) + varint(901) + track) + message(5, b"abc") + varint(6 << 3) + varint(ego)


@pytest.mark.parametrize("packed", [False, True])
def test_waymo_scenarios_become_episodes_of_the_recording_car(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "in").mkdir()
    write_records(
        tmp_path / "in" / "training.tfrecord-00000-of-00002", [waymo(packed=packed), waymo(3, invalid=9, packed=packed)]
    )
    write_records(tmp_path / "in" / "training.tfrecord-00001-of-00002", [waymo(5, 0)])
    store = imported("waymo-motion", tmp_path / "in", tmp_path / "s.eps")
    assert store.lengths.tolist() == [3, 3, 5]
    streams = store.episode(0).streams
    np.testing.assert_array_equal(streams["pose"].values, [[0, 0, 7, 0], [1, -1, 7, 0.25], [3, -3, 7, 0.75]])
    np.testing.assert_array_equal(streams["velocity"].values, [[0, 0.5], [2, 0.5], [6, 0.5]])
    assert streams["action"].stamp_ns.tolist() == [0, 100_000_000, 300_000_000]
    np.testing.assert_array_equal(store.episode(2).streams["pose"].values[:, 0], [5] * 5)
    assert store.episode(0).source == "scenario abc"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (waymo(ego=2), "sdc_track_index is 2 of 2 tracks"),
        (waymo(states=3), "3 states of the recording car for 4 time stamps"),
        (waymo(1, invalid=0), "record 0: the recording car is never valid"),
        (waymo()[:-3], "not a Waymo motion Scenario"),
        (b"\x0a\x80", "not a Waymo motion Scenario"),
    ],
)
def test_what_is_not_a_waymo_scenario_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    write_records(tmp_path / "a.tfrecord", [data])
    with pytest.raises(KineflowError, match=problem):
        import_data("waymo-motion", tmp_path / "a.tfrecord", tmp_path / "s.eps")
    assert not (tmp_path / "s.eps").exists()


@pytest.mark.parametrize("name", ["argoverse2-motion", "argoverse2-sensor", "l5kit", "waymo-motion"])
def test_empty_folders_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(KineflowError, match=str(tmp_path / "in")):
        import_data(name, tmp_path / "in", tmp_path / "s.eps")
