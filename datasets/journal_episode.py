"""From a journal to a committed episode: one path for `EpisodeRecorder.finish` and for repair after a crash."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from kineflow.contracts import CameraSpec, Episode, Goal, Interface, Span, Stream
from kineflow.datasets.checksums import CorruptData
from kineflow.datasets.codecs import decode_jpeg
from kineflow.datasets.committing import discard
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import JPEG, Contents, Samples
from kineflow.datasets.segment import vector_streams
from kineflow.datasets.store_error import StoreError

IN_RAM_BYTES = 2**30  # frames of one camera beyond this are held in a temporary file while the episode is committed
_LZ4_LEVEL = 1  # the fastest: the store's own codec is chosen when the episode is committed


def compress_frame(frame: np.ndarray) -> bytes:
    """Payload of a FRAME record."""
    shuffle = blosc.NOSHUFFLE if frame.itemsize == 1 else blosc.SHUFFLE
    raw = np.ascontiguousarray(frame).reshape(-1)
    return bytes(blosc.compress(raw, b"lz4", _LZ4_LEVEL, shuffle, 0, frame.itemsize))


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an episode beside its streams as JSON; arrays of goals as base64."""
    goals = {
        name: {"kind": g.kind, "frame": g.frame, "dtype": g.value.dtype.str, "shape": g.value.shape, "data": _base64(g.value)}
        for name, g in facts["goals"].items()
    }
    return {**facts, "goals": goals, "spans": [asdict(span) for span in facts["spans"]]}


def recorded_episode(interface: Interface, contents: Contents, scratch: Path, kept: Mapping[str, int] | None = None) -> Episode:
    """The episode of a journal, of each stream the first `kept` samples; large ones lie in a nameless file in `scratch`.

    Streams without samples are left out; `checked` refuses the episode then.

    Raises:
        StoreError: a JPEG that cannot be decoded, which `EpisodeRecorder` refuses today.
    """
    facts = dict(contents.facts)
    goals = {name: _goal(plain) for name, plain in facts.pop("goals").items()}
    spans = tuple(Span(**plain) for plain in facts.pop("spans"))
    streams, jpeg = {}, {}
    for name, samples in contents.samples.items():
        count = len(samples.stamp_ns) if kept is None else kept[name]
        if count == 0:
            continue
        if name in vector_streams(interface):
            raw = b"".join(contents.payload(place) for place in samples.places[:count])
            values = np.frombuffer(raw, "<f4").reshape(count, -1)
        else:
            values = _frames(name, interface.cameras[name], contents, samples, count, scratch)
            if set(samples.kinds[:count]) == {JPEG}:
                jpeg[name] = [contents.payload(place) for place in samples.places[:count]]
        streams[name] = Stream(values, samples.stamp_ns[:count])
    return Episode(streams, goals=goals, spans=spans, jpeg=jpeg, **facts)


def commit_journal(store: EpisodeStore, journal_id: str, episode: Episode) -> None:
    """Commit the episode as segment `journal_id`, unless that was done before: killed after it, a repair must not do it twice.

    Raises:
        StoreError: the episode does not fit the store, or there is no room; store and journal are as they were.
    """
    if discard(store.path, journal_id):
        with store.writer(segment_id=journal_id) as writer:
            writer.add(episode)
    else:
        store.reload()


def _frames(name: str, camera: CameraSpec, contents: Contents, samples: Samples, count: int, scratch: Path) -> np.ndarray:
    shape = (count, *camera.frame_shape)
    dtype = np.dtype(np.uint8 if camera.kind == "rgb" else np.uint16)
    values: np.ndarray
    if int(np.prod(shape)) * dtype.itemsize > IN_RAM_BYTES:
        with tempfile.TemporaryFile(dir=scratch) as file:
            values = np.memmap(file, dtype, "w+", shape=shape)
    else:
        values = np.empty(shape, dtype)
    for number, (place, kind, into) in enumerate(zip(samples.places, samples.kinds, values)):
        payload = contents.payload(place)
        if kind == JPEG:
            try:
                decode_jpeg(payload, into)
            except CorruptData as error:
                raise StoreError(f"camera '{name}', frame {number} of the recording: {error}") from error
        else:
            into[:] = np.frombuffer(blosc.decompress(payload), dtype).reshape(camera.frame_shape)
    return values


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _goal(plain: Mapping[str, Any]) -> Goal:
    data = base64.b64decode(plain["data"])
    return Goal(plain["kind"], np.frombuffer(data, plain["dtype"]).reshape(plain["shape"]), plain["frame"])
