"""What each training window is to reach, in every way that its policy can be told: words, a picture, the clip that lies ahead.

    step of the episode      0    1    2    3    4 ..       without a cursor the episode's own frames are the clip: frame = step
    clip                     c0   c1   c2   c3   c4 ..      a clip of its own (goal "video"): frame = value of the cursor feature
    video of G = 3 frames              [c2        c4        c6]      at step 2, at half the clip's rate; its last frame repeats

Behind each clip stands its last frame once more, where nothing has moved since the frame before: what repeats is that one.

An episode's goal video is what it was to follow; the cursor, a feature recorded with it, says at which frame of that clip the
robot was. An episode without one is a demonstration that follows itself: what it saw later is its goal. Likewise a goal image is
the one recorded, or else the last frame of the clip.

Who drives has no such cursor and has to find its place. With `slack` = (b, a) a window's video begins up to b frames of the clip
before the cursor or a behind it, always the same for the same step, and `ahead_s` says how far ahead of that beginning it is:
what a policy must see to find its place (policies/progress.py). `left_s` says how much of the clip lies ahead of the cursor: what
a policy must know to learn distances (policies/temporal_distance.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

from kineflow.contracts import GoalBatch, GoalSpec, KineflowError
from kineflow.datasets.clips import with_rest
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import content_digest
from kineflow.datasets.window_streams import low_dim_stream, slices

Look = Callable[[bytes, np.ndarray], np.ndarray]  # (their `content_digest`, uint8 [N, H, W, 3]) -> float16 [N, P, D]
Watch = Callable[[Sequence[int]], Iterable[int]]  # the same episodes, while somebody counts them
PICTURES = ("video", "image")


@dataclass(frozen=True)
class GoalWindows:
    """Where goals come from, see the module: the camera whose frames are the clip of an episode that has no goal video, the
    feature [1] that holds the cursor ("": the step), the rate of all clips (0: that of the camera), and the `slack`, in frames of
    the clip, with which a video begins before or behind the cursor."""

    camera: str = "front"
    cursor: str = ""
    rate_hz: float = 0.0
    slack: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if min(self.slack) < 0:
            raise KineflowError(f"goals.slack is {self.slack}; it is how many frames before and how many behind the cursor")


@dataclass(frozen=True)
class Goals:
    """What windows are told: the policy's goals, where they come from, and what turns their pictures into features, if any."""

    specs: Mapping[str, GoalSpec]
    where: GoalWindows = GoalWindows()
    look: Look | None = None
    watch: Watch = iter


