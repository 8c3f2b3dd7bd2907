"""Solvers: from noise along a grid of lambdas to a chunk, through a Field.

All work on the canonical state (alpha^2 + sigma^2 = 1). `lambdas` ascends from noise to data; N + 1 entries are N steps.
A last entry of +inf means sigma = 0: that step returns the denoised chunk itself. An entry may also be per row `[B]` or
per action `[B, H]`, `lambdas` then being `[N + 1, B]` or `[N + 1, B, H]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import NoisePath, variance_preserving

Grid = Float[Tensor, "N1 *per_action"]
SolverName = Literal["euler", "ddim", "heun", "ddpm"]


@runtime_checkable
class Noise(Protocol):
    """A source of standard normal chunks; each draw is fresh."""

    def draw(self) -> Chunk: ...


@runtime_checkable
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
    levels, lam = _levels(lambdas, noise)
    alpha, sigma = variance_preserving(lam)
    std = eta * sigma[1:] * torch.sqrt(-torch.expm1(2 * (lam[:-1] - lam[1:])))
    std = torch.where(sigma[1:] == 0, 0, std)
    # With eps_hat = (x - alpha a_hat) / sigma a step reads x' = keep x + jump a_hat + std z.
    keep = torch.where(sigma[:-1] == 0, 1, torch.sqrt(sigma[1:] ** 2 - std**2) / sigma[:-1])
    jump, x = alpha[1:] - keep * alpha[:-1], noise
    for k in range(len(keep)):
        x = keep[k] * x + jump[k] * field(x, levels[k], condition)
        x = x + std[k] * fresh.draw() if eta > 0 else x
    return x


def euler(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Euler on dz/dt = v of the CondOT clock, z = t a + (1 - t) eps: what flow policies call sampling. Equals DDIM.

    v = (a_hat - z) / (1 - t), so a step moves z towards a_hat by the share (t' - t) / (1 - t).
    """
    levels, lam = _levels(lambdas, noise)
    left, norm = _condot(lam)
    share, z = _share(left[:-1] - left[1:], left[:-1]), noise * norm[0]
    for k in range(len(share)):
        z = torch.lerp(z, field(z / norm[k], levels[k], condition), share[k])
    return z / norm[-1]


def heun(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Heun's second-order rule on the CondOT clock: an Euler step, then the mean of the velocities at both its ends.

    A step to sigma = 0 stays first order (as in EDM), so N steps take 2 N - 1 calls.
    """
    levels, lam = _levels(lambdas, noise)
    left, norm = _condot(lam)
    share, back = _share(left[:-1] - left[1:], left[:-1]), _share(left[:-1] - left[1:], left[1:])
    final, z = left[1:] == 0, noise * norm[0]
    is_last = final.flatten(1).all(dim=1).tolist()
    for k in range(len(share)):
        ahead = torch.lerp(z, field(z / norm[k], levels[k], condition), share[k])
        if not is_last[k]:
            sample = field(ahead / norm[k + 1], levels[k + 1], condition)
            # z + (t' - t) (v + v') / 2, with ahead = z + (t' - t) v and v' = (sample - ahead) / (1 - t')
            ahead = torch.where(final[k], ahead, (z + torch.lerp(ahead, sample, back[k])) / 2)
        z = ahead
    return z / norm[-1]


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


def _levels(lambdas: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The grid in the dtype of `x`: as levels `[B]` or `[B, H]` for the Field, and with axes to broadcast over `x`."""
    if len(lambdas) < 2 or bool((lambdas[1:] < lambdas[:-1]).any()):
        raise KineflowError(f"a solver's lambdas must ascend from noise to data, at least two of them; got {lambdas.tolist()}")
    grid = lambdas.to(x)
    levels = grid[:, None].expand(-1, len(x)).contiguous() if grid.ndim == 1 else grid
    return list(levels.unbind()), grid.reshape(grid.shape + (1,) * (x.ndim + 1 - grid.ndim))


def _condot(lam: Tensor) -> tuple[Tensor, Tensor]:
    """1 - t on the CondOT clock, and the norm that takes a canonical state x to z = norm x."""
    return torch.sigmoid(-lam), torch.hypot(torch.sigmoid(lam), torch.sigmoid(-lam))


def _share(step: Tensor, left: Tensor) -> Tensor:
    """step / left; zero where nothing is left, because there the state is the sample already."""
    return torch.where(left == 0, 0, step / left)
