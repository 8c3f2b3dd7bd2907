"""A time budget becomes a number of steps before training starts, so that a run stays reproducible and resumable."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from kineflow.policies.train import TrainConfig, Trainer

# Enough steps for a median that ignores the first ones, which pay for allocation.
WARM_STEPS, TIMED_STEPS = 5, 300


def choose_threads(config: TrainConfig) -> TrainConfig:
    """`threads` 0 becomes the faster of one thread and all cores: on a busy or small machine more is often slower."""
    cores = os.cpu_count() or 1
    if config.threads or config.device not in ("auto", "cpu") or torch.cuda.is_available() or cores == 1:
        return config
    candidates = [replace(config, threads=n) for n in (1, cores)]
    return min(candidates, key=lambda candidate: measure(candidate, seconds=3.0)[0])


def fit_to_minutes(config: TrainConfig, minutes: float) -> TrainConfig:
    """`config` with `steps` measured to take about `minutes` on this machine, validation and checkpoints included."""
    step_s, extra_s = measure(config)
    validations = 20
    budget_s = minutes * 60 - validations * extra_s
    steps = max(20, int(budget_s / step_s))
    return replace(config, steps=steps, validate_every=max(1, steps // validations), checkpoint_every=max(1, steps // 5))


def measure(config: TrainConfig, seconds: float = 6.0) -> tuple[float, float]:
    """Median seconds of one training step, and of one validation; times steps for about `seconds`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        never = replace(config, steps=10**9, validate_every=10**9, checkpoint_every=10**9)
        trainer = Trainer(never, Path(folder))
        steps = trainer.steps()
        for _ in range(WARM_STEPS):
            next(steps)
        times: list[float] = []
        while len(times) < TIMED_STEPS and sum(times) < seconds:
            start = time.perf_counter()
            next(steps)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.validation_loss()
        return median(times), time.perf_counter() - start
