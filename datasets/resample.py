"""One clock out of many: what a stream is worth at times at which it was not sampled, by a stated rule, never silently.

    nearest   the sample closest in time, at most `max_gap_s` away
    hold      the last sample at or before the time, at most `max_gap_s` old; the only rule that a robot can follow live
    linear    between the two neighbours, which are at most `max_gap_s` apart
    slerp     like linear, but four values (x y z w from `quaternion` on) turn along the shortest arc

Nothing is extrapolated: a time without a sample within the gap is not usable, and callers drop it and say how many.
`nearest`, `linear` and `slerp` look up to one gap into the future, which recorded data allow and a robot does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from kineflow.contracts import Episode, FeatureSpec, Interface, KineflowError, Stream

UNIT_TOLERANCE = 1e-2  # of a quaternion's norm, before it is normalised
_REACHED = 1e-3  # of a step: so little after the end, where the rounding of time stamps can put it, the last step is at the end


@dataclass(frozen=True)
class Resample:
    """The rule of one stream. Images take `nearest` or `hold`; `quaternion` is the first of its four columns, x y z w."""

    rule: Literal["nearest", "hold", "linear", "slerp"]
    max_gap_s: float
    quaternion: int = -1

    def __post_init__(self) -> None:
        if not 0 < self.max_gap_s < math.inf:
            raise KineflowError(f"resample: max_gap_s is {self.max_gap_s}; give the longest gap in seconds that may be bridged")
        if (self.rule == "slerp") != (self.quaternion >= 0):
            raise KineflowError(
                f"resample: rule {self.rule} with quaternion {self.quaternion}; slerp, and only slerp, needs the column of qx"
            )


def source_rows(
    stamp_ns: Int64[np.ndarray, "T"], at_ns: Int64[np.ndarray, "N"], rule: Resample
) -> tuple[Int64[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """For `nearest` and `hold`: the sample taken at each time, and whether it is within the gap. Of two equally near the
    earlier is taken."""
    after = np.searchsorted(stamp_ns, at_ns, side="right")
    before = np.maximum(after - 1, 0)
    rows = before
    if rule.rule == "nearest":
        following = np.minimum(after, len(stamp_ns) - 1)
        rows = np.where(np.abs(stamp_ns[following] - at_ns) < np.abs(at_ns - stamp_ns[before]), following, before)
    distance = at_ns - stamp_ns[rows]
    usable = np.abs(distance) <= _gap_ns(rule)
    return rows, usable & (distance >= 0) if rule.rule == "hold" else usable


def resampled(
    values: Float32[np.ndarray, "T D"], stamp_ns: Int64[np.ndarray, "T"], at_ns: Int64[np.ndarray, "N"], rule: Resample
) -> tuple[Float32[np.ndarray, "N D"], Bool[np.ndarray, "N"]]:
    """Values at the times `at_ns`, and where they may be used; elsewhere they are the nearest sample's.

    Raises:
        KineflowError: slerp on columns that are no unit quaternion.
    """
    if rule.rule in ("nearest", "hold"):
        rows, usable = source_rows(stamp_ns, at_ns, rule)
        return values[rows], usable
    after = np.clip(np.searchsorted(stamp_ns, at_ns, side="left"), 0, len(stamp_ns) - 1)
    exact = stamp_ns[after] == at_ns
    before = np.where(exact, after, np.maximum(after - 1, 0))
    span = stamp_ns[after] - stamp_ns[before]
    usable = exact | ((span > 0) & (span <= _gap_ns(rule)) & (at_ns >= stamp_ns[0]) & (at_ns <= stamp_ns[-1]))
    share = np.clip((at_ns - stamp_ns[before]) / np.maximum(span, 1), 0.0, 1.0)[:, None]
    mixed = (1 - share) * values[before] + share * values[after]
    if rule.rule == "slerp":
        four = slice(rule.quaternion, rule.quaternion + 4)
        mixed[:, four] = slerp(_quaternions(values, four)[before], _quaternions(values, four)[after], share)
    return mixed.astype(np.float32), usable


def slerp(
    start: Float[np.ndarray, "N 4"], end: Float[np.ndarray, "N 4"], share: Float[np.ndarray, "N 1"]
) -> Float[np.ndarray, "N 4"]:
    """Unit quaternions `share` (0..1) of the way along the shortest arc (Shoemake 1985); q and -q are one rotation."""
    cosine = np.sum(start * end, axis=1, keepdims=True)
    end, cosine = np.where(cosine < 0, -end, end), np.abs(cosine)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    small = angle < 1e-6  # there sin(angle) has no digits left and a straight line has no error
    sine = np.where(small, 1.0, np.sin(angle))
    first = np.where(small, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(small, share, np.sin(share * angle) / sine)
    mixed = first * start + second * end
    unit: np.ndarray = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit


@dataclass(frozen=True)
class Resampled:
    """One episode on a common clock, cut where streams had gaps. `dropped` counts steps lost, by the stream to blame."""

    pieces: tuple[Episode, ...]
    dropped: Mapping[str, int]


def resample_episode(episode: Episode, rate_hz: float, rules: Mapping[str, Resample]) -> Resampled:
    """All streams at `rate_hz`, over the time that all cover; steps in a gap are left out and the episode is cut there.

    A piece needs two steps. Spans keep their times; goals and what else is known go with every piece; source JPEGs stay as they
    are.

    Raises:
        KineflowError: a stream without a rule, images with linear or slerp, or streams that never overlap.
    """
    missing = sorted(set(episode.streams) - set(rules))
    if missing:
        raise KineflowError(f"{episode.source or 'episode'}: no resampling rule for {missing}; give each stream one")
    start = max(int(s.stamp_ns[0]) for s in episode.streams.values())
    end = min(int(s.stamp_ns[-1]) for s in episode.streams.values())
    if end < start:
        raise KineflowError(f"{episode.source or 'episode'}: its streams have no time in common, so there is no common clock")
    steps = int((end - start) * rate_hz / 1e9 + _REACHED) + 1
    at_ns = np.minimum(start + np.round(np.arange(steps) * (1e9 / rate_hz)).astype(np.int64), end)
    values, usable = {}, np.ones(len(at_ns), bool)
    dropped, jpeg = {}, {}
    for name, stream in episode.streams.items():
        values[name], fits = _stream_at(name, stream, at_ns, rules[name])
        if not fits.all():
            dropped[name] = int((~fits).sum())
        usable &= fits
        if name in episode.jpeg:
            jpeg[name] = [episode.jpeg[name][row] for row in rows_for_images(name, rules[name], stream.stamp_ns, at_ns)[0]]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], usable.astype(np.int8), [0]])))
    pieces = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= 2]
    lone = int(usable.sum()) - sum(b - a for a, b in pieces)
    if lone:
        dropped["single steps between gaps"] = lone
    return Resampled(tuple(_piece(episode, values, jpeg, at_ns, a, b, rate_hz) for a, b in pieces), dropped)


def resampled_interface(interface: Interface, rate_hz: float) -> Interface:
    """The same streams, all at `rate_hz`."""
    return Interface(
        {name: FeatureSpec(spec.vector, rate_hz) for name, spec in interface.features.items()},
        FeatureSpec(interface.action.vector, rate_hz),
        {name: replace(camera, rate_hz=rate_hz) for name, camera in interface.cameras.items()},
    )


def rows_for_images(name: str, rule: Resample, stamp_ns: np.ndarray, at_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`source_rows`, refused for rules that would mix pictures."""
    if rule.rule not in ("nearest", "hold"):
        raise KineflowError(f"camera '{name}': images cannot be resampled by {rule.rule}; use nearest or hold")
    return source_rows(stamp_ns, at_ns, rule)


