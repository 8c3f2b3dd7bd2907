"""Import Argoverse 2 motion forecasting: `scenario_<id>.parquet`, 11 s of tracked road users at 10 Hz.

Format: argoverse/av2-api, `src/av2/datasets/motion_forecasting/`: a row a track and timestep, in city coordinates (metres,
x east, y north, heading counter-clockwise from x). The recording car is the track "AV"; one other track is the focal one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.arrow_tables import read_columns
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

RATE_HZ = 10.0
EGO = "AV"
_STATE = ("position_x", "position_y", "heading", "velocity_x", "velocity_y")
_TIMES = ("start_timestamp", "end_timestamp", "num_timestamps")
_COLUMNS = ("track_id", "timestep", *_STATE, *_TIMES, "focal_track_id", "city", "scenario_id")
_POSE = unbounded(("x", "y", "heading"), ("m", "m", "rad"), "city")
_VELOCITY = unbounded(("vx", "vy"), "m/s", "city")
_FOCAL = unbounded(("x", "y", "heading", "vx", "vy"), ("m", "m", "rad", "m/s", "m/s"), "city")


class Argoverse2Motion:
    """A `Source` of one episode a scenario."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path
        self._files = [path] if path.is_file() else sorted(path.rglob("scenario_*.parquet"))
        if not self._files:
            raise KineflowError(f"{path} holds no scenario_<id>.parquet; give a folder of the motion forecasting data set")
        features = {"pose": _POSE, "velocity": _VELOCITY, "focal": _FOCAL}
        self._offered = Interface(
            {name: FeatureSpec(vector, RATE_HZ) for name, vector in features.items()}, FeatureSpec(_POSE, RATE_HZ)
        )
        self._interface = chosen(options.schema, self._offered, str(path))

    @property
    def facts(self) -> Facts:
        carried = {
            "pose": "the track AV: position and heading in the frame of its city; float64 kept as float32",
            "velocity": "the track AV, in the same frame",
            "focal": "the focal track, on the steps at which it was tracked",
            "action": "the pose again: the log holds no controls, what a planner imitates is where the car went",
        }
        carried = {name: said for name, said in carried.items() if name in (*self._interface.features, "action")}
        rest = {
            "other tracks": "their number differs from scenario to scenario, a stream has a fixed size",
            "observed, object_type, object_category": "marks of the forecasting task",
            "map": "log_map_archive_<id>.json: lanes and crossings are not a stream",
        }
        rest |= not_chosen(self._interface, self._offered)
        provenance = f"{self._path.name} (argoverse2-motion, stamps from start_timestamp to end_timestamp)"
        return Facts(self._interface, "sensor", provenance, carried, rest, licence="CC-BY-NC-SA-4.0")

    def __len__(self) -> int:
        return len(self._files)

    def episode(self, index: int) -> Episode:
        file = self._files[index]
        table = read_columns(file, _COLUMNS)
        ego_state, ego_ns = _track(table, EGO, file)
        focal_state, focal_ns = _track(table, str(table["focal_track_id"][0]), file)
        offered = {
            "pose": Stream(ego_state[:, :3], ego_ns),
            "velocity": Stream(ego_state[:, 3:], ego_ns),
            "focal": Stream(focal_state, focal_ns),
        }
        streams = {name: offered[name] for name in self._interface.features} | {"action": offered["pose"]}
        return Episode(streams, source=f"{table['scenario_id'][0]} ({table['city'][0]})")


def open_argoverse2_motion(path: Path, options: ImportOptions) -> Argoverse2Motion:
    """A folder above scenarios, or one scenario_<id>.parquet.

    Raises:
        KineflowError: no scenario there.
    """
    return Argoverse2Motion(path, options)


def _track(table: Mapping[str, np.ndarray], track: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """State [T, 5] and stamps of one track, in the order of its timesteps."""
    rows = np.flatnonzero(table["track_id"] == track)
    rows = rows[np.argsort(table["timestep"][rows], kind="stable")]
    steps = table["timestep"][rows].astype(np.int64)
    start, end, count = (float(table[name][0]) for name in _TIMES)
    if len(rows) == 0 or (np.diff(steps) <= 0).any() or count < 2 or not 0 < end - start < 1e12:
        raise KineflowError(
            f"{file}: track '{track}' has the timesteps {steps[:5].tolist()}... of {count:g} from {start:g} to {end:g} ns; "
            "not a whole scenario, copy it again"
        )
    state = np.stack([table[name][rows] for name in _STATE], 1).astype(np.float32)
    return state, np.int64(start) + np.round(steps * ((end - start) / (count - 1))).astype(np.int64)
