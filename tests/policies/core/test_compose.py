"""T9: composing any heads. Laws C1 to C4 of the specification, mixed families, algebra of weights, AND and OR."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.compose.operators import Convex, Either, EqualDensity, OnSteps
from kineflow.policies.compose.weights import WeightKnot, Weights
from kineflow.policies.field import Field, HeadField
from kineflow.policies.paths import CondOT, Cosine, SquaredCos, VPLinear, variance_preserving
from kineflow.policies.samplers import RowNoise, ancestral, ddim, heun, sde, uniform_time_grid

DOUBLE = torch.float64


def gaussian(mean: float, std: float, size: int = 1) -> Mixture:
    one = torch.ones(1, 1, size, dtype=DOUBLE)
    return Mixture(torch.ones(1, dtype=DOUBLE), mean * one, std * one)


def modes(*means: float, std: float = 0.3) -> Mixture:
    centres = torch.tensor(means, dtype=DOUBLE)[:, None, None]
    return Mixture(torch.full((len(means),), 1 / len(means), dtype=DOUBLE), centres, torch.full_like(centres, std))


def convex(fields: list[Field], *weights: float) -> Convex:
    return Convex(fields, Weights.constant(weights))


def states(count: int = 9, size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, size, generator=generator, dtype=DOUBLE), torch.linspace(-4, 4, count, dtype=DOUBLE)


def row_noise(count: int, size: int = 1) -> RowNoise:
    return RowNoise(np.arange(count), (1, size), DOUBLE)


def affine_law(field: Field, lambdas: torch.Tensor, start_std: float = 1.0) -> tuple[float, float]:
    """Mean and std of what an ODE solver makes of noise: with Gaussian laws the result is affine in the noise."""
    noise = torch.tensor([0.0, start_std], dtype=DOUBLE)[:, None, None]
    out = heun(field, noise, lambdas, None, row_noise(2)).flatten()
    return out[0].item(), (out[1] - out[0]).item()


# C1 to C4


@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.5, 0.5), (1.0, 0.0)])
def test_c1_equal_covariance(weights: tuple[float, float]) -> None:
    """N(m_i, S) compose to N(sum w_i m_i, S), at every level and so in every sampler."""
    composed = convex([gaussian(-0.5, 0.4), gaussian(0.8, 0.4)], *weights)
    expected = gaussian(-0.5 * weights[0] + 0.8 * weights[1], 0.4)
    x, lam = states()
    torch.testing.assert_close(composed(x, lam, None), expected(x, lam, None), rtol=1e-12, atol=1e-12)


def finite_start_law(w: list[float], m: list[float], s: list[float], start: float) -> tuple[float, float]:
    """C2 with its finite start U, where y has mean 0 and std U; the mean is integrated by quadrature."""

    def phi(u: float) -> float:
        return math.prod((si * si + u * u) ** (wi / 2) for wi, si in zip(w, s))

    def slope(log_u: float) -> float:
        u = math.exp(log_u)
        return u * u * sum(wi * mi / (si * si + u * u) for wi, mi, si in zip(w, m, s)) / phi(u)

    integral = sum(quad(slope, a, b, limit=200)[0] for a, b in itertools.pairwise([-14.0, -2.0, 0.0, 2.0, math.log(start)]))
    return phi(0) * integral, start * phi(0) / phi(start)


@pytest.mark.parametrize(
    ("w", "m", "s"),
    [
        ([0.5, 0.5], [-1.0, 1.0], [0.2, 0.6]),
        ([0.3, 0.7], [0.4, -0.2], [0.3, 1.0]),
        ([0.2, 0.3, 0.5], [0.0, 1.0, -1.0], [0.5, 0.25, 0.8]),
    ],
)
def test_c2_ode_law_with_its_finite_start(w: list[float], m: list[float], s: list[float]) -> None:
    start = 20.0
    mean, std = finite_start_law(w, m, s, start)
    composed = convex([gaussian(mi, si) for mi, si in zip(m, s)], *w)
    lambdas = torch.linspace(-math.log(start), 7, 181, dtype=DOUBLE)
    sigma = variance_preserving(lambdas[0])[1]
    got_mean, got_std = affine_law(composed, lambdas, sigma.item())  # y = x / alpha starts with std U = sigma / alpha
    assert got_mean == pytest.approx(mean, abs=1e-4)
    assert got_std == pytest.approx(std, abs=1e-4)


def test_c2_limit_is_the_geometric_mean_and_not_the_product() -> None:
    """Negative control: the density product has variance 1 / sum(w / s^2), and the ODE misses it by far (C3)."""
    w, s = [0.5, 0.5], [0.2, 0.6]
    _, std = finite_start_law(w, [-1.0, 1.0], s, 1e6)
    product = sum(wi / si**2 for wi, si in zip(w, s)) ** -0.5
    assert std == pytest.approx(math.sqrt(0.2 * 0.6), abs=1e-6)
    assert product == pytest.approx(0.26833, abs=1e-5)
    assert abs(std - product) > 0.07


class SumOf:
    """What must not be: weights that sum to two, in noise space."""

    def __init__(self, fields: list[Field]) -> None:
        self.fields = fields

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        alpha, sigma = (level[:, None, None] for level in variance_preserving(lam))
        noise = sum((x - alpha * one(x, lam, None)) / sigma for one in self.fields)
        return (x - sigma * noise) / alpha


def test_weights_that_sum_to_two_collapse_and_are_refused() -> None:
    """C2 for sum w = 2: std s^2 / U instead of the product's s / sqrt(2)."""
    _, std = finite_start_law([1.0, 1.0], [0.0, 0.0], [0.5, 0.5], 200.0)
    assert std == pytest.approx(0.25 / 200, rel=1e-4)
    law = gaussian(0.0, 0.5)
    _, sampled = affine_law(SumOf([law, law]), torch.linspace(-math.log(200), 8, 151, dtype=DOUBLE))
    assert sampled == pytest.approx(std, rel=0.01)
    with pytest.raises(KineflowError, match=r"weights 1,1 sum to 2, not to 1.*divided by their sum they are 0.5,0.5"):
        convex([law, law], 1.0, 1.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.4), "sum to 0.9"),
        ((1.5, -0.5), "not negative"),
        ((math.nan, 1.0), "must be a number"),
        ((0.0, 0.0), "sum to 0, not"),
        ((0.2, 0.3, 0.5), "3 weights for 2 policies"),
    ],
)
def test_bad_weights_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        convex([gaussian(0, 1), gaussian(1, 1)], *weights)


