"""A shuffle pool: a few whole episodes lie decoded in RAM, and windows come from all over them.

Each frame is decoded once an epoch instead of once for each window that shows it, at the price of an order that mixes a few
dozen episodes at a time instead of all of them. `PoolSampler` makes the order, `DecodedEpisodes` holds the frames.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.window_sampler import WindowSampler


class PoolSampler(WindowSampler):
    """Like `WindowSampler` (each window once an epoch, resumable, rank-aware), but only some `pool` episodes are open at a time.

    The episodes are shuffled; the windows of the one at place p are spread evenly over places p to p + pool, so an episode
    comes in as another one leaves.
    """

    def __init__(
        self, episodes: Int64[np.ndarray, "N"], batch_size: int, seed: int, pool: int, rank: int = 0, world: int = 1
    ) -> None:
        """`episodes` is the episode of each window (`WindowReader.episodes`)."""
        if pool < 1:
            raise KineflowError(f"a pool of {pool} episodes; it must be at least 1")
        _, self._episode = np.unique(episodes, return_inverse=True)
        self._pool = pool
        super().__init__(len(episodes), batch_size, seed, rank, world)

    def _identity(self) -> dict[str, int]:
        return {**super()._identity(), "pool": self._pool}

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "N"]:
        rng = np.random.default_rng([self._seed, epoch])
        place = rng.permutation(int(self._episode.max()) + 1)[self._episode]
        return np.argsort(place + self._pool * rng.random(len(place)), kind="stable")


class DecodedEpisodes:
    """Frames of one camera out of decoded episodes, the last `episodes` + 2 that were used; others are decoded when asked for.

    Threads take turns: what one of them reads may not leave the pool before it has been copied.
    """

    def __init__(
        self, reader: FrameReader, table: Int64[np.ndarray, "N"], lengths: Int64[np.ndarray, "E"], episodes: int
    ) -> None:
        """`table` has the camera's row for each row of the actions, `lengths` the rows of each episode."""
        self._reader, self._table = reader, table
        self._ends = np.cumsum(lengths)
        self._longest = int(lengths.max())
        self._slots = min(episodes + 2, len(lengths))  # a batch can touch one that just left and one that just came
        # Untouched pages take no memory, so short episodes cost what they are.
        self._frames = np.zeros((self._slots * self._longest, int(np.prod(reader.frame_shape))), np.uint8)
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._free = list(range(self._slots))
        self._lock, self._process = threading.Lock(), os.getpid()
        self.decoded = 0  # frames so far

    def read(self, rows: Int64[np.ndarray, "B T"], out: np.ndarray) -> None:
        """Frames of `rows` (of the actions) into `out` [B, T, H, W, 3]."""
        if self._process != os.getpid():  # forked, perhaps while another thread held it
            self._lock, self._process = threading.Lock(), os.getpid()
        flat, episode = out.reshape(rows.size, -1), np.searchsorted(self._ends, rows.reshape(-1), side="right")
        with self._lock:
            for group in _groups(np.unique(episode), self._slots):
                base = np.zeros(len(self._ends), np.int64)
                for index in sorted(group, key=lambda episode: episode not in self._slot_of):  # before one of them is pushed out
                    first = int(self._ends[index - 1]) if index else 0
                    base[index] = self._slot(int(index), first) * self._longest - first
                chosen = np.isin(episode, group)
                if chosen.all():
                    np.take(self._frames, rows.reshape(-1) + base[episode], axis=0, out=flat, mode="clip")
                else:
                    flat[chosen] = self._frames[rows.reshape(-1)[chosen] + base[episode[chosen]]]

    def _slot(self, episode: int, first: int) -> int:
        """Where `episode`, whose first row is `first`, lies; decoded now if it does not."""
        if episode in self._slot_of:
            self._slot_of.move_to_end(episode)
            return self._slot_of[episode]
        if not self._free:
            self._free.append(self._slot_of.popitem(last=False)[1])
        rows, slot = self._table[first : self._ends[episode]], self._free[-1]
        into = self._frames[slot * self._longest :][: len(rows)]
        self._reader.read(rows, into.reshape(len(rows), *self._reader.frame_shape))
        self._slot_of[episode] = self._free.pop()  # not before it is whole
        self.decoded += len(rows)
        return slot


def _groups(episodes: np.ndarray, most: int) -> list[np.ndarray]:
    """At most `most` at a time: an order that no pool made can ask for more at once than it holds."""
    return [episodes[start : start + most] for start in range(0, len(episodes), most)]
