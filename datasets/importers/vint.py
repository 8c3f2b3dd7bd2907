"""Import ViNT / NoMaD / GNM folders: one a trajectory, with `0.jpg`, `1.jpg`, ... and `traj_data`.

Format: robodhruv/visualnav-transformer, train/vint_train/data/vint_dataset.py and README: `traj_data.pkl` is a pickled
dictionary of `position` [T, 2] m and `yaw` [T] rad. A pickle runs whatever code its author wrote, so it is never opened here:
the same arrays as `traj_data.npz` or `traj_data.json` beside it are read, and the error says how whoever trusts it makes them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.pictures import decode_jpegs, decode_picture
from kineflow.datasets.importers.schemas import chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

RATE_HZ = 4.0
CAMERA = "front"
_NAMES, _UNITS = ("x", "y", "yaw"), ("m", "m", "rad")
_RECIPE = """python -c "
import glob, os, pickle, sys, numpy
for name in glob.glob(os.path.join(sys.argv[1], '**', 'traj_data.pkl'), recursive=True):
    data = pickle.load(open(name, 'rb'))
    numpy.savez(name[:-4] + '.npz', position=data['position'], yaw=data['yaw'])
" '{path}'"""


class VintFolders:
    """A `Source` of one episode a folder."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path, self._rate = path, options.rate_hz or RATE_HZ
        self._folders = sorted({f.parent for kind in ("pkl", "npz", "json") for f in path.rglob(f"traj_data.{kind}")})
        if not self._folders:
            raise KineflowError(f"{path} holds no folder with traj_data; give the folder of the trajectories")
        pickled = [f for f in self._folders if not any((f / f"traj_data.{kind}").is_file() for kind in ("npz", "json"))]
        if pickled:
            raise KineflowError(
                f"{pickled[0] / 'traj_data.pkl'} ({len(pickled)} of {len(self._folders)} folders) is a pickle, which runs code "
                "when it is opened, so Kineflow never does. If you trust where it comes from, write the same arrays beside it "
                f"with\n{_RECIPE.format(path=path)}\nand import again"
            )
        first = next((p for f in self._folders if (p := f / "0.jpg").is_file()), None)
        if first is None:
            raise KineflowError(f"{self._folders[0]} has no 0.jpg; give trajectories with their pictures")
        height, width = decode_picture(first.read_bytes(), str(first)).shape[:2]
        pose = FeatureSpec(unbounded(_NAMES, _UNITS, "odom"), self._rate)
        offered = Interface({"pose": pose}, pose, {CAMERA: CameraSpec(height, width, self._rate)})
        self._interface = chosen(options.schema, offered, str(path))

    @property
    def facts(self) -> Facts:
        carried = {"pose": "position and yaw of traj_data, as recorded; float64 kept as float32"}
        carried["action"] = "the pose again: the folders hold no commands, models of this family plan where the robot went"
        carried |= dict.fromkeys(self._interface.cameras, "N.jpg, the JPEG bytes")
        rest = {"clock": f"none is recorded; steps are counted at {self._rate:g} Hz", "commands": "the format has none"}
        short = "pictures without a pose, and poses without a picture, at the end of a folder are left out"
        return Facts(self._interface, nominal(self._rate), f"{self._path.name} (vint)", carried, {**rest, "unmatched end": short})

    def __len__(self) -> int:
        return len(self._folders)

    def episode(self, index: int) -> Episode:
        folder = self._folders[index]
        pose = _pose(folder)
        files = [folder / f"{step}.jpg" for step in range(len(pose))]
        steps = next((step for step, file in enumerate(files) if not file.is_file()), len(files))
        later = [file.name for file in files[steps:] if file.is_file()]
        if steps == 0 or later:
            raise KineflowError(f"{folder}: {steps}.jpg is missing, but not {later[:1] or 'the poses'}; copy the folder again")
        stamp_ns = nominal_ns(steps, self._rate)
        streams = {name: Stream(pose[:steps], stamp_ns) for name in [*self._interface.features, "action"]}
        jpeg = {name: [file.read_bytes() for file in files[:steps]] for name in self._interface.cameras}
        for name, camera in self._interface.cameras.items():
            where = [str(file) for file in files[:steps]]
            streams[name] = Stream(decode_jpegs(jpeg[name], camera.frame_shape, where), stamp_ns)
        source = folder.relative_to(self._path.parent).as_posix()
        return Episode(streams, source=source, clock=nominal(self._rate), jpeg=jpeg)


def open_vint(path: Path, options: ImportOptions) -> VintFolders:
    """A folder above the trajectories (or one of them). `options.rate_hz`: recorded otherwise than at 4 Hz.

    Raises:
        KineflowError: no trajectory, or only pickled ones; says how to convert those.
    """
    return VintFolders(path, options)


def _pose(folder: Path) -> np.ndarray:
    file = next(f for kind in ("npz", "json") if (f := folder / f"traj_data.{kind}").is_file())
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as found:
                position, yaw = np.asarray(found["position"], np.float64), np.asarray(found["yaw"], np.float64)
        else:
            plain = json.loads(file.read_text())
            position, yaw = np.asarray(plain["position"], np.float64), np.asarray(plain["yaw"], np.float64)
        # Some writers keep yaw as [T, 1], and position with a third column.
        pose = np.concatenate([position[:, :2], yaw.reshape(len(position), 1)], 1)
    except Exception as error:  # zipfile's, NumPy's and json's own, of many kinds
        raise KineflowError(
            f"{file}: not `position` [T, 2] and `yaw` [T] as numbers ({type(error).__name__}: {error}); convert it again"
        ) from error
    if pose.shape[1] != 3 or not np.isfinite(pose).all():
        raise KineflowError(f"{file}: `position` is {list(position.shape)}, or something is not finite; convert it again")
    return pose.astype(np.float32)
