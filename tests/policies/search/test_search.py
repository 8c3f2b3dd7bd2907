"""Search methods against closed forms: order statistics, tilted Gaussians and mixtures, budgets, rows on their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture
from kineflow.policies.field import Field
from kineflow.policies.paths import CondOT, SquaredCos, VPLinear, variance_preserving
from kineflow.policies.samplers import Noise, RowNoise, ancestral, ddim, uniform_time_grid
from kineflow.policies.search.methods import BestOfN, Judge, Method, RolloverBudgetForcing, Score, WeightedParticles
from kineflow.policies.search.steps import Steps

DOUBLE = torch.float64
MEAN, STD = 0.5, 0.4


def gaussian() -> Mixture:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    return Mixture(one.flatten(), MEAN * one, STD * one)


def modes() -> Mixture:
    """Two narrow ways to act, the second one rarer."""
    means = torch.tensor([-1.0, 1.0], dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.8, 0.2], dtype=DOUBLE), means, torch.full((2, 1, 1), 0.3, dtype=DOUBLE))


def chunk_modes() -> Mixture:
    generator = torch.Generator().manual_seed(5)
    means = torch.randn(3, 4, 2, generator=generator, dtype=DOUBLE)
    return Mixture(torch.full((3,), 1 / 3, dtype=DOUBLE), means, torch.full_like(means, 0.3))


def rows(count: int, shape: tuple[int, int] = (1, 1), start: int = 0) -> RowNoise:
    return RowNoise(np.arange(start, start + count), shape, DOUBLE)


@dataclass
class Bulk:
    """Noise of many rows from one generator: fast, for statistics only."""

    rows: int
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))

    def draw(self) -> torch.Tensor:
        return torch.randn(self.rows, 1, 1, generator=self.generator, dtype=DOUBLE)


def first_number(chunks: torch.Tensor) -> torch.Tensor:
    return chunks[..., 0, 0]


def towards(goal: torch.Tensor | float, weight: float = 1.0) -> Score:
    return lambda chunks: -weight * ((chunks - goal) ** 2).sum(dim=(-2, -1))


@dataclass
class Counted:
    """Any field, and the rows of every call made to it."""

    inner: Field
    calls: list[int] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        self.calls.append(len(x))
        return self.inner(x, lam, condition)


def run_steps(steps: Steps, law: Field, noise: Noise) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The states at all levels and the final chunk, without any search."""
    x = noise.draw()[:, None]
    states = [x]
    for i in range(len(steps.churn)):
        sample = law(x[:, 0], torch.full((len(x),), steps.lambdas[i], dtype=DOUBLE), None)[:, None]
        x = steps.propose(torch.full((len(x),), i), x, sample, noise.draw()[:, None])
        states.append(x)
    return states, law(x[:, 0], torch.full((len(x),), steps.lambdas[-1], dtype=DOUBLE), None)


def chain_law(steps: Steps) -> tuple[float, float]:
    """Mean and std of the chunks that `steps` sample from the Gaussian: every step is linear, so the law is exact."""
    mean, variance = 0.0, 1.0
    levels = [tuple(v.item() for v in variance_preserving(torch.tensor(lam, dtype=DOUBLE))) for lam in steps.lambdas]
    for i, (alpha, sigma) in enumerate(levels):
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)  # a_hat = MEAN + gain (x - alpha MEAN)
        offset = MEAN - gain * alpha * MEAN
        if i == len(steps.churn):
            return offset + gain * mean, gain * math.sqrt(variance)
        alpha_next, sigma_next = levels[i + 1]
        keep = math.exp(-steps.churn[i]) * sigma_next / sigma
        slope, fresh = keep + (alpha_next - keep * alpha) * gain, sigma_next**2 * -math.expm1(-2 * steps.churn[i])
        mean, variance = slope * mean + (alpha_next - keep * alpha) * offset, slope**2 * variance + fresh
    raise AssertionError


# Steps


def test_rollover_steps_are_the_papers() -> None:
    steps = Steps.rollover(4, finish=0)
    tau = 1 - VPLinear().from_lambda(torch.tensor(steps.lambdas, dtype=DOUBLE))
    np.testing.assert_allclose(tau.numpy(), [math.sqrt(1 - (i / 4) ** 2) for i in range(4)], rtol=1e-9)
    assert len(steps.churn) == 3


def test_no_churn_is_ddim_and_k_one_is_ddpm() -> None:
    grid = uniform_time_grid(SquaredCos(), 7)
    for k, sampler in ((0.0, ddim), (1.0, ancestral)):
        noise = rows(5, (4, 2))
        expected = sampler(chunk_modes(), noise.draw(), grid, None, noise)
        _, chunk = run_steps(Steps.along(grid, k), chunk_modes(), rows(5, (4, 2)))
        torch.testing.assert_close(chunk, expected, rtol=1e-9, atol=1e-9)


