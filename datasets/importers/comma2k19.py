"""Import comma2k19 segments: a folder a minute of driving, every sensor with its own clock (seconds since the device started).

Format: commaai/comma2k19, README: `processed_log/<group>/<log>/{t,value}` and `global_pose/frame_*` are NumPy arrays without
a file ending. Angles come in degrees, the device axes are forward, right, down, positions earth-centred; here they are
radians, REP-103 and east-north-up metres. The orientation quaternion (w x y z) turns device axes to earth-centred ones: the
README says the inverse, but only so do the recorded velocities point forward (tests/datasets/real_samples/test_comma2k19.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.axes import FROM_FRD, LocalFrame, ecef_from_geodetic, quaternions, rotation_matrices
from kineflow.datasets.importers.clocks import increasing, rate_of, seconds_to_ns
from kineflow.datasets.importers.schemas import chosen, not_chosen, refuse_rate, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

_POSES = ("global_pose", "global_pos")


@dataclass(frozen=True)
class _Log:
    """One stream: where its values and times lie, what they mean, and how they become ours."""

    values: tuple[str, ...]
    times: str
    columns: int
    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str  # "enu": the local frame of the import
    convert: Callable[[LocalFrame, np.ndarray], np.ndarray]
    said: str


def _same(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    return values


def _radians(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    return np.asarray(np.radians(values))


def _from_frd(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    return np.asarray(values @ FROM_FRD.T)


def _pose(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    device = rotation_matrices(values[:, [4, 5, 6, 3]])  # columns: forward, right, down in earth-centred axes
    return np.concatenate([local.positions(values[:, :3]), quaternions(local.axes @ device @ FROM_FRD)], 1)


def _velocity(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    return np.asarray(values @ local.axes.T)


def _gnss(local: LocalFrame, values: np.ndarray) -> np.ndarray:
    position = local.positions(ecef_from_geodetic(values[:, [0, 1, 4]]))
    return np.concatenate([position, values[:, 2:3], np.radians(values[:, 5:6])], 1)


def _can(
    log: str, width: int, names: tuple[str, ...], unit: str, frame: str, convert: Callable[..., np.ndarray], said: str
) -> _Log:
    folder = f"processed_log/{log}"
    return _Log((f"{folder}/value",), f"{folder}/t", width, names, (unit,) * width, frame, convert, said)


_XYZ, _WHEELS = ("x", "y", "z"), ("front_left", "front_right", "rear_left", "rear_right")
_POSE_NAMES, _POSE_UNITS = (*_XYZ, "qx", "qy", "qz", "qw"), ("m", "m", "m", "1", "1", "1", "1")
_GNSS_NAMES, _GNSS_UNITS = ("x", "y", "z", "speed", "bearing"), ("m", "m", "m", "m/s", "rad")
_FRD = "forward, right, down turned to REP-103"
_STEERING = "steering_angle"


def _logs(pose: str) -> dict[str, _Log]:
    gnss = {
        name: _Log(
            (f"processed_log/GNSS/{name}/value",),
            f"processed_log/GNSS/{name}/t",
            6,
            _GNSS_NAMES,
            _GNSS_UNITS,
            "enu",
            _gnss,
            "degrees turned to local metres; bearing clockwise from north, radians; utc_timestamp not carried",
        )
        for name in ("live_gnss_ublox", "live_gnss_qcom")
    }
    times = f"{pose}/frame_times"
    position = (f"{pose}/frame_positions", f"{pose}/frame_orientations")
    return {
        _STEERING: _can(f"CAN/{_STEERING}", 1, (_STEERING,), "rad", "steering wheel", _radians, "degrees turned to radians"),
        "speed": _can("CAN/speed", 1, ("speed",), "m/s", "car", _same, "as recorded"),
        "wheel_speed": _can("CAN/wheel_speed", 4, _WHEELS, "m/s", "car", _same, "as recorded"),
        "acceleration": _can("IMU/accelerometer", 3, _XYZ, "m/s^2", "device", _from_frd, _FRD),
        "angular_velocity": _can("IMU/gyro", 3, _XYZ, "rad/s", "device", _from_frd, _FRD),
        **gnss,
        "pose": _Log(
            position, times, 7, _POSE_NAMES, _POSE_UNITS, "enu", _pose, "earth-centred camera poses turned to local metres"
        ),
        "velocity": _Log((f"{pose}/frame_velocities",), times, 3, _XYZ, ("m/s",) * 3, "enu", _velocity, "turned to local axes"),
    }


class Comma2k19:
    """A `Source` of one episode a segment; steering is the action, every stream keeps its own clock."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        refuse_rate(options, str(path))
        self._path, self._segments = path, _find(path)
        self._plans = [_present(segment) for segment in self._segments]
        self._common = set.intersection(*(set(plan) for plan in self._plans))
        if _STEERING not in self._common:
            lacking = next(s for s, plan in zip(self._segments, self._plans) if _STEERING not in plan)
            raise KineflowError(f"{lacking} has no processed_log/CAN/{_STEERING}, the action; leave this segment out")
        self._local = _origin(self._segments[0], self._plans[0])
        self._kept = [
            {name: _clock(s, plan[name]) for name in sorted(self._common)} for s, plan in zip(self._segments, self._plans)
        ]
        self._offered = self._interface_of_all()
        self._interface = chosen(options.schema, self._offered, str(path))

    def _interface_of_all(self) -> Interface:
        plan, features = self._plans[0], {}
        for name in (n for n in plan if n in self._common):
            stamp_ns, keep = self._kept[0][name]
            frame = self._local.name if plan[name].frame == "enu" else plan[name].frame
            features[name] = FeatureSpec(unbounded(plan[name].names, plan[name].units, frame), rate_of(stamp_ns[keep]))
        action = features.pop(_STEERING)
        return Interface(features, action)

    @property
    def facts(self) -> Facts:
        carried = {name: self._plans[0][name].said for name in self._plans[0] if name in self._common}
        carried["action"] = f"CAN/{_STEERING}: {carried.pop(_STEERING)}"
        carried["values"] = "float64 kept as float32"
        rest: dict[str, str] = {}
        for segment, plan, kept in zip(self._segments, self._plans, self._kept):
            rest |= {f"{segment.name}: {name}": "not all segments have it" for name in plan if name not in self._common}
            late = {name: int((~keep).sum()) for name, (_, keep) in kept.items() if not keep.all()}
            rest |= {
                f"{segment.name}: {name} samples": f"{n} not later than the one before were dropped" for name, n in late.items()
            }
            used = {part for log in plan.values() for part in (*log.values, log.times)}
            here = sorted(f.relative_to(segment).as_posix() for f in segment.rglob("*") if f.is_file())
            rest |= {f"{segment.name}/{f}": _reason(f) for f in here if f not in used}
        rest |= not_chosen(self._interface, self._offered)
        provenance = f"{self._path.name} (comma2k19, times in seconds since the device started)"
        return Facts(self._interface, "sensor", provenance, carried, rest)

    def __len__(self) -> int:
        return len(self._segments)

    def episode(self, index: int) -> Episode:
        segment, plan, kept = self._segments[index], self._plans[index], self._kept[index]
        streams = {}
        for name in [*self._interface.features, "action"]:
            log, (stamp_ns, keep) = plan[_STEERING if name == "action" else name], kept[_STEERING if name == "action" else name]
            values = log.convert(self._local, _values(segment, log, len(stamp_ns)))
            streams[name] = Stream(values[keep].astype(np.float32), stamp_ns[keep])
        return Episode(streams, source=str(segment.relative_to(self._path.parent)))


