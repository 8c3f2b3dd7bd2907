"""One call: regress the student's jump from pure noise on the chunk that the teacher makes of the same noise.

InstaFlow's last stage (arXiv 2309.06380), best after `reflow`: |a - (z + v(z, 0 | c))|^2 with a = teacher's ODE of z. With
`flow_guidance` SlimFlow's extra term (arXiv 2407.12718, specification: section 6.4): the student's own chunk is noised to a
random time and must agree with what the teacher makes of it there. In chunks, with d = a_student - z:

    x = z + t d,  target = x + (1 - t) v_teacher(x, t) - z    <=>    |a_student - a_teacher(x, t)|^2

whose minimum is the teacher's chunk only when the teacher is straight; so it is for students of a reflowed teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kineflow.policies.distillation.teaching import DistillationError, Lesson, with_noise_levels
from kineflow.policies.field import Chunk, Head, HeadField
from kineflow.policies.losses import Losses, draw_normal, row_mean
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.paths import over
from kineflow.policies.policy import HeadConfig, PolicyConfig

GUIDED_TIMES = (0.2, 0.8)  # SlimFlow's code


@dataclass(frozen=True)
class OneStep:
    """Direct distillation into one call; the student is a CondOT velocity head whatever the teacher is."""

    teacher: Path  # run folder
    flow_guidance: float = 0.0  # weight of SlimFlow's term
    train_encoder: bool = False

    def __post_init__(self) -> None:
        if not self.flow_guidance >= 0:
            raise DistillationError(f"OneStep.flow_guidance is a weight, at least 0; got {self.flow_guidance:g}")

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled."""
        with_noise_levels(teacher.objective)
        if steps != 1:
            raise DistillationError(f"steps is {steps}, but a OneStep student has one; take --steps 1, or --method psd or reflow")
        return replace(teacher, head=head or teacher.head, objective=FlowMatching(steps=1))

    def loss(self, objective: FlowMatching, head: Head, lesson: Lesson) -> Losses:
        """Each row's squared distance to the teacher's chunk, and SlimFlow's term."""
        noise = draw_normal(lesson.chunk, lesson.generator)
        start = objective.path.to_lambda(torch.zeros_like(noise[:, 0, 0]))
        jumped = HeadField(head, objective.path, objective.prediction)(noise, start, lesson.condition)
        loss = row_mean((jumped - lesson.answer(noise)) ** 2, lesson.weight)
        return loss + self.flow_guidance * flow_guided(noise, jumped, lesson) if self.flow_guidance else loss


def flow_guided(noise: Chunk, jumped: Chunk, lesson: Lesson) -> Losses:
    """|d - sg (x + (1 - t) v_teacher(x, t) - z)|^2 with x = z + t d, at one t ~ U(0.2, 0.8) for each row."""
    low, high = GUIDED_TIMES
    uniform = torch.rand(len(noise), generator=lesson.generator, device=lesson.generator.device, dtype=torch.float64)
    t = (low + (high - low) * uniform).to(noise)
    x = torch.lerp(noise, jumped.detach(), over(t, noise))
    target = x + over(1 - t, x) * lesson.velocity(x, t)
    return row_mean((jumped - target) ** 2, lesson.weight)
