"""How well a way was driven. Pure functions of what was recorded; definitions as in the literature, formulas in the docstrings.

None of them is shown to a policy, and none scales a trajectory by its goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from kineflow.contracts import KineflowError

AT_REST_MPS, AT_REST_RADPS = 0.05, 0.1
SAME_WAY = 0.75  # cosine between motion and reference from which they have one direction
MOVING_M = 0.01  # steps shorter than this have no direction


@dataclass(frozen=True)
class TripMetrics:
    """One episode: lengths in metres, shares 0..1. `goal_error` is the distance from the goal at the end.

    `ate` is the mean distance to the reference path, `ate_straight` to the straight line from start to goal.
    `stop_ok`: it came to rest at the end, within the radius. `false_stops`: times it rested elsewhere (0.5 s or longer).
    """

    goal_error: float
    success_1m: bool
    success_05m: bool
    path_length: float
    shortest_length: float
    spl: float
    collisions: int
    ate: float
    ate_straight: float
    direction_accuracy: float
    stop_ok: bool
    false_stops: int


def trip_metrics(
    positions: Float[np.ndarray, "T 2"],
    velocities: Float[np.ndarray, "T 4"],
    touched: Bool[np.ndarray, "T"],
    reference: Float[np.ndarray, "N 2"],
    radius_m: float = 1.0,
    rate_hz: float = 10.0,
) -> TripMetrics:
    """Metrics of one episode from what it did: positions x, y (m), velocities (m/s, rad/s), contact with obstacles.

    `reference` is the path it was to take; its end is the goal.
    """
    if len(positions) < 2 or len(reference) < 2:
        raise KineflowError(
            f"metrics need at least 2 positions and 2 points of the reference, got {len(positions)}, {len(reference)}"
        )
    goal = reference[-1]
    error = float(np.hypot(*(positions[-1] - goal)))
    shortest = path_length(reference)
    length = path_length(positions)
    resting = is_at_rest(velocities)
    stop_ok = bool(resting[-1]) and error <= radius_m
    return TripMetrics(
        goal_error=error,
        success_1m=error <= 1.0,
        success_05m=error <= 0.5,
        path_length=length,
        shortest_length=shortest,
        spl=spl([error <= radius_m], [length], [shortest]),
        collisions=events(touched),
        ate=float(distances_to_path(positions, reference).mean()),
        ate_straight=float(distances_to_path(positions, np.stack([reference[0], goal])).mean()),
        direction_accuracy=direction_accuracy(positions, reference),
        stop_ok=stop_ok,
        false_stops=false_stops(positions, resting, goal, radius_m, round(0.5 * rate_hz)),
    )


def path_length(points: Float[np.ndarray, "N 2"]) -> float:
    """Sum of the distances between neighbours, m."""
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


def spl(success: Sequence[bool], taken: Sequence[float], shortest: Sequence[float]) -> float:
    """Success weighted by path length (Anderson et al. 2018): mean of S * shortest / max(taken, shortest)."""
    done, actual, best = (np.asarray(v, dtype=np.float64) for v in (success, taken, shortest))
    if len(done) == 0 or not (len(done) == len(actual) == len(best)) or not (best > 0).all():
        raise KineflowError(
            f"SPL needs as many successes as lengths, and shortest ways above 0, got {success}, {taken}, {shortest}"
        )
    return float((done * best / np.maximum(actual, best)).mean())


def distances_to_path(positions: Float[np.ndarray, "T 2"], path: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "T"]:
    """Distance of each position to the nearest point on the straight pieces of `path`, m. Its mean is the ATE."""
    return _nearest(positions, path)[0]


def direction_accuracy(positions: Float[np.ndarray, "T 2"], path: Float[np.ndarray, "N 2"]) -> float:
    """Share of steps whose motion has a cosine above 0.75 with the path's direction where it is nearest.

    Steps of less than 1 cm have no direction and do not count; without any other the share is 0.
    """
    motion = np.diff(positions, axis=0)
    lengths = np.hypot(*motion.T)
    moving = lengths > MOVING_M
    if not moving.any():
        return 0.0
    pieces = np.diff(path, axis=0)
    directions = pieces / np.maximum(np.hypot(*pieces.T), 1e-9)[:, None]
    wanted = directions[_nearest(positions[:-1][moving], path)[1]]
    cosine = (motion[moving] * wanted).sum(axis=1) / lengths[moving]
    return float((cosine > SAME_WAY).mean())


def is_at_rest(velocities: Float[np.ndarray, "T 4"]) -> Bool[np.ndarray, "T"]:
    """Slower than 0.05 m/s and 0.1 rad/s."""
    return np.asarray((np.hypot(velocities[:, 0], velocities[:, 1]) < AT_REST_MPS) & (np.abs(velocities[:, 3]) < AT_REST_RADPS))


def events(flags: Bool[np.ndarray, "T"]) -> int:
    """How many runs of True there are: a touch that lasts is one."""
    return int((flags & ~np.concatenate([[False], flags[:-1]])).sum())


def false_stops(
    positions: Float[np.ndarray, "T 2"], resting: Bool[np.ndarray, "T"], goal: Float[np.ndarray, "2"], radius_m: float, steps: int
) -> int:
    """How often it rested for at least `steps` farther than `radius_m` from the goal, after it had begun to move."""
    began = int(np.argmax(~resting)) if not resting.all() else len(resting)
    away = resting & (np.hypot(*(positions - goal).T) > radius_m)
    away[:began] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], away.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2] >= steps).sum())


def _nearest(positions: Float[np.ndarray, "T 2"], path: Float[np.ndarray, "N 2"]) -> tuple[Float[np.ndarray, "T"], np.ndarray]:
    """Distance to the nearest straight piece of the path, and which one that is."""
    start, piece = path[:-1], np.diff(path, axis=0)
    squared = np.maximum((piece**2).sum(axis=1), 1e-18)
    offset = positions[:, None] - start
    share = np.clip((offset * piece).sum(axis=2) / squared, 0.0, 1.0)
    gaps = np.hypot(*np.moveaxis(offset - share[:, :, None] * piece, 2, 0))
    return gaps.min(axis=1), gaps.argmin(axis=1)
