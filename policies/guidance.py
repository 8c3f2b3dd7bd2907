"""Guidance: functions from Field to Field. Order: guide each head, then compose, then constrain, then solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.paths import over


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """a_u + scale (a_c - a_u) (Ho & Salimans 2022), for lambda in `interval` only; outside, the conditional answer.

    The weights sum to one, so the result is the same in sample, noise, velocity or score space. One call with a doubled
    batch; scale 1 and 0 are exactly the single conditional and unconditional call. Large scales on a wide unconditional
    law collapse diversity: the sampled std is s_c^scale s_u^(1 - scale).
    """

    field: Field
    null_condition: Float[Tensor, "#B N D"]  # what "no condition" looked like in training
    scale: float
    interval: tuple[float, float] = (-math.inf, math.inf)  # of lambda: noise ... data

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        if condition is None:
            raise KineflowError(
                f"classifier-free guidance at scale {self.scale:g} needs a condition, got None; pass tokens or use scale 1"
            )
        inside = (lam >= self.interval[0]) & (lam <= self.interval[1])
        if self.scale == 1 or not inside.any():
            return self.field(x, lam, condition)
        null = self.null_condition.to(condition).expand_as(condition)
        if self.scale == 0 and inside.all():
            return self.field(x, lam, null)
        answers = self.field(torch.cat([x, x]), torch.cat([lam, lam]), torch.cat([condition, null]))
        conditional, unconditional = answers.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return torch.where(over(inside, x), guided, conditional)


@dataclass(frozen=True)
class Clip:
    """Clip the denoised chunk to [low, high]; solvers re-derive the noise from it, so x is never clipped itself."""

    field: Field
    low: float
    high: float

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        return self.field(x, lam, condition).clamp(self.low, self.high)