def stochastic_law(k: float, w: list[float], m: list[float], s: list[float], start: float = 100.0) -> tuple[float, float]:
    """Moments of dy = (1 + k) eps_hat du + sqrt(2 k u |du|) dW from y ~ N(0, U^2), integrated by scipy (C4)."""

    def slope(log_u: float, moments: np.ndarray) -> list[float]:
        u = math.exp(log_u)
        precision = sum(wi / (si * si + u * u) for wi, si in zip(w, s))
        pull = sum(wi * mi / (si * si + u * u) for wi, mi, si in zip(w, m, s))
        mean, variance = moments
        return [
            u * u * (1 + k) * (precision * mean - pull),
            u * u * (2 * (1 + k) * precision * variance - 2 * k),
        ]

    span = (math.log(start), math.log(1e-4))
    end = solve_ivp(slope, span, [0.0, start**2], method="Radau", rtol=1e-9, atol=1e-12).y[:, -1]
    return end[0], math.sqrt(end[1])


C4 = {0: (-0.347, 0.3464), 1: (-0.500, 0.3144), 10: (-0.741, 0.2766), 100: (-0.794, 0.2692), 1000: (-0.7994, 0.2684)}


@pytest.mark.parametrize("k", C4)
def test_c4_moments_go_from_c2_to_c3(k: int) -> None:
    """The specification's measured numbers, from the moment equations; k to infinity ends at the product, -0.8 and 0.26833."""
    mean, std = stochastic_law(k, [0.5, 0.5], [-1.0, 1.0], [0.2, 0.6])
    assert mean == pytest.approx(C4[k][0], abs=2e-3)
    assert std == pytest.approx(C4[k][1], abs=2e-4)


