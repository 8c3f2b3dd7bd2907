"""What is odd in the timestamps: rates that drift, jitter, lost samples, clocks that jump, streams that start late or end early.

The period of an episode's stream is the median of its intervals, so that lost samples and a wrong nominal rate are told apart;
of fewer than five samples it is the nominal one. Streams that share a clock are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from kineflow.datasets.doctor_checks.finding import DoctorConfig, Finding
from kineflow.datasets.doctor_checks.recordings import Clock, Recordings

_IRREGULAR = 0.25  # spread of the middle half of the intervals, in periods: stamps of arrival, or events
_IRREGULAR_GAP = 5.0  # intervals of so many periods are gaps even there
_RATE_REMEDY = "correct rate_hz of the stream in the schema, or find out why the source ran at another rate"
_JITTER_REMEDY = "stamp samples where they are taken, not where they arrive, or resample: `kineflow data resample`"
_DROPPED_REMEDY = "look at the source's load and queues; split the episode at long gaps, or resample with a maximum gap"
_JUMP_REMEDY = "synchronise the clocks (PTP, chrony) and use a monotonic one; leave the episode out: `kineflow data delete`"
_EDGE_REMEDY = "start all sensors before the recording and stop them after it; windows there pad or are left out"


@dataclass(frozen=True)
class _Intervals:
    """Intervals of one clock in one episode, ns, and those that are neither lost samples nor bursts."""

    stamps: Int64[np.ndarray, "n"]
    period: float
    all: Float[np.ndarray, "m"]
    usual: Float[np.ndarray, "k"]
    irregular: bool

    @property
    def mean(self) -> float:
        return float(self.usual.mean())

    @property
    def error(self) -> float:
        """Three standard errors of the mean, relative."""
        return float(3 * self.usual.std() / np.sqrt(len(self.usual)) / self.mean)


def clock_findings(recordings: Recordings, config: DoctorConfig) -> Iterator[Finding]:
    """Episode by episode for each clock, then drift over the store, then each episode's streams against each other."""
    jumped: set[int] = set()
    for clock in recordings.clocks:
        means: dict[int, float] = {}
        for episode in range(recordings.number):
            found = _intervals(recordings.stamps(clock.name, episode), clock.rate_hz, config)
            if len(found.usual) >= config.min_samples:
                means[episode] = found.mean
                yield from _rate(recordings, clock, episode, found, config)
                yield from _jitter(recordings, clock, episode, found, config)
            for finding in _gaps(recordings, clock, episode, found, config):
                jumped |= {episode} if finding.kind == "clock_jump" else set()
                yield finding
        yield from _drift_over_store(recordings, clock, means, config)
    if len(recordings.clocks) > 1:
        for episode in sorted(set(range(recordings.number)) - jumped):  # a jump moves the end: said once
            yield from _edges(recordings, episode, config)


def _intervals(stamps: np.ndarray, rate_hz: float, config: DoctorConfig) -> _Intervals:
    intervals = np.diff(stamps).astype(np.float64)
    intervals = intervals[intervals > 0]  # others are reported as an error, with the contents
    period = float(np.median(intervals)) if len(intervals) >= 4 else 1e9 / rate_hz
    usual = intervals[(intervals > 0.5 * period) & (intervals < config.dropped_from * period)]
    low, high = np.quantile(intervals, [0.25, 0.75]) if len(intervals) else (0, 0)
    irregular = len(intervals) >= config.min_samples and high - low > _IRREGULAR * period
    return _Intervals(stamps, period, intervals, usual, bool(irregular))


