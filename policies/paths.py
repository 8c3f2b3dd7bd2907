"""Noise paths x_t = alpha_t a + sigma_t eps: how much of the chunk `a` and of the noise `eps` is left at time t.

One clock for everything a network sees: t = 0 is noise, t = 1 is data. One index for everything a solver sees:
lambda = log(alpha / sigma), HALF the log signal-to-noise ratio. Paths differ only by a rescaling of x and by their clock,
so a state is matched between two paths by equal lambda (specification: generative core, sections 2 and 5).

Infinite lambda is legal: -inf is pure noise, +inf pure data. No formula below divides by alpha or sigma there.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kineflow.contracts import KineflowError

HALF_PI = math.pi / 2
EDM_DATA_STD = 0.5  # sigma_data of Karras et al. 2022; about right for actions normalised to [-1, 1]


@dataclass(frozen=True)
class PathPoint:
    """A path at one noise level; every tensor has the shape of the level, `alpha_dot` is d alpha / dt.

    On variance-preserving paths `sigma_dot` is -inf at t = 1. Only the prediction "edm" reads `data_std`.
    """

    alpha: Float[Tensor, "*level"]
    sigma: Float[Tensor, "*level"]
    alpha_dot: Float[Tensor, "*level"]
    sigma_dot: Float[Tensor, "*level"]
    data_std: float = EDM_DATA_STD

    def over(self, x: Float[Tensor, "B H A"]) -> PathPoint:
        """The same point with trailing axes of size one, so that it multiplies `x`."""
        alpha, sigma = over(self.alpha, x), over(self.sigma, x)
        return PathPoint(alpha, sigma, over(self.alpha_dot, x), over(self.sigma_dot, x), self.data_std)


@runtime_checkable
class NoisePath(Protocol):
    """A schedule and its clock. `num_steps` is None on a continuous path; otherwise only t = k / num_steps were trained."""

    @property
    def num_steps(self) -> int | None: ...

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        """log(alpha / sigma) at time t in [0, 1]; non-decreasing."""
        ...

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        """The time in [0, 1] at which the path has this lambda; outside its range the nearer end."""
        ...

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        """alpha, sigma and their derivatives at time t in [0, 1]."""
        ...


@dataclass(frozen=True)
class CondOT:
    """Conditional optimal transport, also called rectified flow: alpha = t, sigma = 1 - t (Lipman et al., Liu et al. 2023)."""

    num_steps: ClassVar[None] = None

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return torch.logit(t)

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return torch.sigmoid(lam)

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        one = torch.ones_like(t)
        return PathPoint(t, 1 - t, one, -one)


@dataclass(frozen=True)
class Cosine:
    """Trigonometric path: alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""

    num_steps: ClassVar[None] = None

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return _log_ratio(self.at(t))

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return torch.atan(torch.exp(lam)) / HALF_PI

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        # sin of the complement instead of cos: exactly zero at t = 1.
        alpha, sigma = torch.sin(HALF_PI * t), torch.sin(HALF_PI * (1 - t))
        return PathPoint(alpha, sigma, HALF_PI * sigma, -HALF_PI * alpha)


