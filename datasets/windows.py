"""Training windows: what a policy observes, predicts and executes around one step.

One window for each step t of each episode. With horizons observation T=2, prediction H=8, execution E=4:

    step          t-1    t   t+1  t+2  t+3  t+4  t+5  t+6  t+7
    observed      [o]   [o]                                        state  [T], oldest first, the last one is "now"
    predicted           [a   a    a    a    a    a    a    a]      action [H], the first one is taken at t
    executed            [x   x    x    x]                          then the policy observes again, at t+4

    at the first step (t = 0)                at the last step but two (t = L-3)
    step     -1    0    1  ..                step     L-4  L-3  L-2  L-1   L   L+1  L+2  L+3  L+4
    state    [s0   s0]                       action        [a   a    a    a    a    a    a    a]
    is_pad    1    0                         is_pad         0   0    0    1    1    1    1    1
                                             value                        repeats that of step L-1

Outside its episode a window repeats the nearest step and its mask says so (True: padding). All data stay in RAM, images as
uint8, and a batch is one gather: no loop over samples. Steps are those of the actions; a stream with a clock of its own is read
at their times by a stated rule, and a window that would observe a gap of it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import Horizons, KineflowError, Window
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.resample import Resample
from kineflow.datasets.window_streams import ACTION, camera_frames, low_dim_stream


class WindowReader:
    """Windows of the chosen episodes, numbered episode after episode in the order given, then step after step."""

    def __init__(
        self,
        store: EpisodeStore,
        features: Sequence[str],
        horizons: Horizons,
        episodes: Sequence[int],
        cameras: Sequence[str] = (),
        resample: Mapping[str, Resample] | None = None,
    ) -> None:
        """Load `features`, the images of `cameras` and the actions into RAM; `resample` has a rule for each stream with a
        clock of its own. `dropped` counts the windows left out, by the stream whose gap is to blame.

        Raises:
            KineflowError: a stream that the store lacks, that has a clock of its own and no rule, or holds NaN; no or unknown
                episodes, or no window left.
        """
        if len(features) + len(cameras) == 0 or len(episodes) == 0:
            raise KineflowError(
                f"windows need a feature or a camera, and an episode; got {list(features)}, {list(cameras)} and "
                f"{len(episodes)} episodes"
            )
        rules = resample or {}
        state = {name: low_dim_stream(store, name, rules) for name in features}
        images = {name: camera_frames(store, name, episodes, rules) for name in cameras}
        self._action = low_dim_stream(store, ACTION, rules).values
        self._state = np.concatenate([np.zeros((len(self._action), 0), np.float32), *(s.values for s in state.values())], axis=1)
        self._images = {name: rows.values for name, rows in images.items()}
        self._past = np.arange(1 - horizons.observation, 1)
        self._future = np.arange(horizons.prediction)
        first, last = _extents(store, episodes)
        lengths = last - first + 1
        self._first, self._last = np.repeat(first, lengths), np.repeat(last, lengths)
        ends = np.cumsum(lengths)
        self._now = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths) + self._first
        self.dropped = self._leave_out({name: rows.usable for name, rows in {**state, **images}.items()})
        if len(self) == 0:
            raise KineflowError(f"{store.path}: every window observes a gap ({self.dropped}); widen max_gap_s or record again")

    def _leave_out(self, usable: Mapping[str, Bool[np.ndarray, "N"]]) -> dict[str, int]:
        """Drop the windows that would observe a row that is not usable."""
        observed = np.maximum(self._now[:, None] + self._past, self._first[:, None])
        good, dropped = np.ones(len(self._now), bool), {}
        for name, rows in usable.items():
            if not rows.all():
                whole = rows[observed].all(1)
                dropped[name] = int((good & ~whole).sum())
                good &= whole
        self._now, self._first, self._last = self._now[good], self._first[good], self._last[good]
        return {name: count for name, count in dropped.items() if count}

    def __len__(self) -> int:
        return len(self._now)

    def read(self, indices: Int64[np.ndarray, "B"], *, images: bool = True) -> Window:
        """Windows `indices` (0 .. len - 1): state float32 [B, T, S] in the order of `features`, action float32 [B, H, A],
        images uint8 [B, T, H, W, 3] for each camera.

        Raises:
            IndexError: an index is out of range.
        """
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window indices {indices.min()} .. {indices.max()} are not all in 0 .. {len(self) - 1}")
        now = self._now[indices, None]
        first, last = self._first[indices, None], self._last[indices, None]
        past, future = now + self._past, now + self._future
        observed = np.maximum(past, first)
        return Window(
            state=self._state[observed],
            action=self._action[np.minimum(future, last)],
            state_is_pad=past < first,
            action_is_pad=future > last,
            images={name: frames[observed] for name, frames in self._images.items()} if images else {},
        )

    def earlier(self, indices: Int64[np.ndarray, "B"], steps: int) -> tuple[Int64[np.ndarray, "B"], Int64[np.ndarray, "B"]]:
        """For each of `indices` the window of the same episode up to `steps` before it, the farthest, and how far that is."""
        candidates = np.maximum(indices[:, None] - np.arange(steps, -1, -1), 0)
        gone = self._now[indices, None] - self._now[candidates]
        there = (self._first[candidates] == self._first[indices, None]) & (gone >= 0) & (gone <= steps)
        row, farthest = np.arange(len(indices)), there.argmax(axis=1)
        return candidates[row, farthest], gone[row, farthest]


class WindowSampler:
    """Endless shuffled batches of window indices; state is (seed, epoch, cursor) and nothing else.

    The order of an epoch is a pure function of (seed, epoch). Epochs follow each other without a gap: a batch that the end
    of one epoch does not fill takes the rest from the next, so every window is seen exactly once in each epoch.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int) -> None:
        if num_windows < 1 or batch_size < 1 or seed < 0:
            raise KineflowError(f"need num_windows {num_windows} >= 1, batch_size {batch_size} >= 1 and seed {seed} >= 0")
        self._num_windows, self._batch_size, self._seed = num_windows, batch_size, seed
        self._epoch, self._cursor = 0, 0
        self._order = self._permutation(0)

    def __iter__(self) -> Iterator[Int64[np.ndarray, "B"]]:
        return self

    def __next__(self) -> Int64[np.ndarray, "B"]:
        parts, needed = [], self._batch_size
        while needed:
            part = self._order[self._cursor : self._cursor + needed]
            self._cursor, needed = self._cursor + len(part), needed - len(part)
            parts.append(part)
            if self._cursor == self._num_windows:
                self._epoch, self._cursor = self._epoch + 1, 0
                self._order = self._permutation(self._epoch)
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, int]:
        """Plain integers; what comes next after `load_state_dict` of it is exactly what comes next here."""
        return {**self._identity(), "epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state`.

        Raises:
            KineflowError: the state belongs to another seed, batch size or number of windows.
        """
        for name, mine in self._identity().items():
            if state[name] != mine:
                raise KineflowError(
                    f"the saved sampler has {name} {state[name]}, this one {mine}; resume with the data and config of the run"
                )
        self._epoch, self._cursor = state["epoch"], state["cursor"]
        self._order = self._permutation(self._epoch)

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "num_windows": self._num_windows, "batch_size": self._batch_size}

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "N"]:
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_windows)


def split_episodes(num: int, validation_fraction: float, seed: int) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "V"]]:
    """Episodes to train on and to validate on, each sorted: whole episodes, because windows of one episode overlap.

    A fraction above 0 holds out at least one episode and leaves at least one.
    """
    if not 0 <= validation_fraction < 1 or num < (2 if validation_fraction else 1):
        raise KineflowError(
            f"cannot hold out {validation_fraction} of {num} episodes; use a fraction in [0, 1) and >= 2 episodes"
        )
    held_out = min(max(round(num * validation_fraction), 1), num - 1) if validation_fraction else 0
    order = np.random.default_rng(seed).permutation(num)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _extents(store: EpisodeStore, episodes: Sequence[int]) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """First and last row of each chosen episode."""
    chosen, lengths = np.asarray(episodes, np.int64), store.lengths
    if chosen.min() < 0 or chosen.max() >= len(lengths):
        raise KineflowError(f"{store.path}: episodes {chosen.min()} .. {chosen.max()} are not all in 0 .. {len(lengths) - 1}")
    ends = np.cumsum(lengths)
    return (ends - lengths)[chosen], ends[chosen] - 1
