"""Baselines without noise levels: plain regression and the minimal iterative policy. Same heads, same borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kineflow.contracts import KineflowError, SamplerSpec
from kineflow.policies.field import DEFAULT_OPTIONS, Chunk, Head, SampleOptions, Tokens
from kineflow.policies.losses import Losses, Weight, draw_normal, row_mean
from kineflow.policies.samplers import RowNoise


@dataclass(frozen=True)
class Regression:
    """Plain regression: the head sees zeros at t = 0 and answers with the chunk. One call, no noise."""

    condition_dropout: ClassVar[float] = 0.0

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        return row_mean((_first_guess(head, torch.zeros_like(actions), condition) - actions) ** 2, weight)

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        refuse_options("Regression", 1, options)
        return _first_guess(head, noise.zeros(), condition)

    def sampler_spec(self) -> SamplerSpec:
        return SamplerSpec("none", "sample", "regression", steps=1)


@dataclass(frozen=True)
class MIP:
    """Minimal iterative policy ("Much Ado About Noising", arXiv 2512.01809, as in its code): two regressions, two calls.

    Training: |f(0, 0, c) - a|^2 / t* + |f(a + (1 - t*) z, t*, c) - a|^2 / (1 - t*). Inference: f(f(0, 0, c), t*, c).
    """

    t_star: float = 0.9
    condition_dropout: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_star < 1:
            raise KineflowError(f"MIP.t_star must be between 0 and 1, got {self.t_star}")

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        first = _first_guess(head, torch.zeros_like(actions), condition)
        near = actions + (1 - self.t_star) * draw_normal(actions, generator)
        second = head(near, _constant(near, self.t_star), condition).to(near.dtype)
        error = (first - actions) ** 2 / self.t_star + (second - actions) ** 2 / (1 - self.t_star)
        return row_mean(error, weight)

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        refuse_options("MIP", 2, options)
        first = _first_guess(head, noise.zeros(), condition)
        return head(first, _constant(first, self.t_star), condition).to(first.dtype)

    def sampler_spec(self) -> SamplerSpec:
        return SamplerSpec(f"MIP(t_star={self.t_star:g})", "sample", "mip", steps=2)


def _first_guess(head: Head, zeros: Tensor, condition: Tensor | None) -> Tensor:
    return head(zeros, _constant(zeros, 0.0), condition).to(zeros.dtype)


def _constant(x: Tensor, value: float) -> Tensor:
    return torch.full(x.shape[:1], value, dtype=x.dtype, device=x.device)


def refuse_options(name: str, calls: int, options: SampleOptions) -> None:
    """Raise KineflowError when `options` ask for what needs noise levels."""
    if options.steps not in (None, calls) or options.guidance_scale not in (None, 1) or options.guide:
        guide = ", a guide" if options.guide else ""
        raise KineflowError(
            f"{name} has no noise levels: it always takes {calls} network calls, without guidance; "
            f"got steps={options.steps}, guidance_scale={options.guidance_scale}{guide}; leave them out"
        )
