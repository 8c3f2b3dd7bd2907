"""The golden pair: one input and the output it gave when the checkpoint was written, replayed to catch silent changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kineflow.contracts import ActionChunk, GoldenPair, Horizons, Interface, Observation, SamplingRequest

if TYPE_CHECKING:  # exported policies are checked without torch
    from kineflow.policies.policy import PolicyNetwork

Predict: TypeAlias = Callable[[Observation, SamplingRequest], ActionChunk]

SEED = 0
# Across machines the same weights differ by rounding only; a wrong normaliser or a changed layer differs by far more.
TOLERANCE = 1e-3


def golden_pair(network: PolicyNetwork) -> GoldenPair:
    """The network's answer to the mean state of its training data, and to frames of noise, with seed 0."""
    return recorded(network.predict, network.interface, network.config.horizons, network.state_statistics.mean)


def golden_error(network: PolicyNetwork, golden: GoldenPair) -> float:
    """Largest difference between the answer now and the recorded one, relative to the largest action."""
    return error_of(network.predict, network.interface, golden)


def recorded(predict: Predict, interface: Interface, horizons: Horizons, mean: Sequence[float]) -> GoldenPair:
    """The pair of anything that predicts; `mean` is the state that it is asked at."""
    state = np.tile(np.asarray(mean, dtype=np.float32), (horizons.observation, 1))
    actions = _answer(predict, interface, state, SEED)
    return GoldenPair(state=_rows(state), seed=SEED, actions=_rows(actions))


def error_of(predict: Predict, interface: Interface, golden: GoldenPair) -> float:
    actions = _answer(predict, interface, np.asarray(golden.state, dtype=np.float32), golden.seed)
    expected = np.asarray(golden.actions)
    return float(np.abs(actions - expected).max() / (np.abs(expected).max() + 1e-9))


def _answer(predict: Predict, interface: Interface, state: np.ndarray, seed: int) -> np.ndarray:
    frames = np.random.default_rng(seed)  # an image is too large for a contract, the seed of one is not
    images = {
        name: frames.integers(0, 256, (1, len(state), camera.height, camera.width, 3), np.uint8)
        for name, camera in sorted(interface.cameras.items())
    }
    goal = {
        name: frames.integers(0, 256, (1, *spec.shape), np.uint8)
        if spec.kind in ("image", "video")
        else np.zeros((1, *spec.shape), np.float32)
        for name, spec in sorted(interface.goals.items())
        if spec.kind != "instruction"
    }
    words = ("go to the red door",) if any(spec.kind == "instruction" for spec in interface.goals.values()) else ()
    observation = Observation(state[None], np.zeros((1, len(state))), images, goal, words)
    chunk = predict(observation, SamplingRequest(seeds=np.array([seed], dtype=np.int64)))
    actions: np.ndarray = chunk.actions[0]
    return actions


def _rows(array: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in array)
