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


def common_grid(policies: Sequence[Levels], steps: int) -> Float[Tensor, "N1"]:
    """`steps` levels, uniform in the time of the leading policy, and +inf: for a single policy its own uniform grid."""
    low, high = common_range(policies)
    leader = min(policies, key=lambda p: math.inf if p.path.num_steps is None else p.path.num_steps)
    most = leader.path.num_steps
    first, last = leader.path.from_lambda(torch.tensor([low, high], dtype=torch.float64) - leader.log_ratio).tolist()
    if most is not None:
        levels = torch.arange(math.ceil(first * most - 1e-9), math.floor(last * most + 1e-9) + 1, dtype=torch.float64)
        most = len(levels)
    if steps < 1 or (most is not None and steps > most):
        limit = "" if most is None else f" and at most {most}, the levels of '{leader.name}' that all policies know"
        raise KineflowError(f"steps is {steps}; it must be at least 1{limit}")
    share = torch.arange(steps, dtype=torch.float64) / steps
    if most is not None:
        times = levels[torch.round(share * most).long()] / leader.path.num_steps
    else:
        times = first + (1 - first) * share
        times = times[times <= last]  # beyond it a policy knows nothing: its cleanest answer ends the sampling
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
    slack = 1e-6
    for policy in policies:
        low, high = policy.range
        outside = [lam for lam in asked.tolist() if not low - slack <= lam <= high + slack]
        if outside:
            raise KineflowError(
                f"the grid asks '{policy.name}' at lambda {outside[0]:.4g}, but it was trained between {low:.4g} and {high:.4g} "
                "(half log-SNR, common units); there its answer means nothing: leave the grid out to get the common one, or "
                "keep it inside"
            )
