"""Import LeRobot data sets, versions 2.0, 2.1 and 3.0, also those of GR00T; see `lerobot_layout.py` for the files.

LeRobot names dimensions but knows no units and no sensor clocks: units are "unknown" unless `schema` or our own export says
them, and a time stamp is its float32 seconds since the episode began, or index / fps where it is that to the digit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Span, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns, seconds_to_ns
from kineflow.datasets.importers.lerobot_layout import SIDECAR, Layout, Listed, read_layout
from kineflow.datasets.importers.lerobot_rows import RowReader, pictures, vectors
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.importers.video import VideoReader
from kineflow.datasets.sidecar import Sidecar, read_sidecar, restored

STAMPS = "kineflow.stamp_ns"  # column of an export of ours: the store's own time stamps
_NUMBERING = ("frame_index", "episode_index", "index", "task_index", "timestamp", STAMPS)
_RESERVED = re.compile(r"action|.*(timestamp|_moments|_start|_length)")


@dataclass(frozen=True)
class Column:
    """One feature of LeRobot that becomes a stream. `shape`: of a frame, or (width,)."""

    key: str
    kind: str  # "vector", "image" (also depth) or "video"
    shape: tuple[int, ...]
    dtype: str


class LeRobotData:
    """A `Source`; episodes read in order decode every video once."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._layout = layout = read_layout(path)
        if options.rate_hz is not None and not math.isclose(options.rate_hz, layout.fps, rel_tol=1e-6):
            asked = f"{path} is recorded at {layout.fps:g} Hz, not {options.rate_hz:g} Hz"
            raise KineflowError(f"{asked}; import it without a rate: windows resample on read")
        columns, self._dropped = _columns(layout)
        offered = _interface(layout, columns)
        self._side, trouble = _own_sidecar(layout, offered)
        self._dropped |= trouble
        self._interface = chosen(options.schema, self._side.interface if self._side else offered, str(path))
        self._dropped |= {columns[n].key: reason for n, reason in not_chosen(self._interface, offered).items()}
        used = {*self._interface.features, "action", *self._interface.cameras}
        self._columns = {name: column for name, column in columns.items() if name in used}
        self._spans = [key for key, feature in layout.features.items() if _is_annotation(key, feature)]
        self._extra = [key for key in ("next.success", STAMPS) if key in layout.features]
        stored = [c.key for c in self._columns.values() if c.kind != "video"]
        self._rows = RowReader(["timestamp", "task_index", *stored, *self._spans, *self._extra])
        self._videos = {
            name: VideoReader((c.shape[0], c.shape[1], 3), layout.fps) for name, c in self._columns.items() if c.kind == "video"
        }
        self._clock = self._episode_clock(layout.episodes[0])

    @property
    def facts(self) -> Facts:
        layout, side = self._layout, self._side
        carried = {n: f"{c.key} {c.dtype} {list(c.shape)}" for n, c in self._columns.items()}
        if any(c.kind == "video" for c in self._columns.values()):
            carried |= {n: f"{carried[n]}, as the (lossy) video decodes" for n in self._videos}
        told = "the task of most frames; tasks that change within an episode and annotation columns become spans"
        carried |= {"instruction": told, "split": "splits of meta/info.json"}
        carried |= {"success": "next.success, of any frame"} if "next.success" in self._extra else {}
        robot = f" of a {layout.robot}" if layout.robot else ""
        provenance = side.provenance if side else f"{layout.root.name} (LeRobot {layout.version}{robot})"
        lost = {
            "statistics": "computed anew from the values",
            "numbering": "episodes and frames keep their order, not their numbers",
        }
        if (layout.root / "meta" / "modality.json").is_file():
            lost["meta/modality.json"] = "GR00T's names for parts of the state and action; a schema can say them"
        if not side:
            lost["units"] = "LeRobot names dimensions but no units, frames or limits: 'unknown', unless a schema says them"
            lost["clock"] = "LeRobot keeps float32 seconds since the episode began; dates and sensor clocks are not in the data"
        for name, column in self._columns.items():
            if column.dtype == "float64":
                lost[f"digits of {column.key}"] = f"float64, stored as float32 in '{name}'"
        clock = side.clock if side else self._clock
        cameras = side.cameras if side else {}
        kept = {name: record for name, record in cameras.items() if name in self._interface.cameras}
        return Facts(self._interface, clock, provenance, carried, {**self._dropped, **lost}, kept, side.licence if side else "")

    def __len__(self) -> int:
        return len(self._layout.episodes)

    def episode(self, index: int) -> Episode:
        listed = self._layout.episodes[index]
        table, where = self._rows.read(listed), f"{self._layout.root.name}, episode {listed.index}"
        stamp_ns, clock = self._stamps(table, where)
        streams: dict[str, Stream] = {}
        jpeg: dict[str, list[bytes]] = {}
        for name, column in self._columns.items():
            what = f"{where}, '{column.key}'"
            if column.kind == "vector":
                values = vectors(table[column.key], column.shape[0], what)
            elif column.kind == "video":
                clip = listed.clips[column.key]
                values = self._videos[name].read(clip.file, clip.start_s, listed.length, clip.file_frames, what)
            else:
                values, encoded = pictures(table[column.key], self._layout.root, column.shape, what)
                jpeg |= {name: encoded} if encoded else {}
            streams[name] = Stream(values, stamp_ns)
        told = self._told(table, listed, stamp_ns, where)
        return (
            Episode(streams, source=f"{self._layout.root.name}#{listed.index}", clock=clock, jpeg=jpeg)
            if told is None
            else replace(Episode(streams, clock=clock, source=f"{self._layout.root.name}#{listed.index}", jpeg=jpeg), **told)
        )

    def _told(self, table: Any, listed: Listed, stamp_ns: np.ndarray, where: str) -> dict[str, Any]:
        """Instruction, spans, success and split."""
        runs = self._texts(table, "task_index", stamp_ns, where)
        longest = max(runs, key=lambda span: span.stop_ns - span.start_ns, default=None)
        told: dict[str, Any] = {"instruction": longest.text if longest else "; ".join(listed.tasks)}
        if listed.sidecar:
            return told | restored(_json(listed.sidecar, where), f"{where}: kineflow/episode")
        spans = runs if len(runs) > 1 else []
        for key in self._spans:
            spans += [s for s in self._texts(table, key, stamp_ns, where) if s.text != told["instruction"]]
        told["spans"] = tuple(sorted(spans, key=lambda s: s.start_ns))
        if "next.success" in self._extra:
            told["success"] = bool(vectors(table["next.success"], 1, f"{where}, 'next.success'").any())
        inside = [name for name, (first, last) in self._layout.splits.items() if first <= listed.index < last]
        return told | {"split": inside[0] if inside else ""}

    def _texts(self, table: Any, key: str, stamp_ns: np.ndarray, where: str) -> list[Span]:
        """Runs of equal task numbers as spans; each ends where the next begins, the last one a frame after the last."""
        numbers = vectors(table[key], 1, f"{where}, '{key}'")[:, 0]
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        after = int(stamp_ns[-1]) + round(1e9 / self._layout.fps)
        stops = [int(stamp_ns[i]) for i in starts[1:]] + [after]
        spans = []
        for start, stop in zip(starts.tolist(), stops):
            text = self._layout.tasks.get(int(numbers[start]))
            if text is None:
                raise KineflowError(f"{where}, frame {start}: {key} {numbers[start]} is not in meta/tasks; restore the metadata")
            spans.append(Span(text, int(stamp_ns[start]), stop))
        return spans

    def _episode_clock(self, listed: Listed) -> str:
        return self._stamps(self._rows.read(listed), f"{self._layout.root.name}, episode {listed.index}")[1]

    def _stamps(self, table: Any, where: str) -> tuple[Int64[np.ndarray, "T"], str]:
        if STAMPS in self._extra:
            return vectors(table[STAMPS], 1, f"{where}, '{STAMPS}'")[:, 0].astype(np.int64), "sensor"
        seconds = vectors(table["timestamp"], 1, f"{where}, 'timestamp'")[:, 0]
        grid = nominal_ns(len(seconds), self._layout.fps)
        if np.array_equal(seconds.astype(np.float32), (np.arange(len(seconds)) / self._layout.fps).astype(np.float32)):
            return grid, nominal(self._layout.fps)
        return seconds_to_ns(seconds), "sensor"


