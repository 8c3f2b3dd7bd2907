"""Solvers: from noise along a grid of lambdas to a chunk, through a Field. `SOLVERS` has them all by name.

In y = x / alpha and u = sigma / alpha every probability flow is dy/du = eps_hat, so all solvers see levels, never a schedule.
One-step solvers are below, multistep ones in multistep.py, what they share (and the meaning of `lambdas`) in stepping.py.

    solver              order  calls for N steps   draws
    euler, ddim         1      N
    ddpm, sde           1      N                   a chunk per step
    ab2, dpmpp2m        2      N
    ab3                 3      N
    adaptive            3      N at most: for many small steps, see adaptive.py
    heun, midpoint      2      2 N - 1
    rk4                 4      4 N - 3
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.adaptive import AdaptiveSkipping
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.multistep import ab2 as ab2, ab3 as ab3, dpmpp2m as dpmpp2m
from kineflow.policies.paths import variance_preserving
from kineflow.policies.stepping import (
    FlowClock,
    Grid as Grid,
    Noise as Noise,
    Sampler as Sampler,
    levels_of,
    like,
    only_final,
    quotient,
    spread,
)
from kineflow.policies.time_grids import uniform_time_grid as uniform_time_grid

SolverName = Literal["euler", "ddim", "heun", "midpoint", "rf_solver", "rk4", "ab2", "ab3", "adaptive", "dpmpp2m", "ddpm", "sde"]


def ddim(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """x' = alpha' a_hat + sigma' eps_hat (Song et al. 2021), first order; the same on every path with equal lambdas."""
    return ancestral(field, noise, lambdas, condition, fresh, eta=0.0)


def ancestral(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise, *, eta: float = 1.0) -> Chunk:
    """x' = alpha' a_hat + sqrt(sigma'^2 - var) eps_hat + sqrt(var) z, on any path and any subset of its levels.

    var = eta^2 sigma'^2 (1 - exp(2 (lambda - lambda'))). eta = 0 is DDIM; eta = 1 is DDPM (Ho et al. 2020) with its
    posterior variance ("fixed_small").
    """
    if not 0 <= eta <= 1:
        raise KineflowError(f"eta is {eta:g}; it must be between 0 (DDIM) and 1 (DDPM); for more noise use sde with k above 1")
    return _renewing(field, noise, lambdas, condition, fresh, strength=eta**2, rate=1.0)


def sde(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise, *, k: float = 1.0) -> Chunk:
    """The marginal-preserving SDE dx = (v + e score) dt + sqrt(2 e) dW with e = k sigma Dt / alpha, for any diffusion k >= 0.

    In (y, u) it is dy = (1 + k) eps_hat du plus noise of variance 2 k u |du|. With a_hat held over a step its exact solution is
    x' = alpha' a_hat + sigma' (q eps_hat + sqrt(1 - q^2) z), q = (u' / u)^k: k = 0 is DDIM, k = 1 DDPM, and neither alpha = 0
    nor the noiseless last step is special. A growing k takes a composed score from the law of its flow to the product of the
    densities, and more steps with it: the noise that a step renews is 1 - q^2.
    """
    return _renewing(field, noise, lambdas, condition, fresh, strength=float(k > 0), rate=k)