class Impulses:
    """Noise for the exact law of a stochastic solver: row 0 draws zeros, row j one at its draw j - 1."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def draw(self) -> torch.Tensor:
        self.drawn += 1
        out = torch.zeros(self.rows, 1, 1, dtype=DOUBLE)
        if self.drawn + 1 < self.rows:
            out[self.drawn + 1] = 1
        return out


def exact_law(field: Field, lambdas: torch.Tensor, start_std: float, sampler=ancestral) -> tuple[float, float]:
    """Mean and std of an affine stochastic sampler without sampling: the variance is the sum of squared responses."""
    rows = len(lambdas) + 1
    noise = torch.zeros(rows, 1, 1, dtype=DOUBLE)
    noise[1] = start_std
    out = sampler(field, noise, lambdas, None, Impulses(rows)).flatten()
    responses = out[1:] - out[0]
    return out[0].item(), responses.square().sum().sqrt().item()


def test_ancestral_sampling_of_a_composition_is_k_one() -> None:
    """DDPM steps, with which GPC composes, go to the k = 1 law of C4."""
    composed = convex([gaussian(-1.0, 0.2), gaussian(1.0, 0.6)], 0.5, 0.5)
    lambdas = torch.linspace(-math.log(100), 7, 251, dtype=DOUBLE)
    mean, std = exact_law(composed, lambdas, variance_preserving(lambdas[0])[1].item())
    expected = stochastic_law(1, [0.5, 0.5], [-1.0, 1.0], [0.2, 0.6])
    assert (mean, std) == pytest.approx(expected, abs=1e-2)
    assert abs(mean - C4[0][0]) > 0.1
    assert abs(mean - C4[10][0]) > 0.1


@pytest.mark.parametrize("k", [0, 1, 10])
def test_c4_with_the_sde_solver(k: int) -> None:
    """The same law from the solver itself, exactly: means and variances of an affine sampler need no random numbers. Its error
    halves with twice the steps, so what the two runs point to is the law itself."""
    composed = convex([gaussian(-1.0, 0.2), gaussian(1.0, 0.6)], 0.5, 0.5)
    laws = []
    for steps in (400, 800):
        lambdas = torch.linspace(-math.log(100), 7, steps + 1, dtype=DOUBLE)
        start = variance_preserving(lambdas[0])[1].item()
        laws.append(np.array(exact_law(composed, lambdas, start, functools.partial(sde, k=float(k)))))
    exact = np.array(stochastic_law(k, [0.5, 0.5], [-1.0, 1.0], [0.2, 0.6]))
    coarse, fine = (np.abs(law - exact) for law in laws)
    assert (fine < 0.6 * coarse).all()
    np.testing.assert_allclose(2 * laws[1] - laws[0], exact, rtol=0, atol=1.5e-3)


# Mixed families


def test_ddpm_with_flow_equals_the_same_family() -> None:
    """An epsilon head of 100 levels and a velocity head mix as if both were flows, all along the discrete grid."""
    laws, grid = (modes(-1.0, 0.5), modes(-0.3, 1.1, std=0.5)), uniform_time_grid(SquaredCos(100), 100)
    paths = (SquaredCos(100), CondOT())
    mixed = convex(
        [HeadField(MixtureHead(law, p, q), p, q) for law, p, q in zip(laws, paths, ("epsilon", "velocity"), strict=True)],
        0.3,
        0.7,
    )
    same = convex([HeadField(MixtureHead(law, CondOT(), "velocity"), CondOT(), "velocity") for law in laws], 0.3, 0.7)
    x = torch.randn(7, 1, 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    ours, theirs = (ddim(one, x, grid, None, row_noise(7)) for one in (mixed, same))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "velocity", "v", "score", "edm"])
@pytest.mark.parametrize("path", [CondOT(), Cosine(), VPLinear(), SquaredCos(50)], ids=str)
def test_any_prediction_on_any_path_composes_alike(prediction, path) -> None:
    law, other = modes(-1.0, 0.5), modes(0.2, 0.9, std=0.6)
    head = HeadField(MixtureHead(law, path, prediction), path, prediction)
    x, _ = states()
    lam = path.to_lambda(torch.linspace(0.1, 0.9, 9, dtype=DOUBLE))
    mixed, exact = (convex([one, other], 0.4, 0.6)(x, lam, None) for one in (head, law))
    torch.testing.assert_close(mixed, exact, rtol=1e-9, atol=1e-9)


def test_measured_std_of_the_mixed_pair() -> None:
    """Specification: DDPM(100) and flow, equal std 0.4, weights (0.3, 0.7), DDIM in 100 steps: std 0.3926."""
    paths = (SquaredCos(100), CondOT())
    heads = [
        HeadField(MixtureHead(gaussian(m, 0.4), p, q), p, q)
        for m, p, q in zip((-0.3, 0.7), paths, ("epsilon", "velocity"), strict=True)
    ]
    noise = torch.tensor([0.0, 1.0], dtype=DOUBLE)[:, None, None]
    out = ddim(convex(heads, 0.3, 0.7), noise, uniform_time_grid(SquaredCos(100), 100), None, row_noise(2)).flatten()
    assert out[0].item() == pytest.approx(0.4, abs=1e-3)
    assert (out[1] - out[0]).item() == pytest.approx(0.3926, abs=1e-4)


# Algebra of weights


def test_permutation_and_associativity() -> None:
    a, b, c = modes(-1.0, 0.5), modes(0.3, std=0.7), modes(-0.2, 0.8)
    x, lam = states()
    flat = convex([a, b, c], 0.2, 0.3, 0.5)(x, lam, None)
    permuted = convex([c, a, b], 0.5, 0.2, 0.3)(x, lam, None)
    nested = convex([convex([a, b], 0.4, 0.6), c], 0.5, 0.5)(x, lam, None)
    torch.testing.assert_close(permuted, flat, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(nested, flat, rtol=1e-14, atol=1e-14)


class Forbidden:
    def __call__(self, x, lam, condition):
        raise AssertionError("a policy without weight was called")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_hot_is_the_single_policy_bit_for_bit(place: int) -> None:
    law = modes(-1.0, 0.5)
    fields: list[Field] = [Forbidden(), Forbidden(), Forbidden()]
    fields[place] = law
    x, lam = states()
    assert torch.equal(convex(fields, *(float(i == place) for i in range(3)))(x, lam, None), law(x, lam, None))


def test_schedule_of_weights_by_noise_level() -> None:
    """Linear in t = sigmoid(lambda) between the knots; a one-hot end is that policy alone."""
    a, b = modes(-1.0, 0.5), modes(0.3, std=0.7)
    schedule = Convex([a, b], Weights((WeightKnot(0.2, (1.0, 0.0)), WeightKnot(0.8, (0.4, 0.6)))))
    x = torch.full((4, 1, 1), 0.3, dtype=DOUBLE)
    lam = torch.logit(torch.tensor([0.1, 0.2, 0.5, 0.95], dtype=DOUBLE))
    expected = [convex([a, b], *w)(x, lam, None) for w in ((1.0, 0.0), (1.0, 0.0), (0.7, 0.3), (0.4, 0.6))]
    rows = torch.stack([one[i] for i, one in enumerate(expected)])
    torch.testing.assert_close(schedule(x, lam, None), rows, rtol=1e-12, atol=1e-12)
    ends = torch.tensor([-math.inf, math.inf], dtype=DOUBLE)
    assert torch.equal(schedule.weights.at(ends), torch.tensor([[1.0, 0.0], [0.4, 0.6]], dtype=DOUBLE))


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ([(0.5, (0.5, 0.5)), (0.2, (1.0, 0.0))], "ascending times"),
        ([(0.0, (0.5, 0.5)), (1.5, (1.0, 0.0))], "between 0"),
        ([(0.0, (0.5, 0.5)), (1.0, (0.9, 0.0))], "sum to 0.9"),
        ([(0.0, (0.5, 0.5)), (1.0, (1.0,))], "names all policies"),
        ([], "needs weights"),
    ],
)
def test_bad_schedules_are_refused(knots, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        Weights(tuple(WeightKnot(t, w) for t, w in knots))


def test_steps_that_one_policy_lacks_belong_to_the_others() -> None:
    """Policy 1 acts on two of three steps: there the weights hold, elsewhere policy 0 has all."""
    a, b = gaussian(-1.0, 0.3), gaussian(1.0, 0.3)
    cover = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    x, lam = torch.linspace(-1, 1, 6, dtype=DOUBLE).view(2, 3, 1), torch.tensor([-0.5, 1.0], dtype=DOUBLE)
    answer = Convex([a, OnSteps(b, (0, 2))], Weights.constant([0.25, 0.75]), cover)(x, lam, None)
    torch.testing.assert_close(answer[:, [0, 2]], convex([a, b], 0.25, 0.75)(x[:, [0, 2]], lam, None), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(answer[:, 1:2], a(x[:, 1:2], lam, None), rtol=1e-6, atol=1e-6)
    per_action = lam[:, None].expand(2, 3)
    torch.testing.assert_close(
        Convex([a, OnSteps(b, (0, 2))], Weights.constant([0.25, 0.75]), cover)(x, per_action, None), answer
    )
    # One-hot on the short policy: the long one still acts where it is alone.
    short = Convex([a, OnSteps(b, (0, 2))], Weights.constant([0.0, 1.0]), cover)(x, lam, None)
    torch.testing.assert_close(short[:, [0, 2]], b(x[:, [0, 2]], lam, None))
    torch.testing.assert_close(short[:, 1:2], a(x[:, 1:2], lam, None))


# OR and AND


def test_or_is_the_mixture() -> None:
    """Laws of one mode each: OR with weights pi is the two-mode mixture's own field."""
    centres = torch.tensor([-1.0, 0.6], dtype=DOUBLE)[:, None, None]
    stds = torch.tensor([0.3, 0.5], dtype=DOUBLE)[:, None, None]
    mixture = Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), centres, stds)
    x, lam = states()
    either = Either([gaussian(-1.0, 0.3), gaussian(0.6, 0.5)], Weights.constant([0.4, 0.6]))
    torch.testing.assert_close(either(x, lam, None), mixture(x, lam, None), rtol=1e-12, atol=1e-12)
    assert (convex(list(either.fields), 0.4, 0.6)(x, lam, None) - mixture(x, lam, None)).abs().max() > 0.1


