"""Recorded demonstrations: streams with their own clocks, what is known about them, and where they are kept. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from kineflow.interface import Interface

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64


@dataclass(frozen=True)
class Stream:
    """One recorded stream: values along time and the sensor's own clock, int64 ns, strictly increasing."""

    values: np.ndarray  # [T, ...]
    stamp_ns: Int64[np.ndarray, "T"]


@dataclass(frozen=True)
class Span:
    """What was said or done from `start_ns` to `stop_ns` (exclusive) of an episode: a sub-task, a narration."""

    text: str
    start_ns: int
    stop_ns: int
    language: str = "und"  # BCP 47; "und": not known


@dataclass(frozen=True)
class Goal:
    """What an episode was to reach: an image uint8 [H, W, 3], a video uint8 [T, H, W, 3], a pose (x y z qx qy qz qw, float32
    [7]) or a point (x y z, float32 [3]), the last two in metres in `frame`."""

    kind: Literal["image", "video", "pose", "point"]
    value: np.ndarray
    frame: str = ""  # of a pose or point; of an image or video: the camera that took it


@dataclass(frozen=True)
class GoalBatch:
    """What each row of a batch is to reach, in every way that its policy can be told.

    `values[name]` is `[B, *GoalSpec.shape]`, or float16 features of its frames; where a row has no such goal, `given[name]` is
    False and its values are zeros. Words have no values: `instruction` holds them, "" where there are none. Known in training
    alone, in seconds of the clip: `ahead_s`, how far ahead of the first frame of its video a row is, and `left_s`, how much of
    the clip lies ahead of the row.
    """

    values: Mapping[str, np.ndarray]
    given: Mapping[str, Bool[np.ndarray, "B"]]
    instruction: tuple[str, ...]
    ahead_s: Float32[np.ndarray, "B"] | None = None
    left_s: Float32[np.ndarray, "B"] | None = None


@dataclass(frozen=True)
class Episode:
    """One demonstration. Every stream keeps its own timestamps; `action` is one of the streams.

    Rewards, where recorded, are the feature `reward` [T, 1]. Exact: what a store gives back is what was written, except
    frames that the store's codec may change (`CameraRecord.lossy`).
    """

    streams: Mapping[str, Stream]
    instruction: str = ""
    success: bool | None = None
    source: str = ""
    clock: str = "sensor"  # or e.g. "nominal_10hz" for data recorded without sensor clocks
    language: str = "und"  # BCP 47, of the instruction
    spans: tuple[Span, ...] = ()
    goals: Mapping[str, Goal] = field(default_factory=dict)
    split: str = ""  # "train", "validation", ...; "": none given
    seed: int | None = None  # >= 0, of a simulated episode
    operator: str = ""
    # Camera -> the source's own JPEG bytes [T], kept byte for byte; the stream's values are their decoding. Writing only.
    jpeg: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature over the training split, one value per dimension."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]


@runtime_checkable
class EpisodeStore(Protocol):
    """Committed episodes by index; conformance suite: tests/contracts/store_suite.py."""

    @property
    def interface(self) -> Interface: ...

    @property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        """Steps of each committed episode."""
        ...

    def episode(self, index: int) -> Episode:
        """Read and verify one episode."""
        ...

    def fingerprint(self) -> str:
        """Hash of the schema and of every episode: equal for equal contents, however they are split into segments."""
        ...
