"""Import robomimic HDF5, also as Isaac Lab records it: `data/demo_<i>/{actions,obs,rewards,...}` and `mask/<split>`.

    attributes   data: env_args (JSON), total;  data/demo_<i>: num_samples, and of Isaac Lab: success, seed
    carried      actions, rewards (as `reward`), everything below obs (Isaac Lab nests it: obs/policy/joint_pos)
    not carried  next_obs, states, initial_state, dones, the MuJoCo model and whatever else a demo holds

Formats: ARISE-Initiative/robomimic, robomimic/utils/dataset.py; isaac-sim/IsaacLab, hdf5_dataset_file_handler.py. Neither has
clocks or units: stamps are nominal at the control rate of env_args, at `rate_hz`, or at 20 Hz, robosuite's default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.hdf5 import json_of, leaves, opened, text
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.sidecar import Sidecar, read_sidecar, restored

DEFAULT_RATE_HZ = 20.0
SIDECAR = "kineflow/store"  # of our own export, beside data/
STAMPS = "kineflow_stamp_ns"  # data set of a demo
EPISODE_SIDECAR = "kineflow_episode"  # likewise, JSON
_RESERVED = re.compile(r"action|.*(timestamp|_moments|_start|_length)")
_WHY = {
    "next_obs": "the observation one step later, which the next step has; only that after the last action is lost",
    "states": "states of the simulator",
    "initial_state": "the state to reset the simulator to",
    "dones": "says where an episode ends, which its length does",
    "model_file": "the MuJoCo model",
}
_SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class _Plan:
    """What becomes of the data sets of a demo: path below the demo -> shape of a step."""

    paths: Mapping[str, str]  # stream -> path
    shapes: Mapping[str, tuple[int, ...]]
    interface: Interface
    dropped: Mapping[str, str]


class Demonstrations:
    """A `Source`; demos in the order of their numbers."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path
        with opened(path) as file:
            if "data" not in file or not _demos(file["data"]):
                raise KineflowError(f"{path} holds no data/demo_<i>, only {sorted(file)[:8]}; give a robomimic or Isaac Lab file")
            self._demos = _demos(file["data"])
            self._environment = json_of(file["data"].attrs.get("env_args", "{}"), f"{path}: env_args")
            self._side = _own_sidecar(file, path)
            stated = self._side.interface.action.rate_hz if self._side else _rate(self._environment)
            if self._side and options.rate_hz:
                raise KineflowError(
                    f"{path} has time stamps, at {stated:g} Hz; import it without a rate: windows resample on read"
                )
            self._rate, self._guessed = options.rate_hz or stated or DEFAULT_RATE_HZ, not (options.rate_hz or stated)
            first = file["data"][self._demos[0]]
            self._plan = _plan(first, self._rate, f"{path}: {self._demos[0]}", self._side is not None)
            self._sensor = STAMPS in first
            others = _only_in_others(file["data"], self._demos, self._plan)
            self._splits, self._masks = _splits(file, self._demos)
        self._dropped = {**self._plan.dropped, **others}
        if self._side and _sizes(self._side.interface) != _sizes(self._plan.interface):
            self._dropped[SIDECAR] = "its streams are not those of the demos, which were changed after it was written"
            self._side = None
        interface = self._side.interface if self._side else self._plan.interface
        self._interface = chosen(options.schema, interface, str(path))
        self._dropped |= not_chosen(self._interface, interface)

    @property
    def facts(self) -> Facts:
        plan, side = self._plan, self._side
        used = {*self._interface.features, "action", *self._interface.cameras}
        carried = {name: f"{path} {list(plan.shapes[name])}" for name, path in plan.paths.items() if name in used}
        lost = {**self._dropped, **self._masks}
        if not side:
            lost["units"] = "robomimic has no units or names of dimensions: 'unknown', unless a schema says them"
        if not self._sensor:
            guess = "assumed, since env_args states no control rate" if self._guessed else "as stated"
            lost["clock"] = f"there are no time stamps: nominal ones at {self._rate:g} Hz, {guess}"
        clock = side.clock if side else nominal(self._rate)
        name = str(self._environment.get("env_name") or "unnamed")
        provenance = side.provenance if side else f"{self._path.name} (robomimic HDF5, environment {name})"
        cameras = {n: c for n, c in side.cameras.items() if n in self._interface.cameras} if side else {}
        return Facts(self._interface, clock, provenance, carried, lost, cameras, side.licence if side else "")

    def __len__(self) -> int:
        return len(self._demos)

    def episode(self, index: int) -> Episode:
        name = self._demos[index]
        where = f"{self._path}: {name}"
        with opened(self._path) as file:
            demo = file["data"][name]
            length = int(demo.attrs.get("num_samples", len(demo["actions"]) if "actions" in demo else 0))
            if length == 0:
                raise KineflowError(f"{where} has no steps; drop the demo")
            stamp_ns = _stamps(demo, length, self._rate, where)
            streams = {}
            for stream in [*self._interface.features, "action", *self._interface.cameras]:
                values = _read(demo, self._plan.paths[stream], length, self._plan.shapes[stream], where)
                shaped = values if stream in self._interface.cameras else values.reshape(length, -1)
                streams[stream] = Stream(shaped, stamp_ns)
            told = _told(demo, where)
        split, source = self._splits.get(name, ""), f"{self._path.name}#{name}"
        episode = Episode(streams, source=source, clock=nominal(self._rate), split=split)
        return replace(episode, **told)


