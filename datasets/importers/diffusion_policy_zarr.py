"""Import a diffusion-policy replay buffer (Zarr v2): `data/<buffer>` `[N, ...]` and `meta/episode_ends` (exclusive).

Format: real-stanford/diffusion_policy, `diffusion_policy/common/replay_buffer.py`. It records neither clocks nor units, so
timestamps are nominal and units come from a schema: the shipped one for PushT, `schema` for others, or none at all. What our
own export put beside the data (datasets/exporters/diffusion_policy_zarr.py) is used where no `schema` is given.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import zarr
from jaxtyping import Int64

from kineflow.config import load_config
from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream, VectorSpec
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.sidecar import Sidecar, read_sidecar, restored

Buffer: TypeAlias = "zarr.Array[Any]"
DEFAULT_RATE_HZ = 10.0
ATTRIBUTE, STAMPS = "kineflow", "timestamp_ns"  # of the root; of meta/
_PUSHT_BUFFERS = {"state": (5,), "action": (2,), "keypoint": (9, 2), "n_contacts": (1,), "img": (96, 96, 3)}
_PUSHT_STREAMS = {"top": "img"}  # the others are named as their buffers
_KEYPOINTS = tuple(f"keypoint_{i}_{axis}" for i in range(9) for axis in "xy")


@dataclass(frozen=True)
class _Plan:
    interface: Interface
    buffer_of: Mapping[str, str]  # stream -> buffer
    clock: str


@dataclass(frozen=True)
class _Ours:
    """What an export of ours says beside the data."""

    store: Sidecar
    episodes: Sequence[Any]
    stamp_ns: Int64[np.ndarray, "N"]


class ReplayBuffer:
    """A `Source` over `data/` and `meta/episode_ends`; episodes read in order decode every source chunk once."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._name, (self._buffers, self._ends, ours) = path.name, _open(path)
        self._ours = ours if options.schema is None else None
        if self._ours is None:
            self._plan = _plan(self._buffers, options.schema, options.rate_hz or DEFAULT_RATE_HZ)
        else:
            interface, shapes = self._ours.store.interface, {name: b.shape[1:] for name, b in self._buffers.items()}
            renamed = {name: buffer for name, (buffer, _) in buffers_of(interface).items()}
            self._plan = replace(_declared(interface, shapes, renamed), clock=self._ours.store.clock)
        places = {name: f"{path}: data/{buffer}" for name, buffer in self._plan.buffer_of.items()}
        self._rows = {name: _Rows(self._buffers[buffer], places[name]) for name, buffer in self._plan.buffer_of.items()}

    @property
    def facts(self) -> Facts:
        plan, buffers = self._plan, self._buffers
        carried = {n: f"data/{b} {buffers[b].dtype} {list(buffers[b].shape)}" for n, b in plan.buffer_of.items()}
        used = set(plan.buffer_of.values())
        reason = "not in the schema, or neither numbers nor RGB frames"
        rest = {f"data/{n}": f"{reason}: {b.dtype} {list(b.shape)}" for n, b in buffers.items() if n not in used}
        tail = min(b.shape[0] for b in buffers.values()) - int(self._ends[-1])
        rest |= {"rows after the last episode": f"{tail} rows belong to no episode"} if tail else {}
        if self._ours is None:
            return Facts(plan.interface, plan.clock, f"{self._name} (diffusion-policy-zarr)", carried, rest)
        side = self._ours.store
        return Facts(plan.interface, plan.clock, side.provenance, carried, rest, side.cameras, side.licence)

    def __len__(self) -> int:
        return len(self._ends)

    def episode(self, index: int) -> Episode:
        start, end = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        plan = self._plan
        stamp_ns = np.round(np.arange(end - start) * (1e9 / plan.interface.action.rate_hz)).astype(np.int64)
        values = {name: _shaped(name, rows.read(start, end), plan.interface, index) for name, rows in self._rows.items()}
        if self._ours is not None:
            stamp_ns, said = self._ours.stamp_ns[start:end], self._ours.episodes[index]
            streams = {name: Stream(value, stamp_ns) for name, value in values.items()}
            where = f"{self._name}, attribute '{ATTRIBUTE}', episode {index}"
            return Episode(streams, instruction=str(said.get("instruction", "")), **restored(said, where))
        streams = {name: Stream(value, stamp_ns) for name, value in values.items()}
        return Episode(streams, source=f"{self._name}#{index}", clock=plan.clock)


def open_replay_buffer(path: Path, options: ImportOptions) -> ReplayBuffer:
    """Open the replay buffer at `path` (a folder or a .zip).

    PushT is recognised by its buffers and gets names, units and limits from `configs/interfaces/pusht.yaml`. Otherwise
    `options.schema` (streams are named as their buffers) says them, and only its streams are carried. Without it dimensions
    are called dim_0, dim_1, ... in unit "unknown", at `options.rate_hz` (10 where not given).

    Raises:
        KineflowError: not a replay buffer, or a buffer that the schema needs is missing or has another shape.
    """
    return ReplayBuffer(path, options)


