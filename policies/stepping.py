"""What every solver is made of: its protocol, its source of noise, its grid of levels, and the flow's own clock.

All solvers work on the canonical state (alpha^2 + sigma^2 = 1). `lambdas` ascends from noise to data; N + 1 entries are N steps.
A last entry of +inf means sigma = 0: that step is first order in every solver and returns the denoised chunk itself, so that
what guidance made of it (a clip, a constraint) holds for the result. An entry may also be per row `[B]` or per action `[B, H]`,
`lambdas` then being `[N + 1, B]` or `[N + 1, B, H]`; no arithmetic below mixes rows or actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens

Grid = Float[Tensor, "N1 *per_action"]


@runtime_checkable
class Noise(Protocol):
    """A source of standard normal chunks; each draw is fresh."""

    def draw(self) -> Chunk: ...


@runtime_checkable
class Sampler(Protocol):
    """One way to integrate; swappable by name in `samplers.SOLVERS`."""

    def __call__(self, field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        """State `noise` at lambdas[0] to the state at lambdas[-1]. Only stochastic solvers draw from `fresh`."""
        ...


def levels_of(lambdas: Grid, x: Chunk) -> tuple[list[Tensor], Tensor]:
    """The grid as levels `[B]` or `[B, H]` for the Field, in the dtype of `x`, and in float64 with axes to broadcast over `x`.

    Coefficients are made of the latter and rounded once (`like`): differences of float32 lambdas would lose two digits more.

    Raises:
        KineflowError: fewer than two levels, or levels that do not ascend.
    """
    if len(lambdas) < 2 or bool((lambdas[1:] < lambdas[:-1]).any()):
        raise KineflowError(f"a solver's lambdas must ascend from noise to data, at least two of them; got {lambdas.tolist()}")
    return spread(lambdas, x)


def spread(lambdas: Grid, x: Chunk) -> tuple[list[Tensor], Tensor]:
    """The same for levels in any order."""
    grid = lambdas.to(x)
    levels = grid[:, None].expand(-1, len(x)).contiguous() if grid.ndim == 1 else grid
    return list(levels.unbind()), lambdas.double().reshape(lambdas.shape + (1,) * (x.ndim + 1 - lambdas.ndim))


def like(x: Chunk, *coefficients: Tensor) -> list[Tensor]:
    """Coefficients in the dtype and on the device of `x`; masks stay masks."""
    return [c.to(x.device) if c.dtype == torch.bool else c.to(x) for c in coefficients]


@dataclass(frozen=True)
class FlowClock:
    """Levels on the CondOT clock, where the state is z = t a + (1 - t) eps = norm x and its velocity (a_hat - z) / (1 - t).

    Each field broadcasts over chunks and has one entry per level.
    """

    left: Float[Tensor, "N *over"]  # 1 - t
    norm: Float[Tensor, "N *over"]

    @classmethod
    def at(cls, lam: Float[Tensor, "N *over"]) -> FlowClock:
        return cls(torch.sigmoid(-lam), torch.hypot(torch.sigmoid(lam), torch.sigmoid(-lam)))

    @property
    def steps(self) -> Float[Tensor, "M *over"]:
        """t' - t of each step."""
        return self.left[:-1] - self.left[1:]

    @property
    def shares(self) -> Float[Tensor, "M *over"]:
        """(t' - t) / (1 - t): how far an Euler step goes towards the denoised chunk; 1 for the step to sigma = 0."""
        return quotient(self.steps, self.left[:-1])

    @property
    def final(self) -> Tensor:
        """Where a step ends at sigma = 0."""
        return self.left[1:] == 0


def only_final(final: Tensor) -> list[bool]:
    """For each step, whether every row and action ends at sigma = 0 in it."""
    return final.flatten(1).all(dim=1).tolist()


def quotient(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """numerator / denominator; zero where the denominator is zero: nothing is left to do, or no step was made there."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))