def open_comma2k19(path: Path, options: ImportOptions) -> Comma2k19:
    """One segment, or any folder above segments.

    Raises:
        KineflowError: no segment below `path`, or an array that is not what its name says; names the file.
    """
    return Comma2k19(path, options)


def _find(path: Path) -> list[Path]:
    found = sorted(folder.parent for folder in [path / "processed_log", *path.rglob("*/processed_log")] if folder.is_dir())
    if not found:
        raise KineflowError(f"{path} holds no comma2k19 segment (no folder processed_log); give a segment or a folder above some")
    return found


def _present(segment: Path) -> dict[str, _Log]:
    pose = next((name for name in _POSES if (segment / name).is_dir()), _POSES[0])
    return {
        name: log for name, log in _logs(pose).items() if all((segment / part).is_file() for part in (*log.values, log.times))
    }


def _array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise KineflowError(f"{file} is not a NumPy array of numbers ({error}); copy the segment again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or len(array) == 0 or not np.isfinite(array).all():
        raise KineflowError(f"{file} holds no finite numbers; copy the segment again, or leave it out")
    return array.astype(np.float64)


def _values(segment: Path, log: _Log, steps: int) -> np.ndarray:
    parts = [_array(segment / part) for part in log.values]
    for part, array in zip(log.values, parts):
        if len(array) != steps:
            raise KineflowError(f"{segment / part} has {len(array)} rows for {steps} times; copy the segment again")
    values = np.concatenate([array.reshape(steps, -1) for array in parts], 1)
    if values.shape[1] != log.columns:
        raise KineflowError(f"{segment / log.values[0]}: {values.shape[1]} columns instead of {log.columns}; not comma2k19")
    return values


def _clock(segment: Path, log: _Log) -> tuple[np.ndarray, np.ndarray]:
    stamp_ns = seconds_to_ns(_array(segment / log.times).reshape(-1))
    return stamp_ns, increasing(stamp_ns, str(segment / log.times))


def _origin(segment: Path, plan: Mapping[str, _Log]) -> LocalFrame:
    if "pose" in plan:
        return LocalFrame.at(_array(segment / plan["pose"].values[0])[0])
    for name in ("live_gnss_ublox", "live_gnss_qcom"):
        if name in plan:
            first = _array(segment / plan[name].values[0])[:1, [0, 1, 4]]
            return LocalFrame(*(float(number) for number in first[0]))
    return LocalFrame(0.0, 0.0, 0.0)


def _reason(file: str) -> str:
    if file.endswith("video.hevc"):
        return "HEVC video: a minute decoded is 3.7 GB; its frame times are those of `pose`"
    if "frame_gps_times" in file:
        return "GPS week and second need more digits than float32 has"
    return "not one of the logs that this importer knows"
