"""Guidance by a cost of the denoised chunk: obstacles, goals, smoothness, without training anything.

Sampling exp(-cost) p(a) shifts the denoised chunk by the posterior covariance of a given x (Tweedie):

    a_hat' = a_hat - Cov(a | x) grad cost(a_hat) / (1 + curvature P)          Cov(a | x) = (sigma^2 / alpha) d a_hat / dx

and for a Gaussian of std s0 the covariance is P = s0^2 sigma^2 / V, V = alpha^2 s0^2 + sigma^2, regular at both ends. The
denominator accounts for a_hat being uncertain: exact for a Gaussian and a quadratic cost with that second derivative. Without
it, a steep cost throws the chunk back and forth, further each time.
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
    curvature: float | None = None  # second derivative of the cost, in units of the chunk; None: measured along its gradient
    jacobian: Literal["gaussian", "exact"] = "gaussian"

    def __post_init__(self) -> None:
        if not self.data_std > 0 or (self.curvature is not None and self.curvature < 0):
            raise KineflowError(
                f"CostGuidance needs data_std > 0 and curvature >= 0, got {self.data_std:g} and {self.curvature}; "
                "leave out the curvature of a concave cost"
            )

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        alpha, sigma = variance_preserving(over(lam, x))
        variance = self.data_std**2 * sigma**2 / (alpha**2 * self.data_std**2 + sigma**2)
        if self.jacobian == "gaussian":
            sample = self.field(x, lam, condition).detach()
            slope, curvature = _derivatives(self.cost, sample)
            shift = variance * slope
        else:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                answer = self.field(x, lam, condition)
            sample = answer.detach()
            slope, curvature = _derivatives(self.cost, sample)
            (through,) = torch.autograd.grad(answer, x, slope)
            shift = torch.where(alpha == 0, variance * slope, sigma**2 / torch.where(alpha == 0, 1, alpha) * through)
        curvature = curvature if self.curvature is None else torch.full_like(curvature, self.curvature)
        return sample - shift / (1 + curvature * variance)


def _derivatives(cost: Cost, sample: Chunk) -> tuple[Chunk, Float[Tensor, "B 1 1"]]:
    """Gradient of the cost and its second derivative along the gradient, zero where it curves down or has none."""
    with torch.enable_grad():
        sample = sample.clone().requires_grad_()
        rows = cost(sample)
        if rows.shape != sample.shape[:1] or not rows.requires_grad:
            raise KineflowError(
                f"a cost must give one differentiable number per row [{len(sample)}], got shape {list(rows.shape)}"
                f"{'' if rows.requires_grad else ' without a gradient'}; compute it in torch from the chunk and sum over [H, A]"
            )
        (slope,) = torch.autograd.grad(rows.sum(), sample, create_graph=True)
        along, bend = slope.detach(), None
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope, sample, along, allow_unused=True)
    power = along.square().sum(dim=(1, 2), keepdim=True)
    if bend is None:
        return along, torch.zeros_like(power)
    curvature = (bend * along).sum(dim=(1, 2), keepdim=True) / torch.where(power > 0, power, 1)
    return along, curvature.clamp(min=0)
