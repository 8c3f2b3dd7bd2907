"""T4 and T17 of every solver: what is algebraically the same gives the same numbers, and a row never sees its neighbours."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.field import HeadField
from kineflow.policies.paths import CondOT, SquaredCos
from kineflow.policies.samplers import (
    SOLVERS,
    RowNoise,
    SolverName,
    ab2,
    ab3,
    ancestral,
    ddim,
    dpmpp2m,
    euler,
    midpoint,
    rk4,
    sde,
    solver_of,
)
from kineflow.policies.time_grids import TimeGrid, uniform_time_grid

DOUBLE = torch.float64
lambda_grids = st.lists(st.floats(-8, 8), min_size=2, max_size=6, unique=True).map(sorted)


def modes() -> Mixture:
    means = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    return Mixture(torch.full((3,), 1 / 3, dtype=DOUBLE), means, torch.full_like(means, 0.3))


def chunks(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def row_noise(count: int = 3) -> RowNoise:
    return RowNoise(np.arange(count), (4, 2), DOUBLE)


def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
    """What a perfect flow head answers on CondOT: written down here, without our solvers' algebra."""
    return MixtureHead(modes(), CondOT(), "velocity")(z, torch.full((len(z),), t, dtype=DOUBLE), None)


def from_canonical(x: torch.Tensor, t: float) -> torch.Tensor:
    return x * math.hypot(t, 1 - t)


def test_midpoint_is_rf_solver() -> None:
    """RF-Solver's Taylor step z + h v + h^2 / 2 dv/dt, dv/dt by the difference to half an Euler step; and by its alias."""
    times = [0.1, 0.25, 0.5, 0.6, 0.9]
    z = from_canonical(chunks(), times[0])
    for t, following in itertools.pairwise(times):
        h = following - t
        v = velocity(z, t)
        slope = (velocity(z + h / 2 * v, t + h / 2) - v) / (h / 2)
        z = z + h * v + h**2 / 2 * slope
    lambdas = CondOT().to_lambda(torch.tensor(times, dtype=DOUBLE))
    for solver in (midpoint, SOLVERS["rf_solver"]):
        answer = from_canonical(solver(modes(), chunks(), lambdas, None, row_noise()), times[-1])
        torch.testing.assert_close(answer, z, rtol=1e-11, atol=1e-11)
    first_order = from_canonical(euler(modes(), chunks(), lambdas, None, row_noise()), times[-1])
    assert (first_order - z).abs().max() > 1e-3


def test_adams_bashforth_has_its_textbook_weights_on_equal_steps() -> None:
    """3/2, -1/2 and 23/12, -16/12, 5/12 from the first step that has enough behind it."""
    h, start = 0.1, from_canonical(chunks(), 0.1)
    v0 = velocity(start, 0.1)
    z1 = start + h * v0
    v1 = velocity(z1, 0.2)
    second = z1 + h * (1.5 * v1 - 0.5 * v0)
    lambdas = CondOT().to_lambda(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE))
    answer = from_canonical(ab2(modes(), chunks(), lambdas[:3], None, row_noise()), 0.3)
    torch.testing.assert_close(answer, second, rtol=1e-12, atol=1e-12)
    # Third order: the first step is corrected by what the second call says, then 3/2, -1/2.
    z1 = start + h / 2 * (v0 + v1)
    z2 = z1 + h * (1.5 * v1 - 0.5 * v0)
    third = z2 + h * (23 * velocity(z2, 0.3) - 16 * v1 + 5 * v0) / 12
    answer = from_canonical(ab3(modes(), chunks(), lambdas, None, row_noise()), 0.4)
    torch.testing.assert_close(answer, third, rtol=1e-12, atol=1e-12)