STEPS = [Steps.rollover(60, finish=60), Steps.rollover(60, 6.0, finish=60), Steps.along(uniform_time_grid(CondOT(), 80), 0.5)]


@pytest.mark.parametrize("steps", STEPS)
def test_steps_keep_the_marginals(steps: Steps) -> None:
    states, chunk = run_steps(steps, gaussian(), Bulk(6000))
    for lam, x in zip(steps.lambdas[::10], states[::10]):
        alpha, sigma = (v.item() for v in variance_preserving(torch.tensor(lam, dtype=DOUBLE)))
        assert x.var().item() == pytest.approx((alpha * STD) ** 2 + sigma**2, rel=0.08)
    mean, std = chain_law(steps)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.01), pytest.approx(STD, abs=0.02))
    assert chunk.mean().item() == pytest.approx(mean, abs=5 * STD / math.sqrt(6000))
    assert chunk.std().item() == pytest.approx(std, rel=0.04)


def test_noise_of_the_paper_is_g_not_two_g() -> None:
    """dx = (v + g^2/2 score) dt + g dW forgets at a known rate: corr(start, end) = exp(-integral g^2 / (2 V) dt).

    With e = g^2 instead of g^2 / 2 (trap 7) the exponent doubles, although every marginal stays right.
    """
    from scipy.integrate import quad

    def rate(tau: float) -> float:
        point = VPLinear().at(torch.tensor(1 - tau, dtype=DOUBLE))
        return (3 * tau**2) ** 2 / (2 * ((point.alpha.item() * STD) ** 2 + point.sigma.item() ** 2))

    steps = Steps.rollover(100, finish=0)
    end = 1 - VPLinear().from_lambda(torch.tensor(steps.lambdas[-1], dtype=DOUBLE)).item()
    exponent = quad(rate, end, 1)[0]
    states, _ = run_steps(steps, gaussian(), Bulk(20_000))
    correlation = torch.corrcoef(torch.stack([states[0].flatten(), states[-1].flatten()]))[0, 1].item()
    assert correlation == pytest.approx(math.exp(-exponent), abs=4 / math.sqrt(20_000))
    assert abs(correlation - math.exp(-2 * exponent)) > 10 / math.sqrt(20_000)


class Uncorrected(Steps):
    """The trap: noise is added, the score term that pays for it is not (section 7.2, TimeFlow)."""

    def propose(self, index: torch.Tensor, x: torch.Tensor, sample: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        still = replace(Steps(self.lambdas, self.churn), churn=(0.0,) * len(self.churn)).propose(index, x, sample, fresh)
        churned = super().propose(index, x, sample, fresh) - super().propose(index, x, sample, torch.zeros_like(fresh))
        return still + churned


def test_noise_without_score_inflates_the_variance() -> None:
    right = STEPS[0]
    _, chunk = run_steps(Uncorrected(right.lambdas, right.churn), gaussian(), Bulk(4000))
    _, control = run_steps(right, gaussian(), Bulk(4000))
    assert control.var().item() == pytest.approx(STD**2, rel=0.1)
    assert chunk.var().item() > 1.5 * STD**2


def test_impossible_steps_are_refused() -> None:
    for lambdas, churn in (((1.0, 0.0), (0.0,)), ((0.0, math.inf), (0.0,)), ((0.0, 1.0), ()), ((0.0, 1.0), (-0.1,)), ((), ())):
        with pytest.raises(KineflowError, match=r"levels"):
            Steps(lambdas, churn)


# Best of N


@pytest.mark.parametrize(("count", "expected_maximum"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (5, 1.16296), (10, 1.53875)])
def test_best_of_n_is_the_largest_of_n_gaussians(count: int, expected_maximum: float) -> None:
    """Order statistics of N(0, 1): N = 2 has mean 1 / sqrt(pi), the rest from tables (Harter 1961)."""
    steps = Steps.along(uniform_time_grid(CondOT(), 20), 0.0)
    mean, std = chain_law(steps)
    chunk = BestOfN(steps)(gaussian(), first_number, Bulk(3000), None, 20 * count)
    assert chunk.mean().item() == pytest.approx(mean + std * expected_maximum, abs=4 * std / math.sqrt(3000))


def test_best_of_one_is_the_ordinary_sample_and_more_is_never_worse() -> None:
    grid = uniform_time_grid(CondOT(), 5)
    method, score, noise = BestOfN(Steps.along(grid, 0.0)), towards(0.7), rows(6, (4, 2))
    ordinary = ddim(chunk_modes(), noise.draw(), grid, None, noise)
    found = [method(chunk_modes(), score, rows(6, (4, 2)), None, 5 * n) for n in (1, 2, 8)]
    torch.testing.assert_close(found[0], ordinary, rtol=1e-9, atol=1e-9)
    values = [score(chunk[:, None])[:, 0] for chunk in found]
    assert (values[1] >= values[0]).all()
    assert (values[2] >= values[1]).all()


# Weighted particles


@pytest.mark.parametrize(("slope", "threshold"), [(2.0, 0.5), (2.0, 1.0), (-3.0, 0.5)])
def test_particles_find_the_tilted_gaussian(slope: float, threshold: float) -> None:
    """exp(slope a) on N(m, s^2): N(m + slope s^2, s^2) and log Z = slope m + slope^2 s^2 / 2, s the law of the steps."""
    steps, count = Steps.rollover(8, finish=7), 200
    mean, std = chain_law(steps)
    method = WeightedParticles(steps, threshold=threshold)
    found = method.particles(gaussian(), lambda a: slope * first_number(a), Bulk(60), None, 15 * count)
    weights, values = torch.exp(found.log_weights), first_number(found.chunks)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(60, dtype=DOUBLE))
    estimate = (weights * values).sum(dim=1)
    spread = (weights * (values - (mean + slope * std**2)) ** 2).sum(dim=1)
    assert estimate.mean().item() == pytest.approx(mean + slope * std**2, abs=0.02)
    assert spread.mean().item() == pytest.approx(std**2, rel=0.08)
    exact = slope * mean + slope**2 * std**2 / 2
    assert torch.logsumexp(found.log_normaliser, 0).item() - math.log(60) == pytest.approx(exact, abs=0.05)


