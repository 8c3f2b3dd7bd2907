"""Closed-form fields: the optimal denoiser of a Gaussian mixture on any path, to test solvers and guidance against.

With components N(m_k, S_k) (diagonal) of weight pi_k and x = alpha a + sigma eps, all in one place:

    V_k = alpha^2 S_k + sigma^2      r_k ~ pi_k N(x; alpha m_k, V_k)      d_k = (x - alpha m_k) / V_k
    a_hat = sum r_k (m_k + alpha S_k d_k)      score = -sum r_k d_k      v = sum r_k (alpha' m_k + V_k' d_k / 2)

One component is a Gaussian policy; S_k = 0 a finite data set, whose a_hat is the optimal policy that remembers it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kineflow.policies.field import Chunk, Level, Tokens
from kineflow.policies.paths import CondOT, NoisePath, PathPoint, over, variance_preserving
from kineflow.policies.predictions import Denoised, Prediction, from_denoised, network_input

OneOrEach = Float[Tensor, ""] | Float[Tensor, "B 1 1"]  # one lambda for all rows, or each its own


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over chunks, one for all rows or one for each; as a Field it ignores the condition."""

    weights: Float[Tensor, "*B K"]
    means: Float[Tensor, "*B K H A"]
    stds: Float[Tensor, "*B K H A"]

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        alpha, sigma = variance_preserving(over(lam, x))
        return self.sample(x, PathPoint(alpha, sigma, alpha, sigma))

    def sample(self, x: Chunk, point: PathPoint) -> Chunk:
        """E[a | x]; `point` broadcasts over `x`, here and below."""
        shares, pull = self._posterior(x, point)
        alpha = point.alpha.unsqueeze(1)
        return (shares * (self.means + alpha * self.stds**2 * pull)).sum(dim=1)

    def score(self, x: Chunk, point: PathPoint) -> Chunk:
        """Gradient of log p(x)."""
        shares, pull = self._posterior(x, point)
        return -(shares * pull).sum(dim=1)

    def velocity(self, x: Chunk, point: PathPoint) -> Chunk:
        """E[dx/dt | x] on the clock t = 0 noise, t = 1 data."""
        shares, pull = self._posterior(x, point)
        alpha, sigma = point.alpha.unsqueeze(1), point.sigma.unsqueeze(1)
        alpha_dot, sigma_dot = point.alpha_dot.unsqueeze(1), point.sigma_dot.unsqueeze(1)
        half_variance_dot = alpha * alpha_dot * self.stds**2 + sigma * sigma_dot
        return (shares * (alpha_dot * self.means + half_variance_dot * pull)).sum(dim=1)

    def log_density(self, x: Chunk, lam: Level, condition: Tokens | None) -> Float[Tensor, "B"]:
        """log p(x) of the noisy chunk in the canonical scaling."""
        alpha, sigma = (level.unsqueeze(1) for level in variance_preserving(over(lam, x)))
        variance = alpha**2 * self.stds**2 + sigma**2
        square = (x.unsqueeze(1) - alpha * self.means) ** 2 / variance
        log_parts = -(square + torch.log(2 * torch.pi * variance)).sum(dim=(-2, -1)) / 2
        return torch.logsumexp(torch.log(self.weights) + log_parts, dim=1)

    def flow(self, x: Float[Tensor, "B 1 1"], start: OneOrEach, end: OneOrEach) -> Float[Tensor, "B 1 1"]:
        """Chunks of one number along the exact probability flow from lambda `start` to `end`, canonical scaling.

        Flows in one dimension conserve the cumulative distribution; its inverse is found by bisection.
        """
        mass = self._cumulative(x, start)
        low, high = torch.full_like(x, -100), torch.full_like(x, 100)
        for _ in range(70):  # 200 / 2^70 is below the last bit
            middle = (low + high) / 2
            below = self._cumulative(middle, end) < mass
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _posterior(self, x: Chunk, point: PathPoint) -> tuple[Tensor, Tensor]:
        """r_k `[B, K, 1, 1]` and d_k `[B, K, H, A]`."""
        alpha, sigma = point.alpha.unsqueeze(1), point.sigma.unsqueeze(1)
        variance = alpha**2 * self.stds**2 + sigma**2
        offset = x.unsqueeze(1) - alpha * self.means
        log_density = -(offset**2 / variance + torch.log(variance)).sum(dim=(-2, -1)) / 2
        joint = torch.log(self.weights) + log_density
        # Not torch.softmax: its CPU kernel wakes every thread even for three numbers, milliseconds a call on a busy machine.
        shares = torch.exp(joint - torch.logsumexp(joint, dim=1, keepdim=True))
        return shares[:, :, None, None], offset / variance

    def _cumulative(self, x: Tensor, lam: Tensor) -> Tensor:
        alpha, sigma = variance_preserving(lam)
        scaled = (x - alpha * self.means[:, 0, 0]) / torch.sqrt((alpha * self.stds[:, 0, 0]) ** 2 + sigma**2)
        below: Tensor = torch.special.ndtr(scaled)
        return (self.weights * below).sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class CorrelatedGaussian:
    """N(m, S) over whole chunks, flattened; as a Field it ignores the condition and takes a level per row or per action.

    With D = diag(alpha): a_hat = m + S D V^-1 (x - D m), V = D S D + diag(sigma^2).
    """

    mean: Float[Tensor, "H A"]
    covariance: Float[Tensor, "N N"]  # N = H A

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        alpha, sigma = (v.expand_as(x).flatten(1) for v in variance_preserving(over(lam, x)))
        variance = alpha[:, :, None] * self.covariance * alpha[:, None, :] + torch.diag_embed(sigma**2)
        offset = x.flatten(1) - alpha * self.mean.flatten()
        pull: Tensor = alpha * torch.linalg.solve(variance, offset[..., None])[..., 0]
        shift: Tensor = pull @ self.covariance
        return self.mean + shift.view_as(x)

    def given(self, known: Chunk, is_known: Bool[Tensor, "H A"]) -> tuple[Chunk, Float[Tensor, "N N"]]:
        """Mean and covariance of the chunk whose entries `is_known` are `known`: m2 + S21 S11^-1 (a1 - m1)."""
        one, mean = is_known.flatten(), self.mean.flatten()
        gain = torch.linalg.solve(self.covariance[one][:, one], self.covariance[one])
        shifted = mean + (known.flatten(1)[:, one] - mean[one]) @ gain
        return shifted.view_as(known), self.covariance - self.covariance[:, one] @ gain


