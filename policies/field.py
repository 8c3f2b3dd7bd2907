"""The Field: the only thing solvers, guidance and composition see. A trained head becomes one through `HeadField`.

    x canonical --scale c--> x_M --head--> raw --convert--> a_hat        c = alpha_M / alpha = sigma_M / sigma
    lambda --from_lambda--> t_M ----^

A Field's state is always in the canonical variance-preserving scaling, alpha = sqrt(sigmoid(2 lambda)),
alpha^2 + sigma^2 = 1, so heads trained on different paths answer the same question (specification: section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.paths import NoisePath
from kineflow.policies.predictions import Prediction, network_input, to_denoised

Chunk = Float[Tensor, "B H A"]
Level = Float[Tensor, "B *per_action"]  # one noise level per row [B] or per action [B, H]
Tokens = Float[Tensor, "B N D"]
NullTokens = Float[Tensor, "#B M D"]  # what "no condition" looks like, in place of the last M tokens of each row


@runtime_checkable
class Head(Protocol):
    """A network with its own path and prediction type."""

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None) -> Chunk:
        """Noisy chunk `x`, time t in [0, 1] (0 noise, 1 data; one per row `[B]` or per action `[B, H]`), condition tokens."""
        ...


@runtime_checkable
class Field(Protocol):
    """The denoised chunk E[a | x, lambda, condition]; rows never look at each other."""

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        """`x` in the canonical scaling at lambda `[B]` or `[B, H]`; -inf (noise) and +inf (data) are legal."""
        ...


Guide: TypeAlias = Callable[[Field], Field]  # guidance, constraints, rewards: what stands between a head and its solver


@dataclass(frozen=True)
class SampleOptions:
    """How one call of a trained objective is sampled; None means as configured."""

    null_condition: NullTokens | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guide: Guide | None = None  # wraps the head's Field after its classifier-free guidance and clip
    committed: tuple[Chunk, Tensor] | None = None  # normalised actions and how many of each row the chunk begins with


DEFAULT_OPTIONS = SampleOptions()


@dataclass(frozen=True)
class HeadField:
    """A head as a Field: match lambda, rescale, call, convert. Lambda beyond the path's range is held at the nearer end."""

    head: Head
    path: NoisePath
    prediction: Prediction

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        t = self.path.from_lambda(lam)
        point = self.path.at(t).over(x)
        scaled = torch.hypot(point.alpha, point.sigma) * x
        raw = self.head(network_input(self.prediction, scaled, point), t, condition)
        return to_denoised(self.prediction, raw.to(x.dtype), scaled, point).sample
