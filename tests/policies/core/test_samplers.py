"""T5 and T6 of every solver, T4 of Euler, DDIM and ancestral steps; calls, levels, dtypes; row noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.field import HeadField
from kineflow.policies.paths import (
    CondOT,
    ContinuousSquaredCos,
    Cosine,
    Path,
    SquaredCos,
    VarianceExploding,
    VPLinear,
    variance_preserving,
)
from kineflow.policies.samplers import (
    SOLVERS,
    RowNoise,
    Sampler,
    SolverName,
    ab2,
    ab3,
    ancestral,
    calls,
    ddim,
    dpmpp2m,
    euler,
    heun,
    midpoint,
)
from kineflow.policies.time_grids import TimeGrid, uniform_time_grid

DOUBLE = torch.float64


def gaussian(mean: float = 0.5, std: float = 0.4) -> Mixture:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    return Mixture(one.flatten(), mean * one, std * one)


def two_modes() -> Mixture:
    means = torch.tensor([-1.0, 0.7], dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), means, torch.tensor([0.3, 0.4], dtype=DOUBLE)[:, None, None])


def chunks(count: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def row_noise(count: int, shape: tuple[int, int] = (4, 2)) -> RowNoise:
    return RowNoise(np.arange(count), shape, DOUBLE)


def wide_modes() -> Mixture:
    generator = torch.Generator().manual_seed(5)
    means = torch.randn(3, 4, 2, generator=generator, dtype=DOUBLE)
    return Mixture(torch.full((3,), 1 / 3, dtype=DOUBLE), means, torch.full_like(means, 0.3))


@dataclass
class Scripted:
    """Noise that is written down: draw k gives `script[k]`, and afterwards zeros."""

    script: list[torch.Tensor]
    drawn: int = field(default=0)

    def draw(self) -> torch.Tensor:
        self.drawn += 1
        return self.script[self.drawn - 1] if self.drawn <= len(self.script) else torch.zeros_like(self.script[0])


lambda_grids = st.lists(st.floats(-8, 8), min_size=2, max_size=8, unique=True).map(sorted)


# T4: equalities


@settings(max_examples=40, deadline=None)
@given(lambda_grids, st.booleans(), st.booleans(), st.integers(0, 99))
def test_euler_on_the_flow_is_ddim(grid: list[float], from_noise: bool, to_data: bool, seed: int) -> None:
    levels = [-math.inf] * from_noise + grid + [math.inf] * to_data
    lambdas, x = torch.tensor(levels, dtype=DOUBLE), chunks(3, seed)
    one = euler(wide_modes(), x, lambdas, None, row_noise(3))
    other = ddim(wide_modes(), x, lambdas, None, row_noise(3))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_euler_is_the_loop_that_flow_policies_run() -> None:
    """pi0 / openpi written out: time runs 1 -> 0, the network says eps - a, dt = -1/N (trap 11: two clocks, one result)."""
    head, steps = MixtureHead(wide_modes(), CondOT(), "velocity_to_noise"), 7
    noise = chunks()
    x, tau = noise, 1.0
    for _ in range(steps):
        x = x - head(x, torch.full((5,), 1 - tau, dtype=DOUBLE), None) / steps
        tau -= 1 / steps
    for prediction in ("velocity", "velocity_to_noise"):
        ours = HeadField(MixtureHead(wide_modes(), CondOT(), prediction), CondOT(), prediction)
        answer = euler(ours, noise, uniform_time_grid(CondOT(), steps), None, row_noise(5))
        torch.testing.assert_close(answer, x, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(lambda_grids, st.booleans())
def test_eta_zero_is_ddim(grid: list[float], to_data: bool) -> None:
    lambdas = torch.tensor(grid + [math.inf] * to_data, dtype=DOUBLE)
    x, law = chunks(3), wide_modes()
    expected = x
    for lam, following in itertools.pairwise(lambdas):  # x' = alpha' a_hat + sigma' eps_hat, written out
        (alpha, sigma), (alpha_next, sigma_next) = variance_preserving(lam), variance_preserving(following)
        sample = law(expected, lam.expand(3), None)
        expected = alpha_next * sample + sigma_next * (expected - alpha * sample) / sigma
    fresh = Scripted([torch.full_like(x, 9.0)])
    torch.testing.assert_close(ancestral(law, x, lambdas, None, fresh, eta=0.0), expected, rtol=1e-9, atol=1e-9)
    assert fresh.drawn == 0


@pytest.mark.parametrize("index", [1, 2, 17, 50, 98, 99])
def test_eta_one_is_ddpm(index: int) -> None:
    """Posterior mean and fixed_small variance of Ho et al. 2020, equations 6 and 7, from betas alone."""
    path = SquaredCos(100)
    curve = [math.cos((i / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(101)]
    betas = np.minimum(1 - np.array(curve[1:]) / np.array(curve[:-1]), 0.999)
    abar = np.cumprod(1 - betas)
    beta, now, before = float(betas[index]), float(abar[index]), float(abar[index - 1])
    x, sample, z = chunks(3, 1), chunks(3, 2), chunks(3, 3)
    mean = math.sqrt(before) * beta / (1 - now) * sample + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    std = math.sqrt(beta * (1 - before) / (1 - now))
    lambdas = path.to_lambda(path.index_to_time(torch.tensor([index, index - 1], dtype=DOUBLE)))
    stepped = ancestral(lambda *_: sample, x, lambdas, None, Scripted([z]))
    torch.testing.assert_close(stepped, mean + std * z, rtol=1e-9, atol=1e-9)


def test_ddpm_ends_without_noise() -> None:
    lambdas = uniform_time_grid(SquaredCos(100), 100)
    sample = chunks(3, 2)
    ended = ancestral(lambda *_: sample, chunks(3), lambdas[-2:], None, Scripted([torch.full_like(sample, 9.0)]))
    assert torch.equal(ended, sample)


@pytest.mark.parametrize("path", [Cosine(), VPLinear(), ContinuousSquaredCos(), SquaredCos(100), VarianceExploding()], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_trajectories_do_not_depend_on_the_path_of_the_head(path: Path, solver: SolverName) -> None:
    """T3: equal lambdas, equal noise: a head from any path takes the same trajectory."""
    lambdas = torch.tensor([-3.9, -2.0, -0.5, 0.3, 1.1, 3.0, math.inf], dtype=DOUBLE)
    results = []
    for where, prediction in ((CondOT(), "velocity"), (path, "sample"), (path, "v")):
        denoise = HeadField(MixtureHead(wide_modes(), where, prediction), where, prediction)
        results.append(SOLVERS[solver](denoise, chunks(), lambdas, None, row_noise(5)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


# T5: orders


def bare_two_modes(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """The field of `two_modes` for chunks of one number, without anything of ours: a second opinion, and quick."""
    alpha, sigma = (torch.sqrt(torch.sigmoid(sign * 2 * lam[:, None, None])) for sign in (1, -1))
    weights, means, variances = torch.tensor([[0.4, 0.6], [-1.0, 0.7], [0.09, 0.16]], dtype=DOUBLE)
    spread, offset = alpha**2 * variances + sigma**2, x - alpha * means
    joint = weights * torch.exp(-(offset**2) / (2 * spread)) / torch.sqrt(spread)
    each = means + alpha * variances * offset / spread
    return (joint * each).sum(dim=-1, keepdim=True) / joint.sum(dim=-1, keepdim=True)


ORDERS: dict[SolverName, int] = {
    "euler": 1,
    "ddim": 1,
    "heun": 2,
    "midpoint": 2,
    "ab2": 2,
    "dpmpp2m": 2,
    "ab3": 3,
    "rk4": 4,
}


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_order_of_convergence(solver: SolverName, order: int) -> None:
    """Slope of log error against log N on the exact 1-D flow of a mixture, t in [.02, .98] of CondOT."""
    law, x = two_modes(), torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None]
    ends = CondOT().to_lambda(torch.tensor([0.02, 0.98], dtype=DOUBLE))
    exact = law.flow(x, ends[0], ends[1])
    torch.testing.assert_close(bare_two_modes(x, ends[:1].expand(9), None), law(x, ends[:1].expand(9), None), rtol=0, atol=1e-14)
    errors = []
    for steps in (40, 80, 160) if solver == "rk4" else (160, 320, 640):  # beyond, rounding is as large as the error of order 4
        lambdas = CondOT().to_lambda(torch.linspace(0.02, 0.98, steps + 1, dtype=DOUBLE))
        answer = SOLVERS[solver](bare_two_modes, x, lambdas, None, row_noise(9, (1, 1)))
        errors.append((answer - exact).abs().mean().item())
    slopes = [math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])]
    assert slopes == pytest.approx([order, order], abs=0.15)


def test_exact_flow_of_a_gaussian() -> None:
    """The oracle's own check: O1, X(x) = alpha_2 m + sqrt(V_2 / V_1) (x - alpha_1 m)."""
    law, x = gaussian(), torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None]
    start, end = torch.tensor([-2.0, 1.5], dtype=DOUBLE)
    (alpha, sigma), (alpha_end, sigma_end) = variance_preserving(start), variance_preserving(end)
    ratio = torch.sqrt((alpha_end**2 * 0.16 + sigma_end**2) / (alpha**2 * 0.16 + sigma**2))
    torch.testing.assert_close(law.flow(x, start, end), alpha_end * 0.5 + ratio * (x - alpha * 0.5), rtol=1e-12, atol=1e-12)


