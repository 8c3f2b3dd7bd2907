"""The order of training windows: endless, shuffled, the same for the same seed, resumable to the sample.

With several ranks (processes that train together) each takes its part of every batch of one common order: disjoint, and
complete together. A state is the position in that order, so the one that any rank saved is good for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError


class WindowSampler:
    """Endless shuffled batches of window indices; state is (seed, epoch, cursor) and nothing else.

    The order of an epoch is a pure function of (seed, epoch). Epochs follow each other without a gap: a batch that the end
    of one epoch does not fill takes the rest from the next, so every window is seen exactly once in each epoch.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        """`batch_size` is that of each of the `world` ranks.

        Raises:
            KineflowError: an impossible size, seed or rank.
        """
        if num_windows < 1 or batch_size < 1 or seed < 0:
            raise KineflowError(f"need num_windows {num_windows} >= 1, batch_size {batch_size} >= 1 and seed {seed} >= 0")
        if not 0 <= rank < world:
            raise KineflowError(f"rank is {rank} of {world}; ranks are numbered from 0")
        self._num_windows, self._batch_size, self._seed = num_windows, batch_size, seed
        self._rank, self._world = rank, world
        self._epoch, self._cursor = 0, 0
        self._order = self._permutation(0)

    def __iter__(self) -> Iterator[Int64[np.ndarray, "B"]]:
        return self

    def __next__(self) -> Int64[np.ndarray, "B"]:
        parts, needed = [], self._batch_size * self._world
        while needed:
            part = self._order[self._cursor : self._cursor + needed]
            self._cursor, needed = self._cursor + len(part), needed - len(part)
            parts.append(part)
            if self._cursor == self._num_windows:
                self._epoch, self._cursor = self._epoch + 1, 0
                self._order = self._permutation(self._epoch)
        return np.concatenate(parts)[self._rank * self._batch_size :][: self._batch_size]

    def state_dict(self) -> dict[str, int]:
        """Plain integers; what comes next after `load_state_dict` of it is exactly what comes next here."""
        return {**self._identity(), "epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state`.

        Raises:
            KineflowError: the state belongs to another seed, batch size or number of windows or ranks.
        """
        check_state(state, self._identity())
        self._epoch, self._cursor = state["epoch"], state["cursor"]
        self._order = self._permutation(self._epoch)

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "num_windows": self._num_windows, "batch_size": self._batch_size, "world": self._world}

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "N"]:
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_windows)


def check_state(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse the state of a sampler that is another one than `identity`; states from before ranks are of one."""
    for name, mine in identity.items():
        saved = state.get(name, 1 if name == "world" else None)
        if saved != mine:
            raise KineflowError(
                f"the saved sampler has {name} {saved}, this one {mine}; resume with the data and config of the run"
            )
