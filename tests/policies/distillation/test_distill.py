"""`kineflow distill`: a student of every method answers in few calls what its teacher answers in ten; resume; refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kineflow.cli import main
from kineflow.config import load_config, save_config
from kineflow.contracts import KineflowError, Observation, SamplingRequest
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.distillation.distill import distill, student_config
from kineflow.policies.distillation.methods import METHODS
from kineflow.policies.distillation.one_step import OneStep
from kineflow.policies.distillation.reflow import Reflow
from kineflow.policies.distillation.teacher_policy import TeacherPolicy
from kineflow.policies.distillation.teaching import DistillationError
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.heads.arc import Arc
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import MIP, Diffusion, FlowMatching, Regression
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.train import TrainConfig, Trainer, TrainError, resume_run, train
from tests.policies.conftest import POLICY, make_store

ROWS = 64


def trained_teacher(objective: FlowMatching | Diffusion | MIP | Regression, folder: Path, store: Path, steps: int) -> Path:
    config = TrainConfig(
        policy=replace(POLICY, objective=objective),
        store=store,
        steps=steps,
        batch_size=64,
        optimiser=Optimiser(learning_rate=3e-3, warmup_steps=10, ema_decay=0.95),
        validate_every=1000,
        checkpoint_every=1000,
        log_every=10,
        validation_fraction=0.25,
        threads=1,
    )
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, store_path: Path) -> Path:
    """A flow policy of ten steps; tests must not change it."""
    return trained_teacher(FlowMatching(), tmp_path_factory.mktemp("teacher") / "flow", store_path, 200)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory, store_path: Path) -> Path:
    """An epsilon policy on a hundred levels; tests must not change it."""
    return trained_teacher(Diffusion(clip=3.0), tmp_path_factory.mktemp("teacher") / "diffusion", store_path, 200)


def answers(run: Path, steps: int | None = None) -> np.ndarray:
    """Chunks, in units of the network, for states of circles that no episode drives; one seed per row."""
    rng = np.random.default_rng(7)
    angle, radius = rng.uniform(0, 6, ROWS), rng.uniform(1, 2, ROWS)
    past = [angle + 0.1 * k for k in range(2)]
    state = np.stack([np.stack([radius * np.cos(a), radius * np.sin(a), a % (2 * np.pi)], -1) for a in past], 1)
    policy = load_policy(run)
    request = SamplingRequest(np.arange(ROWS), steps=steps)
    actions = policy.predict(Observation(state.astype(np.float32), np.zeros((ROWS, 2))), request).actions
    scaled: np.ndarray = actions / policy.network.action_scale.numpy()
    return scaled


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


@pytest.mark.parametrize("method", METHODS)
def test_one_call_says_what_ten_calls_of_the_teacher_say(flow: Path, tmp_path: Path, method: str) -> None:
    """Same noise, same chunk. One call of the teacher itself is the bound that a student without lessons cannot pass."""
    run = distill(flow, method, run=tmp_path / "student", training_steps=120)
    student = load_policy(run)
    assert student.contract.sampler.steps == 1
    wanted = answers(flow)
    assert distance(answers(run), wanted) < 0.5 * distance(answers(flow, steps=1), wanted)
    before, after = (load_policy(r).network.encoder.state_dict() for r in (flow, run))
    assert all(torch.equal(after[k], before[k]) for k in before), "the encoder is the teacher's"
    assert student.contract.statistics == load_policy(flow).contract.statistics
    assert load_config(TrainConfig, run / "config.yaml").distillation == METHODS[method](flow)