def _rate(recordings: Recordings, clock: Clock, episode: int, found: _Intervals, config: DoctorConfig) -> Iterator[Finding]:
    # The rate of jittered intervals is said in two ways, by their mean and by their median: neither may fit.
    rates = [1e9 / float(found.all.mean() if found.irregular else found.mean), 1e9 / found.period]
    measured = min(rates, key=lambda rate: abs(rate / clock.rate_hz - 1))
    off = abs(measured / clock.rate_hz - 1)
    if off > config.rate_tolerance + found.error:
        problem = f"{measured:.4g} Hz measured, {clock.rate_hz:g} Hz nominal: {100 * off:.1f} % off ({_names(clock)})"
        yield recordings.finding("rate", episode, clock.name, problem, _RATE_REMEDY, value=off, threshold=config.rate_tolerance)
    third = len(found.usual) // 3
    if found.irregular or third < config.min_samples:
        return
    first, last = found.usual[:third], found.usual[-third:]
    drift = abs(first.mean() / last.mean() - 1)
    error = 3 * float(np.hypot(first.std(), last.std()) / np.sqrt(third) / found.mean)
    if drift > config.rate_tolerance + error:
        problem = (
            f"the rate drifts from {1e9 / first.mean():.4g} Hz in the first third to {1e9 / last.mean():.4g} Hz in the last one"
        )
        whole = [(int(found.stamps[0]), int(found.stamps[-1]))]
        yield recordings.finding(
            "rate_drift", episode, clock.name, problem, _RATE_REMEDY, spans_ns=whole, value=drift, threshold=config.rate_tolerance
        )


def _drift_over_store(recordings: Recordings, clock: Clock, means: dict[int, float], config: DoctorConfig) -> Iterator[Finding]:
    """The first third of the episodes against the last one, in the order in which they were committed."""
    third = len(means) // 3
    if third < 2:
        return
    periods = list(means.values())
    first, last = float(np.median(periods[:third])), float(np.median(periods[-third:]))
    spread = max(float(np.ptp(periods[:third])), float(np.ptp(periods[-third:]))) / first
    drift = abs(first / last - 1)
    if drift > config.rate_tolerance + spread:
        problem = (
            f"{1e9 / first:.4g} Hz in the first third of the episodes, {1e9 / last:.4g} Hz in the last one ({_names(clock)})"
        )
        yield recordings.finding(
            "rate_drift", None, clock.name, problem, _RATE_REMEDY, value=drift, threshold=config.rate_tolerance
        )


def _jitter(recordings: Recordings, clock: Clock, episode: int, found: _Intervals, config: DoctorConfig) -> Iterator[Finding]:
    regular = found.all if found.irregular else found.all[found.all < config.dropped_from * found.period]
    away = np.abs(regular - found.period) / found.period
    p99 = float(np.quantile(away, 0.99))
    if p99 <= config.jitter:
        return
    what = "irregular intervals" if found.irregular else "jitter"
    problem = (
        f"{what}: 1 % of the intervals are {p99 * found.period / 1e6:.1f} ms or more away from the median of "
        f"{found.period / 1e6:.1f} ms ({100 * p99:.0f} % of it; {_names(clock)})"
    )
    every = np.diff(found.stamps)
    counted = found.irregular | (every < config.dropped_from * found.period)
    step = int(np.argmax(np.where(counted, np.abs(every - found.period), -1)))
    at = [(int(found.stamps[step]), int(found.stamps[step + 1]))]
    yield recordings.finding(
        "jitter",
        episode,
        clock.name,
        problem,
        _JITTER_REMEDY,
        spans_ns=at,
        step=step + 1,
        value=p99,
        threshold=config.jitter,
    )


