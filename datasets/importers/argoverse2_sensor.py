"""Import Argoverse 2 sensor logs: poses of the car, and the ring and stereo cameras where their pictures are there.

Format: argoverse/av2-api, `src/av2/datasets/sensor/`: a folder a log with `city_SE3_egovehicle.feather` (city from car, q w x
y z), `calibration/` and `sensors/cameras/<camera>/<timestamp_ns>.jpg`. The car's axes are those of REP-103, a camera's those
of OpenCV; all stamps are nanoseconds of the car's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.arrow_tables import read_columns
from kineflow.datasets.importers.axes import quaternions, rotation_matrices
from kineflow.datasets.importers.clocks import rate_of
from kineflow.datasets.importers.pictures import decode_jpegs, decode_picture
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.manifest import Calibration, CameraRecord

POSES = "city_SE3_egovehicle.feather"
_TRANSFORM = ("qx", "qy", "qz", "qw", "tx_m", "ty_m", "tz_m")
_LENS = ("fx_px", "fy_px", "cx_px", "cy_px", "k1", "k2", "k3")


class Argoverse2Sensor:
    """A `Source` of one episode a log; each camera keeps its own clock and its JPEG bytes."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path
        self._logs = sorted(file.parent for file in [path / POSES, *path.rglob(f"*/{POSES}")] if file.is_file())
        if not self._logs:
            raise KineflowError(f"{path} holds no log ({POSES}); give a log of the sensor data set, or a folder above some")
        rate = rate_of(_poses(self._logs[0])[1])
        names = ("x", "y", "z", "qx", "qy", "qz", "qw")
        pose = FeatureSpec(unbounded(names, ("m", "m", "m", "1", "1", "1", "1"), "city"), rate)
        self._offered = Interface({"pose": pose}, pose, self._cameras())
        self._interface = chosen(options.schema, self._offered, str(path))

    def _cameras(self) -> dict[str, CameraSpec]:
        """Those with pictures in every log, sized as the first."""
        names = set.intersection(*({f.name for f in (log / "sensors" / "cameras").glob("*")} for log in self._logs))
        found = {}
        for name in sorted(names):
            files = _pictures(self._logs[0], name)
            if files:
                height, width = decode_picture(files[0].read_bytes(), str(files[0])).shape[:2]
                found[name] = CameraSpec(height, width, rate_of(np.array([int(f.stem) for f in files], np.int64)))
        return found

    @property
    def facts(self) -> Facts:
        carried = {"pose": f"{POSES}: metres and quaternion x y z w in the frame of the city; float64 kept as float32"}
        carried["action"] = "the pose again: the logs hold no controls, what a planner imitates is where the car went"
        carried |= {name: f"sensors/cameras/{name}, the JPEG bytes, with its calibration" for name in self._interface.cameras}
        lenses = [_calibrations(log) for log in self._logs]
        rest = {f"calibration of {name}": "the camera has no pictures here" for name in lenses[0] if name not in carried}
        records = {}
        for name in self._interface.cameras:
            first = lenses[0].get(name)
            same = first is not None and all(lens.get(name) == first for lens in lenses)
            records[name] = CameraRecord(calibration=first if same else None)
            if not same:
                rest[f"calibration of {name}"] = "it differs between the logs, or one has none; import each car apart to keep it"
        rest["lidar, annotations, map"] = "point clouds, boxes and lanes are not streams of a fixed size"
        rest |= not_chosen(self._interface, self._offered)
        provenance = f"{self._path.name} (argoverse2-sensor)"
        return Facts(self._interface, "sensor", provenance, carried, rest, records, "CC-BY-NC-SA-4.0")

    def __len__(self) -> int:
        return len(self._logs)

    def episode(self, index: int) -> Episode:
        log = self._logs[index]
        pose = Stream(*_poses(log))
        streams = dict.fromkeys([*self._interface.features, "action"], pose)
        jpeg = {}
        for name, camera in self._interface.cameras.items():
            files = _pictures(log, name)
            if not files:
                raise KineflowError(f"{log}: no pictures in sensors/cameras/{name}; copy the log again or leave it out")
            jpeg[name] = [file.read_bytes() for file in files]
            stamp_ns = np.array([int(file.stem) for file in files], np.int64)
            streams[name] = Stream(decode_jpegs(jpeg[name], camera.frame_shape, [str(f) for f in files]), stamp_ns)
        return Episode(streams, source=log.name, jpeg=jpeg)


def open_argoverse2_sensor(path: Path, options: ImportOptions) -> Argoverse2Sensor:
    """A log, or any folder above logs.

    Raises:
        KineflowError: no log below `path`, or a table that is not what its name says; names the file.
    """
    return Argoverse2Sensor(path, options)


def _pictures(log: Path, camera: str) -> list[Path]:
    files = [f for f in (log / "sensors" / "cameras" / camera).glob("*.jpg") if f.stem.isdigit()]
    return sorted(files, key=lambda file: int(file.stem))


def _poses(log: Path) -> tuple[np.ndarray, np.ndarray]:
    file = log / POSES
    table = read_columns(file, ("timestamp_ns", *_TRANSFORM))
    order = np.argsort(table["timestamp_ns"], kind="stable")
    stamp_ns = table["timestamp_ns"][order].astype(np.int64)
    if len(stamp_ns) == 0 or (np.diff(stamp_ns) <= 0).any():
        raise KineflowError(f"{file}: no poses, or two at one time; copy the log again")
    found = np.stack([table[name][order] for name in _TRANSFORM], 1).astype(np.float64)
    lengths = np.linalg.norm(found[:, :4], axis=1)
    if not (np.abs(lengths - 1) < 1e-3).all():  # NaN too
        raise KineflowError(f"{file}: quaternions of lengths {lengths.min():.3g} to {lengths.max():.3g}; copy the log again")
    turned = quaternions(rotation_matrices(found[:, :4]))  # without jumps between q and -q
    return np.concatenate([found[:, 4:], turned], 1).astype(np.float32), stamp_ns


def _calibrations(log: Path) -> Mapping[str, Calibration]:
    places = log / "calibration" / "egovehicle_SE3_sensor.feather", log / "calibration" / "intrinsics.feather"
    if not all(place.is_file() for place in places):
        return {}
    mounts, lenses = read_columns(places[0], ("sensor_name", *_TRANSFORM)), read_columns(places[1], ("sensor_name", *_LENS))
    found = {}
    for row, name in enumerate(lenses["sensor_name"]):
        at = np.flatnonzero(mounts["sensor_name"] == name)
        if len(at) != 1:
            raise KineflowError(f"{places[0]}: camera '{name}' of {places[1].name} is there {len(at)} times; copy the log again")
        mount = np.array([float(mounts[column][at[0]]) for column in _TRANSFORM])
        body = np.eye(4)
        body[:3, :3], body[:3, 3] = rotation_matrices(mount[None, :4])[0], mount[4:]
        fx, fy, cx, cy, k1, k2, k3 = (float(lenses[column][row]) for column in _LENS)
        matrix = ((fx, 0.0, cx), (0.0, fy, cy), (0.0, 0.0, 1.0))
        rows = tuple(tuple(float(number) for number in line) for line in body)
        found[str(name)] = Calibration(matrix, "plumb_bob", (k1, k2, 0.0, 0.0, k3), rows)
    return found