def test_adams_bashforth_of_unequal_steps_integrates_polynomials() -> None:
    """A velocity linear in t is integrated exactly by order 2, a quadratic one by order 3 but for its second step."""
    times = torch.tensor([0.05, 0.1, 0.25, 0.3, 0.55, 0.8], dtype=DOUBLE)

    def moving(power: int):  # type: ignore[no-untyped-def]
        def field(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            t = torch.sigmoid(lam)[:, None, None]
            return x * torch.hypot(t, 1 - t) + (1 - t) * t**power  # a_hat of the velocity t^power, whatever the state

        return field

    x = chunks()
    for solver, power in ((ab2, 1), (ab3, 1), (ab3, 2)):
        answer = solver(moving(power), x, CondOT().to_lambda(times), None, row_noise())
        gained = from_canonical(answer, 0.8) - from_canonical(x, 0.05)
        exact = (0.8 ** (power + 1) - 0.05 ** (power + 1)) / (power + 1)
        # Order 1 begins, order 2 follows: what those two steps lose is known too.
        starts = _lost_at_the_start(times, power, corrected=solver is ab3)
        torch.testing.assert_close(gained, torch.full_like(x, exact - starts), rtol=0, atol=1e-12)


def _lost_at_the_start(times: torch.Tensor, power: int, *, corrected: bool) -> float:
    t, (h0, h1) = times.tolist(), (times[1:3] - times[:2]).tolist()
    integral = [(b ** (power + 1) - a ** (power + 1)) / (power + 1) for a, b in itertools.pairwise(t)]
    v0, v1 = t[0] ** power, t[1] ** power
    first = integral[0] - (h0 * (v0 + v1) / 2 if corrected else h0 * v0)
    second = integral[1] - (h1 * v1 + h1**2 / 2 * (v1 - v0) / h0)
    return first + second


def test_rk4_is_the_textbook_rule() -> None:
    z, t, h = from_canonical(chunks(), 0.2), 0.2, 0.3
    a = velocity(z, t)
    b = velocity(z + h / 2 * a, t + h / 2)
    c = velocity(z + h / 2 * b, t + h / 2)
    d = velocity(z + h * c, t + h)
    lambdas = CondOT().to_lambda(torch.tensor([0.2, 0.5], dtype=DOUBLE))
    answer = from_canonical(rk4(modes(), chunks(), lambdas, None, row_noise()), 0.5)
    torch.testing.assert_close(answer, z + h / 6 * (a + 2 * b + 2 * c + d), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(lambda_grids, st.booleans(), st.booleans())
def test_first_order_2m_is_ddim(grid: list[float], from_noise: bool, to_data: bool) -> None:
    """DPM-Solver++(1) = DDIM: a step without history, and every step of a head whose answer never changes."""
    lambdas = torch.tensor([-math.inf] * from_noise + grid + [math.inf] * to_data, dtype=DOUBLE)
    for first, second in itertools.pairwise(lambdas):
        step = torch.stack([first, second])
        one, other = (solver(modes(), chunks(), step, None, row_noise()) for solver in (dpmpp2m, ddim))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    still = chunks(seed=4)
    one, other = (solver(lambda *_: still, chunks(), lambdas, None, row_noise()) for solver in (dpmpp2m, ddim))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_2m_is_the_published_formula() -> None:
    """Three unequal steps of x' = (sigma'/sigma) x - alpha' (exp(-h) - 1) D, D = (1 + 1/(2r)) a - 1/(2r) a_previous."""
    lambdas, x, law = [-2.0, -1.4, 0.3, 0.9], chunks(), modes()
    before = None
    for k, (lam, following) in enumerate(itertools.pairwise(lambdas)):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-2 * following))), math.sqrt(1 / (1 + math.exp(2 * following)))
        h = following - lam
        now = law(x, torch.full((3,), lam, dtype=DOUBLE), None)
        ratio = None if before is None else (lam - lambdas[k - 1]) / h
        ahead = now if ratio is None else (1 + 1 / (2 * ratio)) * now - before / (2 * ratio)
        x = sigma * math.sqrt(1 + math.exp(2 * lam)) * x - alpha * math.expm1(-h) * ahead
        before = now
    answer = dpmpp2m(law, chunks(), torch.tensor(lambdas, dtype=DOUBLE), None, row_noise())
    torch.testing.assert_close(answer, x, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(lambda_grids, st.booleans(), st.booleans())
def test_sde_without_diffusion_is_ddim_and_with_one_ddpm(grid: list[float], from_noise: bool, to_data: bool) -> None:
    lambdas = torch.tensor([-math.inf] * from_noise + grid + [math.inf] * to_data, dtype=DOUBLE)
    still = sde(modes(), chunks(), lambdas, None, row_noise(), k=0.0)
    torch.testing.assert_close(still, ddim(modes(), chunks(), lambdas, None, row_noise()), rtol=1e-12, atol=1e-12)
    noisy = sde(modes(), chunks(), lambdas, None, row_noise(), k=1.0)
    torch.testing.assert_close(noisy, ancestral(modes(), chunks(), lambdas, None, row_noise()), rtol=1e-12, atol=1e-12)


def test_a_solver_by_name_takes_its_diffusion() -> None:
    lambdas = uniform_time_grid(CondOT(), 4)
    for k in (0.0, 0.5, 3.0):
        one = solver_of("sde", k)(modes(), chunks(), lambdas, None, row_noise())
        assert torch.equal(one, sde(modes(), chunks(), lambdas, None, row_noise(), k=k))
    assert solver_of("heun", 3.0) is SOLVERS["heun"]
    for k in (-0.1, math.inf, math.nan):
        with pytest.raises(KineflowError, match="diffusion k is"):
            solver_of("sde", k)
    with pytest.raises(KineflowError, match=r"eta is 1\.5"):
        ancestral(modes(), chunks(), lambdas, None, row_noise(), eta=1.5)


# What every solver promises


def polynomial(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """Rounds alike however many rows there are, unlike a matrix product."""
    return 0.6 * x - 0.1 * x * x


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", [CondOT(), SquaredCos(100)], ids=str)
def test_a_row_does_not_depend_on_its_batch(solver: SolverName, path: CondOT | SquaredCos) -> None:
    """T17: same seed, same bits, however the rows are split into batches."""
    lambdas, seeds = TimeGrid("lambda")(path, 5), np.array([11, 7, 2**40 + 11, 3])

    def sampled(rows: slice) -> torch.Tensor:
        fresh = RowNoise(seeds[rows], (4, 2))
        return SOLVERS[solver](polynomial, fresh.draw(), lambdas, None, fresh)

    together = sampled(slice(None))
    assert torch.equal(together, torch.cat([sampled(slice(0, 1)), sampled(slice(1, 4))]))
    assert torch.equal(together, sampled(slice(None)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_padded_steps_of_the_horizon_leave_the_others_alone(solver: SolverName) -> None:
    lambdas, x = uniform_time_grid(CondOT(), 5), chunks()
    longer = torch.cat([x, torch.full((3, 2, 2), 1e6, dtype=DOUBLE)], dim=1)
    fresh, same = RowNoise(np.arange(3), (4, 2), DOUBLE), RowNoise(np.arange(3), (4, 2), DOUBLE)

    class Padded:
        def draw(self) -> torch.Tensor:
            return torch.cat([same.draw(), torch.zeros(3, 2, 2, dtype=DOUBLE)], dim=1)

    short = SOLVERS[solver](polynomial, x, lambdas, None, fresh)
    assert torch.equal(SOLVERS[solver](polynomial, longer, lambdas, None, Padded())[:, :4], short)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_on_grids_of_their_own(solver: SolverName) -> None:
    """One call for rows on different grids, one of them ending early, gives what each grid gives alone."""
    grids = [[-3.0, -1.0, 0.5, math.inf], [-2.0, 0.1, math.inf, math.inf], [-math.inf, -0.5, 1.0, math.inf]]
    lambdas, x = torch.tensor(grids, dtype=DOUBLE).T, chunks()
    together = SOLVERS[solver](modes(), x, lambdas, None, row_noise())
    for row, grid in enumerate(grids):
        alone = torch.tensor(grid, dtype=DOUBLE)[:, None]
        fresh = RowNoise(np.array([row]), (4, 2), DOUBLE)
        one = SOLVERS[solver](modes(), x[row : row + 1], alone, None, fresh)
        torch.testing.assert_close(together[row], one[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_returns_a_denoised_chunk(solver: SolverName) -> None:
    """Sigma = 0: what guidance made of the chunk (here a bound that is far off) is what comes out, exactly."""
    head = HeadField(MixtureHead(modes(), SquaredCos(100), "epsilon"), SquaredCos(100), "epsilon")
    bound = 1 / 3

    def bounded(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return head(x, lam, condition).clamp(-bound, bound)

    answer = SOLVERS[solver](bounded, chunks(), uniform_time_grid(SquaredCos(100), 4), None, row_noise())
    assert answer.abs().max().item() <= bound * (1 + 1e-15)
