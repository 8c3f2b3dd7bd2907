"""Chunks by the action that they begin with, counted in actions consumed: what is executed next, and what is left.

    consumed   0 1 2 3 4 5 6 7 8 9            chunk B was asked for when 4 actions were consumed, so its action 0 is the 4th;
    chunk A    a a a a a a a a                 it came 2 actions later: its first two are past
    chunk B            b b b b b b b b
    executed   a a a a a a b b b b

Time in which nothing could be executed is not consumed: a chunk that was waited for begins with its first action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kineflow.contracts import KineflowError


@dataclass(frozen=True)
class Placed:
    """A chunk whose first action is number `begin` of the actions consumed since the epoch began."""

    actions: Float[np.ndarray, "H A"]
    begin: int
    number: int  # which question it answers

    def covers(self, position: int) -> bool:
        return self.begin <= position < self.begin + len(self.actions)


class ChunkBuffer:
    """Chunks of one epoch. `decay`: None: the newest that covers a moment is executed; else all are averaged (ACT, Zhao et al.
    2023), weighted by exp(-decay i), i = 0 the oldest. Averages of different plans are none of them: only for policies of one
    mode."""

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and decay < 0:
            raise KineflowError(f"decay of temporal ensembling is {decay:g}; it is at least 0")
        self._decay, self._chunks = decay, list[Placed]()

    def put(self, chunk: Placed) -> None:
        self._chunks.append(chunk)

    def clear(self) -> None:
        self._chunks.clear()

    def at(self, position: int) -> tuple[Float[np.ndarray, "A"], Placed] | None:
        """The action at `position`, and the newest chunk that it is of; None where none covers it. The past is forgotten."""
        self._chunks = [chunk for chunk in self._chunks if position < chunk.begin + len(chunk.actions)]
        covering = [chunk for chunk in self._chunks if chunk.covers(position)]
        if not covering:
            return None
        newest = covering[-1]
        if self._decay is None:
            return newest.actions[position - newest.begin], newest
        weights = np.exp(-self._decay * np.arange(len(covering)))
        each = np.stack([chunk.actions[position - chunk.begin] for chunk in covering])
        return (weights @ each / weights.sum()).astype(newest.actions.dtype), newest

    @property
    def newest(self) -> Placed | None:
        return self._chunks[-1] if self._chunks else None

    def left(self, position: int) -> int:
        """Actions from `position` on."""
        return max((chunk.begin + len(chunk.actions) - position for chunk in self._chunks), default=0)
