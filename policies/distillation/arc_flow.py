"""ArcFlow: one call describes a bent piece of the teacher's path (heads/arc.py), and the student learns its velocity there.

For a step from s to s' the head says v(t) for every t in between. It is compared with the teacher's velocity at states on the
student's own way, which is where sampling goes; early in training a share of the states, falling from 1 to 0, is taken from
the teacher's way instead. When the two velocities agree everywhere, the student's path is the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from kineflow.policies.distillation.teaching import DistillationError, Lesson, with_noise_levels
from kineflow.policies.field import Chunk, Head
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.flow_map_losses import Times
from kineflow.policies.heads.arc import Arc, ArcHead
from kineflow.policies.heads.guessing import Guessing
from kineflow.policies.losses import Losses, draw_normal, row_mean
from kineflow.policies.paths import over
from kineflow.policies.policy import HeadConfig, PolicyConfig

TEACHER_STEPS = 4  # midpoint steps of the teacher's way: good enough for a state to be asked about


@dataclass(frozen=True)
class ArcFlow:
    """A student of N bent steps; without a head of kind Arc the teacher's head gets that output layer."""

    teacher: Path  # run folder
    teacher_share: float = 0.2  # of the training, over which the states move from the teacher's way to the student's
    train_encoder: bool = False

    def __post_init__(self) -> None:
        if not self.teacher_share >= 0:
            raise DistillationError(f"ArcFlow.teacher_share is a share of the training, at least 0; got {self.teacher_share:g}")

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled."""
        with_noise_levels(teacher.objective)
        chosen = head or teacher.head
        plain = chosen.head if isinstance(chosen, Guessing) else chosen
        bent = plain if isinstance(plain, Arc) else Arc(plain)
        return replace(teacher, head=bent, objective=FlowMap(steps=steps))

    def loss(self, objective: FlowMap, head: Head, lesson: Lesson) -> Losses:
        """Squared difference of the velocities at one time of one step per row."""
        uniform = torch.rand(3, len(lesson.chunk), generator=lesson.generator, device=lesson.generator.device)
        which, inside, chance = uniform.to(lesson.chunk)
        start = torch.floor(which * objective.steps) / objective.steps
        elapsed = inside / objective.steps
        x = torch.lerp(draw_normal(lesson.chunk, lesson.generator), lesson.chunk, over(start, lesson.chunk))
        step = cast(ArcHead, head).step(x, start, lesson.condition)
        state = x + step.displacement(torch.zeros_like(elapsed), elapsed).detach()
        led = chance < 1 - lesson.progress / self.teacher_share if self.teacher_share else chance < 0
        if bool(led.any()):
            state = torch.where(over(led, x), _led(lesson, x, start, elapsed), state)
        error = step.velocity(elapsed) - lesson.velocity(state, start + elapsed)
        return row_mean(error**2, lesson.weight)


def _led(lesson: Lesson, x: Chunk, start: Times, elapsed: Times) -> Chunk:
    """Where the teacher's ODE goes from `x` in `elapsed`, by a few midpoint steps."""
    h = elapsed / TEACHER_STEPS
    for k in range(TEACHER_STEPS):
        t = start + k * h
        middle = x + over(h / 2, x) * lesson.velocity(x, t)
        x = x + over(h, x) * lesson.velocity(middle, t + h / 2)
    return x
