"""Policies of different rates and horizons on one time axis.

Ticks are those of the fastest policy. At 10 Hz with 6 actions, and at 5 Hz with 5:

    tick          0    1    2    3    4    5    6    7    8
    10 Hz        [a    a    a    a    a    a]                       ticks 0 1 2 3 4 5
     5 Hz        [a         a         a         a         a]        ticks 0 2 4 6 8
    composed     [w    1    w    1    w    1    1]   .    .         shared ticks are weighed, the others belong to whoever acts

The noisy chunk holds every tick on which somebody acts (here 8 of them), because each policy must see all of its own chunk; the
composed policy answers with the ticks before the first gap (here 7). Observations go back as far as the slowest policy looks,
and each policy sees the ticks of its own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kineflow.contracts import ContractError, Horizons, Observation


@dataclass(frozen=True)
class Clock:
    """A policy's control rate and horizons."""

    name: str
    rate_hz: float
    horizons: Horizons


@dataclass(frozen=True)
class Track:
    """One policy on the common axis: the places of its actions in the noisy chunk, and its history in the common one."""

    every: int  # ticks between its steps
    steps: tuple[int, ...]
    history: tuple[int, ...]


@dataclass(frozen=True)
class Timeline:
    """The common axis: rate of its ticks, number of steps in the noisy chunk, horizons of the composed policy."""

    rate_hz: float
    size: int
    horizons: Horizons
    tracks: tuple[Track, ...]

    @classmethod
    def of(cls, clocks: Sequence[Clock], execution: int | None = None) -> Timeline:
        """`execution` overrides the number of executed steps, by default the shortest time that a policy executes."""
        fastest = max(clocks, key=lambda c: c.rate_hz)
        every = [_ticks_between(clock, fastest) for clock in clocks]
        chunks = [[k * n for k in range(c.horizons.prediction)] for c, n in zip(clocks, every)]
        ticks = sorted({tick for chunk in chunks for tick in chunk})
        place = {tick: i for i, tick in enumerate(ticks)}
        prediction = next(i for i in range(len(ticks) + 1) if i not in place)
        observation = max(n * (c.horizons.observation - 1) + 1 for c, n in zip(clocks, every))
        shortest = min(min(n * c.horizons.execution for c, n in zip(clocks, every)), prediction)
        tracks = tuple(
            Track(
                every=n,
                steps=tuple(place[tick] for tick in chunk),
                history=tuple(observation - 1 - n * k for k in reversed(range(c.horizons.observation))),
            )
            for c, n, chunk in zip(clocks, every, chunks)
        )
        return cls(fastest.rate_hz, len(ticks), Horizons(observation, prediction, execution or shortest), tracks)


def _ticks_between(clock: Clock, fastest: Clock) -> int:
    ratio = fastest.rate_hz / clock.rate_hz
    if abs(ratio - round(ratio)) > 1e-6 * ratio:
        raise ContractError(
            f"'{clock.name}' runs at {clock.rate_hz:g} Hz and '{fastest.name}' at {fastest.rate_hz:g} Hz: not a whole multiple, "
            "so their actions share no time stamps; resample the data of one and train it again"
        )
    return round(ratio)


@dataclass(frozen=True)
class View:
    """What one policy sees of the composed policy's observation: its steps, its state dimensions and its cameras."""

    history: tuple[int, ...]
    dimensions: tuple[int, ...]
    cameras: tuple[str, ...]

    def of(self, observation: Observation) -> Observation:
        steps, dimensions = list(self.history), list(self.dimensions)
        return Observation(
            state=np.ascontiguousarray(observation.state[:, steps][..., dimensions]),
            stamp_s=observation.stamp_s[:, steps],
            images={name: observation.images[name][:, steps] for name in self.cameras},
            goal=observation.goal,
            instruction=observation.instruction,
        )
