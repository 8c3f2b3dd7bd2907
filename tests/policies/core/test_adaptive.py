"""Adaptive skipping: order, calls saved at equal error, caps, rows on their own; SADA's extrapolator as the negative control."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.adaptive import AdaptiveSkipping
from kineflow.policies.analytic import Mixture
from kineflow.policies.field import Field
from kineflow.policies.paths import CondOT
from kineflow.policies.samplers import RowNoise, Sampler, ab3
from kineflow.policies.time_grids import uniform_time_grid

DOUBLE = torch.float64
INNER = (0.02, 0.98)  # of t: away from the ends, where nothing is smooth


def two_modes() -> Mixture:
    means = torch.tensor([-1.0, 0.7], dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), means, torch.tensor([0.3, 0.4], dtype=DOUBLE)[:, None, None])


def starts() -> torch.Tensor:
    return torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None]


def inner_grid(steps: int) -> torch.Tensor:
    return torch.logit(torch.linspace(*INNER, steps + 1, dtype=DOUBLE))


def unused(rows: int = 9) -> RowNoise:
    return RowNoise(np.arange(rows), (1, 1), DOUBLE)


@dataclass
class Counted:
    """Any field, and the number of calls to it."""

    inner: Field
    calls: int = 0
    levels: list[float] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        self.calls += 1
        self.levels.append(float(lam.flatten()[0]))
        return self.inner(x, lam, condition)


def error(solver: Sampler, steps: int) -> float:
    """Root mean square, against the exact flow (O3)."""
    return (solver(two_modes(), starts(), inner_grid(steps), None, unused()) - exact()).square().mean().sqrt().item()


@functools.cache
def exact() -> torch.Tensor:
    grid = inner_grid(1)
    return two_modes().flow(starts(), grid[0], grid[-1])


def slope(solver: Sampler) -> float:
    """Of log error against log step."""
    steps = [80, 160, 320]
    return -np.polyfit(np.log(steps), np.log([error(solver, n) for n in steps]), 1)[0]


def sada(field: Field, noise: torch.Tensor, lambdas: torch.Tensor, condition: None, fresh: RowNoise) -> torch.Tensor:
    """Steps with SADA's extrapolated velocity, 5/8 v + 6/8 v_previous - 3/8 v_before, written out (trap 5)."""
    t = torch.sigmoid(lambdas)
    z, history = noise * torch.hypot(t[0], 1 - t[0]), list[torch.Tensor]()
    for k in range(len(t) - 1):
        sample = field(z / torch.hypot(t[k], 1 - t[k]), lambdas[k].expand(len(z)), condition)
        history = [(sample - z) / (1 - t[k]), *history[:2]]
        mean = history[0] if len(history) < 3 else (5 * history[0] + 6 * history[1] - 3 * history[2]) / 8
        z = z + (t[k + 1] - t[k]) * mean
    return z / torch.hypot(t[-1], 1 - t[-1])


def test_without_skips_it_is_ab3() -> None:
    x = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for grid in (
        uniform_time_grid(CondOT(), 12),
        inner_grid(9),
        torch.tensor([-math.inf, -2.0, 0.3, 0.5, 2.0, 4.0], dtype=DOUBLE),
    ):
        expected = ab3(two_modes(), x, grid, None, unused())
        torch.testing.assert_close(AdaptiveSkipping(max_skips=0)(two_modes(), x, grid, None, unused()), expected)


@pytest.mark.parametrize(("max_skips", "least"), [(1, 2.85), (2, 2.65)])  # two skips are three times as far from the limit
def test_skipping_keeps_the_third_order(max_skips: int, least: float) -> None:
    assert least < slope(AdaptiveSkipping(tolerance=math.inf, max_skips=max_skips)) < 3.2


def test_extrapolator_of_sada_is_of_first_order() -> None:
    assert slope(sada) == pytest.approx(1, abs=0.15)


def test_cap_on_skips_in_a_row_holds() -> None:
    for cap in (1, 3):
        law, grid = Counted(two_modes()), inner_grid(40)
        AdaptiveSkipping(math.inf, cap)(law, starts(), grid, None, unused())
        asked = [int(torch.argmin((grid - level).abs())) for level in law.levels]
        assert max(np.diff(asked)) == cap + 1
        assert asked[:4] == [0, 1, 2, 3]


def test_no_tolerance_is_no_skip() -> None:
    law = Counted(two_modes())
    AdaptiveSkipping(tolerance=0.0, max_skips=9)(law, starts(), inner_grid(20), None, unused())
    assert law.calls == 20


def test_fewer_calls_at_equal_error() -> None:
    """The toy: two narrow modes, whose flow is straight but for the moment in which they part; one row at a time.

    Measured: 128 steps, of which 41.5 are asked for, err by 8.6e-4; AB3 needs 64 calls for 9.1e-4. On the smooth wide modes
    above, and in large batches (a call is saved only when no row needs it), plain AB3 with fewer steps is better.
    """
    means = torch.tensor([-1.0, 0.7], dtype=DOUBLE)[:, None, None]
    narrow = Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), means, torch.full((2, 1, 1), 0.03, dtype=DOUBLE))
    x = torch.linspace(-1.7, 1.8, 6, dtype=DOUBLE)[:, None, None]

    def grid(steps: int) -> torch.Tensor:
        return torch.logit(torch.linspace(0.02, 0.995, steps + 1, dtype=DOUBLE))

    truth, law = narrow.flow(x, grid(1)[0], grid(1)[1]), Counted(narrow)
    found = torch.cat([AdaptiveSkipping(0.01, 3)(law, row[None], grid(128), None, unused(1)) for row in x])
    plain = ab3(narrow, x, grid(64), None, unused(6))
    assert (found - truth).square().mean() <= (plain - truth).square().mean()
    assert law.calls / 6 <= 45


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    solver, grid = AdaptiveSkipping(0.05, 2), uniform_time_grid(CondOT(), 24)
    together = solver(two_modes(), starts(), grid, None, unused())
    for row in (0, 4, 7):
        alone = solver(two_modes(), starts()[row : row + 1], grid, None, unused(1))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


def test_dirac_is_reached_whatever_is_skipped() -> None:
    """O6: the velocity is constant, so after four calls everything but the last is skipped."""
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    law = Counted(Mixture(one.flatten(), 0.7 * one, 0 * one))
    answer = AdaptiveSkipping(0.01, 100)(law, starts(), uniform_time_grid(CondOT(), 20), None, unused())
    torch.testing.assert_close(answer, torch.full_like(answer, 0.7), rtol=1e-9, atol=1e-9)
    assert law.calls == 5


def test_committed_actions_stay() -> None:
    """lambda = +inf at every step leaves those actions as they are."""
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    lambdas = uniform_time_grid(CondOT(), 9)[:, None, None].expand(-1, 3, 4).clone()
    lambdas[:, :, 0] = math.inf
    answer = AdaptiveSkipping(0.1, 2)(lambda *_: torch.full_like(x, 5.0), x, lambdas, None, unused(3))
    torch.testing.assert_close(answer[:, 0], x[:, 0], rtol=1e-15, atol=0)
    assert (answer[:, 1:] - 5).abs().max() < 1e-9


@pytest.mark.parametrize(("tolerance", "max_skips"), [(-0.1, 1), (math.nan, 1), (0.1, -1)])
def test_impossible_settings_are_refused(tolerance: float, max_skips: int) -> None:
    with pytest.raises(KineflowError, match="at least 0"):
        AdaptiveSkipping(tolerance, max_skips)