def open_lerobot(path: Path, options: ImportOptions) -> LeRobotData:
    """Open the LeRobot data set in folder `path` (the one that holds `meta/`).

    Streams are named as their features without "observation.", "observation.images." or "next.". An export of ours brings
    units, clocks and spans back; otherwise `options.schema` may say them.

    Raises:
        KineflowError: not a LeRobot data set, damaged metadata, no action, or a schema that does not fit.
    """
    return LeRobotData(path, options)


def stream_name(key: str, taken: Mapping[str, object]) -> str:
    """The stream that a feature becomes: short where that is unique and allowed in a store."""
    short = re.sub(r"^(observation\.images\.|observation\.|next\.)", "", key)
    for candidate in (short, key):
        name = re.sub(r"[^A-Za-z0-9]+", "_", candidate).strip("_")
        name = name if name[:1].isalpha() else f"x_{name}"
        if name not in taken and not _RESERVED.fullmatch(name):
            return name
    return f"{name}_{len(taken)}"


def _columns(layout: Layout) -> tuple[dict[str, Column], dict[str, str]]:
    """Features that become streams, and the others with the reason."""
    found: dict[str, Column] = {}
    dropped = dict(layout.absent)
    for key, feature in layout.features.items():
        dtype, shape = str(feature.get("dtype")), tuple(int(n) for n in feature.get("shape") or (1,))
        if key in _NUMBERING or key in layout.absent or _is_annotation(key, feature) or key == "next.success":
            continue
        if key == "action":
            found["action"] = Column(key, "vector", (math.prod(shape),), dtype)
        elif dtype in ("image", "video"):
            frame, reason = _frame_shape(feature, shape)
            if frame and not (dtype == "video" and len(frame) == 2):
                found[stream_name(key, found)] = Column(key, dtype, frame, dtype)
            else:
                dropped[key] = reason or "depth as video is quantised; only depth pictures are carried"
        elif key == "next.done":
            dropped[key] = "says where an episode ends, which its length does"
        elif np.dtype(dtype).kind in "fiub" if _is_numpy(dtype) else False:
            found[stream_name(key, found)] = Column(key, "vector", (math.prod(shape),), dtype)
        else:
            dropped[key] = f"{dtype} values have no place in a stream"
    if "action" not in found:
        raise KineflowError(
            f"{layout.root}: no feature 'action', only {sorted(layout.features)}; rename the one with the actions"
        )
    return found, dropped


