"""Import Lyft Level 5 (L5Kit) scenes: a Zarr v2 folder with the structured arrays `scenes`, `frames`, `agents`.

Format: woven-planet/l5kit, `l5kit/data/zarr_dataset.py`: `frames` has nanosecond stamps and the car's pose in the world frame
(metres; 3 x 3 rotation), about 10 Hz; `scenes` says which frames belong together. zarr-python 3 cannot open structured types
with sub-arrays, so `.zarray` is read and the chunks are decoded here, by the compressors of numcodecs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.axes import quaternions
from kineflow.datasets.importers.clocks import rate_of
from kineflow.datasets.importers.schemas import chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

_COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma")  # never "pickle", which numcodecs has too
_FIELDS: dict[str, dict[str, tuple[int, ...]]] = {
    "scenes": {"frame_index_interval": (2,)},
    "frames": {"timestamp": (), "ego_translation": (3,), "ego_rotation": (3, 3)},
}
_LONGEST_SCENE = 100_000  # frames; the data set has 250


class StructuredArray:
    """Rows of one Zarr v2 array of records; the chunk read last is kept."""

    def __init__(self, folder: Path) -> None:
        """Raises KineflowError where `folder` is not such an array, or needs something else than a plain compressor."""
        self._folder, (self.rows, self._chunk_rows, self.dtype, self._compressor) = folder, _metadata(folder)
        self._held: tuple[int, np.ndarray] | None = None

    def read(self, first: int, stop: int) -> np.ndarray:
        """Rows `[first, stop)`."""
        size = self._chunk_rows
        parts = [np.empty(0, self.dtype)]
        for number in range(first // size, -(-stop // size)):
            chunk = self._chunk(number)
            parts.append(chunk[max(0, first - number * size) : stop - number * size])
        return np.concatenate(parts)

    def _chunk(self, number: int) -> np.ndarray:
        if self._held is None or self._held[0] != number:
            file = self._folder / str(number)
            try:
                data = file.read_bytes()
                decoded = bytes(self._compressor.decode(data)) if self._compressor else data
            except (OSError, RuntimeError, ValueError, EOFError) as error:
                raise KineflowError(f"{file}: missing or damaged ({error}); copy the data again") from error
            if len(decoded) != self._chunk_rows * self.dtype.itemsize:
                raise KineflowError(
                    f"{file}: {len(decoded)} bytes instead of {self._chunk_rows} x {self.dtype.itemsize}; copy the data again"
                )
            self._held = number, np.frombuffer(decoded, self.dtype)
        return self._held[1]


class L5Kit:
    """A `Source` of one episode a scene."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path
        self._root = path if (path / "frames" / ".zarray").is_file() else next(iter(sorted(path.glob("*.zarr"))), path)
        self._arrays = {name: StructuredArray(self._root / name) for name in _FIELDS}
        for name, needed in _FIELDS.items():
            dtype = self._arrays[name].dtype
            found = {field: dtype[field].shape for field in dtype.names or ()}
            if any(found.get(field) != shape for field, shape in needed.items()):
                raise KineflowError(f"{self._root / name} has the fields {found}, an L5Kit data set has {needed}")
        scenes = self._arrays["scenes"]
        self._intervals = scenes.read(0, scenes.rows)["frame_index_interval"].astype(np.int64)
        self._hosts = scenes.read(0, scenes.rows)["host"] if "host" in (scenes.dtype.names or ()) else None
        if len(self._intervals) == 0:
            raise KineflowError(f"{self._root} has no scenes")
        names = ("x", "y", "z", "qx", "qy", "qz", "qw")
        units = ("m", "m", "m", "1", "1", "1", "1")
        pose = FeatureSpec(unbounded(names, units, "world"), rate_of(self._frames(0)["timestamp"], 10.0))
        self._interface = chosen(options.schema, Interface({"pose": pose}, pose), str(path))

    @property
    def facts(self) -> Facts:
        carried = {
            "pose": "ego_translation and ego_rotation as quaternion x y z w, world frame; float64 kept as float32",
            "action": "the pose again: the data hold no controls, what a planner imitates is where the car went",
        }
        rest = {
            "agents": "their number differs from frame to frame, a stream has a fixed size",
            "traffic_light_faces": "likewise",
        }
        provenance = f"{self._path.name} (l5kit)"
        return Facts(self._interface, "sensor", provenance, carried, rest, licence="CC-BY-NC-SA-4.0")

    def __len__(self) -> int:
        return len(self._intervals)

    def episode(self, index: int) -> Episode:
        frames = self._frames(index)
        where, stamp_ns = f"{self._root}, scene {index}", frames["timestamp"].astype(np.int64)
        if (np.diff(stamp_ns) <= 0).any():
            raise KineflowError(f"{where}: the stamps do not increase; leave the scene out")
        rotation = frames["ego_rotation"].astype(np.float64)
        error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max()
        if not error < 1e-3 or (np.linalg.det(rotation) < 0).any():  # NaN too
            raise KineflowError(f"{where}: ego_rotation is no rotation (off by {error:.3g}); copy the data again")
        pose = np.concatenate([frames["ego_translation"], quaternions(rotation)], 1).astype(np.float32)
        host = f", {self._hosts[index]}" if self._hosts is not None and self._hosts[index] else ""
        streams = {name: Stream(pose, stamp_ns) for name in [*self._interface.features, "action"]}
        return Episode(streams, source=f"{self._root.name} scene {index}{host}")

    def _frames(self, scene: int) -> np.ndarray:
        first, stop = (int(number) for number in self._intervals[scene])
        if not 0 <= first < stop <= self._arrays["frames"].rows or stop - first > _LONGEST_SCENE:
            raise KineflowError(f"{self._root}: scene {scene} has the frames {first} to {stop} of {self._arrays['frames'].rows}")
        return self._arrays["frames"].read(first, stop)


def open_l5kit(path: Path, options: ImportOptions) -> L5Kit:
    """The .zarr folder, or the folder that holds it.

    Raises:
        KineflowError: not such an array, a damaged chunk, or a scene without frames; names it.
    """
    return L5Kit(path, options)


def _metadata(folder: Path) -> tuple[int, int, np.dtype[Any], Any]:
    """Rows, rows of a chunk, type of a row, compressor."""
    import numcodecs

    file = folder / ".zarray"
    if not file.is_file():
        raise KineflowError(f"{file} is not there; give the .zarr folder of an L5Kit data set, or the folder that holds it")
    try:
        said = json.loads(file.read_text())
        ((rows,), (chunk,)) = said["shape"], said["chunks"]
        dtype = np.dtype([(str(f[0]), str(f[1]), *(tuple(part) for part in f[2:])) for f in said["dtype"]])
        compressor = None if said["compressor"] is None else dict(said["compressor"])
        if compressor and compressor.get("id") not in _COMPRESSORS:
            raise KineflowError(f"{file}: compressor {compressor.get('id')!r} is not one of {', '.join(_COMPRESSORS)}")
        codec = numcodecs.get_codec(compressor) if compressor else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise KineflowError(f"{file}: not a Zarr v2 array of records ({problem}); not L5Kit data") from error
    if said.get("zarr_format") != 2 or said.get("filters") or dtype.hasobject or not isinstance(chunk, int) or chunk < 1:
        raise KineflowError(f"{file}: Zarr v2 records without filters and objects are expected; not L5Kit data")
    return int(rows), chunk, dtype, codec
