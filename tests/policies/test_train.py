"""The training loop: it learns, it resumes bit for bit after SIGKILL, and it refuses what does not fit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kineflow.config import load_config, save_config
from kineflow.contracts import ContractError, FeatureSpec, KineflowError
from kineflow.policies.augmentation import AffineSymmetry
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.ema import ExponentialMovingAverage
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import MIP, Diffusion, FlowMap, FlowMatching, Regression
from kineflow.policies.optimiser import Optimiser, adamw
from kineflow.policies.policy import PolicyNetwork, TrainingBatch
from kineflow.policies.train import TrainConfig, Trainer, TrainError, resume_run, train
from tests.policies.conftest import INTERFACE, STATE, make_store


def curve(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time_s", "wait_share")} for line in lines]


def test_learns_and_reports(trained: Path) -> None:
    records = curve(trained)
    assert records[-1]["step"] == 300
    assert records[-1]["loss"] < 0.35 * records[0]["loss"]
    validations = [r["validation_loss"] for r in records if "validation_loss" in r]
    assert len(validations) == 3
    assert validations[-1] < validations[0]
    assert list((trained / "tensorboard").glob("events*"))
    assert load_config(TrainConfig, trained / "config.yaml").steps == 300


def test_same_seed_same_weights_other_seed_other_weights(config: TrainConfig, tmp_path: Path) -> None:
    short = replace(config, steps=5)
    first, second = train(short, tmp_path / "a").network.state_dict(), train(short, tmp_path / "b").network.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = train(replace(short, seed=1), tmp_path / "c").network.state_dict()
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_threads_that_read_ahead_change_nothing_but_the_waiting(config: TrainConfig, tmp_path: Path) -> None:
    runs = [tmp_path / str(threads) for threads in (0, 3)]
    networks = [train(replace(config, steps=12, data_threads=int(run.name)), run).network.state_dict() for run in runs]
    assert all(torch.equal(networks[0][k], networks[1][k]) for k in networks[0])
    assert curve(runs[0]) == curve(runs[1])
    shares = [json.loads(line)["wait_share"] for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert len(shares) == 12
    assert all(0 <= share <= 1 for share in shares)


def start(run: Path, config_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kineflow.cli", "train", str(config_file), "--run", str(run)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_resumed_continues_bit_for_bit(config: TrainConfig, tmp_path: Path, seed: int) -> None:
    """Dropout, condition dropout, symmetry and several noises per window: every source of chance is on."""
    shaky = replace(
        config.policy,
        objective=FlowMatching(condition_dropout=0.2, steps=2),
        encoder=replace(config.policy.encoder, dropout=0.1),
    )
    config = replace(config, policy=shaky, steps=400, checkpoint_every=25, noise_samples=2, symmetry=QUARTER_TURN)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, whole)
    save_config(config, tmp_path / "config.yaml")
    process = start(broken, tmp_path / "config.yaml")
    lines_wanted = random.Random(seed).randint(30, 150)  # well before the end: a busy machine looks late
    deadline = time.monotonic() + 300  # a busy machine takes its time
    while not (broken / "metrics.jsonl").exists() or (broken / "metrics.jsonl").read_bytes().count(b"\n") < lines_wanted:
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert curve_length(broken) < 400
    resume_run(broken)
    assert curve(broken) == curve(whole)
    for name in ("model", "ema"):
        ours, theirs = (load_file(r / "checkpoints" / "00000400" / f"{name}.safetensors") for r in (broken, whole))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def curve_length(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n")


QUARTER_TURN = AffineSymmetry(
    state_matrix=((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    state_offset=(0.0, 0.0, np.pi / 2),
    action_matrix=((0.0, -1.0), (1.0, 0.0)),
    action_offset=(0.0, 0.0),
    angles=(2,),
)


def test_half_written_checkpoint_is_ignored(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, steps=20), tmp_path / "r")
    partial = tmp_path / "r" / "checkpoints" / "00000030.partial"
    shutil.copytree(tmp_path / "r" / "checkpoints" / "00000020", partial)
    (partial / "ema.safetensors").write_bytes(b"cut")
    assert load_policy(tmp_path / "r").contract.horizons == config.policy.horizons


def test_resume_without_checkpoint_starts_over(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    Trainer(config, tmp_path / "r").start()
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1, "loss": 9, "lr": 0, "time_s": 0}\n{"step": 2, "lo')
    resume_run(tmp_path / "r")
    assert curve(tmp_path / "r") == curve(tmp_path / "whole")


def test_resume_on_other_data_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.eps")
    train(replace(config, store=store, steps=10), tmp_path / "r")
    shutil.rmtree(store)
    make_store(store, seed=5)
    with pytest.raises(TrainError, match="holds other episodes than this run was trained on"):
        resume_run(tmp_path / "r")
    shutil.rmtree(store)
    faster = replace(INTERFACE, features={"state": FeatureSpec(STATE, 20.0)})
    make_store(store, interface=faster)
    with pytest.raises(ContractError, match="rate_hz is 10 in the policy and 20 here"):
        resume_run(tmp_path / "r")


def test_a_run_folder_is_never_overwritten(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(config, tmp_path / "r").start()
    with pytest.raises(TrainError, match=r"holds a run already; continue it with `kineflow train --resume"):
        train(config, tmp_path / "r")
    with pytest.raises(TrainError, match="not a run folder"):
        resume_run(tmp_path / "nothing")


def test_unknown_feature_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    wrong = replace(config, policy=replace(config.policy, features=("stat",)))
    with pytest.raises(KineflowError, match="'stat'"):
        train(wrong, tmp_path / "r")


def test_diverging_training_stops(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="gradient is not finite at step"):
        train(replace(config, optimiser=Optimiser(learning_rate=1e30, warmup_steps=0, gradient_clip=1e30)), tmp_path / "r")


HEADS = [UNet(channels=(8, 16), groups=4, signal_width=16), DiT(width=16, depth=1, attention_heads=2)]
OBJECTIVES = [FlowMatching(per_action_time=True), Diffusion(), FlowMap(method="lsd"), Regression(), MIP()]


@pytest.mark.parametrize("head", HEADS, ids=lambda h: type(h).__name__)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_every_head_with_every_objective(
    config: TrainConfig, tmp_path: Path, head: UNet | DiT, objective: FlowMatching | Diffusion | FlowMap | Regression | MIP
) -> None:
    policy = replace(config.policy, head=head, objective=objective, action_scaling="range")
    config = replace(config, policy=policy, steps=3, validate_every=3)
    train(config, tmp_path / "r")
    restored = load_policy(tmp_path / "r")  # replays the golden pair
    assert restored.network.config == policy
    assert np.isfinite(restored.contract.golden.actions).all()
    assert load_config(TrainConfig, tmp_path / "r" / "config.yaml") == config


def test_mixed_precision_trains(config: TrainConfig, tmp_path: Path) -> None:
    exact, mixed = (
        train(replace(config, steps=40, precision=p), tmp_path / p).network.state_dict() for p in ("float32", "bfloat16")
    )
    assert all(v.dtype == torch.float32 for v in mixed.values())
    losses = {p: curve(tmp_path / p)[-1]["loss"] for p in ("float32", "bfloat16")}
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert not all(torch.equal(exact[k], mixed[k]) for k in exact)


def test_validation_episodes_are_not_trained_on(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config, tmp_path / "r")
    whole = [
        trainer.data.training.read(np.arange(len(trainer.data.training))),
        trainer.data.validation.read(np.arange(len(trainer.data.validation))),
    ]
    radii = [set(np.round(np.hypot(w.state[:, -1, 0], w.state[:, -1, 1]), 3)) for w in whole]
    assert len(radii[1]) == 2
    assert radii[0].isdisjoint(radii[1])


def test_checkpoint_holds_averaged_and_live_weights(trained: Path) -> None:
    folder = trained / "checkpoints" / "00000300"
    averaged, live = load_file(folder / "ema.safetensors"), load_file(folder / "model.safetensors")
    loaded = load_policy(trained).network.state_dict()
    assert all(torch.equal(loaded[k], averaged[k]) for k in averaged)
    assert not all(torch.equal(live[k], averaged[k]) for k in averaged)


def test_statistics_are_of_the_training_episodes_only(config: TrainConfig, tmp_path: Path) -> None:
    data = Trainer(config, tmp_path / "r").data
    seen = data.training.read(np.arange(len(data.training))).state[:, -1].astype(np.float64)
    np.testing.assert_allclose(data.statistics["state"].mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.statistics["state"].std, seen.std(0), rtol=1e-6)
    assert data.statistics["state"].count == len(seen)


def test_training_batches_are_augmented_and_validation_batches_are_not(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(replace(config, symmetry=QUARTER_TURN), tmp_path / "r")
    states: list[np.ndarray] = []
    loss = PolicyNetwork.loss

    def watched(self: PolicyNetwork, batch: TrainingBatch, *rest: object) -> torch.Tensor:
        states.append(batch.observed.state.numpy())
        return loss(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PolicyNetwork, "loss", watched)
    next(trainer.steps())
    trainer.validation_loss()
    original = [reader.read(np.arange(len(reader))).state for reader in (trainer.data.training, trainer.data.validation)]
    known = [{row.tobytes() for row in rows} for rows in original]
    turned = [row.tobytes() not in known[0] for row in states[0]]
    assert 0 < sum(turned) < len(turned)
    assert all(row.tobytes() in known[1] for rows in states[1:] for row in rows)


def test_validation_uses_the_averaged_weights(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config, tmp_path / "r")
    before = trainer.validation_loss()
    torch.nn.init.normal_(trainer.network.head.outputs.weight, std=10.0)
    assert trainer.validation_loss() == before
    torch.nn.init.normal_(trainer.ema.network.head.outputs.weight, std=10.0)
    assert trainer.validation_loss() != before


def test_gradients_are_clipped(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(replace(config, optimiser=Optimiser(gradient_clip=1e-3)), tmp_path / "r")
    next(trainer.steps())
    squares = [p.grad.square().sum() for p in trainer.network.parameters() if p.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-2)


def test_weight_decay_is_on_matrices_only() -> None:
    layer = torch.nn.Linear(3, 3)
    optimizer = adamw(layer, learning_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias.detach(), before["bias"])


def cut_weights(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, r"model\.safetensors: cannot be read"),
        (
            lambda c: (c / "train_state" / "state.json").unlink(),
            r"train_state: cannot be resumed from .* remove .*00000010 to go on",
        ),
        (lambda c: (c / "train_state" / "optimizer.safetensors").write_bytes(b"x"), "train_state: cannot be resumed from"),
    ],
)
def test_damaged_checkpoints_are_refused_on_resume(
    config: TrainConfig, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    train(replace(config, steps=10), tmp_path / "r")
    damage(tmp_path / "r" / "checkpoints" / "00000010")
    with pytest.raises(KineflowError, match=message):
        resume_run(tmp_path / "r")


def test_edited_policy_is_refused_on_resume(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, steps=10), tmp_path / "r")
    file = tmp_path / "r" / "config.yaml"
    file.write_text(file.read_text().replace("token: 16", "token: 8"))
    with pytest.raises(TrainError, match="its `policy` is not that of"):
        resume_run(tmp_path / "r")


def test_padded_actions_can_be_masked(config: TrainConfig, tmp_path: Path) -> None:
    """With mask_padding the loss does not depend on what stands after the end of an episode."""
    trainer = Trainer(replace(config, mask_padding=True), tmp_path / "r")
    window = trainer.data.training.read(np.array([29]))
    assert window.action_is_pad.sum() == 7
    batch = trainer._batch(np.array([29]), trainer.data.training)
    torch.nn.init.normal_(trainer.network.head.outputs.weight)

    def loss(action: torch.Tensor) -> float:
        return float(trainer.network.loss(replace(batch, action=action), torch.Generator().manual_seed(0)).detach())

    changed_pad, changed_real = batch.action.clone(), batch.action.clone()
    changed_pad[:, 1:] += 1e-3
    changed_real[:, 0] += 1
    # The noised input of padded steps does change; with weights zero only the real step is compared.
    assert batch.weight[0].tolist() == [1.0] + [0.0] * 7
    assert loss(changed_pad) == pytest.approx(loss(batch.action), rel=1e-2)
    assert loss(changed_real) != pytest.approx(loss(batch.action), rel=1e-2)


def test_learning_rate_warms_up_and_anneals() -> None:
    factors = [Optimiser(learning_rate=1.0, warmup_steps=10).rate(step, 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:11] == pytest.approx([1.0, 1.0])
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0, abs=1e-12)


def test_ema_is_the_running_average() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialMovingAverage(network, decay=0.5)
    expected = network.weight.item()
    for step, value in enumerate([3.0, -1.0, 2.0, 8.0]):
        torch.nn.init.constant_(network.weight, value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.network.weight.item() == pytest.approx(expected, rel=1e-6)


def test_symmetry_is_applied_to_half_and_closes(config: TrainConfig) -> None:
    from kineflow.contracts import Window

    rng = np.random.default_rng(0)
    state = rng.normal(size=(1000, 2, 3)).astype(np.float32)
    state[..., 2] %= 2 * np.pi
    window = Window(state, rng.normal(size=(1000, 8, 2)).astype(np.float32), np.zeros((1000, 2), bool), np.zeros((1000, 8), bool))
    turned = QUARTER_TURN(window, rng)
    changed = (turned.state != window.state).any((1, 2))
    assert 400 < changed.sum() < 600
    assert ((turned.action != window.action).any((1, 2)) == changed).all()
    four_turns = state
    for _ in range(4):
        four_turns = QUARTER_TURN.state(four_turns)
    np.testing.assert_allclose(np.cos(four_turns), np.cos(state), atol=1e-5)


def test_symmetry_of_wrong_size_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    wrong = replace(QUARTER_TURN, state_matrix=((1.0,),), state_offset=(0.0,))
    with pytest.raises(ContractError, match=r"symmetry.state_matrix has shape \(1, 1\), the state has 3 dimensions"):
        Trainer(replace(config, symmetry=wrong), tmp_path / "r")
