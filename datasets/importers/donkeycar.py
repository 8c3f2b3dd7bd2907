"""Import a Donkeycar tub (version 2): `manifest.json` names catalogs of one JSON record a line, beside `images/*.jpg`.

Format: autorope/donkeycar, `donkeycar/parts/datastore_v2.py` and `tub_v2.py`. The five lines of the manifest are the inputs,
their types, metadata, the manifest's metadata, and the catalogs with the indexes of deleted records. JPEG bytes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream
from kineflow.datasets.importers.clocks import increasing, rate_of
from kineflow.datasets.importers.pictures import decode_picture
from kineflow.datasets.importers.schemas import chosen, not_chosen, refuse_rate, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions

ACTION_INPUTS = ("user/angle", "user/throttle")
_NUMBERS = ("float", "int", "boolean")


@dataclass(frozen=True)
class _Tub:
    inputs: Mapping[str, str]  # input -> type
    records: tuple[Mapping[str, Any], ...]  # kept ones, in order of their index
    deleted: int
    repeated: int


class DonkeycarTub:
    """A `Source`: one episode for each unbroken run of records of one session, so that no window bridges a deleted part."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        refuse_rate(options, str(path))
        self._path, self._tub = path, _read(path)
        self._episodes = _runs(self._tub.records)
        self._offered, self._input_of = _offered(path, self._tub)
        self._interface = chosen(options.schema, self._offered, str(path))

    @property
    def facts(self) -> Facts:
        carried = {name: f"{source}, stamps _timestamp_ms" for name, source in self._input_of.items()}
        carried["action"] = f"{ACTION_INPUTS[0]} and {ACTION_INPUTS[1]}, -1 to 1 as recorded, stamps _timestamp_ms"
        carried["values"] = "numbers of JSON kept as float32"
        used = {*self._input_of.values(), *ACTION_INPUTS}
        rest = {f"input {n}": f"of type {kind}, not a number or picture" for n, kind in self._tub.inputs.items() if n not in used}
        piloted = sum(record.get("user/mode", "user") != "user" for record in self._tub.records)
        if piloted:
            rest["what the pilot did"] = f"{piloted} records were not driven by the user alone; the action is the user's"
        if self._tub.deleted:
            rest["deleted records"] = f"{self._tub.deleted} records that the manifest marks as deleted"
        if self._tub.repeated:
            rest["repeated stamps"] = f"{self._tub.repeated} records not later than the one before them were dropped"
        rest |= not_chosen(self._interface, self._offered)
        return Facts(self._interface, "sensor", f"{self._path.name} (donkeycar-tub)", carried, rest)

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> Episode:
        records = self._episodes[index]
        stamp_ns = np.array([_stamp(record) for record in records], np.int64)
        streams = {"action": Stream(self._column(records, *ACTION_INPUTS), stamp_ns)}
        for name in self._interface.features:
            streams[name] = Stream(self._column(records, self._input_of[name]), stamp_ns)
        jpeg: dict[str, list[bytes]] = {}
        for name in self._interface.cameras:
            jpeg[name] = [self._picture(record, self._input_of[name]) for record in records]
            places = [f"{self._path}, record {r['_index']}, {r.get(self._input_of[name])}" for r in records]
            frames = [decode_picture(data, place) for data, place in zip(jpeg[name], places)]
            wrong = next((i for i, f in enumerate(frames) if f.shape != self._interface.cameras[name].frame_shape), None)
            if wrong is not None:
                raise KineflowError(
                    f"{self._path}, record {records[wrong]['_index']}: the picture is {list(frames[wrong].shape)}, the first is "
                    f"{list(self._interface.cameras[name].frame_shape)}; delete the record in the tub"
                )
            streams[name] = Stream(np.stack(frames), stamp_ns)
        source = f"{self._path.name} records {records[0]['_index']}-{records[-1]['_index']}"
        return Episode(streams, source=source, jpeg=jpeg)

    def _column(self, records: tuple[Mapping[str, Any], ...], *inputs: str) -> np.ndarray:
        rows = [[record.get(name) for name in inputs] for record in records]
        for record, row in zip(records, rows):
            if not all(isinstance(value, (int, float)) for value in row):
                raise KineflowError(
                    f"{self._path}, record {record['_index']}: {inputs} are {row}, not numbers; delete the record"
                )
        return np.array(rows, np.float32)

    def _picture(self, record: Mapping[str, Any], name: str) -> bytes:
        file = self._path / "images" / Path(str(record.get(name))).name
        try:
            return file.read_bytes()
        except OSError:
            raise KineflowError(f"{self._path}, record {record['_index']}: {file} is not there; copy the tub again") from None


