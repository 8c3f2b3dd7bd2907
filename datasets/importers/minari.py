"""Import Minari data sets (HDF5 storage): `episode_<i>/{observations,actions,rewards,terminations,truncations,infos}`.

Format: Farama-Foundation/Minari, minari/dataset/_storages/hdf5_storage.py. Observations have one row more than actions: what was
seen after the last one, which a step without an action cannot hold. Pictures may be JPEG, whose bytes are kept as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.hdf5 import leaves, opened, text
from kineflow.datasets.importers.pictures import decode_picture, is_jpeg
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

DEFAULT_RATE_HZ = 10.0
MAIN_FILE = "main_data.hdf5"


@dataclass(frozen=True)
class _Column:
    """One array of an episode. `shape`: of one step; `jpeg`: rows are encoded pictures."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    jpeg: bool = False

    @property
    def is_frame(self) -> bool:
        return len(self.shape) == 3


class MinariRuns:
    """A `Source`; episodes in the order of their numbers."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path, self._name = _file(path), path.name
        self._rate, self._stated = options.rate_hz or DEFAULT_RATE_HZ, options.rate_hz is not None
        with opened(self._path) as file:
            numbered = [(int(match[1]), name) for name in file if (match := re.fullmatch(r"episode_(\d+)", name))]
            if not numbered:
                raise KineflowError(f"{self._path} holds no episode_<i>, only {sorted(file)[:8]}; it is not Minari data")
            self._episodes = [name for _, name in sorted(numbered)]
            self._columns, self._dropped = _columns(file[self._episodes[0]], f"{self._path}: {self._episodes[0]}")
        offered = _interface(self._columns, self._rate)
        self._interface = chosen(options.schema, offered, str(path))
        self._dropped |= not_chosen(self._interface, offered)

    @property
    def facts(self) -> Facts:
        used = {*self._interface.features, "action", *self._interface.cameras}
        carried = {n: f"{c.path} {c.dtype} {list(c.shape)}" for n, c in self._columns.items() if n in used}
        lost = {
            "units": "Minari has no units or names of dimensions: 'unknown', unless a schema says them",
            "clock": f"no time stamps: nominal ones at {self._rate:g} Hz, {'as stated' if self._stated else 'assumed'}",
            "last observation": "what was seen after the last action, which no step holds",
            "terminations, truncations": "say where an episode ends, which its length does; not whether it was a success",
        }
        lost |= {
            f"digits of {column.path}": "float64, stored as float32"
            for name, column in self._columns.items()
            if name in used and column.dtype == "float64"
        }
        provenance = f"{self._name} (Minari)"
        return Facts(self._interface, nominal(self._rate), provenance, carried, {**self._dropped, **lost})

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> Episode:
        name = self._episodes[index]
        where = f"{self._path}: {name}"
        streams: dict[str, Stream] = {}
        jpeg: dict[str, list[bytes]] = {}
        with opened(self._path) as file:
            group = file[name]
            actions = self._columns["action"].path
            if actions not in group:
                raise KineflowError(f"{where} has no {actions}; the file is not whole, copy it again")
            length = len(group[actions])
            stamp_ns = nominal_ns(length, self._rate)
            for stream in [*self._interface.features, "action", *self._interface.cameras]:
                column = self._columns[stream]
                values, encoded = _read(group, column, length, where)
                streams[stream] = Stream(values, stamp_ns)
                jpeg |= {stream: encoded} if encoded else {}
            seed = int(group.attrs.get("seed", -1))
        known = seed if seed >= 0 else None
        return Episode(streams, source=f"{self._name}#{name}", clock=nominal(self._rate), jpeg=jpeg, seed=known)


def open_minari(path: Path, options: ImportOptions) -> MinariRuns:
    """Open a Minari data set: its folder, its folder data/, or main_data.hdf5.

    Raises:
        KineflowError: not such data, damaged, in Arrow storage, or a schema that does not fit.
    """
    return MinariRuns(path, options)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for candidate in (path / MAIN_FILE, path / "data" / MAIN_FILE):
        if candidate.is_file():
            return candidate
    raise KineflowError(f"{path} holds no {MAIN_FILE}; give the folder of a Minari data set in HDF5 storage (not Arrow)")


def _columns(group: Any, where: str) -> tuple[dict[str, _Column], dict[str, str]]:
    """Stream -> array, from the first episode, and the arrays that are not carried."""
    found: dict[str, _Column] = {}
    dropped: dict[str, str] = {}
    arrays = leaves(group)
    actions = [path for path in arrays if path == "actions" or path.startswith("actions/")]
    if len(actions) != 1:
        raise KineflowError(f"{where}: actions are {actions or 'missing'}; only one array of actions can be imported")
    length = len(arrays[actions[0]])
    found["action"] = _Column(actions[0], arrays[actions[0]].shape[1:], str(arrays[actions[0]].dtype))
    for path, item in arrays.items():
        kind = path.split("/")[0]
        if path in actions or kind in ("terminations", "truncations"):
            continue
        if kind not in ("observations", "rewards", "infos"):
            dropped[path] = "not among the arrays of a step"
            continue
        column = _column(path, item, length + (kind != "rewards"))
        if isinstance(column, str):
            dropped[path] = column
        else:
            found[_stream_name(path, found)] = column
    return found, dropped


def _column(path: str, item: Any, rows: int) -> _Column | str:
    """The column, or why it is none."""
    if item.ndim == 0 or item.shape[0] != rows:
        return f"{list(item.shape)} is not one row for each step"
    if item.dtype.kind == "O" or (item.dtype == np.uint8 and item.ndim == 2 and is_jpeg(bytes(item[0]))):
        first = item[0]
        if not isinstance(first, np.ndarray) or not is_jpeg(bytes(first)):
            return f"{text(item.dtype)} values have no place in a stream"
        return _Column(path, decode_picture(bytes(first), path).shape, "jpeg", jpeg=True)
    if item.dtype.kind not in "fiub":
        return f"{item.dtype} values have no place in a stream"
    if item.ndim >= 4 and (item.dtype != np.uint8 or item.shape[3:] != (3,)):
        return f"{item.dtype} pictures of shape {list(item.shape[1:])} are not RGB"
    if not math.prod(item.shape[1:]):
        return "it has no values"
    shape = item.shape[1:]
    return _Column(path, shape if len(shape) == 3 else (math.prod(shape),), str(item.dtype))


def _stream_name(path: str, taken: Mapping[str, object]) -> str:
    if path in ("observations", "rewards"):
        return path[:-1]
    short = path.removeprefix("observations/")
    for candidate in (short, path):
        name = re.sub(r"[^A-Za-z0-9]+", "_", candidate).strip("_")
        if name[:1].isalpha() and name not in taken and not re.fullmatch(r"action|.*(timestamp|_moments|_start|_length)", name):
            return name
    return f"x_{len(taken)}"


def _interface(columns: Mapping[str, _Column], rate_hz: float) -> Interface:
    cameras = {n: CameraSpec(c.shape[0], c.shape[1], rate_hz) for n, c in columns.items() if c.is_frame}
    features = {}
    for name, column in columns.items():
        if name not in cameras:
            names = tuple(f"dim_{i}" for i in range(math.prod(column.shape)))
            features[name] = FeatureSpec(unbounded(names, "unknown", "unknown"), rate_hz)
    return Interface({n: f for n, f in features.items() if n != "action"}, features["action"], cameras)


def _read(group: Any, column: _Column, length: int, where: str) -> tuple[np.ndarray, list[bytes]]:
    arrays = leaves(group)
    item = arrays.get(column.path)
    if item is None or len(item) < length:
        rows = "no rows" if item is None else f"{len(item)} rows"
        raise KineflowError(f"{where}/{column.path} has {rows} for {length} actions; the file is not whole, copy it again")
    if not column.jpeg:
        values = np.asarray(item[:length])
        shaped = values if column.is_frame else values.reshape(length, -1)
        if shaped.shape[1:] != (column.shape if column.is_frame else (math.prod(column.shape),)):
            raise KineflowError(
                f"{where}/{column.path} has steps of {list(values.shape[1:])}, the first episode {list(column.shape)}"
            )
        return shaped, []
    # Shorter pictures of a rectangular array are filled up with zeros after the end marker.
    encoded = [bytes(row).rstrip(b"\0") for row in item[:length]]
    frames = [decode_picture(data, f"{where}/{column.path}, frame {row}") for row, data in enumerate(encoded)]
    return np.stack(frames), encoded
