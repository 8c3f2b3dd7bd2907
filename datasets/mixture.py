"""Several stores as one: each brought to a common interface by a mapping of names, with nothing invented in silence.

The target says which features, dimensions and cameras a window has. Of each source a mapping says where they come from:

    features    {"state": "proprio"}             the source's name of a feature (default: the same)
    dimensions  {"state.gripper": "finger"}      the source's name of a dimension (default: the same)
    cameras     {"front": "agentview"}           the source's name of a camera (default: the same)
    fill        {"action.gripper": 0.0}          what stands where the source has nothing: a dimension, or a camera's brightness

A dimension or camera that a source lacks is refused unless `fill` has it; filled ones are marked as not known. Units, frames of
reference and rates must agree: they are never converted here. Images of another size are refused unless `resize` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import FeatureSpec, FeatureStatistics, Horizons, Interface, KineflowError, VectorSpec, Window
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.resample import Resample
from kineflow.datasets.resize import resized
from kineflow.datasets.window_images import Images
from kineflow.datasets.window_streams import ACTION
from kineflow.datasets.windows import WindowReader


@dataclass(frozen=True)
class Source:
    """One store of a mixture: see the module."""

    name: str
    store: EpisodeStore
    episodes: Sequence[int]
    features: Mapping[str, str] = field(default_factory=dict)
    dimensions: Mapping[str, str] = field(default_factory=dict)
    cameras: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    resize: bool = False
    resample: Mapping[str, Resample] = field(default_factory=dict)
    images: Images = field(default_factory=Images)


@dataclass(frozen=True)
class MixedWindow:
    """A window of the target's shape, the source of each row, and what of it is data rather than filled in."""

    window: Window
    source: Int64[np.ndarray, "B"]
    state_is_known: Bool[np.ndarray, "B S"]
    action_is_known: Bool[np.ndarray, "B A"]
    camera_is_known: Mapping[str, Bool[np.ndarray, "B"]]


@dataclass(frozen=True)
class _Columns:
    """Where the dimensions of one target vector come from: column of the source (0 where filled), known, filled value."""

    column: Int64[np.ndarray, "D"]
    known: Bool[np.ndarray, "D"]
    fill: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """`[..., source columns]` to `[..., D]`."""
        if values.shape[-1] == 0:
            return np.broadcast_to(self.fill, (*values.shape[:-1], len(self.fill)))
        return np.where(self.known, values[..., self.column], self.fill)


class MixtureReader:
    """Windows of all sources, numbered source after source; a `MixtureSampler(reader.sizes, weights, ...)` orders them."""

    def __init__(self, target: Interface, horizons: Horizons, sources: Sequence[Source]) -> None:
        """Open every source.

        Raises:
            KineflowError: a source that cannot be brought to `target` by its mapping; names source, dimension and remedy.
        """
        if not sources or len({source.name for source in sources}) != len(sources):
            raise KineflowError(f"a mixture needs sources of different names; got {[source.name for source in sources]}")
        self.target, self.sources = target, sources
        self._sources = [_Opened(target, horizons, source) for source in sources]
        self.sizes = [len(opened.reader) for opened in self._sources]
        self._offset = np.cumsum([0, *self.sizes])
        self._horizons = horizons

    def __len__(self) -> int:
        return int(self._offset[-1])

    def statistics(self) -> dict[str, dict[str, FeatureStatistics]]:
        """Of each source, each feature and the action, in the target's layout; a filled dimension is constant (std 0)."""
        return {source.name: opened.statistics() for source, opened in zip(self.sources, self._sources)}

    def buffer(self, batch_size: int) -> MixedWindow:
        """Memory for `read(..., out=...)`."""
        state, action = sum(f.vector.size for f in self.target.features.values()), self.target.action.vector.size
        past, future = (batch_size, self._horizons.observation), (batch_size, self._horizons.prediction)
        images = {name: np.empty((*past, *camera.frame_shape), np.uint8) for name, camera in self.target.cameras.items()}
        return MixedWindow(
            Window(
                np.empty((*past, state), np.float32),
                np.empty((*future, action), np.float32),
                np.empty(past, bool),
                np.empty(future, bool),
                images,
            ),
            np.empty(batch_size, np.int64),
            np.empty((batch_size, state), bool),
            np.empty((batch_size, action), bool),
            {name: np.empty(batch_size, bool) for name in images},
        )

    def read(self, indices: Int64[np.ndarray, "B"], *, out: MixedWindow | None = None) -> MixedWindow:
        """Windows `indices` (0 .. len - 1), in new memory or in `out`.

        Raises:
            IndexError: an index is out of range.
        """
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window indices {indices.min()} .. {indices.max()} are not all in 0 .. {len(self) - 1}")
        mixed = out or self.buffer(len(indices))
        mixed.source[:] = np.searchsorted(self._offset, indices, side="right") - 1
        for number in np.unique(mixed.source).tolist():
            rows = np.flatnonzero(mixed.source == number)
            self._sources[number].read(indices[rows] - self._offset[number], rows, mixed)
        return mixed