def test_or_without_densities_is_refused() -> None:
    head = HeadField(MixtureHead(gaussian(0, 1), CondOT(), "velocity"), CondOT(), "velocity")
    with pytest.raises(KineflowError, match=r"'flow' has no density.*use --operator and"):
        Either([gaussian(0, 1), head], Weights.constant([0.5, 0.5]), ("analytic", "flow"))


def density_gap(laws: list[Mixture], steps: int, *, equal_density: bool) -> float:
    """Median |log p_A - log p_B| at the end of sampling, in closed form. All densities are equal in pure noise."""
    rows, end = 16, 4.0
    lambdas, fresh = torch.linspace(-6, end, steps + 1, dtype=DOUBLE), RowNoise(np.arange(rows), (1, 2), DOUBLE)
    noise, both = fresh.draw(), EqualDensity(laws, fresh)
    if equal_density:
        x = ancestral(both, noise, lambdas, None, both)
    else:
        x = ancestral(convex(laws, 0.5, 0.5), noise, lambdas, None, fresh)
    one, other = (law.log_density(x, torch.full((rows,), end, dtype=DOUBLE), None) for law in laws)
    return (one - other).abs().median().item()


def plane(means: list[tuple[float, float]], std: float) -> Mixture:
    centres = torch.tensor(means, dtype=DOUBLE)[:, None]
    return Mixture(torch.full((len(means),), 1 / len(means), dtype=DOUBLE), centres, torch.full_like(centres, std))