@dataclass(frozen=True)
class VPLinear:
    """Variance-preserving SDE with linear beta (Song et al. 2021).

    alpha^2 = exp(-T), T = tau^2 (beta_max - beta_min) / 2 + tau beta_min, tau = 1 - t.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    num_steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise KineflowError(f"VPLinear needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return _log_ratio(self.at(t))

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        low, slope = self.beta_min, self.beta_max - self.beta_min
        total = torch.logaddexp(-2 * lam, torch.zeros_like(lam)).clamp(max=low + slope / 2)
        return 1 - 2 * total / (low + torch.sqrt(low**2 + 2 * slope * total))

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        tau, slope = 1 - t, self.beta_max - self.beta_min
        total, beta = tau * (self.beta_min + tau * slope / 2), self.beta_min + tau * slope
        alpha, sigma = torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total))
        return _variance_preserving_point(alpha, sigma, alpha * beta / 2)


@dataclass(frozen=True)
class ContinuousSquaredCos:
    """The curve behind squaredcos_cap_v2 (Nichol & Dhariwal 2021) without its grid: alpha = cos(th) / cos(th0).

    th = (1 - t + s) / (1 + s) pi / 2 and th0 = s / (1 + s) pi / 2, with s = `shift`.
    """

    shift: float = 0.008
    num_steps: ClassVar[None] = None

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return _log_ratio(self.at(t))

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        angle = HALF_PI * self.shift / (1 + self.shift)
        alpha, sigma = variance_preserving(lam)
        # sin^2(th) = sin^2(th0) + sigma^2 cos^2(th0): no cancellation near the data, where acos(alpha cos th0) has one.
        sin = torch.sqrt(math.sin(angle) ** 2 + (sigma * math.cos(angle)) ** 2)
        theta = torch.atan2(sin, alpha * math.cos(angle))
        return (1 - (theta - angle) * (1 + self.shift) / HALF_PI).clamp(0, 1)

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        s, rate = self.shift, HALF_PI / (1 + self.shift)
        norm = math.cos(rate * s)
        alpha = torch.sin(rate * t) / norm
        sigma = torch.sqrt(torch.sin(rate * (1 - t)) * torch.sin(rate * (1 - t + 2 * s))) / norm
        return _variance_preserving_point(alpha, sigma, rate * torch.cos(rate * t) / norm)


@dataclass(frozen=True)
class SquaredCos:
    """The discrete DDPM schedule squaredcos_cap_v2: `num_steps` levels, beta_i capped at 0.999 (diffusers, diffusion policy).

    Index i = num_steps - 1 is the noisiest. abar_i is the continuous curve at 1 - t = (i + 1) / num_steps, the off-by-one that
    everyone meets, for every i but the last, whose beta is capped. So t = 1 - (i + 1) / num_steps; k / num_steps were trained.
    Between trained times lambda is interpolated linearly (its slope gives the derivatives); beyond them the nearer end holds.
    """

    num_steps: int = 100

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise KineflowError(f"SquaredCos.num_steps must be at least 2, got {self.num_steps}")

    def index_to_time(self, index: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        """DDPM index (0 cleanest) to t."""
        return (self.num_steps - 1 - index) / self.num_steps

    def time_to_index(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        """t to the DDPM index, fractional between trained times."""
        return self.num_steps - 1 - t * self.num_steps

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return self._lambda_and_slope(t)[0]

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        table = _squared_cos_lambdas(self.num_steps, lam.dtype, lam.device)
        k = (torch.searchsorted(table, lam.contiguous(), right=True) - 1).clamp(0, self.num_steps - 2)
        fraction = ((lam - table[k]) / (table[k + 1] - table[k])).clamp(0, 1)
        return (k + fraction) / self.num_steps

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        lam, slope = self._lambda_and_slope(t)
        alpha, sigma = variance_preserving(lam)
        return _variance_preserving_point(alpha, sigma, alpha * sigma**2 * slope)

    def _lambda_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = _squared_cos_lambdas(self.num_steps, t.dtype, t.device)
        position = (t * self.num_steps).clamp(0, self.num_steps - 1)
        k = position.long().clamp(max=self.num_steps - 2)
        rise = table[k + 1] - table[k]
        return table[k] + (position - k) * rise, rise * self.num_steps


@dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1, sigma = u from `sigma_max` at t = 0 to `sigma_min` at t = 1, linear in u^(1/rho) (Karras et al. 2022, EDM).

    `data_std` is their sigma_data, with which the prediction "edm" keeps the network's input and target at unit variance.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    data_std: float = EDM_DATA_STD
    num_steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise KineflowError(f"VarianceExploding needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not (self.rho > 0 and self.data_std > 0):
            raise KineflowError(f"VarianceExploding needs rho and data_std above 0, got {self.rho} and {self.data_std}")

    def to_lambda(self, t: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        return -self.rho * torch.log(self._root(t))

    def from_lambda(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level"]:
        low, high = self._roots()
        return ((high - torch.exp(-lam / self.rho)) / (high - low)).clamp(0, 1)

    def at(self, t: Float[Tensor, "*level"]) -> PathPoint:
        low, high = self._roots()
        root = self._root(t)
        sigma_dot = -self.rho * (high - low) * root ** (self.rho - 1)
        return PathPoint(torch.ones_like(t), root**self.rho, torch.zeros_like(t), sigma_dot, self.data_std)

    def _root(self, t: Tensor) -> Tensor:
        low, high = self._roots()
        return (1 - t) * high + t * low

    def _roots(self) -> tuple[float, float]:
        return math.pow(self.sigma_min, 1 / self.rho), math.pow(self.sigma_max, 1 / self.rho)


Path = CondOT | Cosine | VPLinear | ContinuousSquaredCos | SquaredCos | VarianceExploding  # the registry of `kind:` in configs


def variance_preserving(lam: Float[Tensor, "*level"]) -> tuple[Float[Tensor, "*level"], Float[Tensor, "*level"]]:
    """(alpha, sigma) of the canonical scaling in which solvers work: alpha^2 + sigma^2 = 1, exact at infinite lambda."""
    return torch.sqrt(torch.sigmoid(2 * lam)), torch.sqrt(torch.sigmoid(-2 * lam))


def lambda_range(path: NoisePath) -> tuple[float, float]:
    """The lambdas of its noisiest and its cleanest level: all that a head trained on the path knows. Infinite where it ends."""
    cleanest = 1.0 if path.num_steps is None else 1 - 1 / path.num_steps
    low, high = path.to_lambda(torch.tensor([0.0, cleanest], dtype=torch.float64)).tolist()
    return low, high


def over(level: Shaped[Tensor, "*level"], x: Float[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Append axes of size one to a level `[]`, `[B]` or `[B, H]` until it broadcasts over `x` `[B, H, A]`."""
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def _log_ratio(point: PathPoint) -> Tensor:
    return torch.log(point.alpha) - torch.log(point.sigma)


def _variance_preserving_point(alpha: Tensor, sigma: Tensor, alpha_dot: Tensor) -> PathPoint:
    return PathPoint(alpha, sigma, alpha_dot, -alpha * alpha_dot / sigma)  # alpha^2 + sigma^2 = 1, differentiated


@functools.lru_cache(maxsize=64)
def _squared_cos_lambdas(num_steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """lambda at t = k / num_steps, k = 0 (noise) ... num_steps - 1, ascending."""

    def abar(step: Tensor) -> Tensor:
        return torch.cos((step / num_steps + 0.008) / 1.008 * HALF_PI) ** 2

    step = torch.arange(num_steps, dtype=torch.float64)
    beta = (1 - abar(step + 1) / abar(step)).clamp(max=0.999)
    signal = torch.cumprod(1 - beta, dim=0)
    lam = (torch.log(signal) - torch.log1p(-signal)) / 2
    return lam.flip(0).to(device=device, dtype=dtype)
