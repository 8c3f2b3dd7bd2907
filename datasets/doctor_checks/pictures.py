"""What is odd in the pictures: the same one again while things move, and cameras that changed places between episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, UInt8

from kineflow.datasets.doctor_checks.finding import DoctorConfig, Finding
from kineflow.datasets.doctor_checks.recordings import Recordings
from kineflow.datasets.segment import ACTION, Segment

_GRID, _BINS = 8, 16
_SEEN = 4  # frames of an episode that its signature is made of
_CLEAR = 0.75  # of the episodes must look like one of the two cameras before a swap is claimed
_DUPLICATE_REMEDY = "the camera or its driver repeats frames: lower its exposure time or nominal rate, or drop the repeated ones"
_SWAP_REMEDY = "exchange the two streams of these episodes and write them again; give cameras fixed names by serial number"


def picture_findings(recordings: Recordings, config: DoctorConfig) -> Iterator[Finding]:
    for camera in recordings.cameras:
        first = 0
        for segment in recordings.store.segments:
            for row in range(segment.entry.episodes):
                yield from _duplicates(recordings, segment, row, first + row, camera, config)
            first += segment.entry.episodes
    yield from _swaps(recordings, config)


def _duplicates(
    recordings: Recordings, segment: Segment, row: int, episode: int, camera: str, config: DoctorConfig
) -> Iterator[Finding]:
    first, length = (int(column[row]) for column in segment.extent(camera))
    stamps = recordings.stamps(camera, episode)
    sizes = segment.payload_sizes(camera, first, first + length)
    alike = np.flatnonzero(sizes[1:] == sizes[:-1]) + 1  # frames of another length are other frames
    alike = alike[_moved(recordings, episode, stamps, alike) > config.duplicate_motion] if len(alike) else alike
    if len(alike) == 0:
        return
    needed = np.unique(np.concatenate([alike - 1, alike]))
    kept: dict[int, bytes] = {}
    for run in np.split(needed, np.flatnonzero(np.diff(needed) > 1) + 1):
        start, stop = int(run[0]), int(run[-1]) + 1
        kept |= dict(zip(range(start, stop), segment.payloads(camera, first + start, first + stop), strict=True))
    same = [step for step in alike.tolist() if kept[step] == kept[step - 1]]
    if same:
        share = len(same) / max(length - 1, 1)
        problem = (
            f"{len(same)} of {length} frames equal the frame before them to the last bit while "
            f"{_movers(recordings)} moved; steps {', '.join(map(str, same[:8]))}{', ...' if len(same) > 8 else ''}"
        )
        yield recordings.finding(
            "duplicate", episode, camera, problem, _DUPLICATE_REMEDY, step=same[0], value=share,
            spans_ns=[(int(stamps[s - 1]), int(stamps[s])) for s in same],
        )  # fmt: skip


def _watched(recordings: Recordings) -> list[str]:
    """What shows in a picture when it moves: measured values, and the action only where nothing is measured."""
    measured = [name for name in recordings.moving_streams if name != ACTION and recordings.visible(name).any()]
    return measured or [ACTION]


def _movers(recordings: Recordings) -> str:
    return f"'{_watched(recordings)[0]}'" + (" or others" if len(_watched(recordings)) > 1 else "")


def _moved(recordings: Recordings, episode: int, stamps: np.ndarray, steps: np.ndarray) -> Float[np.ndarray, "k"]:
    """Largest change of any watched value from frame step - 1 to frame step, as a share of its usual range."""
    most = np.zeros(len(steps))
    for name in _watched(recordings):
        scale, own = recordings.scale(name), recordings.stamps(name, episode)
        values = recordings.values(name, episode)
        # The sample before or at each frame: the picture can show nothing newer.
        before, after = (np.maximum(np.searchsorted(own, stamps[i], side="right") - 1, 0) for i in (steps - 1, steps))
        change = np.abs(values[after].astype(np.float64) - values[before]) / np.where(recordings.visible(name), scale, np.inf)
        most = np.maximum(most, change.max(1))
    return most


def _swaps(recordings: Recordings, config: DoctorConfig) -> Iterator[Finding]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, camera in recordings.store.interface.cameras.items():
        if camera.kind == "rgb":
            shapes.setdefault(camera.frame_shape, []).append(name)
    for alike in shapes.values():
        if len(alike) < 2 or recordings.number < 3:  # of two episodes nobody can say which is the usual one
            continue
        signatures = {name: _signatures(recordings, name) for name in alike}
        for one, other in combinations(alike, 2):
            score = exchange_scores(signatures[one], signatures[other])
            if (np.abs(score) > config.swap_margin).mean() < _CLEAR:
                continue  # the two look alike, or each episode is in another place: nothing can be said
            for episode in np.flatnonzero(score < -config.swap_margin).tolist():
                usual = int((score > config.swap_margin).sum())
                problem = (
                    f"cameras '{one}' and '{other}' look exchanged: each shows what the other one shows in the {usual} other "
                    f"episodes (likeness {-score[episode]:.2f} to the other, of 1)"
                )
                whole = recordings.stamps(one, episode)[[0, -1]].tolist()
                yield recordings.finding(
                    "camera_swap", episode, one, problem, _SWAP_REMEDY, spans_ns=[(whole[0], whole[1])], step=0,
                    value=-float(score[episode]), threshold=config.swap_margin,
                )  # fmt: skip


def exchange_scores(one: Float[np.ndarray, "E S"], other: Float[np.ndarray, "E S"]) -> Float[np.ndarray, "E"]:
    """Of each episode +1: each camera looks as it usually does; -1: as the other one usually does; 0: nothing can be said.

    First every episode is compared with the first one, then with the medians of all that are turned as the majority is.
    """
    usual = _likeness(one, other, one[0], other[0]) >= 0
    if usual.mean() < 0.5:
        usual = ~usual
    for _ in range(3):
        turned = np.where(usual[:, None], one, other), np.where(usual[:, None], other, one)
        score = _likeness(one, other, np.median(turned[0], axis=0), np.median(turned[1], axis=0))
        usual = score >= 0
    return score


def _likeness(one: np.ndarray, other: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kept = np.abs(one - a).sum(1) + np.abs(other - b).sum(1)
    exchanged = np.abs(one - b).sum(1) + np.abs(other - a).sum(1)
    return np.asarray((exchanged - kept) / np.maximum(exchanged + kept, 1e-9))


def _signatures(recordings: Recordings, camera: str) -> Float[np.ndarray, "E S"]:
    lengths = recordings.store.stream_lengths(camera)
    return np.stack([_signature(_some_frames(recordings, camera, e, int(n))) for e, n in enumerate(lengths)])


def _some_frames(recordings: Recordings, camera: str, episode: int, length: int) -> Sequence[np.ndarray]:
    steps = np.unique(np.linspace(0, length - 1, _SEEN).round().astype(int)).tolist()
    return [recordings.store.frames(camera, episode, step, step + 1)[0] for step in steps]


def _signature(frames: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Float[np.ndarray, "S"]:
    """A tiny mean picture (where is what) and histograms of the colours (what is it), about as heavy as each other."""
    mean = np.mean([frame.astype(np.float64) / 255 for frame in frames], axis=0)
    rows, columns = (np.array_split(np.arange(size), min(_GRID, size)) for size in mean.shape[:2])
    tiny = np.array([[mean[r][:, c].mean((0, 1)) for c in columns] for r in rows])
    pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames])
    colours = np.stack([np.histogram(pixels[:, c], bins=_BINS, range=(0, 256))[0] / len(pixels) for c in range(3)])
    return np.concatenate([tiny.ravel() * 48 / tiny.size, colours.ravel() * 4])
