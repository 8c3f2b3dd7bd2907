"""T14: guidance by a cost of the denoised chunk against posteriors in closed form; the known biases of cheaper rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import CorrelatedGaussian, Mixture
from kineflow.policies.cost_guidance import CostGuidance
from kineflow.policies.paths import CondOT
from kineflow.policies.samplers import RowNoise, heun

DOUBLE = torch.float64
LEVELS = torch.tensor([-math.inf, -6.0, -2.5, -1.0, 0.0, 0.7, 2.0, 6.0, math.inf], dtype=DOUBLE)
PRIOR_MEAN, PRIOR_STD, NOISE_VARIANCE, OBSERVED = 0.3, 0.4, 0.04, 1.1


def gaussian(mean: float, std: float, horizon: int = 3, dimensions: int = 2) -> Mixture:
    shape = (1, horizon, dimensions)
    return Mixture(torch.ones(1, dtype=DOUBLE), torch.full(shape, mean, dtype=DOUBLE), torch.full(shape, std, dtype=DOUBLE))


def chunks(rows: int, seed: int = 0, horizon: int = 3, dimensions: int = 2) -> torch.Tensor:
    return torch.randn(rows, horizon, dimensions, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def misfit(chunk: torch.Tensor) -> torch.Tensor:
    """-log p(y | a) of y = a + N(0, r)."""
    return ((chunk - OBSERVED) ** 2).sum(dim=(1, 2)) / (2 * NOISE_VARIANCE)


def posterior() -> Mixture:
    share = PRIOR_STD**2 / (PRIOR_STD**2 + NOISE_VARIANCE)
    return gaussian(PRIOR_MEAN + share * (OBSERVED - PRIOR_MEAN), math.sqrt(share * NOISE_VARIANCE))


def guided(**options: object) -> CostGuidance:
    settings = {"data_std": PRIOR_STD, "curvature": 1 / NOISE_VARIANCE, **options}
    return CostGuidance(gaussian(PRIOR_MEAN, PRIOR_STD), misfit, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("curvature", [None, 1 / NOISE_VARIANCE])
@pytest.mark.parametrize("jacobian", ["gaussian", "exact"])
def test_linear_gaussian_posterior_at_every_level(jacobian: str, curvature: float | None) -> None:
    """Whether the cost's curvature is given or measured."""
    x = chunks(len(LEVELS))
    answer = guided(jacobian=jacobian, curvature=curvature)(x, LEVELS, None)
    torch.testing.assert_close(answer, posterior()(x, LEVELS, None), rtol=1e-12, atol=1e-12)


