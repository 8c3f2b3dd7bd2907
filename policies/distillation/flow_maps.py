"""Flow maps learned from a teacher: any-step students, one call included, without ever solving the teacher's ODE.

The teacher's velocity, guided as it is deployed, stands in for that of single pairs on the map's diagonal; jumps follow from
it by the residual of `method` (policies/flow_map_losses.py; AnyFlow, Boffi et al., MeanFlow).

`BiFM` learns jumps in both directions and that they undo each other. So one call finds the noise behind a chunk, and the
previous chunk can start the next one: `warm_start`, on a robot WarmStartPolicy (policies/warm_start.py). (BiFM's exact losses
were not published with its abstract; these are the semigroup residual for either sign of t - s and |X_{t,s}(X_{s,t}(x)) - x|^2.
Specification: generative core, section 7.1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kineflow.contracts import KineflowError
from kineflow.policies.distillation.teaching import DistillationError, Lesson, with_noise_levels
from kineflow.policies.field import Chunk, Head
from kineflow.policies.flow_map import FlowMap, average_velocity
from kineflow.policies.flow_map_losses import AverageVelocity, Jumps, Method, jump, jvp, psd
from kineflow.policies.losses import Losses, draw_normal, row_mean
from kineflow.policies.paths import over
from kineflow.policies.policy import HeadConfig, PolicyConfig


@dataclass(frozen=True)
class MapDistillation:
    """Self-distillation on a teacher's velocity; the residual is the student objective's `method`."""

    teacher: Path  # run folder
    method: Method = "psd"
    train_encoder: bool = False

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled."""
        with_noise_levels(teacher.objective)
        # The diagonal starts (nearly) right, so most rows jump. MeanFlow's weight by its own error is what keeps its derivative
        # from running away; with a teacher it costs nothing, because every row's error vanishes at the solution.
        eulerian = self.method in ("meanflow", "imf", "esd")
        objective = FlowMap(method=self.method, steps=steps, diagonal=0.5 if eulerian else 0.25, adaptive=eulerian)
        return replace(teacher, head=head or teacher.head, objective=objective)

    def loss(self, objective: FlowMap, head: Head, lesson: Lesson) -> Losses:
        """The map's own loss, with the teacher's velocity on the diagonal."""
        return objective.loss(head, lesson.chunk, lesson.condition, lesson.generator, lesson.weight, lesson.teacher)


@dataclass(frozen=True)
class BiFM:
    """A flow map that also runs backwards, for `warm_start`."""

    teacher: Path  # run folder
    consistency: float = 1.0  # weight of the round trip
    train_encoder: bool = False

    def __post_init__(self) -> None:
        if not self.consistency >= 0:
            raise DistillationError(f"BiFM.consistency is a weight, at least 0; got {self.consistency:g}")

    def student(self, teacher: PolicyConfig, head: HeadConfig | None, steps: int) -> PolicyConfig:
        """How the student is built and sampled."""
        with_noise_levels(teacher.objective)
        return replace(
            teacher, head=head or teacher.head, objective=FlowMap(method="psd", steps=steps, diagonal=0.5, invertible=True)
        )

    def loss(self, objective: FlowMap, head: Head, lesson: Lesson) -> Losses:
        """Forward map, backward map, and both in a row."""
        forward = objective.loss(head, lesson.chunk, lesson.condition, lesson.generator, lesson.weight, lesson.teacher)
        u = average_velocity(head, lesson.condition)
        return forward + both_ways(u, lesson, self.consistency)


def both_ways(u: AverageVelocity, lesson: Lesson, consistency: float) -> Losses:
    """Semigroup residual of jumps back in time, from the data in half of the rows, and the round trip's error."""
    noise = draw_normal(lesson.chunk, lesson.generator)
    draws = torch.rand(2, len(noise), generator=lesson.generator, device=lesson.generator.device, dtype=torch.float64).to(noise)
    row = torch.arange(len(noise), device=noise.device)
    start = torch.where(row < len(row) // 2, 1.0, draws.amax(dim=0))
    end = torch.where(row < len(row) // 4, 0.0, draws.amin(dim=0))
    x = torch.lerp(noise, lesson.chunk, over(start, noise))
    back = psd(u, Jumps(x, start, end, torch.zeros_like(x), torch.full_like(start, 0.5)), jvp)
    loss = row_mean(back**2, lesson.weight)
    if consistency:
        trip = jump(u, jump(u, x, start, end), end, start) - x
        loss = loss + consistency * row_mean(trip**2, lesson.weight)
    return loss


def inverted(u: AverageVelocity, chunk: Chunk) -> Chunk:
    """The noise behind a chunk, in one call of a bidirectional map."""
    one = torch.ones_like(chunk[:, 0, 0])
    return jump(u, chunk, one, torch.zeros_like(one))


def renewed(u: AverageVelocity, previous: Chunk, fresh: Chunk, renewal: float) -> Chunk:
    """The noise behind the previous chunk (shifted to now: `mix_flow.shifted`), part of it replaced: sqrt(1 - b^2) eps + b z.

    `renewal` b is 0 to stay in the previous chunk's mode, 1 to forget it.
    """
    if not 0 <= renewal <= 1:
        raise KineflowError(f"renewal is {renewal:g}; it is the share of fresh noise, from 0 to 1")
    return math.sqrt(1 - renewal**2) * inverted(u, previous) + renewal * fresh


def warm_start(u: AverageVelocity, previous: Chunk, fresh: Chunk, renewal: float) -> Chunk:
    """The next chunk from the noise behind the previous one, in two calls."""
    noise = renewed(u, previous, fresh, renewal)
    zero = torch.zeros_like(noise[:, 0, 0])
    return jump(u, noise, zero, torch.ones_like(zero))
