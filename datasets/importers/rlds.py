"""Import RLDS episodes (TFDS on disk): `features.json` beside `*.tfrecord-00000-of-00001` shards, without TensorFlow.

Format: google-research/rlds and tensorflow/datasets. A record is one episode, a tf.train.Example that holds each leaf of
`steps` as the values of all steps one after another. RLDS records no clock, so the stamps are nominal. The action is
`steps/action`; where that is a mapping, its numbers one after another in the order of features.json.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Span, Stream
from kineflow.datasets.importers.clocks import nominal, nominal_ns
from kineflow.datasets.importers.pictures import decode_picture, is_jpeg
from kineflow.datasets.importers.schemas import chosen, not_chosen, unbounded
from kineflow.datasets.importers.source import Facts, ImportOptions
from kineflow.datasets.importers.tfrecord import Record, Value, find_records, read_example

DEFAULT_RATE_HZ = 10.0
_INSTRUCTIONS = ("language_instruction", "natural_language_instruction", "instruction")
_FILE_PATH = "episode_metadata/file_path"
_BOUNDS = ("is_first", "is_last")
_SHARD = re.compile(r"(?P<set>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d+)-of-(?P<shards>\d+)")


@dataclass(frozen=True)
class _Leaf:
    """One leaf of features.json: `key` is its name in the Example."""

    key: str
    kind: str  # "number", "image", "text" or why it is none of these
    shape: tuple[int | None, ...] = ()
    dtype: str = ""
    encoding: str = "none"

    @property
    def size(self) -> int:
        """Numbers a step."""
        return math.prod(n or 1 for n in self.shape)


class Rlds:
    """A `Source` over all shards that are there, split by split."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path = path if (path / "features.json").is_file() else _version_below(path)
        self._leaves, self._rate = _leaves(self._path), options.rate_hz or DEFAULT_RATE_HZ
        self._records, self._missing = _shards(self._path)
        self._action = [leaf for leaf in self._leaves if re.fullmatch("steps/action(/.*)?", leaf.key) and leaf.kind == "number"]
        self._text = next((f for n in _INSTRUCTIONS for f in self._leaves if f.kind == "text" and f.key.endswith(f"/{n}")), None)
        if not self._action:
            raise KineflowError(f"{self._path}/features.json has no numbers steps/action; it has {[f.key for f in self._leaves]}")
        self._streams = self._named()
        self._offered = self._interface_of_first()
        self._interface = chosen(options.schema, self._offered, str(self._path))
        if options.schema is not None:
            self._rate = self._interface.action.rate_hz

    def _named(self) -> dict[str, _Leaf]:
        """Stream name -> leaf: the last part of the key where that is unique, else all of it."""
        leaves = [f for f in self._leaves if f.key.startswith("steps/") and f.kind in ("number", "image")]
        leaves = [f for f in leaves if f not in self._action and f.key.split("/")[-1] not in _BOUNDS]
        last = [leaf.key.split("/")[-1] for leaf in leaves]
        return {_word(n if last.count(n) == 1 else f.key.removeprefix("steps/")): f for n, f in zip(last, leaves)}

    def _interface_of_first(self) -> Interface:
        example, what = read_example(self._records[0][1]), self._what(0)
        features, cameras = {}, {}
        for name, leaf in self._streams.items():
            if leaf.kind == "image":
                height, width = decode_picture(_bytes(example, leaf, None, what)[0], f"{what}, {leaf.key}, step 0").shape[:2]
                cameras[name] = CameraSpec(height, width, self._rate, "depth" if leaf.dtype == "uint16" else "rgb")
            else:
                features[name] = FeatureSpec(unbounded(_dimensions(name, leaf.size), "unknown", "unknown"), self._rate)
        names: tuple[str, ...] = ()
        for leaf in self._action:
            names += _dimensions(_word(leaf.key.removeprefix("steps/").removeprefix("action/")), leaf.size)
        return Interface(features, FeatureSpec(unbounded(names, "unknown", "unknown"), self._rate), cameras)

    @property
    def facts(self) -> Facts:
        carried = {name: _described(leaf) for name, leaf in self._streams.items()}
        carried["action"] = " + ".join(_described(leaf) for leaf in self._action)
        if self._text:
            carried["instruction"] = f"{self._text.key}; a change within an episode becomes spans"
        if any(leaf.key == _FILE_PATH for leaf in self._leaves):
            carried["source"] = _FILE_PATH
        used = {_FILE_PATH} | {
            leaf.key for leaf in (*self._streams.values(), *self._action, *([self._text] if self._text else []))
        }
        rest = {leaf.key: _reason(leaf) for leaf in self._leaves if leaf.key not in used} | dict(self._missing)
        rest["clocks"] = f"RLDS records none; stamps count {self._rate:g} Hz from 0"
        rest |= not_chosen(self._interface, self._offered)
        return Facts(self._interface, nominal(self._rate), f"{self._path.name} (rlds)", carried, rest)

    def __len__(self) -> int:
        return len(self._records)

    def episode(self, index: int) -> Episode:
        split, record = self._records[index]
        example, what = read_example(record), self._what(index)
        action = np.concatenate([_numbers(example, leaf, None, what) for leaf in self._action], 1)
        steps, streams = len(action), {}
        stamp_ns = nominal_ns(steps, self._rate)
        streams["action"] = Stream(action, stamp_ns)
        for name in self._interface.features:
            streams[name] = Stream(_numbers(example, self._streams[name], steps, what), stamp_ns)
        jpeg: dict[str, Sequence[bytes]] = {}
        for name, camera in self._interface.cameras.items():
            pictures = _bytes(example, self._streams[name], steps, what)
            streams[name] = Stream(_frames(pictures, camera, f"{what}, {self._streams[name].key}"), stamp_ns)
            if all(is_jpeg(picture) for picture in pictures):
                jpeg[name] = pictures
        texts = [t.decode(errors="replace") for t in _bytes(example, self._text, steps, what)] if self._text else []
        spans = _spans(texts, stamp_ns, self._rate)
        source = _source(example) or f"{record.file.name}#{record.number}"
        return Episode(streams, texts[0] if texts else "", None, source, nominal(self._rate), spans=spans, split=split, jpeg=jpeg)

    def _what(self, index: int) -> str:
        return f"{self._records[index][1].file}, record {self._records[index][1].number}"


