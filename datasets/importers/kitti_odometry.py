"""Import KITTI odometry poses: `NN.txt`, one row-major 3 x 4 camera pose a line, and the times of the views where they are.

Format: the KITTI odometry development kit. Positions are metres in the frame of camera 0 at its first view, axes x right, y
down, z forward; here they are turned to REP-103 (datasets/importers/axes.py). Times come from `sequences/NN/times.txt`,
`NN_times.txt` or `times.txt` beside the poses; without them the stamps are nominal, 10 Hz as the cameras ran.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.axes import camera_poses_to_rep103
from kineflow.datasets.importers.clocks import nominal, nominal_ns, seconds_to_ns
from kineflow.datasets.importers.schemas import chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

RATE_HZ = 10.0
POSE_NAMES, POSE_UNITS = ("x", "y", "z", "qx", "qy", "qz", "qw"), ("m", "m", "m", "1", "1", "1", "1")
_FRAME = "start (REP-103 axes at the first view of camera 0)"


@dataclass(frozen=True)
class _Sequence:
    poses: Path
    times: Path | None


class KittiPoses:
    """A `Source` of one episode a sequence."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._sequences, self._rate = _find(path), options.rate_hz or RATE_HZ
        pose = FeatureSpec(unbounded(POSE_NAMES, POSE_UNITS, _FRAME), self._rate)
        self._interface = chosen(options.schema, Interface({"pose": pose}, pose), str(path))
        self._name = path.name

    @property
    def facts(self) -> Facts:
        timed = [s for s in self._sequences if s.times]
        clock = "sensor" if len(timed) == len(self._sequences) else nominal(self._rate)
        turned = (
            "camera axes (x right, y down, z forward) turned to REP-103; position m, quaternion x y z w; float64 kept as float32"
        )
        stamps = f"{len(timed)} of {len(self._sequences)} sequences have times, the others count {self._rate:g} Hz"
        carried = {"pose": f"3 x 4 matrices: {turned}; {stamps}", "action": "the pose again: KITTI records where the car went"}
        rest = {
            "commands": "KITTI odometry records no steering, throttle or brake",
            "images": "poses only; images are other downloads",
        }
        provenance = f"{self._name} (kitti-odometry)"
        return Facts(self._interface, clock, provenance, carried, rest, licence="CC-BY-NC-SA-3.0")

    def __len__(self) -> int:
        return len(self._sequences)

    def episode(self, index: int) -> Episode:
        sequence = self._sequences[index]
        matrices = _poses(sequence.poses)
        values = np.concatenate(camera_poses_to_rep103(matrices[:, :, 3], matrices[:, :, :3]), 1).astype(np.float32)
        stamp_ns = seconds_to_ns(_times(sequence.times, len(values))) if sequence.times else nominal_ns(len(values), self._rate)
        streams = {name: Stream(values, stamp_ns) for name in [*self._interface.features, "action"]}
        clock = "sensor" if sequence.times else nominal(self._rate)
        return Episode(streams, source=f"{self._name} {sequence.poses.stem}", clock=clock)


def open_kitti_poses(path: Path, options: ImportOptions) -> KittiPoses:
    """The file `NN.txt`, the folder of such files, or a data set folder with `poses/` in it.

    Raises:
        KineflowError: no such file, or a schema that asks for something else.
    """
    return KittiPoses(path, options)


def _find(path: Path) -> list[_Sequence]:
    folder = path / "poses" if (path / "poses").is_dir() else path
    files = [path] if path.is_file() else sorted(f for f in folder.glob("*.txt") if re.fullmatch(r"\d+", f.stem))
    if not files:
        raise KineflowError(f"{path} holds no KITTI poses (00.txt, 01.txt, ...); give the folder `poses` or one of its files")
    return [_Sequence(file, _times_of(file, alone=len(files) == 1)) for file in files]


def _times_of(poses: Path, alone: bool) -> Path | None:
    places = [poses.parents[1] / "sequences" / poses.stem / "times.txt"] if len(poses.parents) > 1 else []
    places += [poses.with_name(f"{poses.stem}_times.txt")] + ([poses.with_name("times.txt")] if alone else [])
    return next((place for place in places if place.is_file()), None)


def _numbers(file: Path, columns: int, what: str) -> np.ndarray:
    rows = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != columns or not np.isfinite(row).all():
            raise KineflowError(f"{file}, line {number}: {what} needs {columns} finite numbers, got '{line[:60]}'; copy it again")
        rows.append(row)
    if not rows:
        raise KineflowError(f"{file} is empty; copy it again")
    return np.array(rows)


def _poses(file: Path) -> np.ndarray:
    matrices = _numbers(file, 12, "a pose").reshape(-1, 3, 4)
    rotations = matrices[:, :, :3]
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((error > 1e-2) | (np.linalg.det(rotations) < 0))
    if len(bad):
        raise KineflowError(
            f"{file}, pose {bad[0]}: its 3 x 3 part is no rotation (off by {error[bad[0]]:.3g}); copy the file again"
        )
    return matrices


def _times(file: Path, steps: int) -> np.ndarray:
    times = _numbers(file, 1, "a time")[:, 0]
    if len(times) != steps:
        raise KineflowError(
            f"{file} has {len(times)} times for {steps} poses; take the times of the same sequence, or remove them"
        )
    late = np.flatnonzero(np.diff(seconds_to_ns(times)) <= 0)
    if len(late):
        raise KineflowError(
            f"{file}: time {late[0] + 1} ({times[late[0] + 1]} s) does not come after {times[late[0]]} s; copy it again"
        )
    return times
