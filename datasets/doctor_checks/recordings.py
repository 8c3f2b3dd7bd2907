"""Clocks and values of a whole store in RAM, by episode, as the doctor's checks look at them. No frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from kineflow.datasets.doctor_checks.finding import MOST_SPANS, Finding
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.segment import ACTION, vector_streams

NOT_MOTION = ("reward",)  # a feature that says how well it goes, not what moves


@dataclass(frozen=True)
class Clock:
    """Streams that share timestamps and a nominal rate; the first names the clock."""

    streams: tuple[str, ...]
    rate_hz: float

    @property
    def name(self) -> str:
        return self.streams[0]


class Recordings:
    """Reads everything but frames once, checked against its checksums."""

    def __init__(self, store: EpisodeStore) -> None:
        self.store = store
        self.path = str(store.path)
        self.number = store.num_episodes
        interface = store.interface
        self.features = tuple(interface.features)
        self.cameras = tuple(interface.cameras)
        self._rates = {ACTION: interface.action.rate_hz}
        self._rates |= {name: feature.rate_hz for name, feature in interface.features.items()}
        self._rates |= {name: camera.rate_hz for name, camera in interface.cameras.items()}
        self._stamps: dict[str, list[np.ndarray]] = {}
        self._values: dict[str, list[np.ndarray]] = {}
        self._scales: dict[str, np.ndarray] = {}
        self._visible: dict[str, np.ndarray] = {}

    @cached_property
    def clocks(self) -> tuple[Clock, ...]:
        """That of the action first."""
        groups: dict[tuple[bytes, float], list[str]] = {}
        for name, rate in self._rates.items():
            clock = b""
            if self.store.has_own_clock(name):  # cameras that are triggered together share one that is not the action's
                lengths = self.store.stream_lengths(name)
                clock = hashlib.sha256(lengths.tobytes() + self.store.stamps(name).tobytes()).digest()
            groups.setdefault((clock, rate), []).append(name)
        return tuple(Clock(tuple(names), rate) for (_, rate), names in groups.items())

    def stamps(self, stream: str, episode: int) -> Int64[np.ndarray, "n"]:
        if stream not in self._stamps:
            ends = np.cumsum(self.store.stream_lengths(stream))[:-1]
            self._stamps[stream] = np.split(self.store.stamps(stream), ends)
        return self._stamps[stream][episode]

    def values(self, stream: str, episode: int) -> Float32[np.ndarray, "n D"]:
        return self.all_values(stream)[episode]

    def all_values(self, stream: str) -> list[np.ndarray]:
        """One array for each episode."""
        if stream not in self._values:
            ends = np.cumsum(self.store.stream_lengths(stream))[:-1]
            self._values[stream] = np.split(self.store.low_dim(stream), ends)
        return self._values[stream]

    def names(self, stream: str) -> tuple[str, ...]:
        interface = self.store.interface
        return (interface.action if stream == ACTION else interface.features[stream]).vector.names

    def scale(self, stream: str) -> Float[np.ndarray, "D"]:
        """5 to 95 % range of each dimension over the store; the whole range where that is 0; 0 where nothing ever changes."""
        if stream not in self._scales:
            values = np.concatenate(self.all_values(stream)).astype(np.float64)
            low, high = np.quantile(values, [0.05, 0.95], axis=0)
            self._scales[stream] = np.where(high > low, high - low, values.max(0) - values.min(0))
        return self._scales[stream]

    def visible(self, stream: str) -> Bool[np.ndarray, "D"]:
        """Dimensions whose motion can be seen: those that change, but no counts, modes or flags, which are whole numbers."""
        if stream not in self._visible:
            values = np.concatenate(self.all_values(stream))
            self._visible[stream] = (self.scale(stream) > 0) & (values != np.rint(values)).any(0)
        return self._visible[stream]

    @cached_property
    def starts(self) -> Int64[np.ndarray, "E"]:
        """First sample of any stream of each episode."""
        return np.array([min(self.stamps(c.name, e)[0] for c in self.clocks) for e in range(self.number)], np.int64)

    @property
    def moving_streams(self) -> tuple[str, ...]:
        """Low-dimensional streams that say what moves."""
        return tuple(name for name in vector_streams(self.store.interface) if name not in NOT_MOTION)

    def seconds(self, episode: int, stamp_ns: int) -> float:
        return float(stamp_ns - self.starts[episode]) / 1e9

    def finding(
        self,
        kind: str,
        episode: int | None,
        stream: str,
        problem: str,
        remedy: str,
        *,
        spans_ns: Sequence[tuple[int, int]] = (),
        step: int | None = None,
        value: float | None = None,
        threshold: float | None = None,
        severity: Literal["error", "warning"] = "warning",
    ) -> Finding:
        spans: tuple[tuple[float, float], ...] = ()
        where = self.path if episode is None else f"{self.path}, episode {episode}"
        if episode is not None:
            spans = tuple((self.seconds(episode, a), self.seconds(episode, b)) for a, b in spans_ns[:MOST_SPANS])
        where += f", stream '{stream}'" if stream else ""
        where += f", step {step}" if step is not None else ""
        where += f" ({spans[0][0]:.2f} s)" if spans else ""
        number = None if value is None else float(value)
        return Finding(severity, where, problem, remedy, kind, episode, stream, step, spans, number, threshold)