# T6: end laws


def end_law(solver: Sampler, lambdas: torch.Tensor) -> tuple[float, float]:
    """Exact mean and std of what a solver samples for N(.5, .4^2): the chunk is affine in all of its noises.

    Row 0 has no noise; row 1 a one at the start; row 1 + k a one at draw k, for the solver that draws.
    """
    draws = len(lambdas) - 1 if solver is ancestral else 0
    rows = torch.eye(draws + 2, dtype=DOUBLE)[:, 1:]
    script = [rows[:, k, None, None] for k in range(draws + 1)]
    out = solver(gaussian(), script[0], lambdas, None, Scripted(script[1:])).flatten()
    return out[0].item(), (out[1:] - out[0]).norm().item()


@pytest.mark.parametrize(("steps", "std"), [(5, 0.273), (8, 0.317), (10, 0.332), (16, 0.357)])
@pytest.mark.parametrize("solver", [ddim, euler])
def test_regression_values_of_ddim(solver: Sampler, steps: int, std: float) -> None:
    """Section 3: data std .4, T = 100, trailing. Any silent change of spacing moves these numbers."""
    mean, sampled = end_law(solver, uniform_time_grid(SquaredCos(100), steps))
    assert sampled == pytest.approx(std, abs=6e-4)
    assert mean == pytest.approx(0.5, abs=6e-4)


