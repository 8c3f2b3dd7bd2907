"""What every distillation method is given: one batch to learn from, with a frozen teacher to ask.

All in the teacher's normalised units. A teacher is a Field, so it may be a flow or a diffusion policy on any path; its
velocity is asked for on the CondOT clock, z_t = t a + (1 - t) eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Head, Tokens
from kineflow.policies.flow_map import FlowMap, Teacher
from kineflow.policies.flow_map_losses import Times
from kineflow.policies.losses import Weight
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.paths import CondOT, over
from kineflow.policies.samplers import SOLVERS, RowNoise, SolverName

# The teacher's ODE as it is deployed: noise and its own tokens to the chunk; the same noise always gives the same chunk.
Solve: TypeAlias = Callable[[Chunk, Tokens | None], Chunk]
LATEST = 1 - 1e-3  # (a_hat - z) / (1 - t) loses its digits beyond
NOTHING_FRESH = RowNoise(np.zeros(0, np.int64), (0, 0))  # an ODE draws no noise on its way
STOCHASTIC: Mapping[SolverName, SolverName] = {"ddpm": "ddim", "sde": "ddim"}  # and the ODE that stands in for each


class DistillationError(KineflowError):
    """A student that cannot learn from this teacher in this way; said before training starts."""


@dataclass(frozen=True)
class Lesson:
    """One batch. `condition` is what the student sees of the observations, `teacher.condition` what the teacher sees."""

    teacher: Teacher
    solve: Solve
    chunk: Chunk  # demonstrated actions, normalised
    condition: Tokens | None
    weight: Weight
    generator: torch.Generator
    progress: float = 1.0  # of the training, 0 to 1; 1 in validation
    previous: Chunk | None = None  # the teacher's chunk of an earlier step, seen from now; for MixFlow alone

    @torch.no_grad()
    def answer(self, noise: Chunk) -> Chunk:
        """The chunk that the teacher makes of `noise`."""
        return self.solve(noise, self.teacher.condition).to(noise.dtype)

    @torch.no_grad()
    def velocity(self, z: Chunk, t: Times) -> Chunk:
        """The teacher's E[a - eps | z_t = z]; times beyond `LATEST` are held there."""
        t = t.clamp(max=LATEST)
        canonical = z / over(torch.hypot(t, 1 - t), z)
        sample = self.teacher.field(canonical, CondOT().to_lambda(t), self.teacher.condition).to(z.dtype)
        return (sample - z) / over(1 - t, z)

    def repeated(self, times: int) -> Lesson:
        """The same rows, `times` times over."""
        if times == 1:
            return self

        def tiled(value: Tensor) -> Tensor:
            return value.repeat(times, *(1,) * (value.ndim - 1))

        optional = (self.teacher.condition, self.condition, self.previous)
        seen, condition, previous = (None if v is None else tiled(v) for v in optional)
        teacher = Teacher(self.teacher.field, seen)
        chunk, weight = tiled(self.chunk), tiled(self.weight)
        return replace(self, teacher=teacher, chunk=chunk, condition=condition, weight=weight, previous=previous)


def with_noise_levels(objective: object) -> FlowMatching | Diffusion | FlowMap:
    """The teacher's objective, if it makes chunks of noise; DistillationError otherwise."""
    if isinstance(objective, FlowMatching | Diffusion | FlowMap):
        return objective
    raise DistillationError(
        f"the teacher is a {type(objective).__name__} policy: it has no noise levels, so nothing that makes a chunk of noise; "
        "distil a FlowMatching or Diffusion policy, or train the small policy directly with `kineflow train`"
    )


def deterministic(solver: SolverName) -> SolverName:
    """The solver, or the ODE that stands in for a stochastic one: pairs of noise and chunk need one."""
    return STOCHASTIC.get(solver, solver)


def ode_of(objective: FlowMatching | Diffusion | FlowMap, head: Head, field: Field) -> Solve:
    """How the teacher turns noise into chunks, with its own solver, grid and number of steps."""
    if isinstance(objective, FlowMap) and objective.solver == "jump":
        exact = replace(objective, gamma=0.0)
        return lambda noise, condition: exact.jumped(head, noise, objective.steps, condition, NOTHING_FRESH)
    path = CondOT() if isinstance(objective, FlowMap) else objective.path
    lambdas = objective.grid(path, objective.steps)
    solver = SOLVERS[deterministic(cast(SolverName, objective.solver))]
    return lambda noise, condition: solver(field, noise, lambdas, condition, NOTHING_FRESH)
