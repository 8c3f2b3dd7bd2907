"""A time budget becomes a number of steps before training starts, so that a run stays reproducible and resumable."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from kineflow.policies.train import TrainConfig, Trainer

# Enough steps for a median that ignores the first ones, which pay for allocation.
WARM_STEPS, TIMED_STEPS, TIMED_SECONDS = 8, 400, 6.0


def fit_to_minutes(config: TrainConfig, minutes: float) -> TrainConfig:
    """`config` with `steps` measured to take about `minutes` on this machine, validation and checkpoints included."""
    step_s, extra_s = measure(config)
    validations = 20
    budget_s = minutes * 60 - validations * extra_s
    steps = max(20, int(budget_s / step_s))
    return replace(config, steps=steps, validate_every=max(1, steps // validations), checkpoint_every=max(1, steps // 5))


def measure(config: TrainConfig) -> tuple[float, float]:
    """Median seconds of one training step, and of one validation."""
    with tempfile.TemporaryDirectory() as folder:
        never = replace(config, steps=10**9, validate_every=10**9, checkpoint_every=10**9)
        trainer = Trainer(never, Path(folder))
        steps = trainer.steps()
        for _ in range(WARM_STEPS):
            next(steps)
        times: list[float] = []
        while len(times) < TIMED_STEPS and sum(times) < TIMED_SECONDS:
            start = time.perf_counter()
            next(steps)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.validation_loss()
        return median(times), time.perf_counter() - start