def test_and_keeps_the_log_densities_equal() -> None:
    """Closed-form densities at the end. For Gaussians of one covariance the rule is exact in any number of steps."""
    laws = [plane([(-1.0, 0.0)], 0.4), plane([(0.5, -0.5)], 0.4)]
    assert density_gap(laws, 20, equal_density=True) < 0.005  # what the densities differed by at the start
    assert density_gap(laws, 20, equal_density=False) > 1


def test_and_of_curved_densities_keeps_them_close() -> None:
    """A known limit: taking noise back along the differences leaves their second derivatives in the Ito change, so where the
    policies' curvatures differ a gap stays (0.25 here at any number of steps); weights of one half leave eight times that."""
    laws = [plane([(-1.0, 0.0), (1.0, 1.0)], 0.4), plane([(0.5, -0.5)], 0.6)]
    gap = density_gap(laws, 100, equal_density=True)
    assert 0.1 < gap < 0.4
    assert density_gap(laws, 100, equal_density=False) > 4 * gap


def test_and_of_three_policies_solves_the_linear_system() -> None:
    """Every pair: <a_i - a_j, m> = (|a_i|^2 - |a_j|^2) / 2 - <a_i - a_j, z'>, with the noise's part taken from `draw`."""
    laws = [plane([(-1.0, 0.0)], 0.4), plane([(0.5, -0.5)], 0.6), plane([(0.2, 1.0)], 0.5)]
    three = [
        Mixture(law.weights, torch.cat([law.means, law.means[..., :1]], -1), torch.cat([law.stds, law.stds[..., :1]], -1))
        for law in laws
    ]
    x, lam = states(size=3)
    both = EqualDensity(three, row_noise(9, 3))
    middle, noise = both(x, lam, None), both.draw()
    answers = [law(x, lam, None) for law in three]
    for one, other in itertools.combinations(answers, 2):
        gap = ((middle - one).square() - (middle - other).square()).sum(dim=(1, 2))
        torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-10)
        along = ((one - other) * noise).sum(dim=(1, 2))
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)


def test_and_of_a_policy_with_itself_is_that_policy() -> None:
    law = plane([(-1.0, 0.0), (1.0, 1.0)], 0.4)
    lambdas, noise = torch.linspace(-4, 4, 9, dtype=DOUBLE), row_noise(5, 2).draw()
    both = EqualDensity([law, law], row_noise(5, 2))
    alone = ancestral(law, noise, lambdas, None, row_noise(5, 2))
    assert torch.equal(ancestral(both, noise, lambdas, None, both), alone)