def euler(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Euler on dz/dt = v of the CondOT clock, z = t a + (1 - t) eps: what flow policies call sampling. Equals DDIM.

    v = (a_hat - z) / (1 - t), so a step moves z towards a_hat by the share (t' - t) / (1 - t).
    """
    levels, lam = levels_of(lambdas, noise)
    clock = FlowClock.at(lam)
    norm, share = like(noise, clock.norm, clock.shares)
    z = noise * norm[0]
    for k in range(len(share)):
        z = torch.lerp(z, field(z / norm[k], levels[k], condition), share[k])
    return z / norm[-1]


def heun(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Heun's second-order rule on the CondOT clock: an Euler step, then the mean of the velocities at both its ends."""
    return _runge_kutta(field, noise, lambdas, condition, nodes=(1.0,), weights=(1 / 2, 1 / 2))


def midpoint(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """The explicit midpoint rule on the CondOT clock: half an Euler step, then a whole one with the velocity found there.

    RF-Solver (Wang et al. 2024) is the same thing: its Taylor step z + h v + h^2 / 2 dv/dt with dv/dt = (v_middle - v) / (h / 2)
    is z + h v_middle.

    On a discrete path the head is asked between its trained levels, where lambda is interpolated and a network may say anything:
    an epsilon head of 100 levels, trained on PushT, was further from the mean of the levels beside it than those are apart, and
    its chunks ended a quarter further from the exact flow than Heun's after as many calls (10 steps, RMS .026 to .020). Prefer
    heun, ddim or dpmpp2m there.
    """
    return _runge_kutta(field, noise, lambdas, condition, nodes=(1 / 2,), weights=(0.0, 1.0))


def rk4(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """The classical fourth-order Runge-Kutta rule on the CondOT clock; between trained levels as "midpoint" does."""
    return _runge_kutta(field, noise, lambdas, condition, nodes=(1 / 2, 1 / 2, 1.0), weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6))


SOLVERS: Mapping[SolverName, Sampler] = {
    "euler": euler,
    "ddim": ddim,
    "heun": heun,
    "midpoint": midpoint,
    "rf_solver": midpoint,  # an alias: see there
    "rk4": rk4,
    "ab2": ab2,
    "ab3": ab3,
    "adaptive": AdaptiveSkipping(),
    "dpmpp2m": dpmpp2m,
    "ddpm": ancestral,
    "sde": sde,
}
RENEWING: Final = ("ddpm", "sde")  # solvers that draw noise between their steps
_CALLS_OF_A_STEP: Mapping[SolverName, int] = {"heun": 2, "midpoint": 2, "rf_solver": 2, "rk4": 4}


def solver_of(name: SolverName, diffusion: float = 1.0) -> Sampler:
    """The solver of that name; `diffusion` is the k of "sde" and means nothing to the others."""
    if not 0 <= diffusion < math.inf:
        raise KineflowError(f"diffusion k is {diffusion:g}; it must be finite and at least 0 (0: no noise, 1: the noise of DDPM)")
    return functools.partial(sde, k=diffusion) if name == "sde" else SOLVERS[name]


def calls(solver: SolverName, steps: int) -> int:
    """Network calls that a chunk takes on a grid of `steps` steps that ends at sigma = 0 (its last step takes one).

    Of "adaptive" the most that it takes.
    """
    return (steps - 1) * _CALLS_OF_A_STEP.get(solver, 1) + 1


def _renewing(
    field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise, strength: float, rate: float
) -> Chunk:
    """x' = alpha' a_hat + sigma' (sqrt(1 - new) eps_hat + sqrt(new) z); new = strength (1 - (u' / u)^(2 rate)) is renewed."""
    levels, lam = levels_of(lambdas, noise)
    alpha, sigma = variance_preserving(lam)
    new = strength * -torch.expm1(2 * rate * (lam[:-1] - lam[1:])) if strength else torch.zeros_like(sigma[1:])
    new = torch.where((sigma[1:] == 0) | (lam[1:] == lam[:-1]), 0, new)
    std = sigma[1:] * torch.sqrt(new)
    # With eps_hat = (x - alpha a_hat) / sigma a step reads x' = keep x + jump a_hat + std z.
    keep = torch.where(sigma[:-1] == 0, 1, quotient(sigma[1:] * torch.sqrt(1 - new), sigma[:-1]))
    keep, jump, std = like(noise, keep, alpha[1:] - keep * alpha[:-1], std)
    x = noise
    for kept, jumped, renewed, level in zip(keep, jump, std, levels):  # not by index: one call for all, not three a step
        x = kept * x + jumped * field(x, level, condition)
        x = x + renewed * fresh.draw() if strength else x
    return x


def _runge_kutta(
    field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, nodes: tuple[float, ...], weights: tuple[float, ...]
) -> Chunk:
    """Explicit rules in which each stage starts from the velocity of the stage before: at z + c h v for each c of `nodes`."""
    levels, lam = levels_of(lambdas, noise)
    clock = FlowClock.at(lam)
    norm, share, final, h = like(noise, clock.norm, clock.shares, clock.final, clock.steps)
    rate = quotient(1.0, clock.left).to(noise)
    stages = []
    for c, weight in zip(nodes, weights[1:]):
        stage, between = spread(_between(lambdas, c), noise)
        at = FlowClock.at(between)
        stages.append((c, weight, stage, at.norm.to(noise), quotient(1.0, at.left).to(noise)))
    last, z = only_final(final), noise * norm[0]
    for k in range(len(h)):
        sample = field(z / norm[k], levels[k], condition)
        ahead = torch.lerp(z, sample, share[k])
        if not last[k]:
            v = rate[k] * (sample - z)
            mean = weights[0] * v
            for c, weight, stage, stage_norm, stage_rate in stages:
                middle = z + c * h[k] * v
                v = stage_rate[k] * (field(middle / stage_norm[k], stage[k], condition) - middle)
                mean = mean + weight * v
            ahead = torch.where(final[k], ahead, z + h[k] * mean)
        z = ahead
    return z / norm[-1]


def _between(lambdas: Tensor, share: float) -> Tensor:
    """The level of each step at this share of its way on the CondOT clock."""
    if share == 1:
        return lambdas[1:]
    lambdas = lambdas.double()
    t, left = (torch.lerp(level[:-1], level[1:], share) for level in (torch.sigmoid(lambdas), torch.sigmoid(-lambdas)))
    return torch.log(t) - torch.log(left)


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
