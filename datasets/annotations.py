"""Spans and goals of the episodes of a segment as arrays; each is absent where no episode has any.

    spans              int64 [S, 5]          episode, start_ns, stop_ns, text, language
    goals/table        int64 [G, 8]          episode, name, kind, frame, height, width, first, count
    goals/pose         float32 [n, 7]        goals of kind pose; `first` is the row here, `count` is 1
    goals/point        float32 [n, 3]        likewise
    goals/frames_<H>x<W>  uint8 [n, H, W, 3]  images (count 1) and videos of this size, stored as a lossless camera is

`episode` is the row in `episodes/`; texts, names, frames and languages are places in the attribute `labels` of `episodes/`
(-1: empty, and of a language: "und"); `kind` is the place in `GOAL_KINDS`, height and width are 0 for poses and points.
Goals that are equal may share their rows, within a segment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from kineflow.contracts import Episode, Goal, Span
from kineflow.datasets.codecs import LZ4HC, encode_frames
from kineflow.datasets.zarr_v3 import Files, ReadFile, decode_frames, decode_vectors, encode_shards, encode_vectors, group

GoalKind = Literal["image", "video", "pose", "point"]
GOAL_KINDS: tuple[GoalKind, ...] = get_args(GoalKind)
GOAL_WIDTHS = {"pose": 7, "point": 3}
NO_LANGUAGE = "und"


def label_of(language: str) -> str:
    """The label of a language: "und", not known, is the empty one, so that it takes no room."""
    return "" if language == NO_LANGUAGE else language


def annotation_labels(episode: Episode) -> Iterator[str]:
    """Every text that the spans and goals of `episode` refer to."""
    for span in episode.spans:
        yield from (span.text, label_of(span.language))
    for name, goal in episode.goals.items():
        yield from (name, goal.frame)


def encode_annotations(episodes: Sequence[Episode], place: Mapping[str, int]) -> Files:
    """Files of all spans and goals; `place` gives the number of each label."""
    files: Files = {}
    spans = [
        (row, span.start_ns, span.stop_ns, place[span.text], place[label_of(span.language)])
        for row, episode in enumerate(episodes)
        for span in episode.spans
    ]
    if spans:
        files |= encode_vectors("spans", np.array(spans, np.int64))
    table, values, place_of = [], dict[str, list[np.ndarray]](), dict[tuple[str, bytes], int]()
    for row, episode in enumerate(episodes):
        for name, goal in episode.goals.items():
            rows = goal.value if goal.kind == "video" else goal.value[None]
            height, width = (0, 0) if goal.kind in GOAL_WIDTHS else rows.shape[1:3]
            array = _array_of(goal.kind, height, width)
            held, key = values.setdefault(array, []), (array, hashlib.blake2b(rows.tobytes()).digest())
            if key not in place_of:  # episodes that were to follow one clip share its frames
                place_of[key] = sum(map(len, held))
                held.append(rows)
            extent = (height, width, place_of[key], len(rows))
            table.append((row, place[name], GOAL_KINDS.index(goal.kind), place[goal.frame], *extent))
    if table:
        files |= {"goals/zarr.json": group({"kinds": GOAL_KINDS}), **encode_vectors("goals/table", np.array(table, np.int64))}
    for path, parts in values.items():
        files |= _encode_values(path, np.concatenate(parts))
    return files


def decode_spans(table: np.ndarray, row: int, labels: Sequence[str]) -> tuple[Span, ...]:
    """Spans of episode `row`, in the order in which they were written; `labels` ends with the empty one."""
    found = table[table[:, 0] == row].tolist()
    return tuple(Span(labels[text], start, stop, labels[language] or NO_LANGUAGE) for _, start, stop, text, language in found)


def decode_goals(table: np.ndarray, row: int, labels: Sequence[str], read: ReadFile) -> dict[str, Goal]:
    """Goals of episode `row` by name, in the order in which they were written; `labels` ends with the empty one."""
    goals = {}
    for _, name, number, frame, height, width, first, count in table[table[:, 0] == row].tolist():
        kind = GOAL_KINDS[number]
        decode = decode_vectors if kind in GOAL_WIDTHS else decode_frames
        values = decode(_array_of(kind, height, width), read, first, first + count)
        goals[labels[name]] = Goal(kind, values if kind == "video" else values[0], labels[frame])
    return goals


def _array_of(kind: str, height: int, width: int) -> str:
    return f"goals/{kind}" if kind in GOAL_WIDTHS else f"goals/frames_{height}x{width}"


def _encode_values(path: str, values: np.ndarray) -> Files:
    if values.ndim == 2:
        return encode_vectors(path, values)
    return encode_shards(path, encode_frames(values, LZ4HC), values.shape[1:], LZ4HC)
