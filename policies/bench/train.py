"""`kineflow bench train`: steps per second of the real training loop beside the bare loop on tensors in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from kineflow.config import load_config
from kineflow.datasets.convert import import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.policies.bench.rows import Row
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.unet import UNet
from kineflow.policies.train import TrainConfig, Trainer

REQUIRED = 0.9
WAITING = 0.02  # most of the time that a step waits for data


def bench_train(*, quick: bool) -> Iterator[Row]:
    """Quick: the demo's own configuration. Full: also the U-Net and DiT heads, batch 128, one noise per window."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "pusht.eps"
        import_data("diffusion-policy-zarr", demo_data(), store)
        never = 10**9
        config = replace(load_config(TrainConfig, "train/pusht_flow"), store=store, steps=never)
        config = replace(config, validate_every=never, checkpoint_every=never)
        yield _row("mlp", config, Path(folder) / "mlp", rounds=8 if quick else 16)
        yield _wait_row(config, Path(folder) / "wait", steps=100 if quick else 400)
        small = replace(config, batch_size=128, noise_samples=1)
        heads: dict[str, UNet | DiT] = (
            {} if quick else {"unet": UNet(channels=(64, 128, 192)), "dit": DiT(width=128, depth=4, patch=2)}
        )
        for name, head in heads.items():
            yield _row(name, replace(small, policy=replace(config.policy, head=head)), Path(folder) / name, rounds=10)


def _row(name: str, config: TrainConfig, run: Path, rounds: int) -> Row:
    trainer, bare = Trainer(config, run), _BareLoop(Trainer(config, run))
    steps = trainer.steps()

    def trained() -> None:
        next(steps)

    ours: list[float] = []
    reference: list[float] = []
    block = 5
    for index in range(rounds + 2):
        times = (_seconds(trained, block), _seconds(bare.step, block))
        if index >= 2:  # the first two pay for allocation
            ours.append(block / times[0])
            reference.append(block / times[1])
    ratio = median(a / b for a, b in zip(ours, reference))
    note = (
        f"batch {config.batch_size} x {config.noise_samples} noises, {torch.get_num_threads()} threads; "
        "each measurement is a block of 5 steps; ours adds windows, augmentation, noise, normalisation, clipping, EMA, schedule"
    )
    version = f"torch {torch.__version__}: encoder + head forward, MSE, backward, fused AdamW on one fixed batch of drawn tensors"
    return Row(
        f"train.{name}",
        median(ours),
        "steps/s",
        "higher",
        median(reference),
        version,
        ratio,
        f"ratio >= {REQUIRED}",
        ratio >= REQUIRED,
        rounds,
        note,
    )


def _wait_row(config: TrainConfig, run: Path, steps: int) -> Row:
    trainer = Trainer(config, run)
    taken = trainer.steps()
    for _ in range(5):
        next(taken)  # the first ones pay for allocation
    trainer.loader.wait_share()
    for _ in range(steps):
        next(taken)
    share, goal = trainer.loader.wait_share(), f"<= {WAITING} of the time"
    note = f"share of {steps} steps of the demo spent waiting for the loader, {config.data_threads} thread"
    trainer.loader.close()
    return Row("train.mlp.waiting", share, "", "lower", None, "", None, goal, share <= WAITING, 1, note)


class _BareLoop:
    """The network and optimiser of a trainer on tensors in memory: inputs, times and targets were drawn before."""

    def __init__(self, trainer: Trainer) -> None:
        self.network, self.optimizer = trainer.network.train(), trainer.optimizer
        self.samples = trainer.config.noise_samples
        batch = trainer._batch(next(trainer.loader).indices, trainer.data.training)
        trainer.loader.close()
        self.observed = batch.observed
        self.x = torch.randn(len(batch.action) * self.samples, *batch.action.shape[1:])
        self.t, self.target = torch.rand(len(self.x)), torch.randn_like(self.x)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        condition = self.network.encoder(self.observed).repeat(self.samples, 1, 1)
        error = self.network.head(self.x, self.t, condition) - self.target
        error.square().mean().backward()
        self.optimizer.step()


def _seconds(function: Callable[[], None], times: int) -> float:
    start = perf_counter()
    for _ in range(times):
        function()
    return perf_counter() - start