@pytest.mark.parametrize(("steps", "std"), [(5, 0.323), (8, 0.398), (10, 0.404), (16, 0.406)])
@pytest.mark.parametrize("path", [SquaredCos(100), SquaredCos(1000), CondOT()], ids=str)
def test_regression_values_of_2m(path: Path, steps: int, std: float) -> None:
    """Section 3: 2M on levels uniform in lambda. Which of the trained levels are taken for them is not said there: +- .003."""
    mean, sampled = end_law(dpmpp2m, TimeGrid("lambda")(path, steps))
    assert sampled == pytest.approx(std, abs=3e-3)
    assert mean == pytest.approx(0.5, abs=6e-4)
    if steps in (8, 10):  # as many calls on another grid, or to another solver, miss
        assert abs(end_law(dpmpp2m, uniform_time_grid(path, steps))[1] - std) > 0.01
        assert abs(end_law(ddim, TimeGrid("lambda")(path, steps))[1] - std) > 0.03


def test_regression_value_of_ddpm() -> None:
    _, std = end_law(ancestral, uniform_time_grid(SquaredCos(100), 10))
    assert std == pytest.approx(0.301, abs=6e-4)


@pytest.mark.parametrize(
    ("solver", "path"),
    [
        *((solver, path) for solver in (ddim, dpmpp2m) for path in (SquaredCos(1000), CondOT(), ContinuousSquaredCos())),
        *((solver, CondOT()) for solver in (euler, heun, midpoint, ab2, ab3, ancestral)),
    ],
)
def test_end_law_of_many_steps(solver: Sampler, path: Path) -> None:
    """N -> large, as the limit of N = 100 and 200: every solver has a first-order step somewhere, its error falls as 1/N."""
    coarse, fine = (end_law(solver, uniform_time_grid(path, steps)) for steps in (100, 200))
    mean, std = (2 * f - c for c, f in zip(coarse, fine))
    assert mean == pytest.approx(0.5, abs=1e-3)
    assert std == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_dirac_data_land_exactly(solver: SolverName, steps: int) -> None:
    """O6: with one possible chunk every solver lands on it, however few the steps."""
    answer = SOLVERS[solver](
        gaussian(0.7, 0.0), chunks(3)[:, :1, :1], uniform_time_grid(CondOT(), steps), None, row_noise(3, (1, 1))
    )
    torch.testing.assert_close(answer, torch.full_like(answer, 0.7), rtol=0, atol=1e-15)


# Calls, levels, dtypes