def test_particles_find_the_tilted_mixture() -> None:
    """Quadratic reward -(a - g)^2 / (2 T): the posterior share of a mode goes with pi_k N(g; m_k, s_k^2 + T)."""
    law, goal, temperature = modes(), 0.6, 0.5
    evidence = [p * math.exp(-((goal - m) ** 2) / (2 * (0.09 + temperature))) for p, m in ((0.8, -1.0), (0.2, 1.0))]
    share = evidence[1] / sum(evidence)
    method = WeightedParticles(Steps.along(uniform_time_grid(CondOT(), 40), 1.0), temperature, pick="sample")
    score = towards(goal, 0.5)
    found = method.particles(law, score, Bulk(40), None, 40 * 200)
    right = (torch.exp(found.log_weights) * (first_number(found.chunks) > 0)).sum(dim=1).mean().item()
    assert right == pytest.approx(share, abs=0.03)
    assert share > 0.55  # from 0.2 without reward
    picked = method(law, score, Bulk(1500), None, 40 * 30)
    assert (first_number(picked) > 0).double().mean().item() == pytest.approx(share, abs=0.05)
    best = replace(method, pick="best")(law, score, Bulk(50), None, 40 * 30)
    assert (best - goal).abs().mean() < (picked - goal).abs().mean() / 2


# Rollover Budget Forcing


def test_rollover_beats_best_of_n_at_equal_budget() -> None:
    """The toy: three modes in 8 dimensions, the goal one std beyond a mode in every coordinate; 100 calls, 10 levels.

    Measured: rollover -0.36, best of N -0.85, particles (temperature 0.1) -0.30, the published levels -1.7.
    """
    law, budget = chunk_modes(), 100
    score = towards(law.means[0] + 0.3)

    def mean_score(method: Method) -> float:
        return score(method(law, score, rows(150, (4, 2)), None, budget)[:, None]).mean().item()

    best = mean_score(BestOfN())
    assert mean_score(RolloverBudgetForcing()) > best + 0.3
    assert mean_score(WeightedParticles(temperature=0.1)) > best + 0.3
    # Why the published levels are not the default: they end where two modes are still one average.
    published = Steps.rollover(10, finish=0)
    assert variance_preserving(torch.tensor(published.lambdas[-1]))[1].item() == pytest.approx(0.925, abs=1e-3)
    assert mean_score(RolloverBudgetForcing(published)) < best


def test_rollover_starts_from_the_best_noise() -> None:
    """One level leaves nothing to propose: the best of the first noises, by the score of the chunk denoised in one step."""
    lam = -1.0
    chunk = RolloverBudgetForcing(Steps((lam,), ()), first=6)(gaussian(), first_number, rows(5), None, 9)
    noise = rows(5)
    samples = torch.stack([gaussian()(noise.draw(), torch.full((5,), lam, dtype=DOUBLE), None) for _ in range(6)])
    torch.testing.assert_close(chunk, samples.amax(dim=0))