def _stream_at(name: str, stream: Stream, at_ns: np.ndarray, rule: Resample) -> tuple[np.ndarray, np.ndarray]:
    if stream.values.ndim > 2:
        rows, usable = rows_for_images(name, rule, stream.stamp_ns, at_ns)
        return stream.values[rows], usable
    return resampled(np.asarray(stream.values, np.float32), stream.stamp_ns, at_ns, rule)


def _piece(
    episode: Episode,
    values: Mapping[str, np.ndarray],
    jpeg: Mapping[str, Sequence[bytes]],
    at_ns: np.ndarray,
    first: int,
    stop: int,
    rate_hz: float,
) -> Episode:
    streams = {name: Stream(array[first:stop], at_ns[first:stop]) for name, array in values.items()}
    kept = {name: payloads[first:stop] for name, payloads in jpeg.items()}
    whole = first == 0 and stop == len(at_ns)
    source = episode.source if whole else f"{episode.source} steps {first} to {stop - 1} at {rate_hz:g} Hz"
    return replace(episode, streams=streams, jpeg=kept, source=source, clock=f"resampled_{rate_hz:g}hz")


def _quaternions(values: np.ndarray, four: slice) -> np.ndarray:
    found = values[:, four].astype(np.float64)
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    if found.shape[1] != 4 or np.abs(norm - 1).max() > UNIT_TOLERANCE:
        raise KineflowError(
            f"slerp: columns {four.start} to {four.stop - 1} are not unit quaternions x y z w "
            f"(norms {norm.min():.3g} to {norm.max():.3g}); name the column of qx, or use linear"
        )
    unit: np.ndarray = found / norm
    return unit


def _gap_ns(rule: Resample) -> int:
    return round(rule.max_gap_s * 1e9)
