"""What is odd in the values: standing still for long, outliers, saturation, dimensions in which nothing ever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int64

from kineflow.datasets.doctor_checks.finding import DoctorConfig, Finding
from kineflow.datasets.doctor_checks.recordings import Recordings
from kineflow.datasets.segment import ACTION

_DISCRETE = 10  # different values: a gripper or a gear, which is always at one of its extremes
_SIGMAS = 3.29  # between the 5 and 95 % quantiles of a normal distribution
_MAD = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
_LEAST_STEP = 1 / 32  # of the usual range: a smaller step is no scale for others, since much may rest most of the time
_TURNS = {"rad": 2 * np.pi, "deg": 360.0}
_IDLE_REMEDY = "cut the idle part away, or keep it if waiting is part of the task: a policy learns to wait from it"
_OUTLIER_REMEDY = "look at the episode there: a sensor fault is repaired or the episode left out (`kineflow data delete`)"
_SATURATED_REMEDY = "check the sensor's range and the limits of the controller: what was meant beyond them is lost"
_CONSTANT_REMEDY = "leave the dimensions out of the schema, or record what they should say; normalisers divide by their spread"

Runs = list[tuple[int, int]]  # first and last sample


def motion_findings(recordings: Recordings, config: DoctorConfig) -> Iterator[Finding]:
    for name in recordings.moving_streams:
        yield from _constant(recordings, name)
        yield from _outliers(recordings, name, config)
        yield from _spikes(recordings, name, config)
        yield from _saturation(recordings, name, config)
    for episode in range(recordings.number):
        yield from _idle(recordings, episode, config)


def still_runs(
    values: Float32[np.ndarray, "n D"], stamps: Int64[np.ndarray, "n"], allowed: Float[np.ndarray, "D"], least_ns: float
) -> Runs:
    """Longest stretches of at least `least_ns` in which no dimension leaves its value at the start by more than `allowed`.

    A dimension that is allowed nothing (it never changes) does not count.
    """
    counted = allowed > 0
    if not counted.any() or len(values) < 2:
        return []
    x, room = values[:, counted].astype(np.float64), allowed[counted]
    quiet = np.concatenate([[False], (np.abs(np.diff(x, axis=0)) <= room).all(1), [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8)))
    runs = []
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        while stamps[stop] - stamps[start] >= least_ns:
            left = np.flatnonzero((np.abs(x[start : stop + 1] - x[start]) > room).any(1))
            end = start + int(left[0]) - 1 if len(left) else stop
            if stamps[end] - stamps[start] >= least_ns:
                runs.append((start, end))
            # A slow motion leaves its anchor step by step: go on from where it left.
            start = max(end, start + 1)
    return runs


def _idle(recordings: Recordings, episode: int, config: DoctorConfig) -> Iterator[Finding]:
    least = config.idle_s * 1e9
    spans = {name: _still_spans(recordings, name, episode, config) for name in recordings.moving_streams}
    features = [s for name, s in spans.items() if name != ACTION and s is not None]
    both = [("the action does not change", ACTION, spans[ACTION] or [])]
    if features:
        common = features[0]
        for other in features[1:]:
            common = [(max(a, c), min(b, d)) for a, b in common for c, d in other if min(b, d) > max(a, c)]
        names = [name for name in recordings.moving_streams if name != ACTION and spans[name] is not None]
        both.append(
            (f"nothing that is measured moves ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})", names[0], common)
        )
    for what, stream, found in both:
        found = [span for span in found if span[1] - span[0] >= least]
        if found:
            longest = max(stop - start for start, stop in found) / 1e9
            total = sum(stop - start for start, stop in found) / 1e9
            times = "once" if len(found) == 1 else f"{len(found)} times, {total:.1f} s in all"
            yield recordings.finding(
                "idle", episode, stream, f"{what} for {longest:.1f} s ({times})", _IDLE_REMEDY,
                spans_ns=found, step=int(np.searchsorted(recordings.stamps(stream, episode), found[0][0])),
                value=longest, threshold=config.idle_s,
            )  # fmt: skip


def _still_spans(recordings: Recordings, name: str, episode: int, config: DoctorConfig) -> list[tuple[int, int]] | None:
    """None where nothing ever changes."""
    scale = recordings.scale(name)
    if not (scale > 0).any():
        return None
    stamps = recordings.stamps(name, episode)
    runs = still_runs(recordings.values(name, episode), stamps, config.idle_motion * scale, config.idle_s * 1e9)
    return [(int(stamps[a]), int(stamps[b])) for a, b in runs]


def _constant(recordings: Recordings, name: str) -> Iterator[Finding]:
    never = np.flatnonzero(recordings.scale(name) == 0)
    samples = sum(map(len, recordings.all_values(name)))
    if len(never) == 0 or samples < 2:
        return
    names = [recordings.names(name)[d] for d in never]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    first = recordings.all_values(name)[0][0]
    values = ", ".join(f"{first[d]:g}" for d in never[:6])
    problem = f"{len(never)} of {len(recordings.names(name))} dimensions never change in {samples} samples: {shown} = {values}"
    yield recordings.finding("constant", None, name, problem, _CONSTANT_REMEDY, value=float(len(never)))


def _outliers(recordings: Recordings, name: str, config: DoctorConfig) -> Iterator[Finding]:
    """Robust z: distance from the median by the larger of two spreads, so that two-peaked and resting values are no outliers."""
    parts = recordings.all_values(name)
    values = np.concatenate(parts).astype(np.float64)
    if len(values) < config.min_samples:
        return
    median, sigma, limit = _usual(recordings, name, values, config)
    rare = (np.abs(values - median) > limit).mean(0) <= config.outlier_share
    for episode, part in enumerate(parts):
        outside = (np.abs(part - median) > limit) & rare
        for dimension in np.flatnonzero(outside.any(0)):
            steps = np.flatnonzero(outside[:, dimension])
            z = np.abs(part[steps, dimension] - median[dimension]) / sigma[dimension]
            worst = int(steps[z.argmax()])
            problem = (
                f"{recordings.names(name)[dimension]}: {len(steps)} of {len(part)} values are outliers, the worst "
                f"{part[worst, dimension]:g} at step {worst}, {z.max():.0f} robust standard deviations ({sigma[dimension]:.3g}) "
                f"from the median {median[dimension]:.4g}"
            )
            stamps = recordings.stamps(name, episode)[steps].tolist()
            yield recordings.finding(
                "outlier", episode, name, problem, _OUTLIER_REMEDY, spans_ns=[(s, s) for s in stamps],
                step=int(steps[0]), value=float(z.max()), threshold=config.outlier_z,
            )  # fmt: skip


def _usual(recordings: Recordings, name: str, values: np.ndarray, config: DoctorConfig) -> tuple[np.ndarray, ...]:
    """Median and spread of each dimension, and how far from the median outliers begin."""
    median = np.median(values, axis=0)
    mad = _MAD * np.median(np.abs(values - median), axis=0)
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    sigma = np.maximum(mad, (high - low) / _SIGMAS)
    # A joint that hardly moves leaves its resting place by nothing that matters beside what its neighbours do.
    least = config.idle_motion * _of_unit(recordings, name)
    return median, sigma, np.where(sigma > 0, np.maximum(config.outlier_z * sigma, least), np.inf)


def _spikes(recordings: Recordings, name: str, config: DoctorConfig) -> Iterator[Finding]:
    """Values that nothing is wrong with but that the samples before and after them are elsewhere."""
    parts = [part.astype(np.float64) for part in recordings.all_values(name)]
    values = np.concatenate(parts)
    turn = np.array([_TURNS.get(unit, np.inf) for unit in _units(recordings, name)])
    changes = [_wrapped(np.diff(part, axis=0), turn) for part in parts]
    every = np.abs(np.concatenate(changes))
    if len(every) < config.min_samples:
        return
    step = np.maximum(np.quantile(every, 0.95, axis=0), recordings.scale(name) * _LEAST_STEP)
    known = (step > 0) & np.array([len(np.unique(column)) > _DISCRETE for column in values.T])
    step = np.where(known, step, np.inf)
    spikes = [_there_and_back(change) / step for change in changes]
    rare = (np.concatenate(spikes) > config.outlier_steps).sum(0) <= config.outlier_share * len(values)
    median, _, limit = _usual(recordings, name, values, config)
    for episode, (part, spike) in enumerate(zip(parts, spikes, strict=True)):
        found = (spike > config.outlier_steps) & rare & (np.abs(part[1:-1] - median) <= limit)  # others are said already
        for dimension in np.flatnonzero(found.any(0)):
            steps = np.flatnonzero(found[:, dimension]) + 1
            size = spike[steps - 1, dimension]
            worst = int(steps[size.argmax()])
            around = ", ".join(f"{value:g}" for value in part[worst - 1 : worst + 2, dimension])
            problem = (
                f"{recordings.names(name)[dimension]}: {len(steps)} of {len(part)} values jump away and back, the worst at step "
                f"{worst} ({around}), {size.max():.0f} times the step that 95 % stay below ({step[dimension]:.3g})"
            )
            stamps = recordings.stamps(name, episode)[steps].tolist()
            yield recordings.finding(
                "outlier", episode, name, problem, _OUTLIER_REMEDY, spans_ns=[(s, s) for s in stamps],
                step=int(steps[0]), value=float(size.max()), threshold=config.outlier_steps,
            )  # fmt: skip


def _there_and_back(change: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "m D"]:
    """How far each sample but the first and last is from the nearer of its neighbours, 0 where it lies between them."""
    come, gone = change[:-1], -change[1:]
    return np.where(come * gone > 0, np.minimum(np.abs(come), np.abs(gone)), 0.0)


def _wrapped(change: Float[np.ndarray, "n D"], turn: Float[np.ndarray, "D"]) -> Float[np.ndarray, "n D"]:
    """Changes of angles by the shorter way: from pi to -pi is none."""
    wrapped: np.ndarray = change - np.where(np.isfinite(turn), np.rint(change / turn) * np.where(np.isfinite(turn), turn, 0), 0)
    return wrapped


def _units(recordings: Recordings, name: str) -> tuple[str, ...]:
    interface = recordings.store.interface
    return (interface.action if name == ACTION else interface.features[name]).vector.units


def _of_unit(recordings: Recordings, name: str) -> Float[np.ndarray, "D"]:
    """The largest usual range among the dimensions of the same unit, for each dimension."""
    units, scale = _units(recordings, name), recordings.scale(name)
    return np.array([max(s for s, other in zip(scale, units, strict=True) if other == unit) for unit in units])


def _saturation(recordings: Recordings, name: str, config: DoctorConfig) -> Iterator[Finding]:
    parts = recordings.all_values(name)
    values = np.concatenate(parts)
    if len(values) < config.min_samples:
        return
    interface = recordings.store.interface
    vector = (interface.action if name == ACTION else interface.features[name]).vector
    for dimension in np.flatnonzero(recordings.scale(name) > 0):
        column = values[:, dimension]
        if len(np.unique(column)) <= _DISCRETE:
            continue
        limits = (("limit", vector.low[dimension]), ("limit", vector.high[dimension]))
        # Zero is where brakes, throttles and grippers rest, not where they saturate.
        extremes = tuple((kind, v) for kind, v in (("minimum", column.min()), ("maximum", column.max())) if v != 0)
        for level in dict.fromkeys(float(v) for _, v in (*limits, *extremes) if np.isfinite(v)):
            at = np.isclose(column, level, rtol=1e-6, atol=1e-6 * float(np.ptp(column)))
            share = float(at.mean())
            if share > config.saturated_share:
                kind = next(kind for kind, v in (*limits, *extremes) if float(v) == level)
                yield _saturated(recordings, name, int(dimension), kind, level, share, at, config)


def _saturated(
    recordings: Recordings, name: str, dimension: int, kind: str, level: float, share: float, at: np.ndarray, config: DoctorConfig
) -> Finding:
    lengths = [len(part) for part in recordings.all_values(name)]
    counts = [int(part.sum()) for part in np.split(at, np.cumsum(lengths)[:-1])]
    worst = int(np.argmax(counts))
    steps = np.flatnonzero(np.split(at, np.cumsum(lengths)[:-1])[worst])
    own = "the schema's limit" if kind == "limit" else f"its own {kind}"
    problem = (
        f"{recordings.names(name)[dimension]}: {100 * share:.1f} % of all values are at {own} {level:g}, "
        f"most of them in episode {worst} ({counts[worst]} of {lengths[worst]})"
    )
    stamps = recordings.stamps(name, worst)
    return recordings.finding(
        "saturation", worst, name, problem, _SATURATED_REMEDY, spans_ns=_joined(stamps, steps.tolist()),
        step=int(steps[0]), value=share, threshold=config.saturated_share,
    )  # fmt: skip


def _joined(stamps: np.ndarray, steps: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring samples as one span."""
    spans: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if number and step == steps[number - 1] + 1:
            spans[-1] = (spans[-1][0], int(stamps[step]))
        else:
            spans.append((int(stamps[step]), int(stamps[step])))
    return spans
