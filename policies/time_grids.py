"""Time grids: the noise levels that a solver visits, from noise to data. N steps are N network calls and a last entry of +inf."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.paths import NoisePath


def uniform_time_grid(path: NoisePath, steps: int) -> Float[Tensor, "N1"]:
    """float64 lambdas at t = 0, 1/N, ..., (N - 1)/N and +inf. On a discrete path this is the "trailing" grid.

    Trailing visits trained levels only, starts at the noisiest (where x ~ N(0, 1) holds) and ends at sigma = 0; the
    "leading" grid, default elsewhere, starts at alpha = 0.23 for 8 of 100 steps and biases every sample.
    """
    levels = path.num_steps
    if steps < 1 or (levels is not None and steps > levels):
        raise KineflowError(f"steps is {steps}; it must be at least 1" + (f" and at most {levels} on {path}" if levels else ""))
    t = torch.arange(steps, dtype=torch.float64) / steps
    if levels is not None:
        t = torch.round(t * levels) / levels
    return torch.cat([path.to_lambda(t), torch.full((1,), torch.inf, dtype=torch.float64)])