def test_the_posterior_is_sampled() -> None:
    noise = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)]).to(DOUBLE)
    out = heun(guided(), noise, torch.linspace(-8, 9, 200, dtype=DOUBLE), None, RowNoise(np.arange(2), (3, 2), DOUBLE))
    law = posterior()
    torch.testing.assert_close(out[0], law.means[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(out[1] - out[0], law.stds[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("jacobian", ["gaussian", "exact"])
def test_linear_cost_tilts_a_correlated_law(jacobian: str) -> None:
    """exp(-c a) N(m, S) is N(m - S c, S). Only the exact Jacobian knows S; the cheap one, its diagonal, is off."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    prior = CorrelatedGaussian(chunks(1, 3)[0], root @ root.T / 6)
    slope = chunks(1, 4)[0]
    tilted = CorrelatedGaussian(prior.mean - (prior.covariance @ slope.flatten()).view_as(slope), prior.covariance)
    x, levels = chunks(5), LEVELS[2:7]
    field = CostGuidance(prior, lambda chunk: (slope * chunk).sum(dim=(1, 2)), jacobian=jacobian)  # type: ignore[arg-type]
    error = (field(x, levels, None) - tilted(x, levels, None)).abs().max().item()
    assert error < 1e-12 if jacobian == "exact" else error > 0.1


@pytest.mark.parametrize(("t", "overstated"), [(0.1, 50.73), (0.5, 1.0 / 0.27586), (0.9, 0.96944)])
def test_known_bias_of_a_jacobian_of_one(t: float, overstated: float) -> None:
    """FlowChef takes d a_hat / dx = 1 on CondOT, where it is alpha s0^2 / (alpha^2 s0^2 + sigma^2): 50 times less at t = 0.1."""
    level = CondOT().to_lambda(torch.tensor([t], dtype=DOUBLE))
    norm = math.hypot(t, 1 - t)
    z = torch.full((1, 3, 2), 0.2, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(gaussian(PRIOR_MEAN, PRIOR_STD)(z / norm, level, None).sum(), z)
    assert 1 / slope[0, 0, 0].item() == pytest.approx(overstated, rel=1e-4)


@pytest.mark.parametrize(("t", "overshoot"), [(0.1, 4.9921), (0.9, 1.2865)])
def test_known_bias_of_trusting_the_denoised_chunk(t: float, overshoot: float) -> None:
    """DPS ignores the posterior variance P of a: its shift is 1 + P / r times the right one."""
    x, level = chunks(1), CondOT().to_lambda(torch.tensor([t], dtype=DOUBLE))
    plain = gaussian(PRIOR_MEAN, PRIOR_STD)(x, level, None)
    right, dps = guided()(x, level, None) - plain, guided(curvature=0.0, jacobian="exact")(x, level, None) - plain
    torch.testing.assert_close(dps / right, torch.full_like(x, overshoot), rtol=1e-4, atol=0)


def test_per_action_levels_and_rows_stand_alone() -> None:
    x = chunks(4)
    levels = torch.linspace(-3, 3, 12, dtype=DOUBLE).view(4, 3)
    answer = guided(jacobian="exact")(x, levels, None)
    torch.testing.assert_close(answer, posterior()(x, levels, None), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(answer[1:2], guided(jacobian="exact")(x[1:2], levels[1:2], None), rtol=0, atol=1e-15)


def test_works_inside_no_grad_and_leaves_no_graph() -> None:
    with torch.no_grad():
        answer = guided(jacobian="exact")(chunks(2), torch.zeros(2, dtype=DOUBLE), None)
    assert not answer.requires_grad


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda chunk: chunk.square(), r"one differentiable number per row \[2\], got shape \[2, 3, 2\]"),
        (lambda chunk: chunk.detach().sum(dim=(1, 2)), r"got shape \[2\] without a gradient; compute it in torch"),
    ],
)
def test_costs_of_another_kind_are_refused(cost: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        CostGuidance(gaussian(0, 1), cost)(chunks(2), torch.zeros(2, dtype=DOUBLE), None)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(KineflowError, match=r"needs data_std > 0 and curvature >= 0, got 1 and -2\.0"):
        CostGuidance(gaussian(0, 1), misfit, curvature=-2.0)


def test_steep_costs_run_away_only_without_their_curvature() -> None:
    """Negative control: 400 times the stiffness that a step bears; measured along the gradient it is what keeps the chunk."""
    steep = lambda chunk: 200 * (chunk - 1).square().sum(dim=(1, 2))  # noqa: E731
    lambdas, noise = torch.linspace(-3, 3, 8, dtype=DOUBLE), RowNoise(np.arange(2), (3, 2), DOUBLE)
    held, free = (heun(CostGuidance(gaussian(0, 1), steep, curvature=c), noise.draw(), lambdas, None, noise) for c in (None, 0.0))
    assert (held - 1).abs().max() < 0.2
    assert free.abs().max() > 1e6


def test_a_cost_that_curves_down_is_taken_as_flat() -> None:
    """1 + curvature P would pass through zero: away from a peak the chunk would be thrown, or pulled onto it."""
    peak = lambda chunk: -3 * chunk.square().sum(dim=(1, 2))  # noqa: E731
    x, lam = chunks(3), torch.tensor([-2.0, 0.0, 2.0], dtype=DOUBLE)
    measured, flat = (CostGuidance(gaussian(0.1, 1), peak, curvature=c)(x, lam, None) for c in (None, 0.0))
    assert torch.equal(measured, flat)


def test_curvature_is_measured_along_the_gradient_of_each_row() -> None:
    """A cost with another curvature in each dimension and row: g H g / g g, by hand; a row alone gives the same."""
    stiffness = torch.tensor([1.0, 9.0], dtype=DOUBLE) * torch.tensor([1.0, 5.0], dtype=DOUBLE)[:, None, None]
    x, lam, law = chunks(2), torch.tensor([-0.5, 0.5], dtype=DOUBLE), gaussian(0.1, 1)
    field = CostGuidance(law, lambda chunk: (stiffness[: len(chunk)] * chunk.square()).sum(dim=(1, 2)) / 2)
    sample, variance = law(x, lam, None), torch.sigmoid(-2 * lam)[:, None, None]
    slope = stiffness * sample
    curvature = (stiffness * slope**2).sum((1, 2), keepdim=True) / (slope**2).sum((1, 2), keepdim=True)
    expected = sample - variance * slope / (1 + curvature * variance)
    torch.testing.assert_close(field(x, lam, None), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field(x[:1], lam[:1], None), expected[:1], rtol=1e-12, atol=1e-12)


def test_costs_with_kinks_need_no_second_derivative() -> None:
    field = CostGuidance(gaussian(0, 1), lambda chunk: (chunk - 1).abs().sum(dim=(1, 2)))
    x, lam = torch.zeros(2, 3, 2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    torch.testing.assert_close(field(x, lam, None), torch.full_like(x, 0.5), rtol=1e-12, atol=0)