def open_rlds(path: Path, options: ImportOptions) -> Rlds:
    """The folder of one version of a TFDS data set, or the folder above the only version; `options.rate_hz` is the control
    rate (10 where not given), `options.schema` the names and units.

    Raises:
        KineflowError: no such folder, a damaged shard, or an episode that features.json does not describe.
    """
    return Rlds(path, options)


def _version_below(path: Path) -> Path:
    found = sorted(file.parent for file in path.glob("*/features.json"))
    if len(found) != 1:
        raise KineflowError(
            f"{path} has no features.json"
            + (f", several versions have: {[f.name for f in found]}" if found else "")
            + "; give the folder of one version of the data set, e.g. my_set/1.0.0"
        )
    return found[0]


def _leaves(path: Path) -> list[_Leaf]:
    file = path / "features.json"
    try:
        return list(_walk("", json.loads(file.read_text())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KineflowError(
            f"{file} does not describe TFDS features ({type(error).__name__}: {error}); download it again"
        ) from error


def _walk(key: str, node: Mapping[str, Any], nested: bool = False) -> Iterator[_Leaf]:
    kind = str(node["pythonClassName"]).rsplit(".", 1)[-1]
    if "featuresDict" in node:
        for name, below in node["featuresDict"]["features"].items():
            yield from _walk(f"{key}/{name}".lstrip("/"), below, nested)
    elif kind in ("Dataset", "Sequence") and not (nested or key != "steps"):
        yield from _walk(key, node["sequence"]["feature"], nested=True)
    elif kind in ("Tensor", "Scalar"):
        tensor = node["tensor"]
        shape = tuple(int(n) if int(n) >= 0 else None for n in tensor.get("shape", {}).get("dimensions", ()))
        dtype = str(tensor["dtype"])
        word = "text" if dtype in ("string", "object") else "number" if None not in shape else "a tensor of changing shape"
        yield _Leaf(key, word, shape, dtype, str(tensor.get("encoding", "none")))
    elif kind == "Image":
        shape = tuple(int(n) if int(n) > 0 else None for n in node["image"].get("shape", {}).get("dimensions", ()))
        dtype = str(node["image"].get("dtype", "uint8"))
        good = (shape[-1:] == (3,) and dtype == "uint8") or (shape[-1:] == (1,) and dtype == "uint16")
        yield _Leaf(
            key, "image" if good else f"a picture {dtype} {list(shape)}, neither RGB uint8 nor depth uint16", shape, dtype
        )
    elif kind == "Text":
        yield _Leaf(key, "text")
    else:
        yield _Leaf(key, f"a {kind}, which this importer does not know")


def _shards(path: Path) -> tuple[list[tuple[str, Record]], dict[str, str]]:
    """Every record with its split, and what the folder lacks."""
    files = [(found, file) for file in sorted(path.iterdir()) if (found := _SHARD.fullmatch(file.name))]
    if not files:
        raise KineflowError(f"{path} has no shards like my_set-train.tfrecord-00000-of-00001; download them")
    records: list[tuple[str, Record]] = []
    here: dict[str, set[tuple[int, int]]] = {}
    for found, file in files:
        records += [(found["split"], record) for record in find_records(file)]
        here.setdefault(found["split"], set()).add((int(found["shard"]), int(found["shards"])))
    if not records:
        raise KineflowError(f"{path}: no shard has a record; download them again")
    missing = {}
    for split, shards in here.items():
        lacking = sorted(set(range(max(n for _, n in shards))) - {shard for shard, _ in shards})
        if lacking:
            missing[f"split {split}, shards {lacking}"] = "they are not in the folder"
    info = path / "dataset_info.json"
    for split in json.loads(info.read_text()).get("splits", []) if info.is_file() else []:
        name, said = str(split.get("name")), sum(int(n) for n in split.get("shardLengths", []))
        have = sum(s == name for s, _ in records)
        if name not in here:
            missing[f"split {name}"] = f"dataset_info.json lists {said} episodes, the folder has none of its shards"
        elif have != said and f"split {name}" not in " ".join(missing):
            raise KineflowError(
                f"{path}: split {name} has {have} records, dataset_info.json says {said}; download the shards again"
            )
    return records, missing


def _bytes(example: Mapping[str, Value], leaf: _Leaf, steps: int | None, what: str) -> list[bytes]:
    found = example.get(leaf.key)
    if not isinstance(found, list) or not found or (steps is not None and len(found) != steps):
        raise KineflowError(
            f"{what}: {leaf.key} has {_amount(found)}, {steps or 'some'} byte strings are needed; the set is damaged"
        )
    return found


def _numbers(example: Mapping[str, Value], leaf: _Leaf, steps: int | None, what: str) -> np.ndarray:
    """float32 [T, D]."""
    found, size = example.get(leaf.key), leaf.size
    if isinstance(found, list) and found and leaf.encoding in ("bytes", "zlib"):
        try:
            raw = b"".join(zlib.decompress(part) if leaf.encoding == "zlib" else part for part in found)
            found = np.frombuffer(raw, np.dtype(leaf.dtype).newbyteorder("<"))
        except (zlib.error, ValueError, TypeError) as error:
            raise KineflowError(f"{what}: {leaf.key} cannot be decoded ({error}); the set is damaged") from error
    if not isinstance(found, np.ndarray) or len(found) % max(size, 1) or len(found) == 0:
        raise KineflowError(
            f"{what}: {leaf.key} has {_amount(found)}, not numbers of shape {list(leaf.shape)} a step; the set is damaged"
        )
    if steps is not None and len(found) != steps * size:
        raise KineflowError(f"{what}: {leaf.key} has {len(found) // size} steps, the action has {steps}; the set is damaged")
    return found.reshape(-1, size).astype(np.float32)


def _frames(pictures: Sequence[bytes], camera: CameraSpec, what: str) -> np.ndarray:
    frames = []
    for step, picture in enumerate(pictures):
        frame = decode_picture(picture, f"{what}, step {step}")
        if frame.shape != camera.frame_shape:
            raise KineflowError(
                f"{what}, step {step}: a picture of {list(frame.shape)}, the camera has {list(camera.frame_shape)}; "
                "import pictures of one size, or leave the camera out with a schema"
            )
        frames.append(frame)
    return np.stack(frames)


def _spans(texts: Sequence[str], stamp_ns: np.ndarray, rate_hz: float) -> tuple[Span, ...]:
    """One span for each run of one text; none where the text never changes."""
    starts = [i for i in range(len(texts)) if i == 0 or texts[i] != texts[i - 1]]
    ends = [*(int(stamp_ns[i]) for i in starts[1:]), int(stamp_ns[-1] + round(1e9 / rate_hz))]
    return tuple(Span(texts[i], int(stamp_ns[i]), end) for i, end in zip(starts, ends) if texts[i]) if len(starts) > 1 else ()


def _source(example: Mapping[str, Value]) -> str:
    found = example.get(_FILE_PATH)
    return found[0].decode(errors="replace") if isinstance(found, list) and found else ""


def _described(leaf: _Leaf) -> str:
    return f"{leaf.key} {leaf.dtype} {[n or '?' for n in leaf.shape]}" + (
        ", float64 kept as float32" if leaf.dtype == "float64" else ""
    )


def _reason(leaf: _Leaf) -> str:
    if not leaf.key.startswith("steps/"):
        return "about the episode, for which the store has no place"
    if leaf.key.split("/")[-1] in _BOUNDS:
        return "the bounds of the episode say it"
    return "text that is not the instruction" if leaf.kind == "text" else leaf.kind


def _amount(found: Value | None) -> str:
    return "nothing" if found is None else f"{len(found)} {'byte strings' if isinstance(found, list) else found.dtype}"


def _dimensions(name: str, size: int) -> tuple[str, ...]:
    return (name,) if size == 1 else tuple(f"{name}_{i}" for i in range(size))


def _word(key: str) -> str:
    word = re.sub(r"[^A-Za-z0-9_]", "_", key)
    return word if word[:1].isalpha() else f"s_{word}"
