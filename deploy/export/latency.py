"""How long an exported policy takes for a chunk, as a robot asks: one new frame each time, everything else seen before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kineflow.contracts import ActionChunk, Observation, Policy, SamplingRequest
from kineflow.deploy.export.questions import random_questions
from kineflow.deploy.exported_manifest import LatencyResult

WARM_UP = 3
LEAST_CALLS = 10


@dataclass(frozen=True)
class Timed:
    """What is timed, in the words of the report."""

    model: str
    runtime: str
    precision: str
    steps: int
    threads: int


def latency(policy: Policy, what: Timed, seconds: float = 1.5) -> LatencyResult:
    """Of one call of `predict`, batch 1, for about `seconds`."""
    own_steps = policy.contract.sampler.steps == what.steps  # policies without steps to choose refuse even their own number
    observation, request = random_questions(policy.contract, 1, 1, steps=None if own_steps else what.steps)[0]
    load, times = os.getloadavg()[0], list[float]()
    call = _as_it_drives(policy.predict, observation, request)
    for _ in range(WARM_UP):
        call()
    while len(times) < LEAST_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, [50, 95]) * 1e3
    least = min(times) * 1e3
    named = (what.model, what.runtime, what.precision, what.steps, what.threads)
    return LatencyResult(*named, float(p50), float(p95), least, len(times), load)


def _as_it_drives(
    predict: Callable[[Observation, SamplingRequest], ActionChunk], observation: Observation, request: SamplingRequest
) -> Callable[[], ActionChunk]:
    """Calls with the cameras' windows one frame further each time."""
    rng, windows = np.random.default_rng(0), dict(observation.images)

    def call() -> ActionChunk:
        for name, frames in windows.items():
            newest = rng.integers(0, 256, frames[:, -1:].shape, np.uint8)
            windows[name] = np.concatenate([frames[:, 1:], newest], axis=1)
        return predict(replace(observation, images=dict(windows)), request)

    return call
