"""Solvers: from noise along a grid of lambdas to a chunk, through a Field.

All work on the canonical state (alpha^2 + sigma^2 = 1). `lambdas` ascends from noise to data; N + 1 entries are N steps.
A last entry of +inf means sigma = 0: that step returns the denoised chunk itself. An entry may also be per row `[B]` or
per action `[B, H]`, `lambdas` then being `[N + 1, B]` or `[N + 1, B, H]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import NoisePath, over, variance_preserving

Grid = Float[Tensor, "N1 *per_action"]
SolverName = Literal["euler", "ddim", "heun", "ddpm"]


class Noise(Protocol):
    """A source of standard normal chunks; each draw is fresh."""

    def draw(self) -> Chunk: ...


class Sampler(Protocol):
    """One way to integrate; swappable by name in `SOLVERS`."""

    def __call__(self, field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        """State `noise` at lambdas[0] to the state at lambdas[-1]. Only stochastic solvers draw from `fresh`."""
        ...


def ddim(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """x' = alpha' a_hat + sigma' eps_hat (Song et al. 2021), first order; the same on every path with equal lambdas."""
    return ancestral(field, noise, lambdas, condition, fresh, eta=0.0)


def ancestral(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise, *, eta: float = 1.0) -> Chunk:
    """x' = alpha' a_hat + sqrt(sigma'^2 - var) eps_hat + sqrt(var) z, on any path and any subset of its levels.

    var = eta^2 sigma'^2 (1 - exp(2 (lambda - lambda'))). eta = 0 is DDIM; eta = 1 is DDPM (Ho et al. 2020) with its
    posterior variance ("fixed_small").
    """
    x, levels = noise, _levels(lambdas, noise)
    for lam, following in itertools.pairwise(levels):
        (alpha, sigma), (alpha_next, sigma_next) = _scales(lam, x), _scales(following, x)
        sample = field(x, lam, condition)
        eps = _noise_of(x, sample, alpha, sigma)
        if eta == 0:
            x = alpha_next * sample + sigma_next * eps
        else:
            kept = over(torch.expm1(2 * torch.where(lam == following, 0, lam - following)), x)
            std = eta * sigma_next * torch.sqrt(-kept)
            x = alpha_next * sample + torch.sqrt(sigma_next**2 - std**2) * eps + std * fresh.draw()
    return x


def euler(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Euler on dz/dt = v of the CondOT clock, z = t a + (1 - t) eps: what flow policies call sampling. Equals DDIM."""
    return _condot(field, noise, lambdas, condition, corrected=False)


def heun(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Heun's second-order rule on the CondOT clock; 2 N - 1 calls when the last step, to sigma = 0, is first order."""
    return _condot(field, noise, lambdas, condition, corrected=True)


SOLVERS: Mapping[SolverName, Sampler] = {"euler": euler, "ddim": ddim, "heun": heun, "ddpm": ancestral}


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


@dataclass(frozen=True)
class RowNoise:
    """Standard normal chunks `[B, H, A]`, one generator per row: a row's noise depends on its seed and nothing else.

    Neither its neighbours, nor the batch size, nor the device changes it. All 64 bits of a seed count.
    """

    seeds: Int64[np.ndarray, "B"]
    shape: tuple[int, int]  # H, A
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    _generators: list[torch.Generator] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        generators = [torch.Generator().manual_seed(_mixed(int(seed))) for seed in self.seeds]
        object.__setattr__(self, "_generators", generators)

    def zeros(self) -> Chunk:
        """Zeros of the same shape, dtype and device, for samplers without noise."""
        return torch.zeros((len(self.seeds), *self.shape), dtype=self.dtype, device=self.device)

    def draw(self) -> Chunk:
        """The next chunk of each row; drawn in float64 on the CPU, so that float32 and float64 runs share it."""
        rows = [torch.randn(self.shape, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(rows).to(dtype=self.dtype, device=self.device)


def _mixed(seed: int) -> int:
    """SplitMix64 (Steele et al. 2014): torch's CPU generator reads only the low 32 bits, so all 64 must reach them."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def _condot(field: Field, noise: Tensor, lambdas: Tensor, condition: Tensor | None, corrected: bool) -> Tensor:
    """One loop for Euler and Heun: z is the CondOT state, `signal` = t and `rest` = 1 - t its two coefficients."""
    levels = _levels(lambdas, noise)
    signal, rest = _condot_scales(levels[0], noise)
    z = noise * torch.hypot(signal, rest)
    for lam, following in itertools.pairwise(levels):
        signal_next, rest_next = _condot_scales(following, z)
        sample = field(z / torch.hypot(signal, rest), lam, condition)
        velocity = _noise_ratio(sample - z, rest)
        predicted = torch.where(rest_next == 0, sample, z + (rest - rest_next) * velocity)
        if corrected and bool((rest_next > 0).any()):
            sample = field(predicted / torch.hypot(signal_next, rest_next), following, condition)
            mean = (velocity + _noise_ratio(sample - predicted, rest_next)) / 2
            predicted = torch.where(rest_next == 0, predicted, z + (rest - rest_next) * mean)
        z, signal, rest = predicted, signal_next, rest_next
    return z / torch.hypot(signal, rest)


def _levels(lambdas: Tensor, x: Tensor) -> list[Tensor]:
    """Each entry of the grid in the dtype of `x`, as `[B]` or `[B, H]`."""
    grid = lambdas.to(x)
    return list((grid[:, None].expand(-1, x.shape[0]) if grid.ndim == 1 else grid).contiguous().unbind())


def _scales(lam: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = variance_preserving(lam)
    return over(alpha, x), over(sigma, x)


def _condot_scales(lam: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return over(torch.sigmoid(lam), x), over(torch.sigmoid(-lam), x)


def _noise_of(x: Tensor, sample: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return _noise_ratio(x - alpha * sample, sigma)


def _noise_ratio(numerator: Tensor, sigma: Tensor) -> Tensor:
    """numerator / sigma, zero where sigma = 0: there x is the sample already and stays."""
    return torch.where(sigma == 0, 0, numerator / torch.where(sigma == 0, 1, sigma))
