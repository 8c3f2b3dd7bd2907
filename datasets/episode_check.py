"""What an episode must satisfy before it may enter a store: one StoreError names episode, stream, step and remedy."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from kineflow.contracts import Episode, Interface, Stream
from kineflow.datasets.manifest import StoreError
from kineflow.datasets.segment import vector_streams

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SUFFIXES = ("timestamp", "_moments", "_start", "_length")


def check_interface(interface: Interface) -> None:
    """Refuse stream names that cannot be array names beside our own columns."""
    names = [*interface.features, *interface.cameras]
    for name in names:
        if not _NAME.fullmatch(name) or name.endswith(_SUFFIXES) or name == "action" or names.count(name) > 1:
            raise StoreError(
                f"stream name '{name}' cannot be used in a store: letters, digits and _ only, not 'action', used once, "
                f"and not ending in {', '.join(_SUFFIXES)}; rename the stream"
            )


def checked(interface: Interface, episode: Episode, number: int) -> Episode:
    """The episode as it will be stored: low-dimensional values float32, frames uint8, stamps int64.

    Raises:
        StoreError: a stream is missing or unknown, has another shape or dtype, is empty, is NaN or infinite, or its
            timestamps do not increase.
    """
    where = f"episode {number}" + (f" ({episode.source})" if episode.source else "")
    widths = vector_streams(interface)
    expected = {*widths, *interface.cameras}
    for name in sorted(expected ^ set(episode.streams)):
        problem = "is missing" if name in expected else "is not in the store's schema"
        raise StoreError(f"{where}: stream '{name}' {problem}; the schema has {sorted(expected)}")
    streams = {}
    for name, stream in episode.streams.items():
        what = f"{where}, stream '{name}'"
        values = _vectors(stream.values, widths[name], what) if name in widths else _frames(stream.values, interface, name, what)
        streams[name] = Stream(values, _stamps(stream.stamp_ns, len(values), what))
    return replace(episode, streams=streams)


def _vectors(values: np.ndarray, width: int, what: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] != width or len(values) == 0:
        raise StoreError(
            f"{what}: shape {list(values.shape)}, the schema says [T, {width}] with T >= 1; reshape the values or fix the schema"
        )
    if values.dtype.kind not in "fiub":
        raise StoreError(f"{what}: dtype {values.dtype} is not a number; convert it to float32")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, np.float32)
    bad = np.argwhere(~np.isfinite(stored))
    if len(bad):
        step, dimension = bad[0]
        raise StoreError(
            f"{what}, step {step}, dimension {dimension}: value {values[step, dimension]} is not finite as float32; "
            "repair or drop the episode before it is written"
        )
    if values.dtype.kind in "iu" and not np.array_equal(stored, values):
        raise StoreError(f"{what}: {values.dtype} values above 2**24 would lose digits as float32; shift or split them")
    return stored


def _frames(values: np.ndarray, interface: Interface, name: str, what: str) -> np.ndarray:
    camera = interface.cameras[name]
    shape = (camera.height, camera.width, 3)
    if values.dtype != np.uint8 or values.shape[1:] != shape or len(values) == 0:
        raise StoreError(
            f"{what}: {values.dtype} frames of shape {list(values.shape)}, the schema says uint8 "
            f"[T, {camera.height}, {camera.width}, 3] with T >= 1; convert the frames or fix the schema"
        )
    return np.ascontiguousarray(values)


def _stamps(stamp_ns: np.ndarray, length: int, what: str) -> np.ndarray:
    if stamp_ns.dtype != np.int64 or stamp_ns.shape != (length,):
        raise StoreError(f"{what}: timestamps are {stamp_ns.dtype} {list(stamp_ns.shape)}, needed is int64 ns [{length}]")
    step = np.flatnonzero(np.diff(stamp_ns) <= 0)
    if len(step):
        raise StoreError(
            f"{what}, step {step[0] + 1}: timestamp {stamp_ns[step[0] + 1]} ns does not come after {stamp_ns[step[0]]} ns; "
            "sort the samples and drop repeated ones"
        )
    return np.ascontiguousarray(stamp_ns)
