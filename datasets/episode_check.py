"""What an episode must satisfy before it may enter a store: one StoreError names episode, stream, step and remedy."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from kineflow.contracts import Episode, Goal, Interface, Span, Stream
from kineflow.datasets.annotations import GOAL_KINDS, GOAL_WIDTHS
from kineflow.datasets.manifest import StoreError
from kineflow.datasets.segment import vector_streams

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_QUATERNION_TOLERANCE = 1e-3  # of float32 poses that were stored, read and stored again
_SUFFIXES = ("timestamp", "_moments", "_start", "_length")


def check_interface(interface: Interface) -> None:
    """Refuse stream names that cannot be array names beside our own columns, and a `reward` that is not one number."""
    names = [*interface.features, *interface.cameras]
    for name in names:
        if not _NAME.fullmatch(name) or name.endswith(_SUFFIXES) or name == "action" or names.count(name) > 1:
            raise StoreError(
                f"stream name '{name}' cannot be used in a store: letters, digits and _ only, not 'action', used once, "
                f"and not ending in {', '.join(_SUFFIXES)}; rename the stream"
            )
    if "reward" in interface.features and interface.features["reward"].vector.size != 1:
        names = list(interface.features["reward"].vector.names)
        raise StoreError(
            f"feature 'reward' has the dimensions {names}; a reward is one number: give its terms a name of their own"
        )


def checked(interface: Interface, episode: Episode, number: int) -> Episode:
    """The episode as it will be stored: low-dimensional values float32, frames uint8 (depth uint16), stamps int64.

    Raises:
        StoreError: a stream is missing or unknown, has another shape or dtype, is empty, is NaN or infinite, or its
            timestamps do not increase; or a span, goal, seed or text that cannot be stored.
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
    for name in episode.jpeg:
        _check_jpeg(interface, episode, name, where)
    return replace(checked_facts(episode, where), streams=streams)


def checked_facts(episode: Episode, where: str) -> Episode:
    """The episode with all that is not a stream as it will be stored; `where` begins the message of the StoreError."""
    return replace(
        _facts(episode, where),
        spans=tuple(_span(span, where) for span in episode.spans),
        goals={name: _goal(goal, name, where) for name, goal in episode.goals.items()},
    )


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
    dtype = np.dtype(np.uint8 if camera.kind == "rgb" else np.uint16)
    if values.dtype != dtype or values.shape[1:] != camera.frame_shape or len(values) == 0:
        raise StoreError(
            f"{what}: {values.dtype} frames of shape {list(values.shape)}, the schema says {dtype} "
            f"[T, {', '.join(map(str, camera.frame_shape))}] with T >= 1; convert the frames or fix the schema"
        )
    return np.ascontiguousarray(values)


def _stamps(stamp_ns: np.ndarray, length: int, what: str) -> np.ndarray:
    if stamp_ns.dtype != np.int64 or stamp_ns.shape != (length,):
        raise StoreError(f"{what}: timestamps are {stamp_ns.dtype} {list(stamp_ns.shape)}, needed is int64 ns [{length}]")
    step = np.flatnonzero(stamp_ns[1:] <= stamp_ns[:-1])  # their difference may be beyond int64
    if len(step):
        raise StoreError(
            f"{what}, step {step[0] + 1}: timestamp {stamp_ns[step[0] + 1]} ns does not come after {stamp_ns[step[0]]} ns; "
            "sort the samples and drop repeated ones"
        )
    return np.ascontiguousarray(stamp_ns)


def _facts(episode: Episode, where: str) -> Episode:
    """With Python's own texts and numbers: those of NumPy have another repr, and so another digest than what is read back."""
    if episode.seed is not None and not 0 <= episode.seed < 2**63:
        raise StoreError(f"{where}: seed {episode.seed} is not in 0 .. 2**63 - 1; leave it out (None) or store another")
    return replace(
        episode,
        success=None if episode.success is None else bool(episode.success),
        seed=None if episode.seed is None else int(episode.seed),
        instruction=_text(episode.instruction, f"{where}, instruction"),
        source=_text(episode.source, f"{where}, source"),
        clock=_text(episode.clock, f"{where}, clock"),
        language=_text(episode.language, f"{where}, language", required=True),
        split=_text(episode.split, f"{where}, split"),
        operator=_text(episode.operator, f"{where}, operator"),
    )


def _text(text: object, what: str, *, required: bool = False) -> str:
    if not isinstance(text, str) or (required and not text):
        raise StoreError(f"{what}: {text!r} is not a text; a language that is not known is 'und', other texts are '' then")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"{what}: {text!r} is not valid Unicode ({error.reason}); decode the source with its own encoding"
        ) from None
    return str(text)


def _span(span: Span, where: str) -> Span:
    text = _text(span.text, f"{where}, text of a span")
    what = f"{where}, span '{text}'"
    if not -(2**63) <= span.start_ns < span.stop_ns < 2**63:
        raise StoreError(f"{what}: from {span.start_ns} ns to {span.stop_ns} ns; the start must lie before the stop, both int64")
    return Span(text, int(span.start_ns), int(span.stop_ns), _text(span.language, f"{what}, language", required=True))


def _goal(goal: Goal, name: str, where: str) -> Goal:
    what = f"{where}, goal '{name}'"
    frame = _text(goal.frame, f"{what}, frame")
    value = np.asarray(goal.value)
    if not _text(name, what) or goal.kind not in GOAL_KINDS:
        raise StoreError(f"{what}: kind '{goal.kind}'; a goal has a name and a kind, one of {', '.join(GOAL_KINDS)}")
    if goal.kind not in GOAL_WIDTHS:
        shape = "[H, W, 3]" if goal.kind == "image" else "[T, H, W, 3]"
        if value.dtype != np.uint8 or value.ndim != shape.count(",") + 1 or value.shape[-1] != 3 or value.size == 0:
            raise StoreError(f"{what}: {value.dtype} {list(value.shape)}; the {goal.kind} of a goal is uint8 {shape}")
        return replace(goal, frame=frame, value=np.ascontiguousarray(value))
    width = GOAL_WIDTHS[goal.kind]
    if value.shape != (width,) or value.dtype.kind not in "fiu" or not np.isfinite(value.astype(np.float32)).all():
        raise StoreError(
            f"{what}: {value.dtype} {list(value.shape)}; the {goal.kind} of a goal is {width} finite numbers, float32"
        )
    if goal.kind == "pose" and abs(np.linalg.norm(value[3:].astype(np.float64)) - 1) > _QUATERNION_TOLERANCE:
        raise StoreError(f"{what}: its quaternion {value[3:].tolist()} (x y z w) has not length 1; normalise it")
    return replace(goal, frame=frame, value=np.ascontiguousarray(value, np.float32))


def _check_jpeg(interface: Interface, episode: Episode, name: str, where: str) -> None:
    camera = interface.cameras.get(name)
    if camera is None or camera.kind != "rgb":
        raise StoreError(f"{where}: source JPEGs of '{name}', which is not an RGB camera of the schema; leave them out")
    if len(episode.jpeg[name]) != len(episode.streams[name].stamp_ns):
        raise StoreError(
            f"{where}, camera '{name}': {len(episode.jpeg[name])} source JPEGs for {len(episode.streams[name].stamp_ns)} frames; "
            "give one for each frame, or none"
        )