def open_tub(path: Path, options: ImportOptions) -> DonkeycarTub:
    """The tub folder, which holds manifest.json (unpack archives first).

    Raises:
        KineflowError: not a tub, or a catalog, record or picture that cannot be read; names it.
    """
    return DonkeycarTub(path, options)


def _read(path: Path) -> _Tub:
    if not (path / "manifest.json").is_file():
        raise KineflowError(f"{path} holds no manifest.json; give the folder of a Donkeycar tub of version 2, unpacked")
    try:
        lines = [json.loads(line) for line in (path / "manifest.json").read_text().splitlines() if line.strip()]
        inputs, types, *_, catalogs = lines
        deleted, files = {int(i) for i in catalogs["deleted_indexes"]}, [str(p) for p in catalogs["paths"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KineflowError(
            f"{path} is not a Donkeycar tub of version 2 ({type(error).__name__}: {error}); "
            "give the folder with manifest.json, unpacked"
        ) from error
    found: list[dict[str, Any]] = []
    for file in files:
        found += _catalog(path / file)
    kept, gap = [], False
    for record in found:
        if record["_index"] in deleted:
            gap = True
        else:
            kept.append({**record, "_after_deleted": gap})
            gap = False
    if not kept:
        raise KineflowError(f"{path} has no records ({len(found)} deleted); record or restore some")
    keep = increasing(np.array([_stamp(record) for record in kept], np.int64), str(path))
    # A repeat that is dropped hands its mark on, so that the cut before it stays.
    for i in np.flatnonzero(~keep[:-1]):
        kept[i + 1]["_after_deleted"] |= kept[i]["_after_deleted"]
    records = tuple(record for record, good in zip(kept, keep) if good)
    return _Tub(dict(zip(map(str, inputs), map(str, types))), records, len(found) - len(kept), len(kept) - len(records))


def _catalog(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise KineflowError(f"{file} is not there, but manifest.json names it; copy the tub again")
    records = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            record["_index"], record["_timestamp_ms"] = int(record["_index"]), int(record["_timestamp_ms"])
        except (ValueError, KeyError, TypeError) as error:
            raise KineflowError(
                f"{file}, line {number}: not a record ({type(error).__name__}: {error}); a torn last line may be removed"
            ) from error
        records.append(record)
    return records


def _runs(records: tuple[Mapping[str, Any], ...]) -> list[tuple[Mapping[str, Any], ...]]:
    """Records are cut where the session changes or where deleted ones lie between; dropped repeats do not cut."""
    cuts = [0]
    for i in range(1, len(records)):
        session = records[i].get("_session_id") != records[i - 1].get("_session_id")
        if session or records[i]["_after_deleted"]:
            cuts.append(i)
    return [records[a:b] for a, b in zip(cuts, [*cuts[1:], len(records)])]


def _offered(path: Path, tub: _Tub) -> tuple[Interface, dict[str, str]]:
    missing = [name for name in ACTION_INPUTS if name not in tub.inputs]
    if missing:
        raise KineflowError(f"{path} has the inputs {sorted(tub.inputs)}, not {missing}; only tubs of driving can be imported")
    rate = rate_of(np.array([_stamp(record) for record in tub.records], np.int64), 20.0)
    features, cameras, input_of = {}, {}, {}
    for name, kind in tub.inputs.items():
        ours = name.removeprefix("cam/").replace("/", "_").replace("-", "_")
        if kind == "image_array":
            file = path / "images" / Path(str(tub.records[0].get(name))).name
            if not file.is_file():
                raise KineflowError(f"{file} is not there, but record {tub.records[0]['_index']} names it; copy the tub again")
            height, width = decode_picture(file.read_bytes(), str(file)).shape[:2]
            cameras[ours], input_of[ours] = CameraSpec(height, width, rate), name
        elif kind in _NUMBERS and name not in ACTION_INPUTS:
            features[ours], input_of[ours] = FeatureSpec(unbounded((ours,), "unknown", "unknown"), rate), name
    vector = unbounded(("angle", "throttle"), "1", "car")
    action = FeatureSpec(type(vector)(vector.names, vector.units, vector.frame, (-1.0, -1.0), (1.0, 1.0)), rate)
    return Interface(features, action, cameras), input_of


def _stamp(record: Mapping[str, Any]) -> int:
    return int(record["_timestamp_ms"]) * 1_000_000
