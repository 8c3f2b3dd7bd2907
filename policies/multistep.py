"""Multistep solvers: one network call a step, and higher order out of the answers of the steps before.

Their first step is of first order, as there is no answer before it, and so is the step to sigma = 0.
"""

from __future__ import annotations

import torch

from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import variance_preserving
from kineflow.policies.stepping import FlowClock, Grid, Noise, levels_of, like, quotient


def dpmpp2m(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """DPM-Solver++(2M) (Lu et al. 2022): the denoised chunk extrapolated linearly in lambda to the middle of the step.

    With h = lambda' - lambda and r = h_previous / h:

        D = (1 + 1 / (2 r)) a_hat - 1 / (2 r) a_hat_previous        x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) D
    """
    levels, lam = levels_of(lambdas, noise)
    alpha, sigma = variance_preserving(lam)
    h = torch.where(lam[1:] == lam[:-1], 0, lam[1:] - lam[:-1])
    keep = torch.where(sigma[:-1] == 0, 1, quotient(sigma[1:], sigma[:-1]))
    jump = -alpha[1:] * torch.expm1(-h)
    gain = torch.where(sigma[2:] == 0, 0, quotient(h[1:], 2 * h[:-1]))  # 1 / (2 r), from the second step on
    keep, jump, gain = like(noise, keep, jump, gain)
    x, before = noise, noise
    for k in range(len(keep)):
        sample = field(x, levels[k], condition)
        ahead = sample if k == 0 else sample + gain[k - 1] * (sample - before)
        x, before = keep[k] * x + jump[k] * ahead, sample
    return x


def ab2(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Adams-Bashforth of second order on the CondOT clock: z' = z + h (1.5 v - 0.5 v_previous) for equal steps h."""
    return _adams_bashforth(field, noise, lambdas, condition, order=2)


def ab3(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
    """Adams-Bashforth of third order on the CondOT clock: z' = z + h (23 v - 16 v_previous + 5 v_before) / 12 for equal steps h.

    A first step of first order would cost an order at the end, so it is corrected to the mean of the velocities at both its
    ends as soon as the second call has told the other one.
    """
    return _adams_bashforth(field, noise, lambdas, condition, order=3)


def _adams_bashforth(field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, order: int) -> Chunk:
    """The polynomial through the last `order` velocities, integrated over the step; steps h, h1, h2 may differ.

    In Newton's form: v(t + s) = v + s d1 + s (s + h1) d2 with d1 = (v - v1) / h1, d2 = (d1 - d1_previous) / (h1 + h2).
    """
    levels, lam = levels_of(lambdas, noise)
    clock = FlowClock.at(lam)
    h, share, final, rate = like(noise, clock.steps, clock.shares, clock.final, quotient(1.0, clock.left))
    norm = clock.norm.to(noise)
    z = noise * norm[0]
    v, d1 = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(len(h)):
        sample = field(z / norm[k], levels[k], condition)
        before, v, d1_before = v, rate[k] * (sample - z), d1
        if k == 1 and order > 2:
            z = torch.where(final[0], z, z + h[0] / 2 * (v - before))
        move = h[k] * v
        if k >= 1:
            d1 = quotient(v - before, h[k - 1])
            move = move + h[k] ** 2 / 2 * d1
        if k >= 2 and order > 2:
            d2 = quotient(d1 - d1_before, h[k - 1] + h[k - 2])
            move = move + h[k] ** 2 * (h[k] / 3 + h[k - 1] / 2) * d2
        z = torch.where(final[k], torch.lerp(z, sample, share[k]), z + move)
    return z / norm[-1]
