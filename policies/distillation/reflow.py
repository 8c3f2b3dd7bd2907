"""Reflow: train again on the pairs (eps, a) that the teacher's own ODE makes, instead of on independent ones.

Pairs of an ODE do not cross, so what the head must predict no longer changes along the way and few steps suffice.

- a flow policy becomes a straighter flow (Rectified Flow, InstaFlow: arXiv 2209.03003, 2309.06380);
- a diffusion policy keeps its schedule and its prediction: its paths become first order, eps_hat constant along each,
  which is all that a one-step DDIM jump needs (Rectified Diffusion, arXiv 2410.07303). `first_order_error` measures it.
- a smaller student starts from scratch. For it the pairs are annealed (SlimFlow, arXiv 2407.12718): the source
  eps' = sqrt(1 - b^2) eps + b z goes from fresh noise z (b = 1: what any untrained flow learns) to the pair's own (b = 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.distillation.teaching import NOTHING_FRESH, DistillationError, Lesson, deterministic, with_noise_levels
from kineflow.policies.field import Chunk, Field, Head, Level, Tokens
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.losses import Losses, draw_normal, draw_times
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.paths import over, variance_preserving
from kineflow.policies.policy import HeadConfig, PolicyConfig
from kineflow.policies.predictions import Denoised
from kineflow.policies.samplers import ddim

Annealing = Literal["none", "exponential", "cosine", "linear"]


@dataclass(frozen=True)
class Reflow:
    """The teacher's training loss with paired noise; the student keeps the teacher's path and prediction."""

    teacher: Path  # run folder
    annealing: Annealing = "none"
    annealing_share: float = 0.2  # K of the three schedules, as a share of the training
    times_per_pair: int = 4  # a pair costs a whole ODE of the teacher, a time of it one call of the student
    train_encoder: bool = False

    def __post_init__(self) -> None:
        if not self.annealing_share > 0 or self.times_per_pair < 1:
            raise DistillationError(
                "Reflow needs annealing_share > 0 and times_per_pair >= 1, "
                f"got {self.annealing_share:g} and {self.times_per_pair}"
            )

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled. Guidance is in the pairs already, so it has none of its own."""
        objective = with_noise_levels(teacher.objective)
        if isinstance(objective, FlowMap):
            raise DistillationError(
                "the teacher is a FlowMap policy, which jumps already; Reflow straightens FlowMatching and Diffusion policies, "
                "a smaller flow map is made with --method psd"
            )
        weakest = float(objective.path.at(torch.zeros(1, dtype=torch.float64)).alpha)
        if objective.prediction in ("epsilon", "score") and 0 < weakest < 0.02 and steps == 1:
            raise DistillationError(
                f"steps is 1, but an {objective.prediction} head on {objective.path} cannot jump from pure noise: its chunk is "
                f"(x - sigma eps) / alpha with alpha = {weakest:.1g}; take more steps, or a method whose student predicts a "
                "velocity: --method psd or onestep"
            )
        solver = deterministic(objective.solver)
        student = replace(objective, solver=solver, steps=steps, guidance_scale=1.0, condition_dropout=0.0)
        return replace(teacher, head=head or teacher.head, objective=student)

    def loss(self, objective: FlowMatching | Diffusion, head: Head, lesson: Lesson) -> Losses:
        """Each window's loss, over `times_per_pair` times of one pair."""
        noise = draw_normal(lesson.chunk, lesson.generator)
        sample = lesson.answer(noise)
        if self.annealing != "none":
            b = annealing(self.annealing, lesson.progress, self.annealing_share)
            noise = annealed_source(noise, draw_normal(noise, lesson.generator), b)
        many = replace(lesson, chunk=sample).repeated(self.times_per_pair)
        truth = Denoised(many.chunk, noise.repeat(self.times_per_pair, 1, 1))
        general = objective.general if isinstance(objective, Diffusion) else objective
        t = draw_times(general.path, general.times, many.chunk[:, 0, 0], lesson.generator)
        losses = general.regress(head, truth, t, many.condition, many.weight)
        return losses.view(self.times_per_pair, -1).mean(dim=0)


def annealing(schedule: Annealing, progress: float, share: float) -> float:
    """b at `progress` of the training, from 1 towards 0; K is `share` of the training."""
    k = progress / share
    match schedule:
        case "none":
            return 0.0
        case "exponential":
            return math.exp(-k)
        case "cosine":
            return (1 + math.cos(math.pi * min(k, 1))) / 2
        case "linear":
            return max(0.0, 1 - k)


def annealed_source(paired: Chunk, fresh: Chunk, b: float) -> Chunk:
    """sqrt(1 - b^2) eps + b z: standard normal for every b."""
    return math.sqrt(1 - b**2) * paired + b * fresh


def first_order_error(field: Field, noise: Chunk, lambdas: Float[Tensor, "N1"], condition: Tokens | None) -> Losses:
    """Each row's mean over the grid of |eps_hat - mean eps_hat|^2 along the field's own DDIM path.

    Zero: the path is first order, and one step ends where all of them do (Rectified Diffusion).
    """
    recorder = _Noises(field, [])
    ddim(recorder, noise, lambdas, condition, NOTHING_FRESH)
    noises = torch.stack(recorder.seen)
    return ((noises - noises.mean(dim=0)) ** 2).mean(dim=(0, 2, 3))


@dataclass(frozen=True)
class _Noises:
    """A Field that writes down eps_hat = (x - alpha a_hat) / sigma."""

    field: Field
    seen: list[Tensor]

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        sample = self.field(x, lam, condition)
        alpha, sigma = variance_preserving(over(lam, x))
        self.seen.append((x - alpha * sample) / sigma)
        return sample
