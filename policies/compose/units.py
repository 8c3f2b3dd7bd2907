"""One noisy chunk seen by policies with different normalisers (specification: generative core, section 5).

Policy P models y = (a - b_P) / S_P of the physical chunk a. Two policies see the same noisy chunk when the noise on `a` is
the same. With the scalar q = S_R / S_P between the reference R and P that is possible exactly:

    lambda_P = lambda_R - log q        x_P = alpha_P (S_R x_R / alpha_R + b_R - b_P) / S_P

Offsets may differ in every entry, even per row (actions relative to the observed state). If q differs per entry, noise
that is isotropic for R is not for P, and no single lambda describes it: refused, unless the caller accepts an approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.paths import over, variance_preserving

SAME_RATIO = 1e-5  # relative: statistics are float32, so equal ones differ by a few 1e-7


@dataclass(frozen=True)
class UnitChange:
    """From the reference's normalised units to policy P's: q, S_R / S_P and (b_R - b_P) / S_P."""

    ratio: float
    scale: Float[Tensor, "#H #A"]
    shift: Float[Tensor, "#B #H #A"]

    def from_answer(self, sample: Chunk) -> Chunk:
        """A denoised chunk in P's units, in the reference's."""
        return (sample - self.shift) / self.scale


@dataclass(frozen=True)
class InUnits:
    """A policy's field, asked and answering in the reference's units."""

    field: Field
    change: UnitChange

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        change, q = self.change, self.change.ratio
        alpha, sigma = variance_preserving(over(lam, x))
        # alpha_P / alpha_R, regular at both ends: 1 / q at pure noise, 1 at the data.
        stretch = 1 / torch.hypot(alpha, q * sigma)
        seen = stretch * (change.scale * x + alpha * change.shift)
        return change.from_answer(self.field(seen, lam - math.log(q), condition))


def scale_ratio(reference: Float[Tensor, "H A"], scale: Float[Tensor, "H A"], name: str, *, approximate: bool = False) -> float:
    """q of policy `name` with normaliser scale `scale`: one number, or KineflowError.

    `approximate` takes the geometric mean of ratios that differ: each entry is then asked at a noise level that is off by
    the factor ratio / q.
    """
    ratios = (reference / scale).double()
    low, high = ratios.min().item(), ratios.max().item()
    if high / low - 1 > SAME_RATIO and not approximate:
        (h0, a0), (h1, a1) = _place(ratios == low), _place(ratios == high)
        raise KineflowError(
            f"{name}: its normaliser and the first policy's differ by factors from {low:.4g} (step {h0}, dimension {a0}) to "
            f"{high:.4g} (step {h1}, dimension {a1}), so no noise level of one is a noise level of the other; train both with "
            "`action_scaling: isotropic` (one factor), or pass --approximate to use the geometric mean of the factors"
        )
    return math.exp(ratios.log().mean().item())


def _place(where: Tensor) -> tuple[int, int]:
    step, dimension = where.nonzero()[0].tolist()
    return step, dimension