def buffers_of(interface: Interface) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Stream or camera -> its buffer and the shape of a row; PushT as its own data sets have it."""
    plain: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (name, (spec.vector.size,)) for name, spec in {**interface.features, "action": interface.action}.items()
    }
    plain |= {name: (name, camera.frame_shape) for name, camera in interface.cameras.items()}
    pusht = {_PUSHT_STREAMS.get(name, name): (_PUSHT_STREAMS.get(name, name), shape) for name, (_, shape) in plain.items()}
    if {name: math.prod(shape) for name, (_, shape) in pusht.items()} == {n: math.prod(s) for n, s in _PUSHT_BUFFERS.items()}:
        return {name: (_PUSHT_STREAMS.get(name, name), _PUSHT_BUFFERS[_PUSHT_STREAMS.get(name, name)]) for name in plain}
    return plain


def _open(source: Path) -> tuple[dict[str, Buffer], Int64[np.ndarray, "E"], _Ours | None]:
    """Buffers by name, the exclusive end of each episode, and what an export of ours says besides."""
    remedy = "give the folder (or its .zip) that holds data/ and meta/episode_ends"
    try:
        root = _root(source)
        data, ends = root["data"], root["meta/episode_ends"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise KineflowError(f"{source} is not a diffusion-policy replay buffer ({error}); {remedy}") from error
    if not isinstance(data, zarr.Group) or not isinstance(ends, zarr.Array):
        raise KineflowError(f"{source} is not a diffusion-policy replay buffer; {remedy}")
    try:
        buffers = dict(sorted(data.arrays()))
    except (KeyError, ValueError) as error:  # such as of Python objects, which are pickled
        problem = f"a buffer of data/ is of a type that is not read ({str(error)[:200]})"
        raise KineflowError(f"{source}: {problem}; write it as numbers, or remove it") from error
    checked = _checked_ends(_Rows(ends, f"{source}: meta/episode_ends").read(0, ends.shape[0]).astype(np.int64), buffers, source)
    return buffers, checked, _ours(root, checked, source) if ATTRIBUTE in root.attrs else None


def _ours(root: zarr.Group, ends: Int64[np.ndarray, "E"], source: Path) -> _Ours | None:
    """None where somebody has since added or removed episodes, to which it would not belong."""
    said, stamps = root.attrs[ATTRIBUTE], root.get(f"meta/{STAMPS}")
    if not isinstance(said, dict) or not isinstance(said.get("episodes"), list) or not isinstance(stamps, zarr.Array):
        raise KineflowError(f"{source}: attribute '{ATTRIBUTE}' or meta/{STAMPS} is not as exported; remove the attribute")
    if len(said["episodes"]) != len(ends) or stamps.shape != (int(ends[-1]),):
        return None
    side = read_sidecar(said.get("store"), f"{source}, attribute '{ATTRIBUTE}'")
    stamp_ns = _Rows(stamps, f"{source}: meta/{STAMPS}").read(0, stamps.shape[0]).astype(np.int64)
    return _Ours(side, said["episodes"], stamp_ns)


def _root(source: Path) -> zarr.Group:
    if source.is_dir():
        return zarr.open_group(source, mode="r", zarr_format=2)
    with zipfile.ZipFile(source) as archive:
        found = [n for n in archive.namelist() if n.endswith("meta/episode_ends/.zarray")]
    if not found:
        raise ValueError("it has no meta/episode_ends")
    inside = PurePosixPath(min(found, key=len)).parents[2]
    path = "" if str(inside) == "." else str(inside)
    return zarr.open_group(zarr.storage.ZipStore(source, mode="r"), path=path, mode="r", zarr_format=2)


def _checked_ends(ends: Int64[np.ndarray, "E"], buffers: Mapping[str, Buffer], source: Path) -> Int64[np.ndarray, "E"]:
    if "action" not in buffers:
        raise KineflowError(f"{source} has no buffer data/action, only {sorted(buffers)}; rename the one with the actions")
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise KineflowError(f"{source}: meta/episode_ends must increase from above 0, got {ends[:8]}...; drop empty episodes")
    for name, buffer in buffers.items():
        if buffer.shape[0] < ends[-1]:
            raise KineflowError(
                f"{source}: data/{name} has {buffer.shape[0]} rows but the last episode ends at row {ends[-1]}; "
                "the source is incomplete, copy it again"
            )
    return ends


def _plan(buffers: Mapping[str, Buffer], schema: Path | None, rate_hz: float) -> _Plan:
    shapes = {name: buffer.shape[1:] for name, buffer in buffers.items()}
    if schema is not None:
        return _declared(load_config(Interface, schema), shapes, {})
    if shapes == _PUSHT_BUFFERS:
        pusht = load_config(Interface, "interfaces/pusht")
        rate = pusht.action.rate_hz
        extra = {
            "keypoint": FeatureSpec(_unbounded(_KEYPOINTS, "px", "board"), rate),
            "n_contacts": FeatureSpec(VectorSpec(("n_contacts",), ("1",), "board", (0.0,), (math.inf,)), rate),
        }
        return _declared(replace(pusht, features={**pusht.features, **extra}), shapes, _PUSHT_STREAMS)
    return _generic(buffers, rate_hz)


def _declared(interface: Interface, shapes: Mapping[str, tuple[int, ...]], renamed: Mapping[str, str]) -> _Plan:
    needed: dict[str, tuple[int, ...]] = {
        name: (spec.vector.size,) for name, spec in {**interface.features, "action": interface.action}.items()
    }
    needed |= {name: camera.frame_shape for name, camera in interface.cameras.items()}
    buffer_of = {name: renamed.get(name, name) for name in needed}
    for name, shape in needed.items():
        found = shapes.get(buffer_of[name])
        if found is None:
            raise KineflowError(
                f"the schema has stream '{name}', the source only the buffers {sorted(shapes)}; correct the schema"
            )
        if (found if name in interface.cameras else (math.prod(found),)) != shape:
            raise KineflowError(
                f"the schema says that '{name}' has shape {list(shape)} a step, the source has {list(found)}; correct the schema"
            )
    return _Plan(interface, buffer_of, _nominal(interface.action.rate_hz))


def _generic(buffers: Mapping[str, Buffer], rate_hz: float) -> _Plan:
    features, cameras = {}, {}
    for name, buffer in buffers.items():
        shape = buffer.shape[1:]
        if len(shape) == 3 and shape[2] == 3:
            cameras[name] = CameraSpec(shape[0], shape[1], rate_hz)
        elif buffer.dtype.kind in "fiub":
            names = tuple(f"dim_{i}" for i in range(math.prod(shape)))
            features[name] = FeatureSpec(_unbounded(names, "unknown", "unknown"), rate_hz)
    action = features.pop("action")
    return _Plan(Interface(features, action, cameras), {n: n for n in [*features, "action", *cameras]}, _nominal(rate_hz))


def _unbounded(names: tuple[str, ...], unit: str, frame: str) -> VectorSpec:
    size = len(names)
    return VectorSpec(names, (unit,) * size, frame, (-math.inf,) * size, (math.inf,) * size)


def _nominal(rate_hz: float) -> str:
    return f"nominal_{rate_hz:g}hz"


class _Rows:
    """Rows of one buffer; holds the chunks of the last read, so that the next episode need not decode its first one again.

    Raises:
        KineflowError: chunks are missing, which Zarr would read as zeros, or damaged; names the buffer.
    """

    def __init__(self, buffer: Buffer, where: str) -> None:
        self._buffer, self._where = buffer, where
        self._base, self._held = 0, np.asarray(buffer[:0])
        missing = buffer.nchunks - buffer.nchunks_initialized
        if missing:
            raise KineflowError(
                f"{where}: {missing} of {buffer.nchunks} chunks are not there, and Zarr would read zeros for them; copy the data "
                "again, or, if zeros were recorded there, write the array again with write_empty_chunks=True"
            )

    def read(self, start: int, end: int) -> np.ndarray:
        size, base, held = self._buffer.chunks[0], self._base, self._held
        if not base <= start < base + len(held):
            base, held = start // size * size, np.asarray(self._buffer[:0])
        held, base = held[start - base :], start
        last = min(-(-end // size) * size, self._buffer.shape[0])
        if last > base + len(held):
            held = np.concatenate([held, self._decoded(base + len(held), last)])
        self._base, self._held = base, held
        return held[: end - start]

    def _decoded(self, start: int, end: int) -> np.ndarray:
        try:
            return np.asarray(self._buffer[start:end])
        except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
            problem = f"a chunk is damaged or cut short ({str(error)[:200]})"
            raise KineflowError(f"{self._where}, rows {start} to {end - 1}: {problem}; copy the data again") from error


def _shaped(name: str, values: np.ndarray, interface: Interface, episode: int) -> np.ndarray:
    if name not in interface.cameras:
        return values.reshape(len(values), -1)
    dtype = np.uint8 if interface.cameras[name].kind == "rgb" else np.uint16
    if values.dtype == dtype:
        return values
    pixels = values.astype(dtype)
    if not np.array_equal(pixels, values):
        raise KineflowError(
            f"episode {episode}: frames of '{name}' ({values.dtype}) are not whole numbers 0..{np.iinfo(dtype).max}; "
            "scale them in the source first"
        )
    return pixels