@pytest.mark.parametrize("grid", [[1.0], [1.0, 0.0], [-1.0, 2.0, 1.0], [math.inf, -math.inf]])
@pytest.mark.parametrize("solver", SOLVERS)
def test_grids_that_do_not_ascend_are_refused(solver: SolverName, grid: list[float]) -> None:
    """A grid on the other clock would silently integrate from data to noise."""
    with pytest.raises(KineflowError, match="must ascend from noise to data"):
        SOLVERS[solver](wide_modes(), chunks(), torch.tensor(grid, dtype=DOUBLE), None, row_noise(5))


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_calls(solver: SolverName) -> None:
    seen: list[torch.Size] = []

    def counting(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        seen.append(lam.shape)
        return x

    SOLVERS[solver](counting, chunks(), uniform_time_grid(CondOT(), 6), None, row_noise(5))
    expected = {"heun": 11, "midpoint": 11, "rf_solver": 11, "rk4": 21}.get(solver, 6)
    skipped = expected - len(seen)
    assert skipped == 0 or (solver == "adaptive" and skipped == 1), "only that solver may skip: after the fourth, not the last"
    assert seen == [torch.Size([5])] * (expected - skipped)
    assert calls(solver, 6) == expected
    assert calls(solver, 1) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_only_midpoint_and_rk4_ask_between_trained_levels(solver: SolverName) -> None:
    """On a discrete path a network knows its trained times and nothing between them; "midpoint" says what that costs."""
    path, asked = SquaredCos(100), []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        asked.append(t[0].item() * 100)
        return x

    SOLVERS[solver](HeadField(head, path, "epsilon"), chunks(), uniform_time_grid(path, 10), None, row_noise(5))
    between = [level for level in asked if abs(level - round(level)) > 1e-6]
    assert len(between) == {"midpoint": 9, "rf_solver": 9, "rk4": 18}.get(solver, 0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dtype_and_condition_pass_through(solver: SolverName, dtype: torch.dtype) -> None:
    condition = torch.ones(5, 1, 3)

    def checking(x: torch.Tensor, lam: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        assert x.dtype == lam.dtype == dtype
        assert given is condition
        return 0.5 * torch.tanh(x)

    answer = SOLVERS[solver](
        checking, chunks().to(dtype), uniform_time_grid(CondOT(), 3), condition, RowNoise(np.arange(5), (4, 2), dtype)
    )
    assert answer.dtype == dtype


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_follows_float64(solver: SolverName) -> None:
    lambdas, results = uniform_time_grid(SquaredCos(100), 10), []
    for dtype in (torch.float32, DOUBLE):
        law = wide_modes()
        law = Mixture(law.weights.to(dtype), law.means.to(dtype), law.stds.to(dtype))
        fresh = RowNoise(np.arange(5), (4, 2), dtype)
        results.append(SOLVERS[solver](law, fresh.draw(), lambdas, None, fresh).double())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_per_action_grid_equals_the_row_grid_when_constant(solver: SolverName) -> None:
    lambdas = uniform_time_grid(CondOT(), 5)
    row = SOLVERS[solver](wide_modes(), chunks(), lambdas, None, row_noise(5))
    action = SOLVERS[solver](wide_modes(), chunks(), lambdas[:, None, None].expand(-1, 5, 4), None, row_noise(5))
    torch.testing.assert_close(action, row, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_actions_that_are_data_already_stay(solver: SolverName) -> None:
    """A committed prefix: lambda = +inf at every step of the grid leaves those actions exactly as they are."""
    lambdas = uniform_time_grid(CondOT(), 4)[:, None, None].expand(-1, 5, 4).clone()
    lambdas[:, :, 0] = math.inf
    x, sample = chunks(), torch.full_like(chunks(), 5.0)  # whatever the field says of them
    answer = SOLVERS[solver](lambda *_: sample, x, lambdas, None, row_noise(5))
    torch.testing.assert_close(answer[:, 0], x[:, 0], rtol=1e-15, atol=0)
    assert (answer[:, 1:] == 5.0).all()


# Row noise


def test_noise_of_a_row_depends_on_its_seed_alone() -> None:
    seeds = np.array([5, 900, 5 + 2**32, -3, 2**62], dtype=np.int64)
    together = RowNoise(seeds, (4, 2))
    alone = [RowNoise(seeds[i : i + 1], (4, 2)) for i in range(5)]
    for _ in range(3):
        assert torch.equal(together.draw(), torch.cat([row.draw() for row in alone]))
    first = RowNoise(seeds, (4, 2)).draw()
    assert len({tuple(row.flatten().tolist()) for row in first}) == 5  # 5 and 5 + 2^32 differ too


def test_noise_is_standard_normal_and_fresh() -> None:
    noise = RowNoise(np.arange(2000), (16, 2), DOUBLE)
    first, second = noise.draw(), noise.draw()
    for values in (first, second, first[:, 0, 0], (first * second)):
        assert abs(values.mean().item()) < 5 / math.sqrt(values.numel())
    assert first.var().item() == pytest.approx(1, abs=0.03)
    neighbours = (first[1:] * first[:-1]).mean().item()  # consecutive seeds are uncorrelated
    assert abs(neighbours) < 5 / math.sqrt(first[1:].numel())


def test_both_precisions_share_the_noise() -> None:
    single, double = (RowNoise(np.arange(3), (4, 2), dtype).draw() for dtype in (torch.float32, DOUBLE))
    assert torch.equal(single, double.float())
    assert RowNoise(np.arange(3), (4, 2)).zeros().tolist() == torch.zeros(3, 4, 2).tolist()
