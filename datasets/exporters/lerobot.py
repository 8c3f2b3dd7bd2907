"""Export to LeRobot v3.0 and v2.1, frames as pictures (lossless, the default) or as video (lossy); layout: lerobot_layout.py.

Pictures are PNG, or the store's own JPEG bytes where it has these. One row is one step, so every stream must share the clock of
the actions. LeRobot's `timestamp` is index / fps, and its readers refuse or mis-seek anything else: the store's own stamps go
beside it as the column `kineflow.stamp_ns` (int64 ns) where they differ. Units, limits, spans and the rest go to
`meta/kineflow.json` and `kineflow/episode`; our importer brings all back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, to_json
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.lerobot_files import EpisodeRow, Tables, Videos
from kineflow.datasets.exporters.lerobot_stats import FrameCounts, Stats, merged, vector_stats
from kineflow.datasets.exporters.target import Carried, Progress
from kineflow.datasets.importers.clocks import nominal_ns
from kineflow.datasets.importers.lerobot import STAMPS
from kineflow.datasets.importers.lerobot_layout import EPISODE_SIDECAR, SIDECAR
from kineflow.datasets.sidecar import episode_sidecar, left_out, store_sidecar, without_second_loss

NUMBERING = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def export_v3(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """LeRobot v3.0 with frames as PNG or JPEG in the parquet files."""
    return _export(store, destination, "v3.0", False, progress)


def export_v3_video(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """LeRobot v3.0 with RGB cameras as h264 video."""
    return _export(store, destination, "v3.0", True, progress)


def export_v21(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """LeRobot v2.1 with frames as PNG or JPEG in the parquet files."""
    return _export(store, destination, "v2.1", False, progress)


def export_v21_video(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """LeRobot v2.1 with RGB cameras as h264 video."""
    return _export(store, destination, "v2.1", True, progress)


class _OffGridError(Exception):
    """Time stamps that are not index / fps, met in a store whose clock is called nominal."""


def _export(store: EpisodeStore, root: Path, version: str, video: bool, progress: Progress) -> Carried:
    if store.manifest.clock.startswith("nominal_"):
        try:
            return _Export(store, root, version, video, stamps=False).run(progress)
        except _OffGridError:
            shutil.rmtree(root)
    return _Export(store, root, version, video, stamps=True).run(progress)


@dataclass(frozen=True)
class _Feature:
    """One stream as a feature of LeRobot."""

    stream: str
    key: str
    spec: FeatureSpec | CameraSpec
    dtype: str  # "float32", "image" or "video"

    def described(self, fps: float) -> dict[str, Any]:
        """Its entry in info.json."""
        if isinstance(self.spec, FeatureSpec):
            return {"dtype": "float32", "shape": [self.spec.vector.size], "names": list(self.spec.vector.names)}
        depth = self.spec.kind == "depth"
        shape = [self.spec.height, self.spec.width, 1 if depth else 3]
        info: dict[str, Any] = {"is_depth_map": depth} | ({"depth_unit": "mm"} if depth else {})
        if self.dtype == "video":
            info |= {f"video.{name}": value for name, value in zip(("height", "width", "channels"), shape)}
            info |= {"video.fps": fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
        return {"dtype": self.dtype, "shape": shape, "names": ["height", "width", "channels"], "info": info}


class _Export:
    def __init__(self, store: EpisodeStore, root: Path, version: str, video: bool, stamps: bool) -> None:
        self._store, self._root, self._version, self._stamps = store, root, version, stamps
        self._fps = _plain_number(store.interface.action.rate_hz)
        self._features = _features(store.interface, video)
        own = [f.stream for f in self._features if store.has_own_clock(f.stream)]
        if own:
            raise KineflowError(
                f"{store.path}: {', '.join(own)} have clocks of their own, LeRobot has one row for each step of all streams; "
                "resample the store to one clock first, or export to MCAP"
            )
        self._tasks: dict[str, int] = {}
        self._lost: dict[str, str] = {}
        self._parts: dict[str, list[np.ndarray | FrameCounts]] = {}
        self._splits: list[str] = []
        self._index = 0

    def run(self, progress: Progress) -> Carried:
        store = self._store
        (self._root / "meta").mkdir(parents=True)
        types = {f.key: (f.dtype, _width(f)) for f in self._features if f.dtype != "video"}
        types |= {STAMPS: ("int64", 1)} if self._stamps else {}
        types |= {key: (dtype, 1) for key, dtype in NUMBERING.items()}
        videos = {f.key: f.spec for f in self._features if f.dtype == "video" and isinstance(f.spec, CameraSpec)}
        with Tables(self._root, self._version, types) as tables, Videos(self._root, self._version, videos, self._fps) as films:
            for number in range(store.num_episodes):
                tables.add(self._row(store.episode(number), number, films))
                progress(number + 1, store.num_episodes)
            counts = {"videos": films.files, "data_files": tables.files}
        tables.finish(self._tasks, merged(self._parts))
        self._write_info(types, counts)
        (self._root / SIDECAR).write_text(to_json(store_sidecar(without_second_loss(store, keeps_jpeg=True))))
        return Carried({f.stream: f"{f.key} ({f.dtype})" for f in self._features}, self._not_carried())

    def _row(self, episode: Episode, number: int, films: Videos) -> EpisodeRow:
        stamps = episode.streams["action"].stamp_ns
        length = len(stamps)
        if not self._stamps and not np.array_equal(stamps, nominal_ns(length, self._fps)):
            raise _OffGridError
        self._splits.append(episode.split)
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        self._lost |= left_out(episode)
        columns: dict[str, np.ndarray] = {f.key: episode.streams[f.stream].values for f in self._features}
        pictures = {f.key: self._store.jpegs(number, f.stream) for f in self._features if f.dtype == "image"}
        places = {f.key: films.add(f.key, columns.pop(f.key), number) for f in self._features if f.dtype == "video"}
        if self._stamps:
            columns[STAMPS] = stamps
        steps = np.arange(length)
        columns["timestamp"] = (steps / self._fps).astype(np.float32)
        columns |= {"frame_index": steps, "episode_index": np.full(length, number)}
        columns |= {"index": steps + self._index, "task_index": np.full(length, task)}
        stats = self._measure(episode, columns)
        first, self._index = self._index, self._index + length
        side = json.dumps(episode_sidecar(episode), allow_nan=False)
        jpegs = {key: encoded for key, encoded in pictures.items() if encoded is not None}
        texts = {EPISODE_SIDECAR: side}
        return EpisodeRow(number, length, episode.instruction, first, columns, places, stats, texts, jpegs)

    def _measure(self, episode: Episode, columns: dict[str, np.ndarray]) -> dict[str, Stats]:
        stats: dict[str, Stats] = {}
        for feature in self._features:
            if isinstance(feature.spec, CameraSpec):
                counts = FrameCounts(episode.streams[feature.stream].values)
                self._parts.setdefault(feature.key, []).append(counts)
                stats[feature.key] = counts.stats()
        for key, values in columns.items():
            if key not in stats:
                self._parts.setdefault(key, []).append(values)
                stats[key] = vector_stats(values)
        return stats

    def _write_info(self, types: dict[str, tuple[str, int]], counts: dict[str, int]) -> None:
        features = {f.key: f.described(self._fps) for f in self._features}
        rest = {k: {"dtype": d, "shape": [1], "names": None} for k, (d, _) in types.items() if k not in features}
        episodes, steps = self._store.num_episodes, int(self._store.lengths.sum())
        info: dict[str, Any] = {
            "codebase_version": self._version,
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": steps,
            "total_tasks": len(self._tasks),
            "chunks_size": 1000,
            "fps": self._fps,
            "splits": _ranges(self._splits),
            **Tables.templates(self._version, any(f.dtype == "video" for f in self._features)),
            "features": {**features, **rest},
        }
        if self._version == "v2.1":
            info |= {"total_videos": counts["videos"], "total_chunks": -(-episodes // 1000)}
        else:
            info |= {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
        (self._root / "meta" / "info.json").write_text(json.dumps(info, indent=4))

    def _not_carried(self) -> dict[str, str]:
        lost = dict(self._lost)
        if self._stamps:
            lost["clock"] = f"timestamp is index / fps, as LeRobot wants it; the real ones are in '{STAMPS}', which only we read"
        lost["units, limits, spans, success"] = f"kept in {SIDECAR} and {EPISODE_SIDECAR}, which only we read"
        for feature in self._features:
            if feature.dtype == "video":
                lost[f"pixels of {feature.stream}"] = "h264 video is lossy; export without video to keep them"
        return lost


def _features(interface: Interface, video: bool) -> list[_Feature]:
    found = []
    for name, camera in interface.cameras.items():
        film = video and camera.kind == "rgb"
        if film and (camera.height % 2 or camera.width % 2):
            raise KineflowError(
                f"camera '{name}' is {camera.width} x {camera.height}: video needs even sizes; export without video"
            )
        found.append(_Feature(name, f"observation.images.{name}", camera, "video" if film else "image"))
    for name, feature in interface.features.items():
        found.append(_Feature(name, "next.reward" if name == "reward" else f"observation.{name}", feature, "float32"))
    return [*found, _Feature("action", "action", interface.action, "float32")]


def _width(feature: _Feature) -> int:
    return feature.spec.vector.size if isinstance(feature.spec, FeatureSpec) else 0


def _plain_number(rate_hz: float) -> float:
    return int(rate_hz) if rate_hz == int(rate_hz) else rate_hz


def _ranges(splits: Sequence[str]) -> dict[str, str]:
    """LeRobot's ranges where each split is one; else everything is "train", as it writes itself."""
    runs = [i for i in range(len(splits)) if i == 0 or splits[i] != splits[i - 1]]
    names = [splits[i] for i in runs]
    if all(names) and len(set(names)) == len(names):
        return {name: f"{start}:{stop}" for name, start, stop in zip(names, runs, [*runs[1:], len(splits)])}
    return {"train": f"0:{len(splits)}"}