def _is_annotation(key: str, feature: Mapping[str, Any]) -> bool:
    return key.startswith("annotation.") and str(feature.get("dtype")).startswith("int")


def _is_numpy(dtype: str) -> bool:
    try:
        return bool(np.dtype(dtype))
    except TypeError:
        return False


def _frame_shape(feature: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, str]:
    """[H, W, 3], or [H, W] of depth in mm; None with the reason."""
    info = feature.get("info") or feature.get("video_info") or {}
    names = [str(n) for n in feature.get("names") or ()]
    if len(shape) == 3 and (names[:1] in (["channels"], ["channel"]) or (shape[0] in (1, 3) and shape[2] not in (1, 3))):
        shape = (shape[1], shape[2], shape[0])
    if info.get("is_depth_map") or info.get("video.is_depth_map"):
        unit = info.get("depth_unit")
        return (shape[:2], "") if unit == "mm" else (None, f"depth in {unit or 'an unknown unit'}; only millimetres are carried")
    if len(shape) != 3 or shape[2] != 3:
        return None, f"pictures of shape {list(shape)} are neither RGB nor depth"
    return shape, ""


def _interface(layout: Layout, columns: Mapping[str, Column]) -> Interface:
    features = {
        name: FeatureSpec(unbounded(_names(layout.features[c.key], c.shape[0]), "unknown", "unknown"), layout.fps)
        for name, c in columns.items()
        if c.kind == "vector"
    }
    cameras = {
        name: CameraSpec(c.shape[0], c.shape[1], layout.fps, "rgb" if len(c.shape) == 3 else "depth")
        for name, c in columns.items()
        if c.kind != "vector"
    }
    return Interface({n: f for n, f in features.items() if n != "action"}, features["action"], cameras)


def _names(feature: Mapping[str, Any], width: int) -> tuple[str, ...]:
    """Names of the dimensions: a list, or a mapping of one or several lists; dim_0, dim_1, ... where they do not fit."""
    given = feature.get("names")
    flat = (
        [n for part in given.values() for n in (part if isinstance(part, list) else [part])] if isinstance(given, dict) else given
    )
    if isinstance(flat, list) and len(flat) == width and len({str(n) for n in flat}) == width:
        return tuple(map(str, flat))
    return tuple(f"dim_{i}" for i in range(width))


def _own_sidecar(layout: Layout, offered: Interface) -> tuple[Sidecar | None, dict[str, str]]:
    """What our own export said of the data, unless somebody has changed the streams since."""
    if layout.sidecar is None:
        return None, {}
    side = read_sidecar(layout.sidecar, str(layout.root / SIDECAR))
    mine, theirs = (
        {**{n: s.vector.size for n, s in i.features.items()}, "action": i.action.vector.size} for i in (side.interface, offered)
    )
    shapes = [{n: c.frame_shape for n, c in i.cameras.items()} for i in (side.interface, offered)]
    if mine == theirs and shapes[0] == shapes[1]:
        return side, {}
    return None, {SIDECAR: "its streams are not those of the data set, which was changed after it was written"}


def _shapes(interface: Interface) -> dict[str, tuple[int, ...]]:
    vectors = {name: (spec.vector.size,) for name, spec in {**interface.features, "action": interface.action}.items()}
    return {**vectors, **{name: camera.frame_shape for name, camera in interface.cameras.items()}}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise KineflowError(f"{where}: kineflow/episode is not JSON ({error}); export the data again") from error
