"""Which noise levels a composition may ask: discrete grids, common ranges, the ends."""

from __future__ import annotations

import math

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.compose.grid import Levels, check_grid, common_grid, common_range
from kineflow.policies.paths import CondOT, Cosine, SquaredCos, VarianceExploding, VPLinear
from kineflow.policies.samplers import uniform_time_grid

FLOW, DDPM = Levels("flow", CondOT()), Levels("ddpm", SquaredCos(100))


@pytest.mark.parametrize("path", [CondOT(), Cosine(), VPLinear(), VarianceExploding(), SquaredCos(100)], ids=str)
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_one_policy_keeps_its_own_grid(path, steps: int) -> None:
    expected = uniform_time_grid(path, steps)
    torch.testing.assert_close(common_grid([Levels("only", path)], steps), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("steps", [1, 8, 10, 100])
def test_a_discrete_policy_gives_the_grid(order: int, steps: int) -> None:
    assert torch.equal(common_grid([FLOW, DDPM][::order], steps), uniform_time_grid(SquaredCos(100), steps))


def test_a_discrete_policy_in_other_units_is_asked_at_its_own_levels() -> None:
    q = 0.4
    grid = common_grid([FLOW, Levels("ddpm", SquaredCos(100), math.log(q))], 10)
    asked = grid[:-1] - math.log(q)
    torch.testing.assert_close(asked, uniform_time_grid(SquaredCos(100), 10)[:-1])


def test_two_discrete_policies_use_the_coarser_grid() -> None:
    """squaredcos of 1000 levels holds all levels of 100 but the capped last one, so here both are asked at trained levels."""
    grid = common_grid([Levels("fine", SquaredCos(1000)), DDPM], 10)
    assert torch.equal(grid, uniform_time_grid(SquaredCos(100), 10))
    index = SquaredCos(1000).from_lambda(grid[1:-1]) * 1000
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-6)


def test_the_grid_ends_where_the_first_policy_ends() -> None:
    """EDM's cleanest level is lambda 6.2: a flow grid of 1000 steps stops there and finishes with the denoised chunk."""
    grid = common_grid([FLOW, Levels("edm", VarianceExploding())], 1000)
    assert -math.log(80) - 1e-6 <= grid[0] < -4.3
    assert grid[-2] <= -math.log(0.002) + 1e-6
    assert grid[-1] == math.inf
    assert (grid[1:] > grid[:-1]).all()


@pytest.mark.parametrize(
    "policies", [[FLOW, DDPM], [FLOW, Levels("edm", VarianceExploding())], [DDPM, Levels("vp", VPLinear(), 0.5)]]
)
def test_common_grids_stay_inside(policies) -> None:
    low, high = common_range(policies)
    grid = common_grid(policies, 12)
    check_grid(policies, grid)
    assert low - 1e-9 <= grid[0]
    assert grid[-2] <= high + 1e-9


def test_leaving_a_range_is_refused() -> None:
    lambdas = torch.tensor([-9.0, 0.0, math.inf], dtype=torch.float64)
    with pytest.raises(
        KineflowError, match=r"asks 'ddpm' at lambda -9, but it was trained between -7.61. and 3.68.*leave the grid out"
    ):
        check_grid([FLOW, DDPM], lambdas)
    check_grid([FLOW], lambdas)
    check_grid([FLOW, DDPM], torch.tensor([-7.0, 3.6, math.inf], dtype=torch.float64))


def test_too_many_steps_and_ranges_that_do_not_meet_are_refused() -> None:
    with pytest.raises(KineflowError, match="at most 100, the levels of 'ddpm' that all know"):
        common_grid([FLOW, DDPM], 101)
    with pytest.raises(KineflowError, match="steps is 0"):
        common_grid([FLOW], 0)
    with pytest.raises(KineflowError, match="no noise level is known to all"):
        common_range([DDPM, Levels("far", SquaredCos(100), 20.0)])


def test_a_start_that_is_not_noise_is_refused() -> None:
    """alpha at the first level is the share of the chunk that a start from pure noise forgets (0.14 is measured as biased)."""
    with pytest.raises(KineflowError, match=r"'edm' knows no noise above lambda -1.39 .*24% of the chunk"):
        common_range([FLOW, Levels("edm", VarianceExploding(sigma_max=4.0))])
