"""Policies and robots whose answers can be written down: what they saw is in what they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kineflow.contracts import (
    ActionChunk,
    FeatureSpec,
    FeatureStatistics,
    GoldenPair,
    Horizons,
    Interface,
    PolicyContract,
    SamplerSpec,
    VectorSpec,
)
from kineflow.deploy.asking import Question
from kineflow.deploy.control import Control, Ungoverned
from kineflow.deploy.executor import Executor
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.observations import ObservationLimits

STEP_S = 0.1
WIDE = (-1e6, -1e6)


def contract(
    prediction: int = 8, execution: int = 4, observation: int = 2, clean_start: int = 0, interface: Interface | None = None
) -> PolicyContract:
    """State "count" [1] and an action of two numbers, both at 10 Hz."""
    count = VectorSpec(("count",), ("1",), "none", WIDE[:1], (1e6,))
    action = VectorSpec(("seen", "index"), ("1", "1"), "none", WIDE, (1e6, 1e6))
    interface = interface or Interface({"count": FeatureSpec(count, 10.0)}, FeatureSpec(action, 10.0))
    size = interface.action.vector.size
    statistics = {
        name: FeatureStatistics(1, *((float(i == 1),) * spec.vector.size for i in range(6)))
        for name, spec in {**interface.features, "action": interface.action}.items()
    }
    golden = GoldenPair(((0.0,),), 0, ((0.0,) * size,))
    sampler = SamplerSpec("none", "none", "none", 1, clean_start=clean_start)
    return PolicyContract(interface, Horizons(observation, prediction, execution), sampler, statistics, "", {}, golden)


def tell_tale(made: PolicyContract, question: Question) -> ActionChunk:
    """Each action says which count was seen last, and which of the chunk it is."""
    seen = question.observation.state[:, -1, 0]
    horizon = made.horizons.prediction
    actions = np.stack([np.stack([np.full(horizon, s), np.arange(horizon)], axis=1) for s in seen]).astype(np.float32)
    return ActionChunk(actions, STEP_S, question.observation.stamp_s[:, -1])


def executor(mode: str = "async", made: PolicyContract | None = None, **config: object) -> Executor:
    limits = config.pop("observations", ObservationLimits())
    return Executor(made or contract(), ExecutorConfig(mode=mode, observations=limits, **config))  # type: ignore[arg-type]


def control(of: Executor) -> Control:
    return Control(of, Ungoverned(lambda: np.full(2, np.nan, np.float32)))


class Counting:
    """A robot that counts: at k / 10 s its sensor says k. `silent` says between which times its sensor is off."""

    def __init__(self, limit_s: float = 3.0, start_s: float = 0.0, silent: tuple[float, float] = (np.inf, np.inf)) -> None:
        self.limit_s, self.start_s, self.silent = limit_s, start_s, silent
        self.counted, self.told, self.now_s = -1, -1, start_s
        self.commands: list[tuple[float, np.ndarray]] = []

    def advance(self, now_s: float) -> None:
        self.now_s = now_s
        self.counted = int((now_s - self.start_s) / STEP_S + 1e-6)

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        for k in range(self.told + 1, self.counted + 1):
            stamp_s = self.start_s + k * STEP_S
            if not self.silent[0] <= stamp_s - self.start_s < self.silent[1]:
                yield "count", np.array([k], np.float32), stamp_s
        self.told = self.counted

    def command(self, values: np.ndarray, now_s: float) -> None:
        self.commands.append((now_s, values))

    def arrived(self) -> None:
        pass

    @property
    def is_done(self) -> bool:
        return self.now_s - self.start_s > self.limit_s


def limits(**changes: float) -> ObservationLimits:
    return replace(ObservationLimits(), **changes)