class GoalReader:
    """Goals of the windows of some episodes, held in RAM as frames, or as a frozen encoder's features of them.

    Episodes that were to follow the same clip share it: it is looked at once, and held once.
    """

    def __init__(self, store: EpisodeStore, episodes: Sequence[int], goals: Goals) -> None:
        """Read the goals of `episodes`.

        Raises:
            KineflowError: a kind of goal that windows do not give, no such camera or cursor, frames of another size than the
                spec's, or a cursor that is no frame of its clip.
        """
        specs, how = goals.specs, goals.where
        if other := [name for name, spec in specs.items() if spec.kind not in (*PICTURES, "instruction")]:
            raise KineflowError(
                f"goal '{other[0]}': windows give videos, images and instructions; make a {specs[other[0]].kind} a feature"
            )
        if how.camera not in store.interface.cameras:
            raise KineflowError(f"{store.path}: no camera '{how.camera}' for goals; it has {sorted(store.interface.cameras)}")
        self._specs = specs
        self._instruction: list[str] = []
        self._rate_hz, self._slack = how.rate_hz or store.interface.cameras[how.camera].rate_hz, how.slack
        self._stride = {name: self._rate_hz / spec.rate_hz for name, spec in specs.items() if spec.kind == "video"}
        self._pictures: dict[str, _Pictures] = {}
        if any(spec.kind in PICTURES for spec in specs.values()):
            self._gather(store, episodes, goals)
        else:
            self._instruction = [store.told(index)[0] for index in episodes]

    def read(self, episode: Int64[np.ndarray, "B"], step: Int64[np.ndarray, "B"]) -> GoalBatch:
        """`episode`: places in the list of episodes; `step`: steps of their actions."""
        words, values = tuple(self._instruction[e] for e in episode.tolist()), {}
        given, ahead_s = {name: np.ones(len(episode), bool) for name in self._specs}, None
        for name, spec in self._specs.items():
            if spec.kind == "instruction":
                given[name] = np.array([text != "" for text in words])
            elif spec.kind == "image":
                values[name] = self._pictures["image"].at(episode, np.zeros(len(episode), np.int64))
            else:
                ahead = np.rint(self._stride[name] * np.arange(spec.frames)).astype(np.int64)
                begin, ahead_s = self._begin(episode, self._first[episode] + step)
                values[name] = self._pictures["video"].at(episode[:, None], begin[:, None] + ahead)
        if not self._pictures:
            return GoalBatch(values, given, words)
        left = self._end(episode) - self._cursor[self._first[episode] + step]
        return GoalBatch(values, given, words, ahead_s, (left / self._rate_hz).astype(np.float32))

    def _begin(
        self, episode: Int64[np.ndarray, "B"], row: Int64[np.ndarray, "B"]
    ) -> tuple[Int64[np.ndarray, "B"], Float32[np.ndarray, "B"]]:
        """The first frame of each row's video, and how far ahead of it the row's step is (s)."""
        before, behind = self._slack
        cursor, drawn = self._cursor[row], (row * 2654435761 >> 7) % (before + behind + 1)  # Knuth's multiplicative hash
        begin = np.clip(cursor + drawn - before, 0, self._end(episode))
        return begin, ((cursor - begin) / self._rate_hz).astype(np.float32)

    def _end(self, episode: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """The last frame of each row's clip."""
        last: Int64[np.ndarray, "B"] = self._pictures["video"].last[episode] - 1
        return last

    def _gather(self, store: EpisodeStore, episodes: Sequence[int], goals: Goals) -> None:
        """Instructions, clips, images and cursors of the episodes."""
        how, cursors = goals.where, []
        gathered = {kind: _Distinct(goals.look) for kind in PICTURES}
        recorded = low_dim_stream(store, how.cursor, {}).values if how.cursor else None
        for index in goals.watch(episodes):
            words, known = store.told(index)
            self._instruction.append(words)
            steps = np.arange(store.lengths[index])
            if "video" not in known:
                clip, cursor = self._own(store, index, how.camera, steps)
            elif recorded is None:
                clip, cursor = known["video"].value, steps
            else:
                clip, cursor = known["video"].value, np.rint(recorded[slices(store.lengths)[index], 0]).astype(np.int64)
            image = known["image"].value[None] if "image" in known else clip[-1:]
            if cursor.min() < 0 or cursor.max() >= len(clip):
                raise KineflowError(
                    f"{store.path}, episode {index}: the cursor is {cursor.min()} .. {cursor.max()}, its clip has {len(clip)} "
                    "frames; "
                    f"record '{how.cursor or 'a cursor feature, and name it'}' as frames of the goal video"
                )
            self._check(store, index, {"video": clip, "image": image})
            gathered["video"].add(with_rest(clip))
            gathered["image"].add(image)
            cursors.append(cursor)
        self._pictures = {kind: _Pictures(found.clips, found.places) for kind, found in gathered.items()}
        lengths = np.array([len(cursor) for cursor in cursors])
        self._first, self._cursor = np.cumsum(lengths) - lengths, np.concatenate(cursors)

    def _own(self, store: EpisodeStore, index: int, camera: str, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames of `camera` as a clip, and at which of them each step is."""
        frames = store.frames(camera, index, 0, int(store.stream_lengths(camera)[index]))
        every = store.interface.cameras[camera].rate_hz / self._rate_hz
        taken = np.unique(
            np.append(np.rint(np.arange(0, len(frames) - 1, every)).astype(np.int64), len(frames) - 1)
        )  # its end too
        return frames[taken], np.minimum(np.floor(steps / every).astype(np.int64), len(taken) - 1)

    def _check(self, store: EpisodeStore, index: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, spec in self._specs.items():
            found = pictures[spec.kind].shape[1:] if spec.kind in PICTURES else None
            if found is not None and found != (spec.height, spec.width, 3):
                raise KineflowError(
                    f"{store.path}, episode {index}: its goal {spec.kind} has frames {list(found)}, goal '{name}' of the "
                    f"policy needs [{spec.height}, {spec.width}, 3]; correct policy.goals, or resize"
                )


@dataclass
class _Distinct:
    """Clips by what they show, each once, and which of them each episode has."""

    look: Look | None
    clips: list[np.ndarray] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def add(self, clip: np.ndarray) -> None:
        digest = content_digest(clip)
        if digest not in self.known:
            self.known[digest] = len(self.clips)
            self.clips.append(clip if self.look is None else self.look(digest, clip))
        self.places.append(self.known[digest])


class _Pictures:
    """Clips behind each other; a frame past the end of its clip is the last one. Episode i has clip `places[i]`."""

    def __init__(self, clips: Sequence[np.ndarray], places: Sequence[int]) -> None:
        last = np.array([len(clip) - 1 for clip in clips])
        self.last, self._first = last[places], (np.cumsum(last + 1) - last - 1)[places]
        self._values = np.concatenate(clips)

    def at(self, clip: Int64[np.ndarray, "B ..."], frame: Int64[np.ndarray, "B ..."]) -> np.ndarray:
        found: np.ndarray = self._values[self._first[clip] + np.minimum(frame, self.last[clip])]
        return found