class _Opened:
    """One source with its plan."""

    def __init__(self, target: Interface, horizons: Horizons, source: Source) -> None:
        self._source, self._target, offered = source, target, source.store.interface
        self._check_names()
        taken = {name: source.features.get(name, name) for name in target.features}
        here = list(dict.fromkeys(feature for feature in taken.values() if feature in offered.features))
        cameras = {name: source.cameras.get(name, name) for name in target.cameras}
        self._cameras = {name: camera for name, camera in cameras.items() if self._has_camera(name, camera)}
        read = list(dict.fromkeys(self._cameras.values()))
        self.reader = WindowReader(source.store, here, horizons, source.episodes, read, source.resample, source.images)
        self.plans = {
            name: self._plan(name, spec, taken[name], offered.features.get(taken[name])) for name, spec in target.features.items()
        }
        self.action = self._plan(ACTION, target.action, ACTION, offered.action)
        first = dict(zip(here, np.cumsum([0, *(offered.features[f].vector.size for f in here)]).tolist()))
        plans = [(plan, first.get(taken[name], 0)) for name, plan in self.plans.items()]
        self._state = _Columns(
            np.concatenate([np.zeros(0, np.int64), *(np.where(p.known, p.column + start, 0) for p, start in plans)]),
            np.concatenate([np.zeros(0, bool), *(p.known for p, _ in plans)]),
            np.concatenate([np.zeros(0, np.float32), *(p.fill for p, _ in plans)]),
        )

    def read(self, indices: Int64[np.ndarray, "n"], rows: Int64[np.ndarray, "n"], out: MixedWindow) -> None:
        """Windows `indices` of this source into `rows` of `out`."""
        window, into = self.reader.read(indices), out.window
        into.state[rows], into.action[rows] = self._state.of(window.state), self.action.of(window.action)
        into.state_is_pad[rows], into.action_is_pad[rows] = window.state_is_pad, window.action_is_pad
        out.state_is_known[rows], out.action_is_known[rows] = self._state.known, self.action.known
        for name, spec in self._target.cameras.items():
            known = name in self._cameras
            out.camera_is_known[name][rows] = known
            if not known:
                into.images[name][rows] = round(self._source.fill[name])
                continue
            frames = window.images[self._cameras[name]]
            if frames.shape[2:4] != (spec.height, spec.width):
                flat = resized(frames.reshape(-1, *frames.shape[2:]), spec.height, spec.width)
                frames = flat.reshape(*frames.shape[:2], *flat.shape[1:])
            into.images[name][rows] = frames

    def statistics(self) -> dict[str, FeatureStatistics]:
        whole = self._source.store.statistics(self._source.episodes)
        plans = {name: (self._source.features.get(name, name), plan) for name, plan in self.plans.items()}
        plans[ACTION] = (ACTION, self.action)
        return {name: _selected(plan, whole.get(feature), whole[ACTION].count) for name, (feature, plan) in plans.items()}

    def _plan(self, name: str, wanted: FeatureSpec, feature: str, offered: FeatureSpec | None) -> _Columns:
        vector = offered.vector if offered else VectorSpec((), (), "", (), ())
        column, known, fill = [], [], []
        for dimension, unit in zip(wanted.vector.names, wanted.vector.units):
            key = f"{name}.{dimension}"
            theirs = self._source.dimensions.get(key, dimension)
            there = theirs in vector.names
            if not there and key not in self._source.fill:
                raise self._refused(
                    f"it has nothing for '{key}' ('{feature}' has {list(vector.names)})",
                    f"name its dimension in `dimensions`, or say `fill: {{{key}: VALUE}}`",
                )
            index = vector.names.index(theirs) if there else 0
            if there and vector.units[index] != unit:
                raise self._refused(f"'{key}' is in {vector.units[index]}, the target in {unit}", "convert the data first")
            column.append(index)
            known.append(there)
            fill.append(0.0 if there else self._source.fill[key])
        if any(known) and offered is not None:
            if vector.frame != wanted.vector.frame:
                raise self._refused(
                    f"'{name}' is in frame '{vector.frame}', the target in '{wanted.vector.frame}'", "convert the data first"
                )
            if offered.rate_hz != wanted.rate_hz and (name == ACTION or feature not in self._source.resample):
                raise self._refused(
                    f"'{name}' is at {offered.rate_hz:g} Hz, the target at {wanted.rate_hz:g} Hz", "resample the data first"
                )
        return _Columns(np.array(column, np.int64), np.array(known, bool), np.array(fill, np.float32))

    def _check_names(self) -> None:
        """A misspelt entry must not be one that has no effect."""
        vectors = {**self._target.features, ACTION: self._target.action}
        dimensions = [f"{name}.{dimension}" for name, spec in vectors.items() for dimension in spec.vector.names]
        features, cameras = sorted(self._target.features), sorted(self._target.cameras)
        known = {"features": features, "dimensions": dimensions, "cameras": cameras, "fill": [*dimensions, *cameras]}
        for mapping, names in known.items():
            unknown = sorted(set(getattr(self._source, mapping)) - set(names))
            if unknown:
                raise self._refused(f"`{mapping}` names {unknown}, the target only {names}", "correct or remove them")

    def _has_camera(self, name: str, camera: str) -> bool:
        offered, wanted = self._source.store.interface.cameras, self._target.cameras[name]
        if camera not in offered:
            if name not in self._source.fill:
                raise self._refused(
                    f"it has no camera '{camera}' (it has {sorted(offered)})",
                    f"map another in `cameras`, or say `fill: {{{name}: 0}}`",
                )
            return False
        found = offered[camera]
        if (found.height, found.width) != (wanted.height, wanted.width) and not self._source.resize:
            raise self._refused(
                f"camera '{camera}' is {found.height} x {found.width}, the target {wanted.height} x {wanted.width}",
                "set `resize`",
            )
        return True

    def _refused(self, problem: str, remedy: str) -> KineflowError:
        return KineflowError(f"source '{self._source.name}' ({self._source.store.path}): {problem}; {remedy}")


def _selected(plan: _Columns, found: FeatureStatistics | None, count: int) -> FeatureStatistics:
    """Statistics of the plan's dimensions; filled ones are the constant that they are."""

    def of(values: tuple[float, ...] | None, filled: np.ndarray) -> tuple[float, ...]:
        source = np.zeros(1) if values is None else np.asarray(values)
        return tuple(np.where(plan.known, source[plan.column], filled).tolist())

    names = ("mean", "std", "min", "max", "q01", "q99")
    constant = {name: np.zeros_like(plan.fill) if name == "std" else plan.fill for name in names}
    values = {name: of(getattr(found, name) if found else None, constant[name]) for name in names}
    return FeatureStatistics(count=found.count if found else count, **values)
