"""Time grids: which levels are visited, that discrete paths see trained ones only, and what is refused."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.config import from_plain, to_plain_config
from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture
from kineflow.policies.paths import (
    CondOT,
    ContinuousSquaredCos,
    Cosine,
    Path,
    SquaredCos,
    VarianceExploding,
    VPLinear,
    lambda_range,
)
from kineflow.policies.samplers import RowNoise, ddim
from kineflow.policies.time_grids import GridName, TimeGrid, refuse_outside, uniform_time_grid

DOUBLE = torch.float64
CONTINUOUS = [CondOT(), Cosine(), VPLinear(), ContinuousSquaredCos(), VarianceExploding()]
PATHS = [*CONTINUOUS, SquaredCos(100), SquaredCos(1000)]
NAMES: tuple[GridName, ...] = get_args(GridName)


def law_of_ddim(lambdas: torch.Tensor) -> tuple[float, float]:
    """Exact mean and std of what DDIM samples for N(.5, .4^2): the chunk is affine in its noise."""
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    law = Mixture(one.flatten(), 0.5 * one, 0.4 * one)
    noise = torch.stack([0 * one[0], one[0]])
    mean, above = ddim(law, noise, lambdas, None, RowNoise(np.arange(2), (1, 1), DOUBLE)).flatten().tolist()
    return mean, above - mean


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATHS), st.sampled_from(NAMES), st.integers(1, 100))
def test_every_grid_ascends_through_levels_of_its_path(path: Path, name: GridName, steps: int) -> None:
    if name == "leading" and path.num_steps is None:
        return
    lambdas = TimeGrid(name)(path, steps)
    assert lambdas.dtype == DOUBLE
    assert len(lambdas) == steps + 1
    assert (lambdas[1:] > lambdas[:-1]).all()
    assert lambdas[-1] == math.inf
    refuse_outside(path, lambdas, "the head")
    if name != "leading":
        assert lambdas[0].item() == pytest.approx(path.to_lambda(torch.zeros((), dtype=DOUBLE)).item(), rel=1e-9)
    if path.num_steps:
        level = path.from_lambda(lambdas[:-1]) * path.num_steps
        torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [100, 1000])
def test_as_many_steps_as_levels_visit_each_once(name: GridName, levels: int) -> None:
    path = SquaredCos(levels)
    expected = path.to_lambda(torch.arange(levels, dtype=DOUBLE) / levels)
    torch.testing.assert_close(TimeGrid(name)(path, levels)[:-1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("path", CONTINUOUS, ids=str)
def test_uniform_grid_on_continuous_paths(path: Path) -> None:
    lambdas = uniform_time_grid(path, 4)
    torch.testing.assert_close(
        path.from_lambda(lambdas[:-1]), torch.tensor([0, 0.25, 0.5, 0.75], dtype=DOUBLE), rtol=0, atol=1e-12
    )
    assert torch.equal(TimeGrid("trailing")(path, 4), lambdas)


def test_trailing_indices_match_diffusers() -> None:
    """np.round(np.arange(T, 0, -T / N)) - 1, the recipe of timestep_spacing="trailing"."""
    for levels in (100, 1000):
        path = SquaredCos(levels)
        for steps in (1, 2, 5, 8, 10, 16, 50, levels):
            lambdas = TimeGrid("trailing")(path, steps)
            indices = path.time_to_index(path.from_lambda(lambdas[:-1]))
            expected = np.round(np.arange(levels, 0, -levels / steps))[:steps] - 1
            np.testing.assert_allclose(indices.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("steps", "first"), [(10, 90), (16, 90), (8, 84), (1, 0)])
def test_leading_indices(steps: int, first: int) -> None:
    """Section 10: T = 100, N = 10 -> 90..0, N = 16 -> 90, 84..0 (T // N floors), N = 8 -> 84..0."""
    path = SquaredCos(100)
    indices = path.time_to_index(path.from_lambda(TimeGrid("leading")(path, steps)[:-1]))
    np.testing.assert_allclose(indices.numpy(), np.linspace(first, 0, steps), atol=1e-6)


def test_leading_spacing_is_biased_and_trailing_is_not() -> None:
    """Trap 6: eight of 100 steps from alpha = .232 although the start is N(0, 1): mean .461 instead of .5."""
    path = SquaredCos(100)
    leading = TimeGrid("leading")(path, 8)
    assert path.at(path.from_lambda(leading[0])).alpha.item() == pytest.approx(0.232, abs=1e-3)
    assert law_of_ddim(leading)[0] == pytest.approx(0.461, abs=1e-3)
    assert law_of_ddim(uniform_time_grid(path, 8))[0] == pytest.approx(0.4999, abs=1e-4)


def test_shift_on_the_noise_fraction() -> None:
    """S f / (1 + (S - 1) f); on CondOT that is lambda - log S, and S = 1 changes nothing."""
    uniform = uniform_time_grid(CondOT(), 8)
    shifted = TimeGrid("shifted", shift=3.0)(CondOT(), 8)
    torch.testing.assert_close(shifted[1:-1], uniform[1:-1] - math.log(3), rtol=1e-12, atol=1e-12)
    fraction = torch.sigmoid(-uniform[:-1])
    torch.testing.assert_close(torch.sigmoid(-shifted[:-1]), 3 * fraction / (1 + 2 * fraction), rtol=1e-12, atol=0)
    for path in PATHS:
        torch.testing.assert_close(TimeGrid("shifted", shift=1.0)(path, 8), uniform_time_grid(path, 8), rtol=1e-9, atol=1e-9)


def test_edm_grid_is_that_of_karras() -> None:
    """sigma_i = (max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho, then 0 (equation 5), on the path it was made for."""
    for rho in (7.0, 3.0):
        sigma = (80 ** (1 / rho) + np.arange(10) / 9 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        lambdas = TimeGrid("edm", rho=rho)(VarianceExploding(), 10)
        np.testing.assert_allclose(torch.exp(-lambdas).numpy(), np.append(sigma, 0), rtol=1e-9)
    # Elsewhere its first level goes behind the one at which the path begins.
    lambdas = TimeGrid("edm")(CondOT(), 11)
    sigma = (80 ** (1 / 7) + np.arange(10) / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(torch.exp(-lambdas).numpy(), [math.inf, *sigma, 0], rtol=1e-9)


def test_lambda_grid_has_equal_steps() -> None:
    lambdas = TimeGrid("lambda", ends=(-3.0, 2.0))(CondOT(), 7)
    torch.testing.assert_close(lambdas, torch.tensor([-math.inf, -3, -2, -1, 0, 1, 2, math.inf], dtype=DOUBLE))
    lambdas = TimeGrid("lambda")(VarianceExploding(), 6)[:-1]
    torch.testing.assert_close(lambdas.diff(), lambdas.diff()[:1].expand(5), rtol=1e-9, atol=0)
    discrete = TimeGrid("lambda")(SquaredCos(1000), 8)[1:-1]
    assert (discrete.diff() - discrete.diff().mean()).abs().max() < 0.3


@pytest.mark.parametrize(
    ("name", "stds"),
    [
        ("uniform", (0.138, 0.218, 0.260, 0.285)),
        ("edm", (0.002, 0.004, 0.064, 0.205)),
        ("lambda", (0.002, 0.027, 0.128, 0.225)),
    ],
)
def test_edm_and_lambda_need_more_steps_than_uniform(name: GridName, stds: tuple[float, ...]) -> None:
    """Known numbers of 2 to 5 steps on CondOT, truth 0.4: with 2 or 3 of edm's or lambda's all chunks are alike."""
    for steps, std in zip((2, 3, 4, 5), stds, strict=True):
        assert law_of_ddim(TimeGrid(name)(CondOT(), steps)) == pytest.approx((0.5, std), abs=1e-3)


@pytest.mark.parametrize("name", ["edm", "lambda"])
def test_a_narrow_path_bounds_the_grid(name: GridName) -> None:
    """Ends that nobody chose lie no further out than what the head was trained on."""
    path = VarianceExploding(sigma_min=0.1, sigma_max=10.0)
    lambdas = TimeGrid(name)(path, 6)[:-1]
    assert (lambdas[0].item(), lambdas[-1].item()) == pytest.approx((-math.log(10), math.log(10)), abs=1e-9)


def test_lambda_ranges() -> None:
    assert lambda_range(CondOT()) == (-math.inf, math.inf)
    assert lambda_range(SquaredCos(100)) == pytest.approx((-7.615, 3.684), abs=1e-3)
    assert lambda_range(SquaredCos(1000)) == pytest.approx((-9.92, 5.05), abs=5e-3)
    assert lambda_range(VarianceExploding()) == pytest.approx((-math.log(80), -math.log(0.002)), abs=1e-9)
    assert lambda_range(VPLinear())[0] == pytest.approx(-5.025, abs=1e-3)


@pytest.mark.parametrize(
    ("grid", "path", "steps", "words"),
    [
        (TimeGrid(), CondOT(), 0, "steps is 0"),
        (TimeGrid(), SquaredCos(100), 101, "steps is 101; it must be at least 1 and at most 100"),
        (TimeGrid("lambda"), SquaredCos(100), 101, "at most 100"),
        (TimeGrid(), SquaredCos(100), -1, "steps is -1"),
        (TimeGrid("leading"), CondOT(), 5, "counts trained levels.*use trailing"),
        (TimeGrid("edm", ends=(-4.0, 6.0)), SquaredCos(100), 5, r"leave SquaredCos.*from -7\.615 to 3\.684; choose ends inside"),
        (TimeGrid("lambda", ends=(-8.0, math.inf)), SquaredCos(100), 5, "choose ends inside"),
        (TimeGrid("lambda", ends=(5.0, math.inf)), CondOT(), 5, "choose both ends"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grid: TimeGrid, path: Path, steps: int, words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        grid(path, steps)


@pytest.mark.parametrize(
    ("grid", "path", "fits"),
    [
        (uniform_time_grid(SquaredCos(100), 10), SquaredCos(100), True),
        (uniform_time_grid(SquaredCos(100), 10), CondOT(), True),
        (uniform_time_grid(SquaredCos(100), 10), SquaredCos(1000), True),
        (uniform_time_grid(SquaredCos(100), 10).float(), SquaredCos(100), True),
        (uniform_time_grid(CondOT(), 10), SquaredCos(100), False),
        (TimeGrid("edm")(VarianceExploding(), 10), SquaredCos(100), False),
        (TimeGrid("lambda", ends=(-4.0, 3.6))(CondOT(), 10)[1:], SquaredCos(100), True),
        (TimeGrid("lambda", ends=(-4.0, 3.8))(CondOT(), 10)[1:], SquaredCos(100), False),
    ],
)
def test_a_grid_that_leaves_the_path_of_a_head_is_refused(grid: torch.Tensor, path: Path, fits: bool) -> None:
    if fits:
        refuse_outside(path, grid, "policy B")
    else:
        with pytest.raises(
            KineflowError, match=r"policy B was trained on SquaredCos.*-7\.615 to 3\.684; use a grid of that path"
        ):
            refuse_outside(path, grid, "policy B")


@pytest.mark.parametrize("text", [*NAMES, "shifted:5", "edm:3.5"])
def test_text_form(text: str) -> None:
    grid = TimeGrid.parse(text)
    assert TimeGrid.parse(str(grid)) == grid
    assert grid.name == text.partition(":")[0]
    assert from_plain(TimeGrid, to_plain_config(grid), "train.yaml: grid") == grid


def test_text_form_names_its_parameters() -> None:
    assert TimeGrid.parse("shifted:5") == TimeGrid("shifted", shift=5.0)
    assert TimeGrid.parse("edm:3.5") == TimeGrid("edm", rho=3.5)
    assert str(TimeGrid("lambda", ends=(-4.0, 3.0))) == "lambda from -4 to 3"
    assert str(TimeGrid("uniform", ends=(-4.0, 3.0))) == "uniform"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("karras", r"'karras' is not a time grid; one of uniform, trailing, shifted\[:SHIFT\], edm\[:RHO\]"),
        ("lambda:3", "is not a time grid"),
        ("shifted:x", "'x' is not a number"),
        ("shifted:0", "shift of a time grid is 0"),
        ("edm:inf", "rho of a time grid is inf"),
    ],
)
def test_bad_text_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        TimeGrid.parse(text)


def test_ends_ascend() -> None:
    with pytest.raises(KineflowError, match="they ascend, from noise to data"):
        TimeGrid("lambda", ends=(3.0, -3.0))