@dataclass(frozen=True)
class MixtureHead:
    """The mixture's perfect head: what a network with this path and prediction type would learn."""

    mixture: Mixture
    path: NoisePath
    prediction: Prediction

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None) -> Chunk:
        point = self.path.at(t).over(x)
        x = x / network_input(self.prediction, torch.ones_like(x), point)
        sample, noise = self.mixture.sample(x, point), -point.sigma * self.mixture.score(x, point)
        return from_denoised(self.prediction, Denoised(sample, noise), point)


@dataclass(frozen=True)
class MixtureJumps:
    """The mixture's perfect two-time head on CondOT: the average velocity of its exact flow, its velocity where end = t.

    Chunks of one number by `Mixture.flow`; of any size where there is one component, whose flow is affine.
    """

    mixture: Mixture

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None, end: Level | None = None) -> Chunk:
        start = CondOT().at(t).over(x)
        velocity = self.mixture.velocity(x, start)
        if end is None:
            return velocity
        gap = over(end - t, x)
        average = (self._reached(x, start, CondOT().at(end).over(x)) - x) / torch.where(gap == 0, 1, gap)
        return torch.where(gap == 0, velocity, average)

    def _reached(self, x: Chunk, start: PathPoint, end: PathPoint) -> Chunk:
        if len(self.mixture.weights) == 1:
            mean, std = self.mixture.means, self.mixture.stds
            before, after = (torch.hypot(p.alpha * std, p.sigma) for p in (start, end))
            return end.alpha * mean + after / before * (x - start.alpha * mean)
        before, after = (torch.hypot(p.alpha, p.sigma) for p in (start, end))
        levels = [torch.log(p.alpha) - torch.log(p.sigma) for p in (start, end)]
        reached: Tensor = after * self.mixture.flow(x / before, levels[0], levels[1])
        return reached
