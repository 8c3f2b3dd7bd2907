"""How often training visits each noise level: the density of the noise fraction n = 1 - t.

Another density is another weighting of the same regressions: it moves effort between levels, never the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError

TimeDensity = Literal["uniform", "logit_normal", "beta"]
DEFAULTS: dict[TimeDensity, tuple[float, float]] = {"logit_normal": (-0.4, 1.0), "beta": (1.5, 1.0)}
BETA_FLOOR = 0.001  # pi0: the noise fraction is 0.999 Beta + 0.001


@dataclass(frozen=True)
class TimeLaw:
    """uniform; logit_normal: sigmoid(N(m, s)), MeanFlow (arXiv 2505.13447) -0.4, 1; beta: Beta(a, b), pi0 1.5, 1.

    `parameters` are (m, s) or (a, b), None for those defaults. `shift` S multiplies the odds of n, after that:
    n' = S n / (1 + (S - 1) n). Above 1 training sees more noise (pi0's choice goes that way), below 1 less (RiT's rule
    gives sqrt(H A / 4096), 0.09 for 16 actions of 2 numbers): a hyper-parameter.
    """

    density: TimeDensity = "uniform"
    parameters: tuple[float, float] | None = None
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise KineflowError(f"time_shift is {self.shift:g}; it multiplies odds and must be positive (1: no shift)")
        if self.parameters is None:
            return
        if self.density == "uniform":
            raise KineflowError(f"time_density uniform takes no time_parameters, got {self.parameters}; leave them out")
        must_be_positive = self.parameters if self.density == "beta" else self.parameters[1:]
        if not all(value > 0 for value in must_be_positive):
            named = "a and b" if self.density == "beta" else "the standard deviation, the second,"
            raise KineflowError(f"time_parameters of {self.density} are {self.parameters}; {named} must be positive")

    def noise_fraction(self, shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "*shape"]:
        """Independent draws in [0, 1], float64, on the generator's device."""
        first, second = self.parameters or DEFAULTS.get(self.density, (0.0, 0.0))
        uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        match self.density:
            case "uniform":
                fraction = 1 - uniform
            case "logit_normal":
                fraction = torch.sigmoid(first + second * torch.special.ndtri(uniform))
            case "beta":
                fraction = BETA_FLOOR + (1 - BETA_FLOOR) * _beta(uniform, first, second, generator)
        return self.shift * fraction / (1 + (self.shift - 1) * fraction)


def _beta(uniform: Tensor, a: float, b: float, generator: torch.Generator) -> Tensor:
    """Beta(a, b): by its inverse where that is elementary (pi0's), else as Ga / (Ga + Gb) of two gamma draws."""
    if b == 1:
        return uniform ** (1 / a)
    first, second = (torch._standard_gamma(torch.full_like(uniform, c), generator) for c in (a, b))
    # Both can underflow to zero for tiny a and b; then either end is right.
    return first / (first + second).clamp(min=torch.finfo(torch.float64).tiny)
