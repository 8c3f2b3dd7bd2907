"""What a training loss draws (times and noise) and how it averages."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kineflow.policies.paths import NoisePath
from kineflow.policies.time_densities import TimeDensity as TimeDensity, TimeLaw

Weight = Float[Tensor, "B H"] | Bool[Tensor, "B H"]  # of each action in the loss; 0: padding
Losses = Float[Tensor, "B"]


def draw_times(
    path: NoisePath, law: TimeLaw | TimeDensity, like: Float[Tensor, "*shape"], generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Independent times in [0, 1) with the shape, dtype and device of `like`; on a discrete path, trained levels alone."""
    law = law if isinstance(law, TimeLaw) else TimeLaw(law)
    t = 1 - law.noise_fraction(like.shape, generator)
    if path.num_steps is not None:
        t = torch.floor(t * path.num_steps).clamp(max=path.num_steps - 1) / path.num_steps
    return t.to(like).clamp(max=1 - torch.finfo(like.dtype).eps)  # rounding must not reach 1, where some targets are infinite


def draw_normal(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal noise with the shape, dtype and device of `like`, drawn on the generator's device."""
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def row_mean(error: Float[Tensor, "B H A"], weight: Weight) -> Losses:
    """Mean over the dimensions, then over the actions with `weight`; a row without any weight gives zero."""
    weight = weight.to(error.dtype)
    return (error.mean(dim=-1) * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=torch.finfo(error.dtype).tiny)
