"""What the robot sensed lately, stream by stream, and the aligned window that a policy is shown.

    front   ----x----x----x----x----x          the newest moment that every stream has reached is "now" of the window;
    state   --x--x--x--x--x--x--x--x--x        from there back in the policy's steps, of each stream the sample nearest in time
    window            ^    ^    ^ now

Before the first sample there is no past: the first stands for it, as in training windows. All times are seconds of one monotonic
clock; whoever receives stamps of another clock converts them (stamp_s = received_s - age by the other clock).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kineflow.contracts import Interface, KineflowError, Observation

_KEPT_S = 1.0  # kept beyond the window, for streams that are behind the others


@dataclass(frozen=True)
class ObservationLimits:
    """Which samples count. `max_age_s`: since the newest sample of each stream came; `skew_s`: between streams."""

    max_age_s: float = 0.2
    max_stamp_age_s: float = 0.5  # on arrival: older ones are dropped and counted
    max_stamp_ahead_s: float = 0.1  # on arrival: from the future
    skew_s: float = 0.15  # of a sample from its place in the window; a stream of lower rate may be one period off

    def __post_init__(self) -> None:
        if not min(self.max_age_s, self.max_stamp_age_s, self.skew_s) > 0 or self.max_stamp_ahead_s < 0:
            raise KineflowError(f"limits on observations are seconds above 0, got {self}")


@dataclass(frozen=True)
class _Sample:
    stamp_s: float
    received_s: float
    value: np.ndarray


class ObservationBuffer:
    """The last samples of every stream that `interface` names; `length` steps of `step_s` make a window."""

    def __init__(self, interface: Interface, length: int, step_s: float, limits: ObservationLimits) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {name: (s.vector.size,) for name, s in interface.features.items()}
        self._shapes |= {name: camera.frame_shape for name, camera in interface.cameras.items()}
        rates = {name: spec.rate_hz for name, spec in interface.features.items()}
        rates |= {name: camera.rate_hz for name, camera in interface.cameras.items()}
        self._slack = {name: max(limits.skew_s, 1 / rate) for name, rate in rates.items()}
        self._interface, self._limits = interface, limits
        self._back = step_s * np.arange(length - 1, -1, -1.0)
        self.dropped: Counter[str] = Counter()  # samples that were not taken, by stream and reason
        self.forget()

    def forget(self) -> None:
        """Everything sensed so far: after a jump of the clock, or in another episode."""
        self._samples: dict[str, list[_Sample]] = {name: [] for name in self._shapes}

    def put(self, stream: str, value: np.ndarray, stamp_s: float, received_s: float) -> str:
        """Take one sample (it is copied); say why not, or "". Late samples find their place by their stamp.

        Raises:
            KineflowError: no such stream: wiring, not weather.
        """
        if stream not in self._shapes:
            raise KineflowError(f"the policy has no stream '{stream}', it needs {sorted(self._shapes)}; name one of these")
        reason = self._fault(stream, value, received_s - stamp_s)
        if reason:
            self.dropped[f"{stream}: {reason}"] += 1
            return reason
        samples, is_picture = self._samples[stream], stream in self._interface.cameras
        place = bisect_left(samples, stamp_s, key=lambda sample: sample.stamp_s)
        sample = _Sample(stamp_s, received_s, np.array(value, None if is_picture else np.float32))
        if place < len(samples) and samples[place].stamp_s == stamp_s:
            samples[place] = sample
        else:
            insort(samples, sample, key=lambda sample: sample.stamp_s)
        oldest = samples[-1].stamp_s - float(self._back[0]) - _KEPT_S
        while samples[0].stamp_s < oldest:
            del samples[0]
        return ""

    @property
    def heard_s(self) -> float:
        """When the stream that has been silent longest was heard, by receipt; -inf while one never was."""
        return min((self._heard(name) for name in self._shapes), default=-math.inf)

    def age_s(self, now_s: float) -> float:
        return now_s - self.heard_s

    def ages_s(self, now_s: float) -> dict[str, float]:
        return {name: now_s - self._heard(name) for name in self._shapes}

    def silence(self, now_s: float) -> str:
        """Which stream was never heard or not lately, or ""."""
        if silent := [name for name in self._shapes if not self._samples[name]]:
            return f"no observation of {', '.join(silent)}"
        if self.age_s(now_s) <= self._limits.max_age_s:
            return ""
        name = min(self._shapes, key=self._heard)
        return f"stale observation: {name} {1e3 * self.age_s(now_s):.0f} ms ago"

    def misalignment(self) -> str:
        """Which stream has nothing near a moment of the window, or ""; every stream was heard."""
        for name, grid_s, sample in self._matched():
            if abs(sample.stamp_s - grid_s) > self._slack[name] and grid_s > self._samples[name][0].stamp_s:
                return f"observations not aligned: {name} is {1e3 * (sample.stamp_s - grid_s):+.0f} ms off"
        return ""

    def window(self) -> Observation:
        """One row without its batch axis: state `[T, S]`, images `[T, H, W, 3]`, stamps `[T]`; oldest first."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in self._shapes}
        for name, _, sample in self._matched():
            values[name].append(sample.value)
        length = len(self._back)
        state = [np.stack(values[name]) for name in self._interface.features]
        images = {name: np.stack(values[name]) for name in self._interface.cameras}
        first = max(samples[0].stamp_s for samples in self._samples.values())
        stamps = np.maximum(self._now() - self._back, min(first, self._now()))
        return Observation(np.concatenate([np.zeros((length, 0), np.float32), *state], axis=1), stamps, images)

    def newest(self, stream: str) -> tuple[np.ndarray, float] | None:
        """The newest sample of a stream, and its stamp; None before the first."""
        samples = self._samples[stream]
        return (samples[-1].value, samples[-1].stamp_s) if samples else None

    def _matched(self) -> Iterator[tuple[str, float, _Sample]]:
        grid = self._now() - self._back
        for name, samples in self._samples.items():
            stamps = np.array([sample.stamp_s for sample in samples])
            for grid_s in grid:
                yield name, float(grid_s), samples[int(np.abs(stamps - grid_s).argmin())]

    def _now(self) -> float:
        return min(samples[-1].stamp_s for samples in self._samples.values())

    def _heard(self, name: str) -> float:
        """When, by receipt."""
        samples = self._samples[name]
        return max(sample.received_s for sample in samples[-3:]) if samples else -math.inf

    def _fault(self, stream: str, value: np.ndarray, age_s: float) -> str:
        if not -self._limits.max_stamp_ahead_s <= age_s <= self._limits.max_stamp_age_s:
            return "old stamp" if age_s > 0 else "stamp from the future"
        if value.shape != self._shapes[stream]:
            return f"shape {value.shape}, expected {self._shapes[stream]}"
        camera = self._interface.cameras.get(stream)
        if camera is not None:
            wanted = np.uint8 if camera.kind == "rgb" else np.uint16
            return "" if value.dtype == wanted else f"dtype {value.dtype}"
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there
            return "" if np.isfinite(np.asarray(value, np.float32)).all() else "not finite"
