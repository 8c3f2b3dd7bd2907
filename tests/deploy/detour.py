"""The toy of the deployment notes, 4.5, in closed form: a point goes round an obstacle, left or right, and both are as good.

y  |      ,--.        start at x = -1, goal beyond x = 1; the policy's law of chunks is a mixture of two plans, each back to
   | ---.' () `.---   its own side of the obstacle from wherever the point is; which side is open while |y| is small
   |     `----'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kineflow.contracts import (
    ActionChunk,
    FeatureSpec,
    Interface,
    Observation,
    PolicyContract,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.control import Control, Governs, Ungoverned
from kineflow.deploy.executor import Executor
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.simulate import Trace, simulated
from kineflow.deploy.together import asks_together, drive_together
from kineflow.policies.analytic import Mixture
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.paths import CondOT
from kineflow.policies.real_time_chunking import CommittedStart, committed_start, continue_prefix
from kineflow.policies.samplers import RowNoise, euler, uniform_time_grid
from tests.deploy.closed_form import contract

HORIZON, EXECUTION, STEPS = 16, 4, 5
SPEED, SIDE, RADIUS = 0.6, 0.6, 0.32  # m/s along x; m that a path keeps from the middle; m of the obstacle
STEP_S, STD = 0.1, 0.05
DETOUR_M = 0.45  # half width of a path's bow
DECIDED = 40.0  # 1/m: how fast the side is settled by y


def interface() -> Interface:
    place = VectorSpec(("x", "y"), ("m", "m"), "world", (-9.0, -9.0), (9.0, 9.0))
    velocity = VectorSpec(("vx", "vy"), ("m/s", "m/s"), "world", (-9.0, -9.0), (9.0, 9.0))
    return Interface({"place": FeatureSpec(place, 10.0)}, FeatureSpec(velocity, 10.0))


def bow(x: np.ndarray) -> np.ndarray:
    return SIDE * np.exp(-((x / DETOUR_M) ** 4))


def plans(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places `[B, 2]` to the weights `[B, 2]` and velocities `[B, 2, H, 2]` of the two plans."""
    side = np.array([1.0, -1.0])
    x = place[:, None, :1] + SPEED * STEP_S * np.arange(HORIZON)  # [B, 1, H]
    y, velocities = np.repeat(place[:, 1:], 2, axis=1), []
    for step in range(HORIZON):
        ahead = side * bow(x[..., step] + SPEED * STEP_S)  # [B, 2]
        velocity = np.clip((ahead - y) / (2 * STEP_S), -1.5, 1.5)
        velocities.append(velocity)
        y = y + velocity * STEP_S
    across = np.stack(velocities, axis=-1)
    left = 1 / (1 + np.exp(-DECIDED * place[:, 1]))
    return np.stack([left, 1 - left], axis=1), np.stack([np.full_like(across, SPEED), across], axis=-1)


@dataclass(frozen=True)
class TwoWays:
    """A policy that needs no training: Euler steps of the mixture's own field, with prefixes as trained policies take them."""

    contract: PolicyContract

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        weights, means = (torch.from_numpy(v) for v in plans(observation.state[:, -1].astype(np.float64)))
        field = Mixture(weights, means, torch.full_like(means, STD))
        shape, units = (
            (len(weights), HORIZON, 2),
            ActionUnits(torch.ones(HORIZON, 2).double(), torch.zeros(1, HORIZON, 2).double()),
        )
        noise, solver = RowNoise(request.seeds, (HORIZON, 2), torch.float64), euler
        guided = field
        if request.prefix is not None and request.prefix.method == "start":
            solver = CommittedStart(euler, *committed_start(request.prefix, shape, units))
        elif request.prefix is not None:
            guided = continue_prefix(request.prefix, shape, units, STEPS)(field)
        chunk = solver(guided, noise.draw(), uniform_time_grid(CondOT(), STEPS), None, noise)
        return ActionChunk(chunk.numpy().astype(np.float32), STEP_S, observation.stamp_s[:, -1])


class Point:
    """The simulated robot."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.place = np.array([-1.0, self._rng.normal(0, 0.01)])
        self.steps, self.hit, self._wanted, self._told = 0, False, list[np.ndarray](), -1

    def advance(self, now_s: float) -> None:
        while (self.steps + 1) * STEP_S <= now_s + 1e-9:
            velocity = np.mean(self._wanted, axis=0) if self._wanted else np.zeros(2)
            self.place = self.place + STEP_S * velocity + self._rng.normal(0, 0.003, 2)
            self.hit |= bool(np.hypot(*self.place) < RADIUS)
            self.steps, self._wanted = self.steps + 1, []

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        if self._told < self.steps:
            self._told = self.steps
            yield "place", self.place.astype(np.float32), self.steps * STEP_S

    def command(self, values: np.ndarray, now_s: float) -> None:
        self._wanted.append(values)

    def arrived(self) -> None:
        pass

    @property
    def is_done(self) -> bool:
        return self.hit or self.place[0] > 1.0

    @property
    def success(self) -> bool:
        return not self.hit and self.place[0] > 1.0 and abs(self.place[1]) < 0.2


@dataclass(frozen=True)
class Score:
    success: float
    jump: float  # p99 of the change of the wanted velocity where a new chunk took over, m/s
    limited: float  # the same of the command
    traces: Sequence[Trace]


def score(
    mode: str,
    delay: int,
    episodes: int = 48,
    governor: Callable[[], Governs] | None = None,
    rate_hz: float = 10.0,
    **config: object,
) -> Score:
    """Episodes with answers `delay` actions late."""
    made = contract(HORIZON, EXECUTION, 1, clean_start=8, interface=interface())
    robots, running = [Point(seed) for seed in range(episodes)], []
    for seed, robot in enumerate(robots):
        executor = Executor(made, ExecutorConfig(mode=mode, initial_delay=delay, seed=seed, **config))  # type: ignore[arg-type]
        control = Control(executor, governor() if governor else Ungoverned(lambda: np.zeros(2, np.float32)))
        running.append(simulated(control, robot, lambda question: delay * STEP_S, rate_hz, 8.0))
    traces = drive_together(running, asks_together(TwoWays(made)))
    jumps = np.concatenate([trace.jumps for trace in traces])
    limited = np.concatenate([trace.limited_jumps for trace in traces])
    success = float(np.mean([robot.success for robot in robots]))
    return Score(success, float(np.percentile(jumps, 99)), float(np.percentile(limited, 99)), traces)
