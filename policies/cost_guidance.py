"""Guidance by a cost of the denoised chunk: obstacles, goals, smoothness, without training anything.

Sampling exp(-cost) p(a) shifts the denoised chunk by the posterior covariance of a given x (Tweedie):

    a_hat' = a_hat - Cov(a | x) grad cost(a_hat) / (1 + curvature P)          Cov(a | x) = (sigma^2 / alpha) d a_hat / dx

and for a Gaussian of std s0 the covariance is P = s0^2 sigma^2 / V, V = alpha^2 s0^2 + sigma^2, regular at both ends. The
denominator accounts for a_hat being uncertain: exact for a Gaussian and a quadratic cost with that second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.paths import over, variance_preserving

Cost: TypeAlias = Callable[[Chunk], Float[Tensor, "B"]]  # differentiable; rows do not look at each other


@dataclass(frozen=True)
class CostGuidance:
    """A Field whose samples follow exp(-cost) p(a). Write the cost in physical units through the policy's `units`:

        def cost(actions):  # [B, H, A] in physical units -> [B]
            return 5 * ((actions[:, -1] - goal) ** 2).sum(-1)

        def guide(units):
            return lambda field: CostGuidance(field, lambda chunk: cost(units.restore(chunk)))

        network.predict(observation, request, guide=guide)

    `jacobian` "gaussian" takes Cov(a | x) = P, one call and no gradient through the network: FlowChef (Patel et al. 2024)
    with its scale fixed; FlowChef's own d a_hat/dx = 1 overstates the gradient 50 times at t = 0.1 (s0 = 0.4). "exact"
    differentiates through the field (about three calls) and falls back to P where alpha = 0; with `curvature` 0 it is DPS
    (Chung et al. 2023), which trusts a_hat at high noise as if it were certain, and overshoots there.
    """

    field: Field
    cost: Cost
    data_std: float = 1.0  # s0, of the normalised actions; 1 fits "gaussian" scaling, about 0.5 the others
    curvature: float = 0.0  # second derivative of the cost, in units of the chunk
    jacobian: Literal["gaussian", "exact"] = "gaussian"

    def __post_init__(self) -> None:
        if not self.data_std > 0 or self.curvature < 0:
            raise KineflowError(
                f"CostGuidance needs data_std > 0 and curvature >= 0, got {self.data_std:g} and {self.curvature:g}; "
                "leave a concave cost at curvature 0"
            )

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        alpha, sigma = variance_preserving(over(lam, x))
        variance = self.data_std**2 * sigma**2 / (alpha**2 * self.data_std**2 + sigma**2)
        if self.jacobian == "gaussian":
            sample = self.field(x, lam, condition).detach()
            shift = variance * _gradient(self.cost, sample)
        else:
            sample, direct, through = _gradients(self.field, self.cost, x, lam, condition)
            shift = torch.where(alpha == 0, variance * direct, sigma**2 / torch.where(alpha == 0, 1, alpha) * through)
        return sample - shift / (1 + self.curvature * variance)


def _gradient(cost: Cost, sample: Chunk) -> Chunk:
    with torch.enable_grad():
        sample = sample.clone().requires_grad_()
        return torch.autograd.grad(_summed(cost, sample), sample)[0]


def _gradients(field: Field, cost: Cost, x: Chunk, lam: Level, condition: Tokens | None) -> tuple[Chunk, Chunk, Chunk]:
    """The denoised chunk, the cost's gradient there, and that gradient carried back to `x` through the field."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        sample = field(x, lam, condition)
        direct, through = torch.autograd.grad(_summed(cost, sample), (sample, x))
    return sample.detach(), direct, through


def _summed(cost: Cost, sample: Chunk) -> Float[Tensor, ""]:
    rows = cost(sample)
    if rows.shape != sample.shape[:1] or not rows.requires_grad:
        raise KineflowError(
            f"a cost must give one differentiable number per row [{len(sample)}], got shape {list(rows.shape)}"
            f"{'' if rows.requires_grad else ' without a gradient'}; compute it in torch from the chunk and sum over [H, A]"
        )
    return rows.sum()
