"""T8: classifier-free guidance against closed forms, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture
from kineflow.policies.field import Field
from kineflow.policies.guidance import ClassifierFreeGuidance, Clip, IntervalBlend, OneTimeGuidance, in_order
from kineflow.policies.paths import CondOT, PathPoint, VPLinear, variance_preserving
from kineflow.policies.predictions import Denoised, Prediction, from_denoised, to_denoised
from kineflow.policies.samplers import RowNoise, ddim, heun

DOUBLE = torch.float64
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
NULL = torch.zeros(1, 1, 1, dtype=DOUBLE)


def gaussian(mean: float, std: float) -> Mixture:
    return Mixture(
        torch.ones(1, dtype=DOUBLE), torch.full((1, 1, 1), mean, dtype=DOUBLE), torch.full((1, 1, 1), std, dtype=DOUBLE)
    )


def two_modes(means: tuple[float, float], std: float) -> Mixture:
    centres = torch.tensor(means, dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), centres, torch.full_like(centres, std))


@dataclass
class Switch:
    """A conditional policy: token 1 gives one law, token 0, the null condition, the other. Counts its calls."""

    conditional: Mixture
    unconditional: Mixture
    batches: list[int] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        assert condition is not None
        self.batches.append(len(x))
        return torch.where(condition == 1, self.conditional(x, lam, None), self.unconditional(x, lam, None))


def tokens(count: int) -> torch.Tensor:
    return torch.ones(count, 1, 1, dtype=DOUBLE)


def lambda_grid(low: float, high: float, steps: int) -> torch.Tensor:
    return torch.linspace(low, high, steps + 1, dtype=DOUBLE)


def sampled_law(guided: ClassifierFreeGuidance, lambdas: torch.Tensor) -> tuple[float, float]:
    """Mean and std of what Heun samples: with Gaussian laws the chunk is affine in the noise, so two noises tell all."""
    noise = torch.tensor([0.0, 1.0], dtype=DOUBLE)[:, None, None]
    out = heun(guided, noise, lambdas, tokens(2), RowNoise(np.arange(2), (1, 1), DOUBLE)).flatten()
    return out[0].item(), (out[1] - out[0]).item()


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5])
def test_equal_variances_shift_the_mean(scale: float) -> None:
    """N(m_c, S) and N(m_u, S) guide to N(m_u + w (m_c - m_u), S)."""
    guided = ClassifierFreeGuidance(Switch(gaussian(0.8, 0.4), gaussian(-0.3, 0.4)), NULL, scale)
    expected = gaussian(-0.3 + scale * 1.1, 0.4)
    x, lam = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None], torch.linspace(-4, 4, 9, dtype=DOUBLE)
    torch.testing.assert_close(guided(x, lam, tokens(9)), expected(x, lam, None), rtol=1e-12, atol=1e-12)
    mean, std = sampled_law(guided, lambda_grid(-9, 9, 300))
    assert mean == pytest.approx(-0.3 + scale * 1.1, abs=2e-3)
    assert std == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(("scale", "expected"), [(3.0, 0.027), (0.5, math.sqrt(0.3)), (1.0, 0.3), (0.0, 1.0)])
def test_unequal_variances_of_the_ode(scale: float, expected: float) -> None:
    """ODE std = s_c^w s_u^(1 - w): large scales on a wide unconditional law collapse."""
    guided = ClassifierFreeGuidance(Switch(gaussian(0.0, 0.3), gaussian(0.0, 1.0)), NULL, scale)
    _, std = sampled_law(guided, lambda_grid(-8, 10, 500))
    assert std == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("space", PREDICTIONS)
@pytest.mark.parametrize("path", [CondOT(), VPLinear()], ids=str)
def test_same_result_in_every_space(space: Prediction, path: CondOT | VPLinear) -> None:
    """The weights sum to one, so guiding the network output of any type is guiding the denoised chunk."""
    conditional, unconditional, scale = two_modes((-1.0, 0.5), 0.3), two_modes((-0.2, 1.0), 0.8), 2.5
    x, t = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None], torch.linspace(0.1, 0.9, 9, dtype=DOUBLE)
    point, lam = path.at(t).over(x), path.to_lambda(t)
    scaled = torch.hypot(point.alpha, point.sigma) * x

    def raw(law: Mixture) -> torch.Tensor:
        return from_denoised(space, Denoised(law.sample(scaled, point), -point.sigma * law.score(scaled, point)), point)

    answer = raw(unconditional) + scale * (raw(conditional) - raw(unconditional))
    guided = ClassifierFreeGuidance(Switch(conditional, unconditional), NULL, scale)(x, lam, tokens(9))
    torch.testing.assert_close(guided, to_denoised(space, answer, scaled, point).sample, rtol=1e-12, atol=1e-12)


def test_weights_that_do_not_sum_to_one_depend_on_the_space() -> None:
    """Negative control of the test above: an unnormalised combination disagrees by far more than rounding."""
    x, point = (
        torch.ones(1, 1, 1, dtype=DOUBLE),
        PathPoint(*torch.tensor([0.5, 0.5, 1.0, -1.0], dtype=DOUBLE)[:, None, None, None]),
    )
    law = two_modes((-1.0, 0.5), 0.3)
    noise = -point.sigma * law.score(x, point)
    in_noise_space = to_denoised("epsilon", 2 * noise, x, point).sample
    assert (in_noise_space - 2 * law.sample(x, point)).abs().item() > 0.5


def test_mixture_against_an_adaptive_reference() -> None:
    """A guided two-mode law has no closed form; scipy's Dormand-Prince integrates dy/du = eps_hat independently."""
    scale, conditional, unconditional = 2.0, two_modes((-1.0, 0.6), 0.3), two_modes((-0.3, 1.2), 0.7)
    start, end = -4.0, 4.0

    def slope(u: float, y: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(y)[:, None, None]
        point = PathPoint(*torch.tensor([1.0, u, 0.0, -1.0], dtype=DOUBLE)[:, None, None, None])  # variance-exploding scaling
        guided = -u * (unconditional.score(x, point) + scale * (conditional.score(x, point) - unconditional.score(x, point)))
        return guided.flatten().numpy()

    noise = torch.linspace(-2, 2, 7, dtype=DOUBLE)
    (alpha, _), (alpha_end, _) = (variance_preserving(torch.tensor(v, dtype=DOUBLE)) for v in (start, end))
    span = (math.exp(-start), math.exp(-end))
    reference = solve_ivp(slope, span, (noise / alpha).numpy(), method="RK45", rtol=1e-9, atol=1e-11)
    guided = ClassifierFreeGuidance(Switch(conditional, unconditional), NULL, scale)
    ours = heun(guided, noise[:, None, None], lambda_grid(start, end, 400), tokens(7), RowNoise(np.arange(7), (1, 1), DOUBLE))
    expected = torch.from_numpy(reference.y[:, -1]) * alpha_end
    torch.testing.assert_close(ours.flatten(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(("scale", "token"), [(1.0, 1.0), (0.0, 0.0)])
def test_scale_one_and_zero_are_the_single_call_bit_for_bit(scale: float, token: float) -> None:
    switch = Switch(two_modes((-1.0, 0.5), 0.3), two_modes((-0.2, 1.0), 0.8))
    x, lam = (
        torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE),
        torch.linspace(-3, 3, 5, dtype=DOUBLE),
    )
    guided = ClassifierFreeGuidance(switch, NULL, scale)(x, lam, tokens(5))
    assert switch.batches == [5]
    assert torch.equal(guided, switch(x, lam, torch.full((5, 1, 1), token, dtype=DOUBLE)))


def test_guidance_is_one_call_of_twice_the_batch() -> None:
    switch = Switch(gaussian(0, 1), gaussian(1, 1))
    ClassifierFreeGuidance(switch, NULL, 2.0)(torch.zeros(3, 1, 1, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE), tokens(3))
    assert switch.batches == [6]


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_interval_guides_inside_only(scale: float) -> None:
    switch = Switch(gaussian(0.5, 0.3), gaussian(-1, 1))
    x, lam = torch.full((4, 1, 1), 0.2, dtype=DOUBLE), torch.tensor([-2.0, -1.0, 1.0, 1.1], dtype=DOUBLE)
    guided = ClassifierFreeGuidance(switch, NULL, scale, interval=(-1.0, 1.0))(x, lam, tokens(4))
    everywhere = ClassifierFreeGuidance(switch, NULL, scale)(x, lam, tokens(4))
    conditional = switch(x, lam, tokens(4))
    assert torch.equal(guided[[0, 3]], conditional[[0, 3]])
    torch.testing.assert_close(guided[[1, 2]], everywhere[[1, 2]], rtol=1e-15, atol=1e-15)
    switch.batches.clear()
    ClassifierFreeGuidance(switch, NULL, scale, interval=(5.0, 6.0))(x, lam, tokens(4))
    assert switch.batches == [4]


def test_per_action_levels_are_guided_each_by_its_own() -> None:
    """One lambda per action, the interval cutting through the chunk."""
    law = Mixture(torch.ones(1, dtype=DOUBLE), torch.zeros(1, 3, 1, dtype=DOUBLE), torch.ones(1, 3, 1, dtype=DOUBLE))
    other = Mixture(law.weights, law.means + 2, law.stds)
    x, lam = torch.zeros(2, 3, 1, dtype=DOUBLE), torch.tensor([[-2.0, 0.0, 2.0]], dtype=DOUBLE).expand(2, 3)
    guided = ClassifierFreeGuidance(Switch(law, other), NULL, 3.0, interval=(-1.0, 1.0))(x, lam, tokens(2))
    expected = torch.where((lam == 0)[..., None], 3 * law(x, lam, None) - 2 * other(x, lam, None), law(x, lam, None))
    torch.testing.assert_close(guided, expected, rtol=1e-12, atol=1e-12)


def test_guidance_without_a_condition_is_refused() -> None:
    guided = ClassifierFreeGuidance(gaussian(0, 1), NULL, 2.0)
    with pytest.raises(KineflowError, match="scale 2 needs a condition, got None"):
        guided(torch.zeros(1, 1, 1), torch.zeros(1), None)


def test_clip_rederives_the_noise() -> None:
    """Trap of section 10: after clipping a_hat, the step must use the noise of the clipped a_hat, not the network's."""
    law, lam = gaussian(3.0, 0.1), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    x = torch.full((1, 1, 1), 0.4, dtype=DOUBLE)
    (alpha, sigma), (alpha_next, sigma_next) = (variance_preserving(v) for v in lam)
    stepped = ddim(Clip(law, -1.0, 1.0), x, lam, None, RowNoise(np.arange(1), (1, 1), DOUBLE))
    rederived = alpha_next + sigma_next * (x - alpha) / sigma
    kept = alpha_next + sigma_next * (x - alpha * law(x, lam[:1], None)) / sigma
    torch.testing.assert_close(stepped, rederived, rtol=1e-12, atol=1e-12)
    assert (stepped - kept).abs().item() > 0.5
    end = torch.tensor([0.0, math.inf], dtype=DOUBLE)
    assert ddim(Clip(law, -1.0, 1.0), x, end, None, RowNoise(np.arange(1), (1, 1), DOUBLE)).item() == 1.0


# One-time negatives, blends, order


def solved(guided: Field, steps: int, rows: int = 3) -> torch.Tensor:
    lambdas = torch.cat([lambda_grid(-3, 3, steps - 1), torch.tensor([math.inf], dtype=DOUBLE)])
    noise = RowNoise(np.arange(rows), (1, 1), DOUBLE)
    return ddim(guided, noise.draw(), lambdas, tokens(rows), noise)


def test_one_time_guidance_takes_one_call_more_than_none() -> None:
    """N + 1 calls for N steps (classifier-free guidance: 2 N), the first two in one batch."""
    switch = Switch(two_modes((-1.0, 0.5), 0.3), gaussian(0.2, 1.0))
    solved(OneTimeGuidance(NULL, 2.0)(switch), steps=6)
    assert switch.batches == [6, 3, 3, 3, 3, 3]
    assert sum(switch.batches) == (6 + 1) * 3
    switch.batches.clear()
    solved(ClassifierFreeGuidance(switch, NULL, 2.0), steps=6)
    assert sum(switch.batches) == 2 * 6 * 3


def test_one_time_guidance_is_exact_at_the_first_level_and_keeps_its_negative() -> None:
    switch = Switch(two_modes((-1.0, 0.5), 0.3), two_modes((-0.2, 1.0), 0.8))
    x, first, later = (
        torch.linspace(-1, 1, 4, dtype=DOUBLE)[:, None, None],
        -torch.ones(4, dtype=DOUBLE),
        torch.zeros(4, dtype=DOUBLE),
    )
    guided = OneTimeGuidance(NULL, 2.5)(switch)
    whole = ClassifierFreeGuidance(switch, NULL, 2.5)(x, first, tokens(4))
    torch.testing.assert_close(guided(x, first, tokens(4)), whole, rtol=1e-14, atol=1e-14)
    negative = switch(x, first, torch.zeros(4, 1, 1, dtype=DOUBLE))
    expected = negative + 2.5 * (switch(x, later, tokens(4)) - negative)
    torch.testing.assert_close(guided(x, later, tokens(4)), expected, rtol=1e-14, atol=1e-14)
    with pytest.raises(KineflowError, match="needs a condition, got None"):
        guided(x, first, None)


def test_one_time_guidance_moves_the_law_and_does_not_run_away() -> None:
    """Guided at high noise it moves beyond m_c, away from m_u. Negative control: at every level, nothing holds it."""
    switch = Switch(gaussian(0.8, 0.4), gaussian(-0.3, 0.4))
    guides = OneTimeGuidance(NULL, 2.0), OneTimeGuidance(NULL, 2.0, below=math.inf)
    held, free = (solved(guide(switch), steps=30, rows=100) for guide in guides)
    assert 1.0 < held.mean().item() < 1.9
    assert held.std().item() < 0.8
    assert free.std().item() > 3


def test_the_known_plan_as_negative_pushes_away_from_it() -> None:
    """Why there is no "self" variant: with the previous plan a_0 as the negative, the result lies beyond the law's mean."""
    previous, law, scale = 0.4, gaussian(0.8, 0.4), 2.0
    x, lam = torch.zeros(1, 1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
    guided = previous + scale * (law(x, lam, None) - previous)
    assert (guided - previous).abs() > 1.9 * (law(x, lam, None) - previous).abs()


def test_blend_is_the_base_at_low_noise_bit_for_bit() -> None:
    base, tuned = Switch(gaussian(0.0, 0.5), gaussian(0, 1)), Switch(gaussian(1.0, 0.5), gaussian(0, 1))
    x, lam = torch.zeros(4, 1, 1, dtype=DOUBLE), torch.tensor([-2.0, -0.5, 0.0, 1.0], dtype=DOUBLE)
    blend = IntervalBlend(base, tuned, 0.3, below=-0.5)
    out, plain, other = blend(x, lam, tokens(4)), base(x, lam, tokens(4)), tuned(x, lam, tokens(4))
    assert torch.equal(out[2:], plain[2:])
    torch.testing.assert_close(out[:2], 0.7 * plain[:2] + 0.3 * other[:2], rtol=1e-15, atol=1e-15)
    tuned.batches.clear()
    blend(x, lam + 5, tokens(4))
    assert tuned.batches == []  # low noise costs one call
    assert torch.equal(IntervalBlend(base, tuned, 1.0)(x, lam, tokens(4)), other)
    whole = IntervalBlend(base, tuned, 1.0, below=-0.5)(x, lam, tokens(4))  # rows on both sides of the border
    assert torch.equal(whole, torch.cat([other[:2], plain[2:]]))
    with pytest.raises(KineflowError, match=r"share is 1\.5; it is the tuned field's weight"):
        IntervalBlend(base, tuned, 1.5)


def test_blend_of_gaussians_everywhere_is_their_composition() -> None:
    """Equal variances, all levels: N((1 - share) m_b + share m_t, S); on high noise alone the mean lies between."""
    base, tuned = gaussian(0.0, 0.4), gaussian(1.0, 0.4)
    x, lam = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None, None], torch.linspace(-4, 4, 9, dtype=DOUBLE)
    blended = IntervalBlend(base, tuned, 0.3)(x, lam, None)
    torch.testing.assert_close(blended, gaussian(0.3, 0.4)(x, lam, None), rtol=1e-12, atol=1e-12)
    mean = solved(IntervalBlend(base, tuned, 0.3, below=0.0), steps=60, rows=1) - solved(base, steps=60, rows=1)
    assert 0.02 < mean.item() < 0.29


def test_guides_apply_in_order_the_last_nearest_to_the_solver() -> None:
    shift = lambda field: lambda x, lam, condition: field(x, lam, condition) + 3  # noqa: E731
    clip = lambda field: Clip(field, -1.0, 1.0)  # noqa: E731
    x, lam = torch.zeros(1, 1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
    both = in_order(None, shift, clip)
    assert both is not None
    assert both(gaussian(0.0, 1.0))(x, lam, None).item() == 1.0
    assert in_order(None, None) is None


def test_mixture_against_torchdiffeq() -> None:
    """The same reference from another library: dopri5 on dy/dlambda = a_hat - y of a guided two-mode law."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    guided = ClassifierFreeGuidance(Switch(two_modes((-1.0, 0.6), 0.3), two_modes((-0.3, 1.2), 0.7)), NULL, 2.0)
    noise, start, end = torch.linspace(-2, 2, 7, dtype=DOUBLE)[:, None, None], -4.0, 4.0

    def slope(lam: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return guided(y * torch.sqrt(torch.sigmoid(2 * lam)), lam.expand(7), tokens(7)) - y  # y = x / alpha

    span = torch.tensor([start, end], dtype=DOUBLE)
    reference = odeint(slope, noise * math.hypot(1, math.exp(-start)), span, rtol=1e-8, atol=1e-9, method="dopri5")[-1]
    ours = heun(guided, noise, lambda_grid(start, end, 400), tokens(7), RowNoise(np.arange(7), (1, 1), DOUBLE))
    torch.testing.assert_close(ours * math.hypot(1, math.exp(-end)), reference, rtol=0, atol=5e-4)
