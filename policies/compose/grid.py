"""The grid of lambdas that several heads can be asked at (specification: generative core, section 5).

- A discrete head is asked at trained levels only, so the discrete policy with the fewest levels gives the grid: a subset of
  its levels, trailing. Another discrete policy is asked between its levels where the two grids differ: its lambda is
  linear in between and the time embeddings of this package are continuous.
- Sampling starts from pure noise at the noisiest level that all know, and ends with the denoised chunk where the first of
  them reaches its cleanest level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.paths import NoisePath, variance_preserving
from kineflow.policies.time_grids import TimeGrid

UNIFORM = TimeGrid()
SLACK = 1e-6  # a level computed on another path or in float32 is the same level
LARGEST_START = 0.1  # alpha: a start that ignores this share of the chunk biases every sample (leading grids: 0.14 to 0.23)


@dataclass(frozen=True)
class Levels:
    """The noise levels of one policy: its path, and log q, by which its lambda lies below the common one."""

    name: str
    path: NoisePath
    log_ratio: float = 0.0

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest common lambda that it was trained at."""
        last = 1.0 if self.path.num_steps is None else (self.path.num_steps - 1) / self.path.num_steps
        low, high = self.path.to_lambda(torch.tensor([0.0, last], dtype=torch.float64)).tolist()
        return low + self.log_ratio, high + self.log_ratio

    def lambdas(self, times: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return self.path.to_lambda(times) + self.log_ratio


def common_grid(policies: Sequence[Levels], steps: int, grid: TimeGrid = UNIFORM) -> Float[Tensor, "N1"]:
    """`steps` levels and +inf: the grid of the leading policy, moved into the range that all know. A single policy keeps its own.

    Only uniform (trailing) grids can be moved; others must lie inside, but may end early.
    """
    low, high = common_range(policies)
    leader = min(policies, key=lambda p: math.inf if p.path.num_steps is None else p.path.num_steps)
    if grid.name not in ("uniform", "trailing"):
        lambdas = grid(leader.path, steps) + leader.log_ratio
        lambdas = torch.cat([lambdas[:-1][lambdas[:-1] <= high + SLACK], lambdas[-1:]])
        check_grid(policies, lambdas)
        return lambdas
    most = leader.path.num_steps
    first, last = leader.path.from_lambda(torch.tensor([low, high], dtype=torch.float64) - leader.log_ratio).tolist()
    share = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
    if most is not None:
        levels = torch.arange(math.ceil(first * most - SLACK), math.floor(last * most + SLACK) + 1, dtype=torch.float64)
        if not 1 <= steps <= len(levels):
            raise KineflowError(
                f"steps is {steps}; it must be at least 1 and at most {len(levels)}, the levels of '{leader.name}' that all know"
            )
        times = levels[torch.round(share * len(levels)).long()] / most
    else:
        times = first + (1 - first) * share
        times = times[times <= last]  # beyond it a policy knows nothing: its cleanest answer ends the sampling
        if steps < 1:
            raise KineflowError(f"steps is {steps}; it must be at least 1")
    return torch.cat([leader.lambdas(times), torch.full((1,), torch.inf, dtype=torch.float64)])


def common_range(policies: Sequence[Levels]) -> tuple[float, float]:
    """Lambdas that every policy was trained at; KineflowError when there are none, or none that is noise enough to start."""
    noisiest, cleanest = max(policies, key=lambda p: p.range[0]), min(policies, key=lambda p: p.range[1])
    low, high = noisiest.range[0], cleanest.range[1]
    if low >= high:
        raise KineflowError(
            f"no noise level is known to all: '{noisiest.name}' begins at lambda {low:.3g}, '{cleanest.name}' ends at "
            f"{high:.3g}, in common units; train them on schedules that overlap, or with closer action scales"
        )
    start = variance_preserving(torch.tensor(low, dtype=torch.float64))[0].item()
    if start > LARGEST_START:
        raise KineflowError(
            f"'{noisiest.name}' knows no noise above lambda {low:.3g} in common units, where {start:.0%} of the chunk is still "
            f"there (at most {LARGEST_START:.0%}): starting from pure noise would bias every sample; train it on a noisier "
            "schedule, or with a smaller action scale"
        )
    return low, high


def check_grid(policies: Sequence[Levels], lambdas: Float[Tensor, "N1"]) -> None:
    """KineflowError when a level that will be asked lies outside a policy's range; a last +inf is never asked."""
    asked = lambdas[:-1] if math.isinf(lambdas[-1].item()) else lambdas
    for policy in policies:
        low, high = policy.range
        outside = [lam for lam in asked.tolist() if not low - SLACK <= lam <= high + SLACK]
        if outside:
            raise KineflowError(
                f"the grid asks '{policy.name}' at lambda {outside[0]:.4g}, but it was trained between {low:.4g} and {high:.4g} "
                "(half log-SNR, common units); there its answer means nothing: leave the grid out to get the common one, or "
                "keep it inside"
            )
