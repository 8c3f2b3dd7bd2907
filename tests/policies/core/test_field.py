"""T3: a head of any path and prediction type, queried anywhere, is the same denoiser; per-action levels; infinite lambda."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.field import HeadField
from kineflow.policies.paths import CondOT, ContinuousSquaredCos, Cosine, Path, SquaredCos, VarianceExploding, VPLinear
from kineflow.policies.predictions import Prediction

DOUBLE = torch.float64
PATHS = [CondOT(), Cosine(), VPLinear(), ContinuousSquaredCos(), SquaredCos(100), VarianceExploding()]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def mixture() -> Mixture:
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(4, 5, 2, generator=generator, dtype=DOUBLE)
    return Mixture(torch.full((4,), 0.25, dtype=DOUBLE), means, 0.3 * torch.ones_like(means))


def noisy(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_head_is_the_same_denoiser(path: Path, prediction: Prediction) -> None:
    """Match lambda, rescale, convert: a head from any path answers inside the canonical sampler as the mixture itself."""
    lam, x = torch.linspace(-3.5, 3.5, 15, dtype=DOUBLE), noisy(15)
    answer = HeadField(MixtureHead(mixture(), path, prediction), path, prediction)(x, lam, None)
    torch.testing.assert_close(answer, mixture()(x, lam, None), rtol=1e-11, atol=1e-11)


def test_condot_head_inside_a_vp_sampler_to_twelve_digits() -> None:
    lam, x = VPLinear().to_lambda(torch.linspace(0.05, 0.95, 19, dtype=DOUBLE)), noisy(19)
    answer = HeadField(MixtureHead(mixture(), CondOT(), "velocity"), CondOT(), "velocity")(x, lam, None)
    torch.testing.assert_close(answer, mixture()(x, lam, None), rtol=1e-12, atol=1e-12)


def test_a_forgotten_rescale_would_be_seen() -> None:
    """Negative control: the head's network needs x_M = c x, not the canonical x."""
    lam, x = torch.full((3,), 0.3, dtype=DOUBLE), noisy(3)
    head, t = MixtureHead(mixture(), CondOT(), "sample"), torch.sigmoid(lam)
    assert (head(x, t, None) - mixture()(x, lam, None)).abs().max() > 0.05


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_time_per_action_equals_one_per_row_when_constant(path: Path, prediction: Prediction) -> None:
    lam, x = torch.tensor([-2.0, 0.1, 1.5], dtype=DOUBLE), noisy(3)
    field = HeadField(MixtureHead(mixture(), path, prediction), path, prediction)
    torch.testing.assert_close(field(x, lam[:, None].expand(3, 5), None), field(x, lam, None), rtol=0, atol=0)


def test_head_sees_its_own_clock_and_shape() -> None:
    seen: list[torch.Tensor] = []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        seen.append(t)
        return x

    x = noisy(2)
    lam = torch.tensor([[-math.inf, 0.0, 0.5, 1.0, math.inf]], dtype=DOUBLE).expand(2, 5)
    HeadField(head, CondOT(), "velocity")(x, lam, None)
    HeadField(head, CondOT(), "velocity")(x, lam[:, 1], None)
    torch.testing.assert_close(seen[0], torch.sigmoid(lam), rtol=1e-15, atol=0)
    assert (seen[0][:, 0] == 0).all()
    assert (seen[0][:, -1] == 1).all()
    assert seen[1].shape == (2,)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("lam", [-math.inf, math.inf])
def test_infinite_lambda_is_legal(path: Path, prediction: Prediction, lam: float) -> None:
    x = noisy(2)

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return 0.1 * torch.tanh(x)

    level = torch.full((2,), lam, dtype=DOUBLE)
    answer = HeadField(head, path, prediction)(x, level, None)
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("path", [CondOT(), Cosine(), ContinuousSquaredCos()], ids=str)
def test_at_pure_noise_the_field_is_the_mean_of_the_data(path: Path) -> None:
    x, level = noisy(2), torch.full((2,), -math.inf, dtype=DOUBLE)
    mean = mixture().means.mean(dim=0).expand(2, 5, 2)
    answer = HeadField(MixtureHead(mixture(), path, "velocity"), path, "velocity")(x, level, None)
    torch.testing.assert_close(answer, mean, rtol=1e-12, atol=1e-12)


def test_half_precision_heads_answer_in_the_state_dtype() -> None:
    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return x.to(torch.bfloat16)

    x = noisy(2).float()
    assert HeadField(head, CondOT(), "velocity")(x, torch.zeros(2), None).dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(st.floats(-6, 3.6), st.sampled_from(PREDICTIONS), st.integers(0, 1000))
def test_rows_do_not_look_at_each_other(lam: float, prediction: Prediction, seed: int) -> None:
    x, level = noisy(4, seed), torch.tensor([lam, -1.0, 0.0, 1.0], dtype=DOUBLE)
    field = HeadField(MixtureHead(mixture(), SquaredCos(100), prediction), SquaredCos(100), prediction)
    torch.testing.assert_close(field(x, level, None)[:1], field(x[:1], level[:1], None), rtol=1e-13, atol=1e-13)
