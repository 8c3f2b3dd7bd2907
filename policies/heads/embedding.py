"""What every head needs to know where it stands: generative time and position along the horizon."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError

MAX_GAP_FREQUENCY = 32.0  # radians per unit of time


class TimeEmbedding(nn.Module):
    """Generative time t in [0, 1] to features: sinusoids at octaves up to `max_frequency`, then a two-layer MLP.

    Takes one time per sample `[B]` or one per action `[B, H]` and appends a feature axis.

    With `two_times` a flow map's head says where to as well: e(t) + g(end - t), where the output layer of g is zero at
    first, so a head that starts from a trained one-time head is that head. (AnyFlow mixes 0.75 e(t) + 0.25 e(end) instead,
    which equals the one-time head only at end = t.) Without `end` the head answers for end = t, its velocity.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_frequencies: int = 32, max_frequency: float = 1000.0, *, two_times: bool = False) -> None:
        super().__init__()
        exponents = torch.linspace(0.0, 1.0, num_frequencies)
        self.register_buffer("frequencies", torch.exp(exponents * math.log(max_frequency)), persistent=False)
        self.inputs = nn.Linear(2 * num_frequencies, width)
        self.outputs = nn.Linear(width, width)
        # Slower than e(t): flow maps are trained through their derivative in `end`, and sinusoids multiply it by frequency.
        self.gap = TimeEmbedding(width, num_frequencies, MAX_GAP_FREQUENCY) if two_times else None
        if self.gap is not None:
            nn.init.zeros_(self.gap.outputs.weight)
            nn.init.zeros_(self.gap.outputs.bias)

    def forward(self, t: Float[Tensor, "*S"], end: Float[Tensor, "*S"] | None = None) -> Float[Tensor, "*S D"]:
        angles = t[..., None].to(self.frequencies.dtype) * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        hidden: Tensor = self.inputs(features.to(self.inputs.weight.dtype))
        embedded: Tensor = self.outputs(F.silu(hidden))
        if self.gap is not None:
            gap: Tensor = self.gap(torch.zeros_like(t) if end is None else end - t)
            return embedded + gap
        if end is not None:
            raise KineflowError("this head has one time and cannot jump to `end`; build it with two_times=True (flow maps do)")
        return embedded


def rotate(x: Float[Tensor, "B N T D"], base: float = 100.0) -> Float[Tensor, "B N T D"]:
    """Rotary position embedding (Su et al. 2021) over the T axis; relative, so any horizon is legal.

    The base is 100, not the 10,000 of language models: horizons are tens of steps, not thousands.
    """
    return rotated(x, *rotation(x.shape[-2], x.shape[-1], x, base))


def rotation(length: int, size: int, like: Tensor, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[T, D / 2]` of `rotate`, for those who use them many times; dtype and device of `like`."""
    half = size // 2
    frequencies = base ** (-torch.arange(half, device=like.device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: Float[Tensor, "B N T D"], cos: Float[Tensor, "T E"], sin: Float[Tensor, "T E"]) -> Float[Tensor, "B N T D"]:
    """`x` turned by `rotation`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def time_per_action(embedded: Tensor, horizon: int) -> Float[Tensor, "B H D"]:
    """Embedded times `[B, D]` (one per sample) or `[B, H, D]` to `[B, H, D]`."""
    return embedded[:, None].expand(-1, horizon, -1) if embedded.ndim == 2 else embedded
