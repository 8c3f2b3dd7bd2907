"""T7: the SDE keeps the marginals of the flow for every diffusion; the variants that public code confuses it with do not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from kineflow.policies.analytic import Mixture
from kineflow.policies.paths import CondOT, variance_preserving
from kineflow.policies.samplers import sde

DOUBLE = torch.float64
MEAN, STD = 0.5, 0.4
PARTICLES = 200_000


def gaussian() -> Mixture:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    return Mixture(one.flatten(), MEAN * one, STD * one)


@dataclass
class Fresh:
    """Many rows from one generator: quicker than one for each row."""

    shape: tuple[int, ...]
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def draw(self) -> torch.Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=DOUBLE)


@dataclass
class Scripted:
    script: list[torch.Tensor]

    def draw(self) -> torch.Tensor:
        return self.script.pop(0)


# The law that the solver discretises


@pytest.mark.parametrize(
    "diffusion",
    [lambda t: 0.0, lambda t: 1.0, lambda t: 1 - t, lambda t: 10 * (1 - t), lambda t: 3 * (1 - t) / max(t, 1e-3)],
    ids=["0", "constant", "1 - t", "10 (1 - t)", "k sigma Dt / alpha"],
)
def test_variance_ode_ends_at_the_data(diffusion: Callable[[float], float]) -> None:
    """dP/dt = 2 (A - e / V) P + 2 e with A = (alpha' alpha S + sigma' sigma) / V on CondOT, any e(t) >= 0."""

    def slope(t: float, p: np.ndarray, score: float = 1.0, noise: float = 1.0) -> np.ndarray:
        data, e = STD**2, diffusion(t)
        v = t**2 * data + (1 - t) ** 2
        return 2 * ((t * data - (1 - t)) / v - score * e / v) * p + noise * 2 * e

    def end(score: float = 1.0, noise: float = 1.0) -> float:
        solution = solve_ivp(slope, (0, 1), [1.0], args=(score, noise), rtol=1e-10, atol=1e-12, method="Radau")
        return float(solution.y[0, -1])

    assert end() == pytest.approx(STD**2, abs=1e-6)
    if diffusion(0.5) > 0:
        assert end(score=0.0) > STD**2 + 0.01  # without the score: too wide
        assert end(noise=0.5) < STD**2 - 0.01  # e taken for g = 2 e (trap 7): too narrow


@pytest.mark.parametrize("k", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("lam", [-2.0, 0.0, 1.5])
def test_a_small_step_is_the_sde(k: float, lam: float) -> None:
    """In (y, u) drift (1 + k) eps_hat du, variance 2 k u |du|; in z on CondOT v + e score and 2 e dt, e = k sigma Dt / alpha."""
    h, law = 1e-6, gaussian()
    x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None]
    lambdas = torch.tensor([lam, lam + h], dtype=DOUBLE)
    (alpha, alpha_end), (sigma, sigma_end) = variance_preserving(lambdas)
    eps = (x - alpha * law(x, lambdas[:1].expand(9), None)) / sigma
    u, du = sigma / alpha, sigma_end / alpha_end - sigma / alpha
    mean, kicked = (sde(law, x, lambdas, None, Scripted([z * torch.ones_like(x)]), k=k) for z in (0.0, 1.0))
    torch.testing.assert_close((mean / alpha_end - x / alpha) / du, (1 + k) * eps, rtol=1e-5, atol=1e-5)
    variance = ((kicked - mean) / alpha_end) ** 2
    torch.testing.assert_close(variance, (-2 * k * u * du).expand_as(x), rtol=1e-5, atol=0)

    t, t_end = torch.sigmoid(lambdas)
    z, norm, dt = x * torch.hypot(t, 1 - t), torch.hypot(t_end, 1 - t_end), t_end - t
    point = CondOT().at(t[None]).over(x)
    e = k * (1 - t) / t
    drift = law.velocity(z, point) + e * law.score(z, point)
    torch.testing.assert_close((mean * norm - z) / dt, drift, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(((kicked - mean) * norm) ** 2 / dt, (2 * e).expand_as(x), rtol=1e-4, atol=0)


# The solver


def exact_std(k: float, lambdas: torch.Tensor) -> float:
    """Std after all steps: the state is affine in its noises, so a row for each of them tells it without sampling."""
    steps = len(lambdas) - 1
    rows = torch.eye(steps + 2, dtype=DOUBLE)[:, 1:, None, None]
    start = rows[:, 0] * 1.0
    answer = sde(gaussian(), start, lambdas, None, Scripted([rows[:, j] for j in range(1, steps + 1)]), k=k).flatten()
    return float((answer[1:] - answer[0]).norm())


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0])
def test_std_on_the_way_and_at_the_end(k: float) -> None:
    """Whatever the diffusion, the std is that of the path at every level, with an error that halves with the steps."""
    errors = []
    for end in (-1.0, 0.5, 3.0):
        coarse, fine = (exact_std(k, torch.linspace(-7, end, n + 1, dtype=DOUBLE)) for n in (120, 240))
        assert 2 * fine - coarse == pytest.approx(law(end)[1], abs=1e-3)
        errors.append((coarse - law(end)[1]) / (fine - law(end)[1]))
    assert errors[1] == pytest.approx(2, abs=0.3)


START, END = -0.25, 0.25  # lambda; where the chunk is decided: even k = 0.5 renews 40 % of the noise between them


@pytest.mark.parametrize("k", [0.5, 2.0])
def test_particles_keep_the_law(k: float) -> None:
    """2e5 particles of the law at START are, at END, particles of the law there: mean and variance to three standard errors."""
    fresh = Fresh((PARTICLES, 1, 1))
    lambdas = torch.linspace(START, END, 101, dtype=DOUBLE)
    mean, std = law(START)
    assert_moments(sde(bare_gaussian, mean + std * fresh.draw(), lambdas, None, fresh, k=k), *law(END))


@pytest.mark.parametrize("wrong", ["no score", "e for g"])
def test_particles_of_the_wrong_sde_do_not(wrong: str) -> None:
    """Negative controls, k = 0.5: the noise on the drift of the flow alone (TimeFlow), and e taken for g^2 = 2 e (trap 7)."""
    k, fresh = 0.5, Fresh((PARTICLES, 1, 1))
    drift, noise = (1.0, k) if wrong == "no score" else (1 + k, k / 2)
    mean, std = law(START)
    u = torch.exp(-torch.linspace(START, END, 41, dtype=DOUBLE))
    y = (mean + std * fresh.draw()) * torch.sqrt(1 + u[0] ** 2)
    for now, following in itertools.pairwise(u):
        alpha = 1 / torch.sqrt(1 + now**2)
        eps = (y - bare_gaussian(alpha * y, -torch.log(now).expand(PARTICLES), None)) / now
        y = y + drift * (following - now) * eps + torch.sqrt(noise * (now**2 - following**2)) * fresh.draw()
    with pytest.raises(AssertionError, match="variance"):
        assert_moments(y / torch.sqrt(1 + u[-1] ** 2), *law(END))


def test_the_last_step_adds_no_noise() -> None:
    """The mean, not a sample: at sigma = 0 the answer is a_hat of the step before, whatever is drawn."""
    x, lambdas = torch.ones(1, 1, 1, dtype=DOUBLE), torch.tensor([0.3, math.inf], dtype=DOUBLE)
    answer = sde(gaussian(), x, lambdas, None, Scripted([1e6 * x]), k=2.0)
    torch.testing.assert_close(answer, gaussian()(x, lambdas[:1], None), rtol=1e-15, atol=0)


def law(lam: float) -> tuple[float, float]:
    """Mean and std of the canonical state at this level."""
    alpha2 = 1 / (1 + math.exp(-2 * lam))
    return math.sqrt(alpha2) * MEAN, math.sqrt(alpha2 * STD**2 + 1 - alpha2)


def assert_moments(x: torch.Tensor, mean: float, std: float) -> None:
    assert abs(x.mean().item() - mean) < 3 * std / math.sqrt(PARTICLES), "mean"
    assert abs(x.var().item() - std**2) < 3 * std**2 * math.sqrt(2 / PARTICLES), "variance"


def bare_gaussian(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """a_hat = m + alpha S (x - alpha m) / V, without anything of ours: one level for all rows, so once for all."""
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-2 * lam[0]))), math.sqrt(1 / (1 + math.exp(min(2 * lam[0], 700))))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
