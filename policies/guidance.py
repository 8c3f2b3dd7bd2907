"""Guidance: functions from Field to Field. Order: guide each head, then compose, then constrain, then solve."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Guide, Level, NullTokens, Tokens
from kineflow.policies.paths import over


def in_order(*guides: Guide | None) -> Guide | None:
    """One Guide that applies these, the last nearest to the solver (constraints belong there); None entries are left out."""
    given = [guide for guide in guides if guide]
    return (lambda field: functools.reduce(lambda inner, guide: guide(inner), given, field)) if given else None


def hidden(condition: Tokens, null: NullTokens) -> Tokens:
    """`condition` with its last tokens replaced by `null`. Where `null` has fewer, those at the front stay: which robot it is."""
    kept = condition[:, : condition.shape[1] - null.shape[1]]
    return torch.cat([kept, null.to(condition).expand(len(condition), -1, -1)], dim=1)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """a_u + scale (a_c - a_u) (Ho & Salimans 2022), for lambda in `interval` only; outside, the conditional answer.

    The weights sum to one, so the result is the same in sample, noise, velocity or score space. One call with a doubled
    batch; scale 1 and 0 are exactly the single conditional and unconditional call. Large scales on a wide unconditional
    law collapse diversity: the sampled std is s_c^scale s_u^(1 - scale).
    """

    field: Field
    null_condition: NullTokens  # what "no condition" looked like in training
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
        null = hidden(condition, self.null_condition)
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


@dataclass(frozen=True)
class OneTimeGuidance:
    """Guide: classifier-free guidance that asks for the negative once, at the first level ("onetime" RCFG of
    StreamDiffusion), and keeps its denoised chunk a_n: a_n + scale (a_c - a_n). N + 1 calls instead of 2 N.

    Two things of the original are left out. Its factor delta on the negative gives weights that sum to one only if it is 1,
    and other sums depend on the prediction type. Its "self" variant takes the known input as the negative: here that is the
    previous plan, so scale > 1 would push the new plan AWAY from it; use Real-Time Chunking to stay near.

    At low noise a_c follows x while a_n stands still, and the chunk would run away as exp((scale - 1) lambda). So lambda above
    `below` is not guided; high noise, which chooses the plan, is.

        network.predict(observation, request, guide=lambda units: OneTimeGuidance(network.null_condition, 2.0))
    """

    null_condition: NullTokens
    scale: float
    below: float = 0.0

    def __call__(self, field: Field) -> Field:
        """A Field for one chunk: its first call, at the noisiest level, fixes the negative."""
        return _RememberedNegative(field, self.null_condition, self.scale, self.below)


@dataclass
class _RememberedNegative:
    field: Field
    null_condition: Tensor
    scale: float
    below: float
    negative: Chunk | None = None

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        if condition is None:
            raise KineflowError(f"guidance at scale {self.scale:g} needs a condition, got None; pass tokens or leave it out")
        if self.negative is None:
            null = hidden(condition, self.null_condition)
            both = self.field(torch.cat([x, x]), torch.cat([lam, lam]), torch.cat([condition, null]))
            positive, self.negative = both.chunk(2)
        else:
            positive = self.field(x, lam, condition)
        guided = self.negative + self.scale * (positive - self.negative)
        return torch.where(over(lam <= self.below, x), guided, positive)


@dataclass(frozen=True)
class IntervalBlend:
    """(1 - share) base + share tuned where lambda <= `below`, base elsewhere: model guidance of SINE (Zhang et al. 2023).

    High noise decides the plan, low noise its details: a fine-tuned head can steer the first without touching the second
    (SINE: share 0.3 above 40 % of the noise levels). Both fields must speak the same units. Guide the blend, not its parts:

        tuned = other.config.objective.field(other.head)
        tokens = other.encode(observation).condition  # if its encoder was tuned, too
        guide = lambda units: lambda base: IntervalBlend(base, lambda x, lam, _: tuned(x, lam, tokens), 0.3, below=0.0)
    """

    base: Field
    tuned: Field
    share: float
    below: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise KineflowError(f"IntervalBlend.share is {self.share:g}; it is the tuned field's weight, from 0 to 1")

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        inside = lam <= self.below
        if self.share == 0 or not inside.any():
            return self.base(x, lam, condition)
        if self.share == 1 and inside.all():
            return self.tuned(x, lam, condition)
        base = self.base(x, lam, condition)
        return torch.where(over(inside, x), torch.lerp(base, self.tuned(x, lam, condition), self.share), base)