def test_leftover_budget_rolls_over() -> None:
    """A reward that only the state number decides: what two lucky steps save, the unlucky third one spends."""
    steps, scores = Steps.rollover(4, finish=0), iter([0.0, 1.0, 2.0, *[-1.0 - k for k in range(20)]])
    seen: list[float] = []

    def score(chunks: torch.Tensor) -> torch.Tensor:
        seen.append(next(scores))
        return torch.full(chunks.shape[:2], seen[-1], dtype=DOUBLE)

    RolloverBudgetForcing(steps, first=1)(gaussian(), score, rows(1), None, 1 + 3 * 4)
    assert len(seen) == 1 + 3 * 4  # 1 + 1 call in the lucky steps, 4 + 3 + 3 in the last
    assert seen[:3] == [0.0, 1.0, 2.0]


def test_rollover_beats_the_best_of_all_steps_and_not_of_the_last_alone() -> None:
    """After a step that found nothing (best 1), a 3 does not beat the 5 of the start: the next step goes on."""
    steps, scores, seen = Steps.rollover(3, finish=0), iter([5.0, 1.0, 1.0, 3.0, 4.0]), list[float]()

    def score(chunks: torch.Tensor) -> torch.Tensor:
        seen.append(next(scores))
        return torch.full(chunks.shape[:2], seen[-1], dtype=DOUBLE)

    RolloverBudgetForcing(steps, first=1)(gaussian(), score, rows(1), None, 1 + 2 * 2)
    assert len(seen) == 5


def test_rollover_accepts_the_first_better_candidate_else_the_best_of_the_step() -> None:
    steps, scores = Steps.rollover(3, finish=0), iter([5.0, 1.0, 4.0, 3.0, 6.0])
    offered: list[torch.Tensor] = []

    def score(chunks: torch.Tensor) -> torch.Tensor:
        offered.append(chunks)
        return torch.full(chunks.shape[:2], next(scores), dtype=DOUBLE)

    counted = Counted(gaussian())
    chunk = RolloverBudgetForcing(steps, first=1)(counted, score, rows(1), None, 1 + 2 * 3)
    assert torch.equal(chunk, offered[4][:, 0])  # 6 beats 5 at once: it stops with two calls to spare
    assert len(counted.calls) == 5
    # The step from the second level started at the candidate of score 4: its proposals have that mean.
    fresh = rows(1)
    start, draws = fresh.draw(), [fresh.draw() for _ in range(4)]
    first = steps.propose(torch.zeros(1, dtype=torch.long), start[:, None], offered[0], draws[1][:, None])
    last = steps.propose(torch.ones(1, dtype=torch.long), first, offered[2], draws[3][:, None])
    expected = gaussian()(last[:, 0], torch.full((1,), steps.lambdas[2], dtype=DOUBLE), None)
    torch.testing.assert_close(chunk, expected)


# All methods

METHODS: list[Method] = [BestOfN(), WeightedParticles(temperature=0.2), RolloverBudgetForcing(first=5)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("budget", [14, 20, 33, 100])
def test_budget_is_never_exceeded(method: Method, budget: int) -> None:
    counted = Counted(chunk_modes())
    method(counted, towards(0.7), rows(7, (4, 2)), None, budget)
    assert sum(counted.calls) <= 7 * budget
    assert sum(counted.calls) > 7 * budget / 3 or isinstance(method, RolloverBudgetForcing)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_budget_too_small_is_refused(method: Method) -> None:
    with pytest.raises(KineflowError, match="budget of 9 calls"):
        method(gaussian(), first_number, rows(1), None, 9)


def test_judge_refuses_before_it_calls() -> None:
    counted = Counted(gaussian())
    judge = Judge(counted, first_number, None, budget=5)
    judge(torch.zeros(1, 3, 1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    with pytest.raises(KineflowError, match="search of 5 calls"):
        judge(torch.zeros(1, 3, 1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    assert counted.calls == [3]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_row_does_not_depend_on_its_neighbours(method: Method) -> None:
    goals = torch.randn(6, 1, 4, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    together = method(chunk_modes(), towards(goals), rows(6, (4, 2)), None, 40)
    for row in range(6):
        alone = method(chunk_modes(), towards(goals[row : row + 1]), rows(1, (4, 2), start=row), None, 40)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_candidate_sees_the_condition_of_its_row(method: Method) -> None:
    """A field that copies its condition: each row's chunk must be its own token."""
    tokens = torch.arange(4, dtype=DOUBLE)[:, None, None]

    def copy(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        assert condition is not None
        return condition.expand_as(x)

    assert torch.equal(method(copy, first_number, rows(4), tokens, 30), tokens)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused(bad: float) -> None:
    for method in METHODS:
        with pytest.raises(KineflowError, match="one finite number"):
            method(gaussian(), lambda a: first_number(a) * 0 + bad, rows(2), None, 40)
    with pytest.raises(KineflowError, match="one finite number"):
        BestOfN()(gaussian(), lambda a: a[:, 0, 0, 0], rows(2), None, 40)
