"""T2: clocks and their inverses, the discrete index, matching of two paths, and derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from kineflow.config import from_plain, to_plain_config
from kineflow.contracts import KineflowError
from kineflow.policies.paths import (
    CondOT,
    ContinuousSquaredCos,
    Cosine,
    Path,
    SquaredCos,
    VarianceExploding,
    VPLinear,
    over,
    variance_preserving,
)

CONTINUOUS = [CondOT(), Cosine(), VPLinear(), VPLinear(2.0, 2.0), ContinuousSquaredCos(), VarianceExploding()]
PATHS = [*CONTINUOUS, SquaredCos(100), SquaredCos(1000)]
DOUBLE = torch.float64


def times(path: Path, count: int = 201) -> torch.Tensor:
    last = 1.0 if path.num_steps is None else 1 - 1 / path.num_steps
    return torch.linspace(0, last, count, dtype=DOUBLE)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_clock_inverts_both_ways(path: Path) -> None:
    t = times(path)
    lam = path.to_lambda(t)
    assert (lam[1:] > lam[:-1]).all()
    # Near the data the lambda of a curve with a flat start pins t only as well as float64 holds lambda.
    torch.testing.assert_close(path.from_lambda(lam), t, rtol=0, atol=1e-11)
    inner = lam[1:-1]
    torch.testing.assert_close(path.to_lambda(path.from_lambda(inner)), inner, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_lambda_is_log_alpha_over_sigma_and_ends_hold(path: Path) -> None:
    t = times(path)[1:-1]
    point = path.at(t)
    torch.testing.assert_close(path.to_lambda(t), torch.log(point.alpha / point.sigma), rtol=1e-10, atol=1e-10)
    ends = path.from_lambda(torch.tensor([-math.inf, math.inf], dtype=DOUBLE))
    torch.testing.assert_close(ends, times(path, 2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("path", [CondOT(), Cosine(), ContinuousSquaredCos()], ids=str)
def test_paths_that_reach_both_ends_reach_them_exactly(path: Path) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    point = path.at(ends)
    assert point.alpha[0] == 0
    assert point.sigma[1] == 0
    assert path.to_lambda(ends).tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("other", PATHS, ids=str)
def test_matching_by_lambda_rescales_alpha_and_sigma_alike(path: Path, other: Path) -> None:
    """Section 5: alpha_M / alpha = sigma_M / sigma when t_M = lambda_M^-1(lambda), 1e-9 relative."""
    lam = other.to_lambda(times(other))
    reach = path.to_lambda(times(path))
    # A time near 1 is stored to 1e-16, which is 1e-9 of sigma = 1e-7: no float64 clock separates levels beyond that.
    lam = lam[(lam >= reach[0]) & (lam <= reach[-1]) & (lam.abs() < 8)]
    point, (alpha, sigma) = path.at(path.from_lambda(lam)), variance_preserving(lam)
    torch.testing.assert_close(point.alpha / alpha, point.sigma / sigma, rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_derivatives_match_central_differences(path: Path) -> None:
    step = 1e-6
    t = times(path, 38)[1:-1] + (0.4 / path.num_steps if path.num_steps else 0)  # between the knots of a discrete path
    point, before, after = path.at(t), path.at(t - step), path.at(t + step)
    torch.testing.assert_close(point.alpha_dot, (after.alpha - before.alpha) / (2 * step), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(point.sigma_dot, (after.sigma - before.sigma) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_discrete_index_has_the_off_by_one_for_all_but_the_capped_last(num_steps: int) -> None:
    """abar_i is the continuous curve at (i + 1) / T; the reference is diffusers' own recipe, written out."""
    curve = [math.cos((i / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num_steps + 1)]
    betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(curve)]
    abar = torch.cumprod(1 - torch.tensor(betas, dtype=DOUBLE), 0)
    path, index = SquaredCos(num_steps), torch.arange(num_steps, dtype=DOUBLE)
    t = path.index_to_time(index)
    torch.testing.assert_close(path.time_to_index(t), index, rtol=0, atol=1e-9)
    point = path.at(t)
    torch.testing.assert_close(point.alpha, abar.sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(point.sigma, (1 - abar).sqrt(), rtol=1e-11, atol=0)
    smooth = ContinuousSquaredCos().at(1 - (index + 1) / num_steps)
    torch.testing.assert_close(point.alpha[:-1], smooth.alpha[:-1], rtol=1e-11, atol=0)
    assert point.alpha[-1] > 1e-5 > smooth.alpha[-1]
    wrong = ContinuousSquaredCos().at(1 - index / num_steps)  # the trap: tau = i / T
    assert (point.alpha[:-1] - wrong.alpha[:-1]).abs().min() > 1e-7


def test_regression_values_of_the_hundred_step_schedule() -> None:
    """Section 2 of the specification, to its printed digits."""
    path = SquaredCos(100)
    t = path.index_to_time(torch.tensor([0.0, 50.0, 98.0, 99.0], dtype=DOUBLE))
    point, lam = path.at(t), path.to_lambda(t)
    assert lam.tolist() == pytest.approx([3.684, -0.0435, -4.161, -7.615], abs=5e-4)
    assert point.alpha[0].item() == pytest.approx(0.99968, abs=5e-6)
    assert point.sigma[0].item() == pytest.approx(0.0251, abs=5e-5)
    assert point.alpha[3].item() == pytest.approx(4.93e-4, abs=5e-7)
    assert CondOT().from_lambda(lam[1]).item() == pytest.approx(0.489, abs=5e-4)
    ends = SquaredCos(1000).to_lambda(torch.tensor([0.0, 0.999], dtype=DOUBLE))
    assert ends.tolist() == pytest.approx([-9.92, 5.05], abs=5e-3)


def test_linear_betas_of_a_hundred_steps_never_reach_noise() -> None:
    """Why there is no linear DDPM schedule here: with T = 100 it stops at alpha = 0.603 (section 10)."""
    betas = torch.linspace(1e-4, 0.02, 100, dtype=DOUBLE)
    assert torch.cumprod(1 - betas, 0)[-1].sqrt().item() == pytest.approx(0.603, abs=1e-3)
    assert VPLinear().at(torch.zeros((), dtype=DOUBLE)).alpha.item() < 0.01


@given(st.floats(-300, 300))
def test_canonical_scaling_is_variance_preserving(lam: float) -> None:
    alpha, sigma = variance_preserving(torch.tensor(lam, dtype=DOUBLE))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-15)
    assert (torch.log(alpha) - torch.log(sigma)).item() == pytest.approx(lam, rel=1e-12, abs=1e-12)


