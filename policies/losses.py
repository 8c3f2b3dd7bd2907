"""What a training loss draws (times and noise) and how it averages."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kineflow.policies.paths import NoisePath

TimeDensity = Literal["uniform", "logit_normal", "beta"]
Weight = Float[Tensor, "B H"] | Bool[Tensor, "B H"]  # of each action in the loss; 0: padding
Losses = Float[Tensor, "B"]


def draw_times(
    path: NoisePath, density: TimeDensity, like: Float[Tensor, "*shape"], generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Independent times in [0, 1) with the shape, dtype and device of `like`; on a discrete path, trained levels alone."""
    t = _density(density, like.shape, generator)
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


def _density(name: TimeDensity, shape: torch.Size, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    match name:
        case "uniform":
            return uniform
        case "logit_normal":  # MeanFlow (arXiv 2505.13447): the noise fraction is sigmoid(N(-0.4, 1))
            return torch.sigmoid(0.4 - torch.special.ndtri(uniform))
        case "beta":  # pi0: the noise fraction is 0.999 Beta(1.5, 1) + 0.001; Beta(1.5, 1) is uniform^(2/3)
            return 0.999 * (1 - uniform ** (2 / 3))
