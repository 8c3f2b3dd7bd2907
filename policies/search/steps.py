"""Steps that propose: from one noise level to the next, with as much fresh noise as wanted and the right marginals.

Where the chunk is a, the noise n = (x - alpha a) / sigma of the SDE dx = (v + e score) dt + sqrt(2 e) dW is an
Ornstein-Uhlenbeck process, dn = -(e / sigma^2) n dt + (sqrt(2 e) / sigma) dW. Over a step it goes, exactly, by

    x' = alpha' a_hat + sigma' (exp(-K) eps_hat + sqrt(1 - exp(-2 K)) z)        K = integral of e / sigma^2 dt

with the denoised chunk held over the step. K = 0 is DDIM, K = lambda' - lambda DDPM. Papers that write dW with a g instead
of sqrt(2 e) mean e = g^2 / 2; mixing the two doubles or halves the noise. Without the exp(-K) the noise grows at every step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.paths import VPLinear, over, variance_preserving

Candidates = Float[Tensor, "B N H A"]  # N chunks for each row of the batch


@dataclass(frozen=True)
class Steps:
    """The levels at which the field is called, noise to data; the chunk denoised at the last of them is the result.

    `churn[i]` is K of the step from `lambdas[i]` to `lambdas[i + 1]`; inf forgets the old noise altogether.
    """

    lambdas: tuple[float, ...]
    churn: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.lambdas, self.lambdas[1:]))
        if not self.lambdas or not rising or self.lambdas[-1] == math.inf:
            raise KineflowError(f"the levels of a search must rise strictly and stay below +inf, got {self.lambdas}")
        if len(self.churn) != len(self.lambdas) - 1 or not all(k >= 0 for k in self.churn):
            raise KineflowError(f"{len(self.lambdas)} levels need {len(self.lambdas) - 1} churns >= 0, got {self.churn}")

    @classmethod
    def rollover(cls, count: int, diffusion: float = 3.0, finish: int = 4) -> Steps:
        """Rollover Budget Forcing (Kim et al. 2025): VP path, g = diffusion tau^2, tau = sqrt(1 - x^2), x = 0 ... 1 - 1 / count.

        tau = 1 - t is their clock. Small steps near the noise, where candidates still differ; the last published level is still
        so noisy (sigma = 0.93 of count = 10) that its denoised chunk is an average of modes. So `finish` levels of DDIM follow,
        evenly on the flow's clock; 0 is as published.
        """
        path = VPLinear()
        x = torch.arange(count, dtype=torch.float64) / count
        tau = torch.sqrt(1 - x**2)
        # Midpoint rule on K = integral g^2 / (2 sigma^2) dtau; the integrand is smooth.
        share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        inner = tau[1:, None] + (tau[:-1] - tau[1:])[:, None] * share
        rate = (diffusion * inner**2) ** 2 / (2 * path.at(1 - inner).sigma ** 2)
        churn = rate.mean(dim=1) * (tau[:-1] - tau[1:])
        lambdas = path.to_lambda(1 - tau)
        left = torch.sigmoid(-lambdas[-1]) * (1 - torch.arange(1, finish + 1, dtype=torch.float64) / (finish + 1))
        return cls((*lambdas.tolist(), *torch.logit(1 - left).tolist()), (*churn.tolist(), *[0.0] * finish))

    @classmethod
    def along(cls, lambdas: Float[Tensor, "N1"], k: float) -> Steps:
        """Levels of a solver's grid (which ends at +inf) with e = k sigma (alpha' sigma - sigma' alpha) / alpha.

        k = 0 is DDIM on that grid, k = 1 DDPM.
        """
        levels = [float(lam) for lam in lambdas[:-1]]
        return cls(tuple(levels), tuple(k * (b - a) if k > 0 else 0.0 for a, b in itertools.pairwise(levels)))

    def levels(self, like: Float[Tensor, "..."]) -> Float[Tensor, "L"]:
        return torch.tensor(self.lambdas, dtype=like.dtype, device=like.device)

    def propose(self, index: Int64[Tensor, "B"], x: Candidates, sample: Candidates, fresh: Candidates) -> Candidates:
        """The state at level `index` + 1 (per row) from state `x` at level `index`, its denoised chunk, and normals."""
        alpha, sigma = (over(value, x) for value in variance_preserving(self.levels(x)[index]))
        alpha_next, sigma_next = (over(value, x) for value in variance_preserving(self.levels(x)[index + 1]))
        churn = over(torch.tensor(self.churn, dtype=x.dtype, device=x.device)[index], x)
        noise = (x - alpha * sample) / sigma
        return alpha_next * sample + sigma_next * (torch.exp(-churn) * noise + torch.sqrt(-torch.expm1(-2 * churn)) * fresh)
