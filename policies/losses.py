"""What a training loss draws (times and noise) and how it averages."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.paths import NoisePath, PathPoint
from kineflow.policies.predictions import Prediction, from_denoised, to_denoised
from kineflow.policies.time_densities import TimeDensity as TimeDensity, TimeLaw

Weight = Float[Tensor, "B H"] | Bool[Tensor, "B H"]  # of each action in the loss; 0: padding
NO_START = 0.3
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


def with_clean_start(
    t: Float[Tensor, "B *per_action"], weight: Weight, most: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
    """Training-time RTC (arXiv 2512.05964): the first d actions of a row are clean, t = 1, and not in its loss.

    d is 0 in three rows of ten, else uniform in 1 ... `most`: with fewer zeros, chunks without a start got bad in our toy.

    Raises:
        KineflowError: chunks that may be all start.
    """
    rows, horizon = weight.shape
    if not most < horizon:
        raise KineflowError(f"clean_start is {most}, chunks have {horizon} actions; leave at least one to learn")
    drawn = torch.rand((2, rows), generator=generator, device=generator.device).to(t.device)
    delay = torch.where(drawn[0] < NO_START, 0, 1 + torch.floor(drawn[1] * most).clamp(max=most - 1))
    clean = torch.arange(horizon, device=t.device) < delay[:, None]
    each = t if t.ndim == 2 else t[:, None].expand(rows, horizon)
    # As close to 1 as `draw_times` goes: at 1 itself some targets are infinite, weight zero or not.
    return torch.where(clean, 1 - torch.finfo(t.dtype).eps, each), weight.to(t.dtype) * ~clean


def draw_normal(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal noise with the shape, dtype and device of `like`, drawn on the generator's device."""
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def row_mean(error: Float[Tensor, "B H A"], weight: Weight) -> Losses:
    """Mean over the dimensions, then over the actions with `weight`; a row without any weight gives zero."""
    weight = weight.to(error.dtype)
    return (error.mean(dim=-1) * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=torch.finfo(error.dtype).tiny)


def exchange_rate(prediction: Prediction, loss_space: Prediction, point: PathPoint, floor: float) -> Float[Tensor, "B *level"]:
    """An error of 1 in what the head predicts, seen in `loss_space`: 1 / (1 - t) for sample and velocity on CondOT.

    Its size is held below 1 / `floor`: there 1 - t becomes max(1 - t, floor), as in RiT. Conversions are affine in what the
    head says, so this rate times the error is the error in `loss_space`, without the cancellation of converting both.
    """
    error, nothing = torch.ones_like(point.alpha), torch.zeros_like(point.alpha)
    rate = from_denoised(loss_space, to_denoised(prediction, error, nothing, point), point)
    return rate if floor == 0 else rate.clamp(-1 / floor, 1 / floor)
