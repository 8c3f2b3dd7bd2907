"""Import RECON (and other BADGR-style) recordings of a Jackal robot: one HDF5 file a trajectory, JPEG bytes inside.

Format: the RECON release, as robodhruv/visualnav-transformer (train/process_recon.py) read it:
`images/rgb_left` [T] JPEG bytes, `jackal/position` [T, 3] m and `jackal/yaw` [T] rad in the odometry frame,
`commands/linear_velocity` and `commands/angular_velocity` [T]. It records no clocks; it was recorded at 4 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.hdf5 import leaves, opened
from kineflow.datasets.importers.pictures import decode_jpegs, decode_picture
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

RATE_HZ = 4.0
_CAMERAS = ("rgb_left", "rgb_right")


@dataclass(frozen=True)
class _Part:
    """One vector stream: data sets laid side by side."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str


_ACTION = _Part(
    ("commands/linear_velocity", "commands/angular_velocity"),
    ("linear_velocity", "angular_velocity"),
    ("m/s", "rad/s"),
    "base",
)
_POSE = _Part(("jackal/position", "jackal/yaw"), ("x", "y", "z", "yaw"), ("m", "m", "m", "rad"), "odom")
_OPTIONAL = {
    "velocity": _Part(
        ("jackal/linear_velocity", "jackal/angular_velocity"),
        ("linear_velocity", "angular_velocity"),
        ("m/s", "rad/s"),
        "base",
    ),
    "imu": _Part(
        ("jackal/imu/linear_acceleration", "jackal/imu/angular_velocity"),
        ("ax", "ay", "az", "wx", "wy", "wz"),
        ("m/s^2",) * 3 + ("rad/s",) * 3,
        "imu",
    ),
}
_WHY_NOT = {
    "gps/latlong": "degrees need more digits than float32 has",
    "images/thermal": "a camera of numbers without a unit",
}


class Recon:
    """A `Source` of one episode a file; files are opened for the time of one read."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path, self._rate = path, options.rate_hz or RATE_HZ
        self._files = [path] if path.is_file() else sorted({*path.rglob("*.hdf5"), *path.rglob("*.h5")})
        if not self._files:
            raise KineflowError(f"{path} holds no .hdf5 files; give the folder `recon_release` or one of its files")
        with opened(self._files[0]) as file:
            found = leaves(file)
            self._parts, cameras = _parts(found, self._files[0]), {}
            for name in _CAMERAS:
                if f"images/{name}" in found:
                    first = decode_picture(_bytes(found[f"images/{name}"][0]), f"{self._files[0]}, images/{name}, 0")
                    cameras[name] = CameraSpec(first.shape[0], first.shape[1], self._rate)
            self._shapes = {name: f"{data.dtype} {list(data.shape)}" for name, data in found.items()}
        specs = {n: FeatureSpec(unbounded(p.names, p.units, p.frame), self._rate) for n, p in self._parts.items()}
        self._offered = Interface(specs, specs.pop("action"), cameras)
        self._interface = chosen(options.schema, self._offered, str(path))

    @property
    def facts(self) -> Facts:
        parts = {n: self._parts[n] for n in [*self._interface.features, "action"]}
        carried = {name: f"{' and '.join(part.paths)}, as recorded; float64 kept as float32" for name, part in parts.items()}
        carried |= {name: f"images/{name}, the JPEG bytes" for name in self._interface.cameras}
        used = {path for part in self._parts.values() for path in part.paths} | {f"images/{n}" for n in self._offered.cameras}
        rest = {n: _WHY_NOT.get(n, f"of unknown unit and frame: {s}") for n, s in self._shapes.items() if n not in used}
        rest |= {"clock": f"none is recorded; steps are counted at {self._rate:g} Hz"}
        rest |= not_chosen(self._interface, self._offered)
        return Facts(self._interface, nominal(self._rate), f"{self._path.name} (recon)", carried, rest)

    def __len__(self) -> int:
        return len(self._files)

    def episode(self, index: int) -> Episode:
        file = self._files[index]
        with opened(file) as held:
            found = leaves(held)
            values = {n: _values(found, self._parts[n], file) for n in [*self._interface.features, "action"]}
            jpeg = {n: _jpegs(found, f"images/{n}", file) for n in self._interface.cameras}
        steps = len(values["action"])
        counts = {name: len(part) for name, part in values.items()} | {name: len(part) for name, part in jpeg.items()}
        for name, count in counts.items():
            if count != steps:
                raise KineflowError(f"{file}: '{name}' has {count} steps, the commands have {steps}; copy the file again")
        for name, pictures in jpeg.items():
            where = [f"{file}, images/{name}, step {step}" for step in range(steps)]
            values[name] = decode_jpegs(pictures, self._interface.cameras[name].frame_shape, where)
        stamp_ns = nominal_ns(steps, self._rate)
        streams = {name: Stream(value, stamp_ns) for name, value in values.items()}
        return Episode(streams, source=file.name, clock=nominal(self._rate), jpeg=jpeg)


def open_recon(path: Path, options: ImportOptions) -> Recon:
    """A folder with the .hdf5 files, at any depth, or one of them. `options.rate_hz`: recorded otherwise than at 4 Hz.

    Raises:
        KineflowError: no such file, or one without the robot's pose, commands or left camera; names it.
    """
    return Recon(path, options)


def _parts(found: Mapping[str, Any], file: Path) -> dict[str, _Part]:
    missing = [path for path in (*_POSE.paths, *_ACTION.paths, "images/rgb_left") if path not in found]
    if missing:
        raise KineflowError(f"{file} has no {missing}, so it is not a RECON recording; it has {sorted(found)[:12]}")
    parts = {"pose": _POSE} | {n: p for n, p in _OPTIONAL.items() if all(path in found for path in p.paths)}
    hits = tuple(sorted(name for name in found if name.startswith("collision/")))
    if hits:
        parts["collision"] = _Part(hits, tuple(name.removeprefix("collision/") for name in hits), ("1",) * len(hits), "base")
    return {**parts, "action": _ACTION}


def _values(found: Mapping[str, Any], part: _Part, file: Path) -> np.ndarray:
    columns = []
    for path in part.paths:
        if path not in found:
            raise KineflowError(f"{file} has no {path}, which the first file has; leave the file out, or that stream by a schema")
        array = np.asarray(found[path][...])
        if array.dtype.kind not in "fiub":
            raise KineflowError(f"{file}, {path}: {array.dtype} instead of numbers; not a RECON recording")
        columns.append(array.reshape(len(array), -1).astype(np.float32))
    if len({len(column) for column in columns}) > 1:
        raise KineflowError(f"{file}: {part.paths} have {[len(column) for column in columns]} steps; copy the file again")
    values = np.concatenate(columns, 1)
    if values.shape[1] != len(part.names):
        raise KineflowError(f"{file}: {part.paths} have {values.shape[1]} columns, not {part.names}; not a RECON recording")
    return values


def _jpegs(found: Mapping[str, Any], path: str, file: Path) -> list[bytes]:
    if path not in found:
        raise KineflowError(f"{file} has no {path}, which the first file has; leave this file out, or that camera by a schema")
    return [_bytes(item) for item in found[path][...]]


def _bytes(item: Any) -> bytes:
    """HDF5 strings lose trailing zeros, which no JPEG ends with; others store arrays of bytes."""
    return bytes(item) if isinstance(item, bytes) else np.asarray(item, np.uint8).tobytes()
