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

Outside its episode a window repeats the nearest step and its mask says so (True: padding). A batch is one gather, no loop over
samples; where its images come from is a choice (datasets/window_images.py). Steps are those of the actions; a stream with a clock
of its own is read at their times by a stated rule, and a window that would observe a gap of it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import Horizons, KineflowError, Window
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import FeatureReader
from kineflow.datasets.resample import Resample
from kineflow.datasets.window_goals import GoalReader, Goals
from kineflow.datasets.window_images import Images, open_cameras
from kineflow.datasets.window_streams import ACTION, low_dim_stream


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
        images: Images = Images(),  # noqa: B008 - a frozen value
        encoded: Mapping[str, FeatureReader] | None = None,
        goals: Goals | None = None,
    ) -> None:
        """Load `features` and the actions into RAM, and make the images of `cameras` ready; `resample` has a rule for each stream
        with a clock of its own. `dropped` counts the windows left out, by the stream whose gap is to blame. Of the cameras in
        `encoded` a window has features instead of frames.

        Raises:
            KineflowError: a stream that the store lacks, that has a clock of its own and no rule, or holds NaN; no or unknown
                episodes, or no window left.
        """
        if len(features) + len(cameras) == 0 or len(episodes) == 0:
            raise KineflowError(
                f"windows need a feature or a camera, and an episode; got {list(features)}, {list(cameras)} and "
                f"{len(episodes)} episodes"
            )
        self._arguments = (features, horizons, episodes, cameras, resample, images, encoded, goals)
        self._path, self._segments = store.path, [entry.id for entry in store.manifest.segments]
        rules = resample or {}
        state = {name: low_dim_stream(store, name, rules) for name in features}
        self._cameras = open_cameras(store, cameras, episodes, rules, images, encoded)
        self._goals = GoalReader(store, episodes, goals) if goals else None
        self._action = low_dim_stream(store, ACTION, rules).values
        self._state = np.concatenate([np.zeros((len(self._action), 0), np.float32), *(s.values for s in state.values())], axis=1)
        self._past = np.arange(1 - horizons.observation, 1)
        self._future = np.arange(horizons.prediction)
        first, last = _extents(store, episodes)
        lengths = last - first + 1
        self._first, self._last = np.repeat(first, lengths), np.repeat(last, lengths)
        self._place = np.repeat(np.arange(len(lengths)), lengths)  # of its episode in `episodes`
        ends = np.cumsum(lengths)
        self._now = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths) + self._first
        usable = {name: rows.usable for name, rows in state.items()}
        self.dropped = self._leave_out(usable | {name: camera.usable for name, camera in self._cameras.items()})
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
        self._now, self._first, self._last, self._place = (a[good] for a in (self._now, self._first, self._last, self._place))
        return {name: count for name, count in dropped.items() if count}

    def __len__(self) -> int:
        return len(self._now)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._path, self._segments, self._arguments)

    @property
    def episodes(self) -> Int64[np.ndarray, "N"]:
        """A number for each window's episode: that of its first row."""
        return self._first

    def buffer(self, batch_size: int, *, images: bool = True) -> Window:
        """Memory for `read(..., out=...)`."""
        past, future = (batch_size, len(self._past)), (batch_size, len(self._future))
        return Window(
            np.empty((*past, self._state.shape[1]), np.float32),
            np.empty((*future, self._action.shape[1]), np.float32),
            np.empty(past, bool),
            np.empty(future, bool),
            {name: np.empty((*past, *camera.frame_shape), camera.dtype) for name, camera in self._cameras.items() if images},
        )

    def read(self, indices: Int64[np.ndarray, "B"], *, images: bool = True, out: Window | None = None) -> Window:
        """Windows `indices` (0 .. len - 1): state float32 [B, T, S] in the order of `features`, action float32 [B, H, A],
        images uint8 [B, T, H, W, 3] for each camera, and the goals. In new memory, or in `out`, a `buffer` for as many; any
        thread may read.

        Raises:
            IndexError: an index is out of range.
            StoreError: a frame is damaged.
        """
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window indices {indices.min()} .. {indices.max()} are not all in 0 .. {len(self) - 1}")
        window = out or self.buffer(len(indices), images=images)
        now = self._now[indices, None]
        first, last = self._first[indices, None], self._last[indices, None]
        past, future = now + self._past, now + self._future
        observed = np.maximum(past, first)
        np.take(self._state, observed, axis=0, out=window.state, mode="clip")  # clip: numpy then needs no copy of its own
        np.take(self._action, np.minimum(future, last), axis=0, out=window.action, mode="clip")
        np.less(past, first, out=window.state_is_pad)
        np.greater(future, last, out=window.action_is_pad)
        for name, frames in window.images.items():
            self._cameras[name].source.read(observed, frames)
        if self._goals is None or not images:
            return window
        return replace(window, goals=self._goals.read(self._place[indices], self._now[indices] - self._first[indices]))

    def earlier(self, indices: Int64[np.ndarray, "B"], steps: int) -> tuple[Int64[np.ndarray, "B"], Int64[np.ndarray, "B"]]:
        """For each of `indices` the window of the same episode up to `steps` before it, the farthest, and how far that is."""
        candidates = np.maximum(indices[:, None] - np.arange(steps, -1, -1), 0)
        gone = self._now[indices, None] - self._now[candidates]
        there = (self._first[candidates] == self._first[indices, None]) & (gone >= 0) & (gone <= steps)
        row, farthest = np.arange(len(indices)), there.argmax(axis=1)
        return candidates[row, farthest], gone[row, farthest]


def _extents(store: EpisodeStore, episodes: Sequence[int]) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """First and last row of each chosen episode."""
    chosen, lengths = np.asarray(episodes, np.int64), store.lengths
    if chosen.min() < 0 or chosen.max() >= len(lengths):
        raise KineflowError(f"{store.path}: episodes {chosen.min()} .. {chosen.max()} are not all in 0 .. {len(lengths) - 1}")
    ends = np.cumsum(lengths)
    return (ends - lengths)[chosen], ends[chosen] - 1


def _reopen(path: Path, segments: Sequence[str], arguments: tuple[Any, ...]) -> WindowReader:
    """The same windows in another process; KineflowError when the episodes were rewritten meanwhile."""
    store = EpisodeStore.open(path)
    if [entry.id for entry in store.manifest.segments[: len(segments)]] != segments:
        raise KineflowError(f"{path}: its segments were rewritten since the windows were opened; open them again")
    return WindowReader(store, *arguments)