def open_robomimic(path: Path, options: ImportOptions) -> Demonstrations:
    """Open the HDF5 file at `path`, of robomimic or Isaac Lab.

    Streams are named as below obs; `options.schema` may name units and choose among them.

    Raises:
        KineflowError: not such a file, damaged, or a schema that does not fit.
    """
    return Demonstrations(path, options)


def _demos(data: Any) -> list[str]:
    numbered = [(int(match[1]), name) for name in data if (match := re.fullmatch(r"demo_(\d+)", name))]
    return [name for _, name in sorted(numbered)]


def _rate(environment: Any) -> float | None:
    """Control rate in Hz that env_args states, in robosuite's words or Isaac Lab's."""
    if not isinstance(environment, dict):
        return None
    settings = environment.get("env_kwargs") or {}
    simulation = environment.get("sim_args") or {}
    if isinstance(settings, dict) and isinstance(settings.get("control_freq"), (int, float)) and settings["control_freq"] > 0:
        return float(settings["control_freq"])
    if isinstance(simulation, dict) and all(isinstance(simulation.get(n), (int, float)) for n in ("dt", "decimation")):
        step = simulation["dt"] * simulation["decimation"]
        return 1.0 / step if step > 0 else None
    return None


def _plan(demo: Any, rate_hz: float, where: str, ours: bool) -> _Plan:
    if "actions" not in demo:
        raise KineflowError(f"{where} has no actions, only {sorted(demo)}; a demonstration without actions cannot be imported")
    length = len(demo["actions"])
    paths, shapes, dropped = {"action": "actions"}, {"action": demo["actions"].shape[1:]}, {}
    for name in sorted({*demo, *demo.attrs} & _WHY.keys()):
        dropped[name] = _WHY[name]
    known = {"actions", "rewards", "obs", STAMPS, EPISODE_SIDECAR, *_WHY}
    dropped |= {name: "not among what robomimic's own data set reads" for name in demo if name not in known}
    found = {f"obs/{path}": item for path, item in leaves(demo["obs"]).items()} if "obs" in demo else {}
    found |= {"rewards": demo["rewards"]} if "rewards" in demo else {}
    for path, item in found.items():
        reason = _reason(item, length, ours)
        if reason:
            dropped[path] = reason
            continue
        name = "reward" if path == "rewards" else _stream_name(path.removeprefix("obs/"), paths)
        paths[name], shapes[name] = path, item.shape[1:]
    features, cameras = {}, {}
    for name, path in paths.items():
        shape = shapes[name]
        if _is_frame(found.get(path), ours):
            cameras[name] = CameraSpec(shape[0], shape[1], rate_hz, "depth" if len(shape) == 2 else "rgb")
        else:
            names = tuple(f"dim_{i}" for i in range(math.prod(shape)))
            features[name] = FeatureSpec(unbounded(names, "unknown", "unknown"), rate_hz)
    action = features.pop("action")
    doubles = [path for name, path in paths.items() if name not in cameras and demo[path].dtype == np.float64]
    dropped |= {f"digits of {path}": "float64, stored as float32" for path in doubles}
    return _Plan(paths, shapes, Interface(features, action, cameras), dropped)


