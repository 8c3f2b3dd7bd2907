"""The training loop: windows in, checkpoints out. `kineflow train configs/train/pusht_flow.yaml --run runs/mine`

Every random number is a function of (seed, step), and a checkpoint holds the optimiser and the sampler's position, so a
killed run that is resumed continues bit for bit on the same CPU and thread count.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import kineflow
from kineflow.config import load_config, save_config
from kineflow.contracts import KineflowError, PolicyContract, Window
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.windows import WindowReader
from kineflow.policies.checkpoint import ChunkPolicy, checkpoint_steps, load_weights, read_contract
from kineflow.policies.distillation.mix_flow import PreviousChunk
from kineflow.policies.distillation.teacher_policy import TeacherPolicy
from kineflow.policies.ema import ExponentialMovingAverage
from kineflow.policies.fine_tuning import Parent
from kineflow.policies.frozen_weights import save_network
from kineflow.policies.golden import golden_pair
from kineflow.policies.metrics_log import forget_after, log_record
from kineflow.policies.observed import Earlier, Observed, clip_times, seen
from kineflow.policies.optimiser import adamw
from kineflow.policies.policy import PolicyConfig, PolicyNetwork, TrainingBatch
from kineflow.policies.precision import autocast
from kineflow.policies.provenance import package_versions
from kineflow.policies.train_config import TrainConfig as TrainConfig
from kineflow.policies.train_console import device_named, say_left_out, training_progress
from kineflow.policies.train_state import commit_folder, load_train_state, save_train_state
from kineflow.policies.training_data import TrainingData


class TrainError(KineflowError):
    """Training cannot start or go on."""


def train(config: TrainConfig, run: Path, *, resume: bool = False) -> ChunkPolicy:
    """Train into the folder `run` and return the averaged policy. Raises KineflowError for data or folders that do not fit."""
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config, run)
    trainer.resume() if resume else trainer.start()
    say_left_out(trainer.data.left_out, len(trainer.data.training) + len(trainer.data.validation))
    with training_progress() as progress, SummaryWriter(str(run / "tensorboard"), purge_step=trainer.step) as board:
        bar = progress.add_task("train", total=config.steps, completed=trainer.step, loss=math.nan)
        for record in trainer.steps():
            progress.update(bar, completed=trainer.step, loss=record["loss"])
            trainer.log(record, board)
    return trainer.policy()


def resume_run(run: Path) -> ChunkPolicy:
    """`kineflow train --resume RUN`: nothing else to type, the run folder knows its configuration."""
    if not (run / "config.yaml").is_file():
        raise TrainError(
            f"{run}: no config.yaml, so this is not a run folder; start one with `kineflow train CONFIG --run {run}`"
        )
    return train(load_config(TrainConfig, run / "config.yaml"), run, resume=True)


class Trainer:
    """Data, network, optimiser and position of one run."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        self.config, self.run, self.step, self.started_s = config, run, 0, time.monotonic()
        self.device = torch.device(device_named(config.device))
        store = EpisodeStore.open(config.store)
        self.data = TrainingData.load(store, config)
        if config.symmetry:
            interface = self.data.interface
            config.symmetry.check(self.data.state, interface.action.vector, interface.cameras)
        self.teacher = self._teacher()
        parent = Parent(config.start_from, config.policy, self.data.interface, str(self.device)) if config.start_from else None
        if parent:
            self.data = replace(self.data, statistics={**self.data.statistics, **parent.statistics})
        torch.manual_seed(config.seed)  # initial weights
        self.network = PolicyNetwork(config.policy, self.data.interface, self.data.statistics).to(self.device)
        for earlier in (self.teacher, parent):
            if earlier:
                earlier.prepare(self.network)
        self.ema = ExponentialMovingAverage(self.network, config.optimiser.ema_decay)
        self.optimizer = adamw(self.network, config.optimiser.learning_rate, config.optimiser.weight_decay)
        self.loader = self.data.loader(config)
        self.generator = torch.Generator(self.device)

    def start(self) -> None:
        if (self.run / "metrics.jsonl").exists():
            raise TrainError(
                f"{self.run}: holds a run already; continue it with `kineflow train --resume {self.run}` or name another folder"
            )
        self.run.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.run / "config.yaml")
        (self.run / "metrics.jsonl").touch()

    def resume(self) -> None:
        """Back to the newest whole checkpoint (or the beginning); later lines of metrics.jsonl are dropped, they come again."""
        if steps := checkpoint_steps(self.run):
            folder = self.run / "checkpoints" / f"{steps[-1]:08d}"
            self._check_same_data(folder)
            load_weights(self.network, folder / "model.safetensors")
            load_weights(self.ema.network, folder / "ema.safetensors")
            self.step = load_train_state(folder / "train_state", self.optimizer, self.loader)
        self.started_s -= forget_after(self.run, self.step)  # time goes on from there too

    def _check_same_data(self, folder: Path) -> None:
        contract, where, found = read_contract(folder), f"store {self.config.store}", self.data.dataset_hash
        contract.require(self.data.interface, where)
        if load_config(PolicyConfig, folder / "config.yaml") != self.config.policy:
            raise TrainError(f"{self.run}/config.yaml: its `policy` is not that of {folder}; put it back, or start a new run")
        if contract.dataset_hash != found:
            raise TrainError(
                f"{where} holds other episodes than this run was trained on "
                f"(hash {found[:12]}, was {contract.dataset_hash[:12]}); put the old store back, or start a new run"
            )

    def steps(self) -> Iterator[dict[str, float]]:
        """One optimiser step per iteration, with a record of it; validates and checkpoints on schedule and at the end."""
        config = self.config
        self.network.train()
        while self.step < config.steps:
            self._seed(self.step)
            rate = config.optimiser.rate(self.step, config.steps)
            loaded = next(self.loader)
            loss = self._update(self._batch(loaded.indices, self.data.training, loaded.window), rate)
            self.ema.update(self.step)
            self.step += 1
            last = self.step == config.steps
            record = {"step": self.step, "loss": loss, "lr": rate, "time_s": time.monotonic() - self.started_s}
            if self.step % config.validate_every == 0 or last:
                record["validation_loss"] = self.validation_loss()
            yield record
            if self.step % config.checkpoint_every == 0 or last:
                self.save()

    def _update(self, batch: TrainingBatch, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.precision):
            loss = self._loss(self.network, batch, self.config.noise_samples, self.step / self.config.steps)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.gradient_clip)
        if not torch.isfinite(norm):
            raise TrainError(
                f"the gradient is not finite at step {self.step} (loss {float(loss.detach()):.4g}); "
                "lower optimiser.learning_rate, or look for outliers with `kineflow data doctor`"
            )
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss of the averaged weights on the held-out episodes, same noise every time."""
        self._seed(-1)
        chunks = np.array_split(np.arange(len(self.data.validation)), max(1, len(self.data.validation) // self.config.batch_size))
        network = self.ema.network
        with autocast(self.device, self.config.precision):
            losses = [float(self._loss(network, self._batch(i, self.data.validation), 1, 1.0)) * len(i) for i in chunks]
        return sum(losses) / len(self.data.validation)

    def _loss(self, network: PolicyNetwork, batch: TrainingBatch, noise_samples: int, progress: float) -> Tensor:
        if self.teacher:
            return self.teacher.loss(network, batch, self.generator, noise_samples, progress)
        return network.loss(batch, self.generator, noise_samples)

    def _teacher(self) -> TeacherPolicy | None:
        """Loaded once; the student takes its statistics, so that both mean the same by a normalised chunk."""
        config = self.config
        if config.distillation is None:
            return None
        teacher = TeacherPolicy.load(config.distillation, config.policy, self.data.interface, str(self.device))
        self.data = replace(self.data, statistics=dict(teacher.contract.statistics))
        return teacher

    def _batch(self, indices: np.ndarray, reader: WindowReader, loaded: Window | None = None) -> TrainingBatch:
        """Windows `indices` of `reader`; `loaded`: they are read already, and augmented because they are trained on."""
        augment = loaded is not None
        window = self._augmented(loaded or reader.read(indices), augment)
        weight = ~window.action_is_pad if self.config.mask_padding else np.ones_like(window.action_is_pad)
        hidden, earlier = self._moved(window.state[..., len(self.network.state_statistics.mean) :]), None
        hidden, done = (hidden[..., :-1], hidden[:, -1, -1]) if self.config.policy.stop else (hidden, None)
        known = self.data.privileged(hidden) if self.data.privileged else None
        if isinstance(self.config.distillation, PreviousChunk):  # mirrored where the windows themselves are
            before, gone = reader.earlier(indices, self.config.policy.horizons.execution)
            earlier = Earlier(self._seen(self._augmented(reader.read(before), augment)), self._moved(gone))
        action, counts = self._moved(window.action), self._moved(weight.astype(np.float32))
        times = clip_times(window.goals, self.device)
        return TrainingBatch(self._seen(window), action, counts, known, earlier, done, *times)

    def _augmented(self, window: Window, augment: bool) -> Window:
        if augment and self.config.symmetry:
            window = self.config.symmetry(window, np.random.default_rng((self.config.seed, self.step)))
        return window

    def _seen(self, window: Window) -> Observed:
        return seen(window, len(self.network.state_statistics.mean), self.device)

    def _moved(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def policy(self) -> ChunkPolicy:
        """The averaged weights with their contract."""
        network, data, config = self.ema.network, self.data, self.config.policy
        spec, golden = config.objective.sampler_spec(), golden_pair(network)
        versions = {"kineflow": kineflow.__version__, **package_versions()}
        contract = PolicyContract(data.interface, config.horizons, spec, data.statistics, data.dataset_hash, versions, golden)
        return ChunkPolicy(network, contract)

    def save(self) -> None:
        """Write one checkpoint: whole, or not at all."""
        final = self.run / "checkpoints" / f"{self.step:08d}"
        staging = final.with_name(f"{final.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        self.policy().save_pretrained(staging)
        save_network(self.network, staging / "model.safetensors")
        save_train_state(staging / "train_state", self.step, self.optimizer, self.loader)
        commit_folder(staging, final)

    def log(self, record: dict[str, float], board: SummaryWriter) -> None:
        """A line in metrics.jsonl and points in TensorBoard, every `log_every` steps and at each validation."""
        if record["step"] % self.config.log_every == 0 or "validation_loss" in record:
            log_record(self.run, {**record, "wait_share": self.loader.wait_share()}, board)

    def _seed(self, step: int) -> None:
        """Noise, times and dropout of a step depend on (seed, step) alone: nothing to save, nothing to drift."""
        words = np.random.SeedSequence((self.config.seed, step + 1)).generate_state(2, np.uint64)
        self.generator.manual_seed(int(words[0] >> 1))
        torch.manual_seed(int(words[1] >> 1))
