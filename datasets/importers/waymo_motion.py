"""Import Waymo Open Motion: TFRecord files of `Scenario` messages, 9 s of tracked road users at 10 Hz.

Format: waymo-research/waymo-open-dataset, `protos/scenario.proto`; field numbers are those of that file. Positions are metres
in a local frame that is the same for a scenario, z up; heading is counter-clockwise from x, radians.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import seconds_to_ns
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.importers.tfrecord import Record, WireError, fields, find_records, read_record

RATE_HZ = 10.0
_TIMES, _TRACK, _ID, _EGO = 1, 2, 5, 6  # of Scenario
_STATE = 3  # of Track
_DOUBLES, _FLOATS, _VALID = (2, 3, 4), (8, 9, 10), 11  # of ObjectState: centre; heading and velocity
_POSE = unbounded(("x", "y", "z", "heading"), ("m", "m", "m", "rad"), "scenario")
_VELOCITY = unbounded(("vx", "vy"), "m/s", "scenario")


@dataclass(frozen=True)
class _Scenario:
    name: str
    stamp_ns: np.ndarray
    ego: np.ndarray  # float64 [T, 7]: x, y, z, heading, vx, vy, valid


class WaymoMotion:
    """A `Source` of one episode a scenario."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*tfrecord*") if f.is_file())
        self._records = [record for file in files for record in find_records(file)]
        if not self._records:
            raise KineflowError(f"{path} holds no TFRecord of scenarios; give the files named *.tfrecord* or their folder")
        features = {"pose": FeatureSpec(_POSE, RATE_HZ), "velocity": FeatureSpec(_VELOCITY, RATE_HZ)}
        self._offered = Interface(features, FeatureSpec(_POSE, RATE_HZ))
        self._interface = chosen(options.schema, self._offered, str(path))

    @property
    def facts(self) -> Facts:
        carried = {
            "pose": "the recording car (sdc_track_index): centre and heading in the scenario's frame; float64 kept as float32",
            "velocity": "the recording car, in the same frame",
            "action": "the pose again: the data hold no controls, what a planner imitates is where the car went",
        }
        carried = {name: said for name, said in carried.items() if name in (*self._interface.features, "action")}
        rest = {
            "other tracks": "their number differs from scenario to scenario, a stream has a fixed size",
            "map, traffic lights": "features of the map and states of lanes are not streams of a fixed size",
            "current_time_index, tracks_to_predict, objects_of_interest, difficulty": "marks of the prediction task",
            "steps at which the car is not valid": "left out, stamps stay as recorded",
        }
        rest |= not_chosen(self._interface, self._offered)
        provenance = f"{self._path.name} (waymo-motion, seconds since the scenario began)"
        return Facts(self._interface, "sensor", provenance, carried, rest, licence="Waymo Open Dataset (non-commercial)")

    def __len__(self) -> int:
        return len(self._records)

    def episode(self, index: int) -> Episode:
        record = self._records[index]
        found = _read(record)
        good = found.ego[:, 6] == 1
        values, stamp_ns = found.ego[good].astype(np.float32), found.stamp_ns[good]
        if len(values) == 0 or (np.diff(stamp_ns) <= 0).any():
            raise KineflowError(
                f"{record.file}, record {record.number}: the recording car is never valid, or its stamps do not increase; "
                "leave the record out"
            )
        offered = {"pose": Stream(values[:, :4], stamp_ns), "velocity": Stream(values[:, 4:6], stamp_ns)}
        streams = {name: offered[name] for name in self._interface.features} | {"action": offered["pose"]}
        return Episode(streams, source=f"scenario {found.name}")


def open_waymo_motion(path: Path, options: ImportOptions) -> WaymoMotion:
    """One TFRecord file of scenarios, or a folder above some.

    Raises:
        KineflowError: no record there, or a damaged file.
    """
    return WaymoMotion(path, options)


def _read(record: Record) -> _Scenario:
    try:
        return _scenario(read_record(record))
    except (WireError, UnicodeDecodeError, struct.error) as error:
        raise KineflowError(
            f"{record.file}, record {record.number}: not a Waymo motion Scenario ({error}); "
            "give the `scenario` files, not `tf_example` ones"
        ) from error


def _scenario(data: bytes) -> _Scenario:
    seconds: list[float] = []
    tracks: list[bytes] = []
    name, ego = "", -1
    for number, _, value in fields(data):
        if number == _TIMES:
            seconds += np.frombuffer(value if isinstance(value, bytes) else value.to_bytes(8, "little"), "<f8").tolist()
        elif number == _TRACK and isinstance(value, bytes):
            tracks.append(value)
        elif number == _ID and isinstance(value, bytes):
            name = value.decode()
        elif number == _EGO and isinstance(value, int):
            ego = value
    if not 0 <= ego < len(tracks):
        raise WireError(f"sdc_track_index is {ego} of {len(tracks)} tracks")
    states = [value for number, _, value in fields(tracks[ego]) if number == _STATE and isinstance(value, bytes)]
    if len(states) != len(seconds):
        raise WireError(f"{len(states)} states of the recording car for {len(seconds)} time stamps")
    return _Scenario(name, seconds_to_ns(np.array(seconds)), np.array([_state(state) for state in states]))


def _state(data: bytes) -> list[float]:
    """x, y, z, heading, vx, vy, valid; what is not in the message is 0."""
    found = dict.fromkeys((*_DOUBLES, *_FLOATS, _VALID), 0.0)
    for number, kind, value in fields(data):
        if number not in found or not isinstance(value, int):
            continue
        if number == _VALID:
            found[number] = float(value != 0)
        else:
            wide = number in _DOUBLES
            if kind != (1 if wide else 5):
                raise WireError(f"field {number} of a state has wire type {kind}")
            (found[number],) = struct.unpack("<d" if wide else "<f", value.to_bytes(8 if wide else 4, "little"))
    return list(found.values())