def _gaps(recordings: Recordings, clock: Clock, episode: int, found: _Intervals, config: DoctorConfig) -> Iterator[Finding]:
    intervals = np.diff(found.stamps)
    late = np.flatnonzero(intervals > (_IRREGULAR_GAP if found.irregular else config.dropped_from) * found.period)
    if len(late) == 0:
        return
    spans = [(int(found.stamps[i]), int(found.stamps[i + 1])) for i in late]
    excess = (intervals[late] - found.period) / 1e9
    jumps = excess > config.clock_jump_s
    lag = _lag(recordings, clock, episode)
    if jumps.any() and lag is not None and lag > 0.5 * excess[jumps].sum():
        first = int(late[jumps][0])
        often = "" if len(excess[jumps]) == 1 else f"{len(excess[jumps])} times, first "
        problem = (
            f"its clock jumps {often}by {excess[jumps][0]:.2f} s: it ends {lag:.2f} s "
            "later than the other streams although no samples are missing"
        )
        at = [span for span, is_jump in zip(spans, jumps, strict=True) if is_jump]
        yield recordings.finding(
            "clock_jump", episode, clock.name, problem, _JUMP_REMEDY,
            spans_ns=at, step=first + 1, value=float(excess[jumps][0]), threshold=config.clock_jump_s,
        )  # fmt: skip
        spans = [span for span, is_jump in zip(spans, jumps, strict=True) if not is_jump]
        late = late[~jumps]
    if len(late) == 0:
        return
    missing = int(np.maximum(np.rint(intervals[late] / found.period) - 1, 1).sum())
    longest = float(intervals[late].max())
    after = ", ".join(map(str, late[:8])) + (", ..." if len(late) > 8 else "")
    lost = f"{missing} sample{'s' * (missing > 1)} lost in {len(late)} gap{'s' * (len(late) > 1)}"
    problem = (
        f"{lost}, the longest {longest / 1e9:.3g} s where a period is "
        f"{found.period / 1e9:.3g} s; after steps {after} ({_names(clock)})"
    )
    yield recordings.finding(
        "dropped", episode, clock.name, problem, _DROPPED_REMEDY,
        spans_ns=spans, step=int(late[0]) + 1, value=longest / found.period, threshold=config.dropped_from,
    )  # fmt: skip


def _lag(recordings: Recordings, clock: Clock, episode: int) -> float | None:
    """How much more time passes on this clock than on the others, s; None where there are no others."""
    mine = recordings.stamps(clock.name, episode)
    others = [recordings.stamps(c.name, episode) for c in recordings.clocks if c != clock]
    lasted = [float(o[-1] - o[0]) for o in others if len(o) > 1 and not np.array_equal(o, mine)]
    return (float(mine[-1] - mine[0]) - float(np.median(lasted))) / 1e9 if lasted else None


def _edges(recordings: Recordings, episode: int, config: DoctorConfig) -> Iterator[Finding]:
    ends = {c: recordings.stamps(c.name, episode)[[0, -1]] for c in recordings.clocks}
    action = ends[recordings.clocks[0]]
    lasting = {c: pair for c, pair in ends.items() if pair[1] > pair[0] and not (pair[1] < action[0] or pair[0] > action[1])}
    first = min([int(pair[0]) for pair in lasting.values()], default=int(action[0]))
    last = max([int(pair[1]) for pair in lasting.values()], default=int(action[1]))
    for clock, (start, stop) in ends.items():
        allowed = max(config.edge_s, 2 / clock.rate_hz)
        if clock not in lasting and stop > start:
            apart = max(action[0] - stop, start - action[1]) / 1e9
            problem = f"it has no time in common with the action: {apart:.3g} s lie between them ({_names(clock)})"
            yield recordings.finding("clock_jump", episode, clock.name, problem, _JUMP_REMEDY, value=apart, severity="error")
            continue
        if (start - first) / 1e9 > allowed:
            late = float(start - first) / 1e9
            problem = f"it starts {late:.2f} s after the first stream ({_names(clock)})"
            at = [(first, int(start))]
            yield recordings.finding(
                "late_start", episode, clock.name, problem, _EDGE_REMEDY, spans_ns=at, value=late, threshold=allowed
            )
        if (last - stop) / 1e9 > allowed and stop > start:
            early = float(last - stop) / 1e9
            problem = f"it ends {early:.2f} s before the last stream ({_names(clock)})"
            at = [(int(stop), last)]
            yield recordings.finding(
                "early_end", episode, clock.name, problem, _EDGE_REMEDY, spans_ns=at, value=early, threshold=allowed
            )


def _names(clock: Clock) -> str:
    shown = ", ".join(clock.streams[:3]) + (f" and {len(clock.streams) - 3} more" if len(clock.streams) > 3 else "")
    return f"clock of {shown}"
