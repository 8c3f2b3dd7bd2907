"""T15: inpainting a jointly Gaussian chunk; with enough renoise cycles the free entries follow the conditional law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import CorrelatedGaussian
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.inpainting import Inpaint
from kineflow.policies.samplers import Grid, Noise, RowNoise, Sampler, ancestral, ddim

DOUBLE = torch.float64
KNOWN = torch.tensor([1.0, 1.5, 0.0, 0.0], dtype=DOUBLE)[None, :, None]
IS_KNOWN = torch.tensor([True, True, False, False])[:, None]
GRID = torch.cat([torch.linspace(-3, 3, 11, dtype=DOUBLE), torch.tensor([math.inf], dtype=DOUBLE)])


def smooth_law() -> CorrelatedGaussian:
    step = torch.arange(4, dtype=DOUBLE)
    covariance = 0.5 * torch.exp(-((step[:, None] - step) ** 2) / 2) + 0.1 * torch.eye(4, dtype=DOUBLE)
    return CorrelatedGaussian(torch.linspace(0, 1, 4, dtype=DOUBLE)[:, None], covariance)


class Silent:
    """All noise zero: everything is affine in the noise, so this is the mean of what would be sampled."""

    def draw(self) -> torch.Tensor:
        return torch.zeros(1, 4, 1, dtype=DOUBLE)


def error_of_the_mean(cycles: int, solver: Sampler) -> float:
    law = smooth_law()
    sampled = Inpaint(solver, KNOWN, IS_KNOWN[None], cycles)(law, Silent().draw(), GRID, None, Silent())
    assert torch.equal(sampled[:, :2], KNOWN[:, :2])
    return (sampled - law.given(KNOWN, IS_KNOWN)[0]).abs().max().item()


@pytest.mark.parametrize("solver", [ddim, ancestral])
def test_suffix_mean_tends_to_the_conditional_mean(solver: Sampler) -> None:
    """m2 + S21 S11^-1 (a1 - m1). Negative control: without cycles (1) the start is hardly listened to."""
    errors = [error_of_the_mean(cycles, solver) for cycles in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.25
    assert errors[-1] < 0.02


def test_oracle_conditions_like_the_textbook() -> None:
    law = smooth_law()
    mean, covariance = law.given(KNOWN, IS_KNOWN)
    s11, s21 = law.covariance[:2, :2], law.covariance[2:, :2]
    expected = law.mean[2:, 0] + s21 @ torch.linalg.inv(s11) @ (KNOWN[0, :2, 0] - law.mean[:2, 0])
    torch.testing.assert_close(mean[0, 2:, 0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean[0, :2, 0], KNOWN[0, :2, 0], rtol=1e-12, atol=1e-12)
    left = law.covariance[2:, 2:] - s21 @ torch.linalg.inv(s11) @ s21.T
    torch.testing.assert_close(covariance[2:, 2:], left, rtol=1e-12, atol=1e-12)


def test_calls_and_row_noise() -> None:
    calls = 0

    def counted(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return smooth_law()(x, lam, None)

    def run(seeds: list[int]) -> torch.Tensor:
        noise = RowNoise(np.array(seeds), (4, 1), DOUBLE)
        return Inpaint(ddim, KNOWN, IS_KNOWN[None], 3)(counted, noise.draw(), GRID, None, noise)

    both = run([5, 9])
    assert calls == 3 * 10 + 1
    torch.testing.assert_close(run([9]), both[1:], rtol=1e-12, atol=1e-12)


def test_going_back_keeps_the_spread() -> None:
    """With nothing known the cycles must leave the law alone; going back without fresh noise would collapse it."""
    noise = RowNoise(np.arange(600), (4, 1), DOUBLE)
    nothing = Inpaint(ddim, KNOWN.expand(600, -1, -1), torch.zeros(1, 4, 1, dtype=torch.bool), 4)
    spread = nothing(smooth_law(), noise.draw(), GRID, None, noise).std(dim=0).flatten()
    torch.testing.assert_close(spread, smooth_law().covariance.diagonal().sqrt(), rtol=0.2, atol=0)


def test_what_each_step_starts_from() -> None:
    """Known entries alpha a + sigma z, free ones r x' + sqrt(sigma^2 - r^2 sigma'^2) z, r = alpha / alpha', with every z = 1."""
    seen = []

    def standing(field: Field, x: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        seen.append(x)
        return x

    class Ones:
        def draw(self) -> torch.Tensor:
            return torch.ones(1, 4, 1, dtype=DOUBLE)

    lambdas = torch.tensor([-1.0, 0.5, math.inf], dtype=DOUBLE)
    Inpaint(standing, KNOWN, IS_KNOWN[None], 2)(smooth_law(), 3 * Ones().draw(), lambdas, None, Ones())
    (alpha, after, _), (sigma, less, _) = (torch.sqrt(torch.sigmoid(2 * sign * lambdas)) for sign in (1, -1))
    back = alpha / after * 3 + torch.sqrt(sigma**2 - (alpha / after * less) ** 2)
    for x, a, s, free in zip(seen, (alpha, alpha, after), (sigma, sigma, less), (3, back, back), strict=True):
        torch.testing.assert_close(x[:, :2], a * KNOWN[:, :2] + s, rtol=1e-12, atol=0)
        torch.testing.assert_close(x[:, 2:], free * torch.ones(1, 2, 1, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_no_cycle_is_refused() -> None:
    with pytest.raises(KineflowError, match="each step is taken at least once"):
        Inpaint(ddim, KNOWN, IS_KNOWN[None], 0)