def _only_in_others(data: Any, demos: list[str], plan: _Plan) -> dict[str, str]:
    """Observations that the first demo, of which the plan is made, does not have."""
    known, found = {*plan.paths.values(), *plan.dropped}, dict[str, str]()
    for name in demos[1:]:
        for path in (f"obs/{path}" for path in leaves(data[name]["obs"])) if "obs" in data[name] else ():
            if path not in known:
                found.setdefault(path, f"'{name}' has it, the first demo does not")
    return found


def _sizes(interface: Interface) -> dict[str, tuple[int, ...]]:
    vectors = {name: (spec.vector.size,) for name, spec in {**interface.features, "action": interface.action}.items()}
    return {**vectors, **{name: camera.frame_shape for name, camera in interface.cameras.items()}}


def _is_frame(item: Any, ours: bool) -> bool:
    if item is None:
        return False
    rgb = item.dtype == np.uint8 and item.ndim == 4 and item.shape[3] == 3
    return bool(rgb or (ours and item.dtype == np.uint16 and item.ndim == 3))


def _reason(item: Any, length: int, ours: bool) -> str:
    """Why an observation cannot be a stream; empty where it can."""
    if _is_frame(item, ours):
        return ""
    if item.dtype.kind not in "fiub":
        return f"{item.dtype} values have no place in a stream"
    if item.ndim == 0 or item.shape[0] != length:
        return f"{item.shape} is not one row for each of the {length} actions"
    if item.ndim >= 3:
        return f"{item.dtype} pictures of shape {list(item.shape[1:])} in an unknown unit are neither RGB nor depth in mm"
    return "" if math.prod(item.shape[1:]) else "it has no values"


def _stream_name(path: str, taken: Mapping[str, object]) -> str:
    """The last part of the path where that is unique and allowed in a store, else all of it."""
    for candidate in (path.rsplit("/", 1)[-1], path, f"observed_{path}"):
        name = re.sub(r"[^A-Za-z0-9]+", "_", candidate).strip("_")
        name = name if name[:1].isalpha() else f"x_{name}"
        if name not in taken and not _RESERVED.fullmatch(name):
            return name
    return f"{name}_{len(taken)}"


def _read(demo: Any, path: str, length: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    if path not in demo:
        remedy = "drop the demo, or leave the stream out with a schema"
        raise KineflowError(f"{where} has no {path}, which the first demo has; {remedy}")
    item = demo[path]
    if item.shape != (length, *shape):
        raise KineflowError(f"{where}/{path} has shape {list(item.shape)}, needed is {[length, *shape]}; the file is not whole")
    return np.asarray(item[()])


def _stamps(demo: Any, length: int, rate_hz: float, where: str) -> Int64[np.ndarray, "T"]:
    if STAMPS in demo:
        return _read(demo, STAMPS, length, (), where).astype(np.int64)
    return nominal_ns(length, rate_hz)


def _told(demo: Any, where: str) -> dict[str, Any]:
    """Instruction, success and seed; of an export of ours everything else, too."""
    told: dict[str, Any] = {}
    if "ep_meta" in demo.attrs:
        meta = json_of(demo.attrs["ep_meta"], f"{where}: ep_meta")
        told["instruction"] = str(meta.get("lang") or "") if isinstance(meta, dict) else ""
    if EPISODE_SIDECAR in demo:
        what = f"{where}/{EPISODE_SIDECAR}"
        return told | restored(json_of(demo[EPISODE_SIDECAR][()], what), what)
    if "success" in demo.attrs:
        told["success"] = bool(demo.attrs["success"])
    if "seed" in demo.attrs and int(demo.attrs["seed"]) >= 0:
        told["seed"] = int(demo.attrs["seed"])
    return told


def _splits(file: Any, demos: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Demo -> split of masks called train, valid or test, and the masks that no demo can say."""
    split_of: dict[str, str] = {}
    dropped = {}
    masks = {name: [text(demo) for demo in item[()]] for name, item in leaves(file["mask"]).items()} if "mask" in file else {}
    for name, members in masks.items():
        if name not in _SPLITS or set(members) & split_of.keys():
            dropped[f"mask/{name}"] = f"a demo has one split: only {', '.join(_SPLITS)} are carried, the first that names it"
        else:
            split_of |= {demo: _SPLITS[name] for demo in members if demo in demos}
    return split_of, dropped


def _own_sidecar(file: Any, path: Path) -> Sidecar | None:
    return read_sidecar(json_of(file[SIDECAR][()], f"{path}: {SIDECAR}"), f"{path}: {SIDECAR}") if SIDECAR in file else None