def test_canonical_scaling_at_infinite_lambda() -> None:
    alpha, sigma = variance_preserving(torch.tensor([-math.inf, math.inf]))
    assert (alpha.tolist(), sigma.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_shape_and_dtype_are_kept(path: Path, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, DOUBLE):
        t = torch.full(shape, 0.3, dtype=dtype)
        lam, point = path.to_lambda(t), path.at(t)
        for value in (lam, path.from_lambda(lam), point.alpha, point.sigma, point.alpha_dot, point.sigma_dot):
            assert value.shape == shape
            assert value.dtype == dtype


def test_over_broadcasts_each_level_shape() -> None:
    x = torch.zeros(3, 4, 2)
    for shape, expected in {(): (1, 1, 1), (3,): (3, 1, 1), (3, 4): (3, 4, 1)}.items():
        assert over(torch.zeros(shape), x).shape == expected


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_config_round_trip(path: Path) -> None:
    assert from_plain(Path, to_plain_config(path), "test") == path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "SquaredCos", "num_steps": 1}, "num_steps must be at least 2, got 1"),
        ({"kind": "VPLinear", "beta_min": 3.0, "beta_max": 2.0}, "beta_min <= beta_max, got 3.0 and 2.0"),
        ({"kind": "VarianceExploding", "sigma_min": 0.0}, "got 0.0 and 80.0"),
        ({"kind": "SquareCos"}, "did you mean 'SquaredCos'"),
    ],
)
def test_bad_configuration_is_one_clear_error(data: dict[str, object], words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        from_plain(Path, data, "train.yaml: path")
