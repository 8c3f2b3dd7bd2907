"""The order of windows out of several sources by weight: endless, resumable, rank-aware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError
from kineflow.datasets.window_sampler import check_state

# Multiples of the golden ratio fill the circle more evenly than chance does (Weyl); as an integer they are exact for ever.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class MixtureSampler:
    """Batches of `MixtureReader` indices in which source k has the share weights[k] / sum(weights).

    Shares are kept at every time, not only on average: after n windows a source is off by a few windows, whatever n.
    Each source is shuffled by itself and goes through all its windows before it repeats one, so small sources repeat more often.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        """`sizes` are the windows of each source, `batch_size` that of each of the `world` ranks.

        Raises:
            KineflowError: sizes, weights, seed or rank that make no mixture.
        """
        if len(sizes) != len(weights) or len(sizes) == 0 or min(sizes) < 1 or not all(0 < w < np.inf for w in weights):
            raise KineflowError(f"a mixture needs a weight above 0 for each source with windows; got {weights} for sizes {sizes}")
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise KineflowError(f"need batch_size {batch_size} >= 1, seed {seed} >= 0 and rank {rank} in 0 .. {world - 1}")
        self._sizes, self._weights = [int(s) for s in sizes], [float(w) for w in weights]
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._offset = np.cumsum([0, *self._sizes])
        total = sum(self._weights)
        bounds = np.cumsum(self._weights)[:-1] / total
        self._bounds = np.array([min(int(bound * 2**64), 2**64 - 1) for bound in bounds], np.uint64)
        self._start = np.uint64(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])
        self._drawn, self._taken = 0, [0] * len(self._sizes)
        self._orders: dict[int, tuple[int, Int64[np.ndarray, "N"]]] = {}  # of each source: epoch and its permutation

    def __iter__(self) -> Iterator[Int64[np.ndarray, "B"]]:
        return self

    def __next__(self) -> Int64[np.ndarray, "B"]:
        number = self._batch_size * self._world
        place = np.arange(self._drawn, self._drawn + number, dtype=np.uint64) * _GOLDEN + self._start
        source = np.searchsorted(self._bounds, place, side="right")
        indices = np.empty(number, np.int64)
        for k in np.unique(source).tolist():
            mine = source == k
            indices[mine] = self._offset[k] + self._take(k, int(mine.sum()))
        np.random.default_rng([self._seed, 2, self._drawn]).shuffle(indices)  # or ranks would see the pattern of the places
        self._drawn += number
        return indices[self._rank * self._batch_size :][: self._batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; what comes next after `load_state_dict` of it is exactly what comes next here."""
        return {**self._identity(), "drawn": self._drawn, "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            KineflowError: the state belongs to another mixture, seed, batch size or number of ranks.
        """
        check_state(state, self._identity())
        self._drawn, self._taken = int(state["drawn"]), [int(n) for n in state["taken"]]

    def _identity(self) -> dict[str, Any]:
        mixture = {"sizes": list(self._sizes), "weights": list(self._weights)}
        return {"seed": self._seed, "batch_size": self._batch_size, "world": self._world, **mixture}

    def _take(self, source: int, number: int) -> Int64[np.ndarray, "n"]:
        """The next windows of one source."""
        parts = []
        while number:
            epoch, cursor = divmod(self._taken[source], self._sizes[source])
            if self._orders.get(source, (-1,))[0] != epoch:
                rng = np.random.default_rng([self._seed, 0, source, epoch])
                self._orders[source] = (epoch, rng.permutation(self._sizes[source]))
            part = self._orders[source][1][cursor : cursor + number]
            self._taken[source] += len(part)
            number -= len(part)
            parts.append(part)
        return np.concatenate(parts)
