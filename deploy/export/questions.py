"""Random questions that fit a contract: what parity is measured on, latency is timed with, and int8 is calibrated by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kineflow.contracts import CommittedPrefix, FeatureStatistics, GoalSpec, Observation, PolicyContract, SamplingRequest

WORDS = "go to the red door"  # also those of the golden pair

Question = tuple[Observation, SamplingRequest]


def random_questions(
    contract: PolicyContract, count: int, seed: int, *, steps: int | None = None, prefixes: bool = False
) -> list[Question]:
    """Questions of one row: states as the training data's, pictures smooth or of noise, each way to tell the goal in turn, and
    with `prefixes` a previous chunk in every second one."""
    rng = np.random.default_rng(seed)
    return [_question(contract, rng, number, steps, prefixes and number % 2 == 1) for number in range(count)]


def _question(contract: PolicyContract, rng: np.random.Generator, number: int, steps: int | None, has_prefix: bool) -> Question:
    interface, horizons = contract.interface, contract.horizons
    parts = [_values(contract.statistics[name], horizons.observation, rng) for name in interface.features]
    state = np.concatenate(parts, axis=-1) if parts else np.zeros((horizons.observation, 0), np.float32)
    images = {
        name: _pictures((horizons.observation, camera.height, camera.width, 3), rng, smooth=number % 4 != 3)
        for name, camera in interface.cameras.items()
    }
    goal: dict[str, np.ndarray] = {}
    words: tuple[str, ...] = ()
    if interface.goals:
        names = sorted(interface.goals)
        told = names[number % len(names)]
        if interface.goals[told].kind == "instruction":
            words = (WORDS,)
        else:
            goal[told] = _goal(interface.goals[told], rng, smooth=number % 4 != 3)
    stamps = np.arange(horizons.observation, dtype=np.float64) / interface.action.rate_hz
    in_rows = Observation(state[None], stamps[None], _rows(images), _rows(goal), words)
    prefix = _prefix(contract, rng) if has_prefix else None
    return in_rows, SamplingRequest(rng.integers(0, 2**62, 1), steps=steps, prefix=prefix)


def _rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in arrays.items()}


def _values(statistics: FeatureStatistics, length: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A value of the training data's spread, and a small change of it from step to step."""
    mean, std = np.asarray(statistics.mean), np.asarray(statistics.std)
    low, high = np.asarray(statistics.min), np.asarray(statistics.max)
    value = mean + std * rng.normal(size=len(mean)) + 0.05 * std * rng.normal(size=(length, len(mean))).cumsum(axis=0)
    return np.asarray(np.clip(value, low, np.maximum(low, high)), np.float32)


def _pictures(shape: tuple[int, ...], rng: np.random.Generator, *, smooth: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Of noise, or of a few colours that run into each other and move a little from frame to frame."""
    if not smooth:
        return rng.integers(0, 256, shape, np.uint8)
    length, height, width, _ = shape
    down, right = np.meshgrid(np.linspace(0, 4, height), np.linspace(0, 4, width), indexing="ij")
    phase, slope, drift = rng.uniform(0, 6.3, 3), rng.uniform(-2, 2, (3, 2)), rng.uniform(-0.2, 0.2, 3)
    steps = np.arange(length)[:, None, None, None] * drift
    waves = np.sin(slope[:, 0] * down[..., None] + slope[:, 1] * right[..., None] + phase + steps)
    return np.rint(127.5 + 120 * waves + rng.uniform(-7, 7, shape)).clip(0, 255).astype(np.uint8)


def _goal(spec: GoalSpec, rng: np.random.Generator, *, smooth: bool) -> np.ndarray:
    if spec.kind in ("image", "video"):
        frames = _pictures((max(spec.frames, 1), spec.height, spec.width, 3), rng, smooth=smooth)
        return frames if spec.kind == "video" else frames[0]
    return rng.normal(size=spec.shape).astype(np.float32)


def _prefix(contract: PolicyContract, rng: np.random.Generator) -> CommittedPrefix:
    horizon, statistics = contract.horizons.prediction, contract.statistics["action"]
    actions = _values(statistics, horizon, rng)
    mask = np.clip(np.linspace(1.5, -0.5, horizon), 0, 1).astype(np.float32)
    return CommittedPrefix(actions[None], mask[None], delay=1)
