"""T16, T19: asymmetry of the Jacobian of fields; RED-diff's pull and its fixed point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kineflow.policies.analytic import Mixture
from kineflow.policies.conservativity import asymmetry
from kineflow.policies.refinement import red_diff
from kineflow.policies.samplers import RowNoise

DOUBLE = torch.float64


def mixture() -> Mixture:
    means = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE), means, 0.2 + 0.1 * means.abs())


def chunks(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4, 2, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)


def test_the_true_denoiser_is_a_gradient() -> None:
    report = asymmetry(mixture(), chunks(5), torch.linspace(-3, 3, 5, dtype=DOUBLE), None)
    assert report.shape == (5,)
    assert report.max().item() < 1e-12


def test_asymmetry_of_a_known_matrix() -> None:
    """Negative control: a field that rotates by `angle`: |J - J^T| / |J| = 2 |sin|; each row has its own."""
    angle = torch.tensor([0.0, 0.3, math.pi / 2], dtype=DOUBLE)

    def rotating(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        cos, sin = torch.cos(lam)[:, None], torch.sin(lam)[:, None]
        return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], dim=-1)

    torch.testing.assert_close(asymmetry(rotating, chunks(3), angle, None), 2 * torch.sin(angle), rtol=1e-12, atol=1e-12)


def gaussian(mean: float, std: float) -> Mixture:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    return Mixture(one.flatten(), mean * one, std * one)


def test_mean_of_the_pull() -> None:
    """E[eps_hat - eps] = alpha sigma (mu - m) / (alpha^2 s^2 + sigma^2), on any path; here CondOT at t = 0.3."""
    alpha, sigma, mu, law = 0.3, 0.7, 0.9, gaussian(0.2, 0.5)
    norm = math.hypot(alpha, sigma)
    eps = torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x = alpha * mu + sigma * eps
    level = torch.full((len(x),), math.log(alpha / sigma), dtype=DOUBLE)
    pull = (x - alpha * law(x / norm, level, None)) / sigma - eps
    expected = alpha * sigma * (mu - 0.2) / (alpha**2 * 0.25 + sigma**2)
    assert pull.mean().item() == pytest.approx(expected, abs=4 * pull.std().item() / math.sqrt(len(x)))


@pytest.mark.parametrize(("lam", "weight", "std"), [(0.0, 1.0, 0.5), (1.0, 3.0, 0.5), (0.5, 2.0, 0.0)])
def test_fixed_point_of_a_linear_observation(lam: float, weight: float, std: float) -> None:
    """(mu - y) / r + weight sigma^2 (mu - m) / V = 0; one noise level, where the noise averages out.

    Of a law with one possible chunk, std 0, eps_hat - eps is alpha (mu - m) / sigma whatever is drawn: there with real noise.
    """
    mean, observed, variance = 0.2, 1.4, 0.3
    sigma2 = 1 / (1 + math.exp(2 * lam))
    stiffness = weight * sigma2 / ((1 - sigma2) * std**2 + sigma2)
    expected = (observed / variance + stiffness * mean) / (1 / variance + stiffness)

    drawn = RowNoise(np.arange(2), (1, 1), DOUBLE)

    class NoiseOrNone:
        def draw(self) -> torch.Tensor:
            return drawn.draw() if std == 0 else drawn.zeros()

    refined = red_diff(
        gaussian(mean, std),
        torch.tensor([-1.0, 2.0], dtype=DOUBLE)[:, None, None],
        lambda mu: ((mu - observed) ** 2).sum(dim=(1, 2)) / (2 * variance),
        torch.full((150,), lam, dtype=DOUBLE),
        None,
        NoiseOrNone(),
        weight=weight,
        learning_rate=0.2,
    )
    torch.testing.assert_close(refined, torch.full_like(refined, expected), rtol=0, atol=1e-3)


def test_refining_keeps_rows_apart_and_moves_to_the_waypoint() -> None:
    def run(seeds: list[int]) -> torch.Tensor:
        noise = RowNoise(np.array(seeds), (4, 2), DOUBLE)
        cost = lambda mu: 20 * ((mu[:, 3] - 0.5) ** 2).sum(-1)  # noqa: E731
        return red_diff(mixture(), noise.draw(), cost, torch.linspace(-2, 3, 60, dtype=DOUBLE), None, noise)

    both = run([1, 2])
    torch.testing.assert_close(run([2]), both[1:], rtol=1e-10, atol=1e-10)
    start = RowNoise(np.array([1, 2]), (4, 2), DOUBLE).draw()
    assert (both[:, 3] - 0.5).abs().max() < 0.5 * (start[:, 3] - 0.5).abs().max()
