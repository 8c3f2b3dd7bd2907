"""Real-Time Chunking: the published loop, any path, stability, exact conditioning of a committed start, and predict()."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kineflow.contracts import ActionChunk, CommittedPrefix, KineflowError
from kineflow.policies.analytic import CorrelatedGaussian, Mixture, MixtureHead
from kineflow.policies.field import HeadField
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.paths import CondOT, SquaredCos
from kineflow.policies.real_time_chunking import (
    CommittedStart,
    MaskShape,
    RealTimeChunking,
    committed_prefix,
    continue_prefix,
    soft_mask,
)
from kineflow.policies.samplers import RowNoise, ddim, euler, heun, uniform_time_grid

DOUBLE = torch.float64
HORIZON = 8


def two_plans(std: float = 0.15) -> Mixture:
    """Left or right around an obstacle: two smooth plans, equally likely."""
    arc = torch.sin(torch.linspace(0, math.pi, HORIZON, dtype=DOUBLE))
    means = torch.stack([torch.stack([arc, arc / 2], -1), torch.stack([-arc, arc / 2], -1)])
    return Mixture(torch.tensor([0.5, 0.5], dtype=DOUBLE), means, torch.full_like(means, std))


def row_noise(rows: int) -> RowNoise:
    return RowNoise(np.arange(rows), (HORIZON, 2), DOUBLE)


def mask(delay: int = 2, execution: int = 3) -> torch.Tensor:
    return torch.from_numpy(soft_mask(HORIZON, delay, execution))[None]


def published_loop(
    noise: torch.Tensor, previous: torch.Tensor, weight: torch.Tensor, steps: int, beta: float, with_jacobian: bool
) -> torch.Tensor:
    """Section 4.1, word for word: velocities on the CondOT clock, one Euler step of 1 / n after the other."""
    velocity, z = MixtureHead(two_plans(), CondOT(), "velocity"), noise
    for k in range(steps):
        tau = k / steps
        z = z.detach().requires_grad_()
        v = velocity(z, torch.full((len(z),), tau, dtype=DOUBLE), None)
        guess = z + (1 - tau) * v
        error = weight[..., None] * (previous - guess.detach())
        pull = torch.autograd.grad(guess, z, error)[0] if with_jacobian else error
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        w = beta if tau == 0 else min(beta, (1 - tau) / (tau * r2))
        z = z + (v + w * pull) / steps
    return z.detach()


@pytest.mark.parametrize("with_jacobian", [False, True])
@pytest.mark.parametrize(("steps", "beta"), [(5, 5.0), (8, 2.0)])
def test_equals_the_published_loop(steps: int, beta: float, with_jacobian: bool) -> None:
    noise, previous = row_noise(4).draw(), two_plans().means[:1].expand(4, -1, -1) + 0.1
    field = RealTimeChunking(two_plans(), previous, mask(), steps, beta, "exact" if with_jacobian else "none")
    ours = euler(field, noise, uniform_time_grid(CondOT(), steps), None, row_noise(4))
    expected = published_loop(noise, previous, mask(), steps, beta, with_jacobian)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_jacobian_matters_and_the_loop_is_guided() -> None:
    """Negative control of the test above: the two forms, and no guidance at all, differ."""
    noise, previous = row_noise(4).draw(), two_plans().means[:1].expand(4, -1, -1)
    free, exact, cheap = (
        published_loop(noise, previous, mask() * on, 5, 5.0, jacobian) for on, jacobian in ((0, False), (1, True), (1, False))
    )
    assert (exact - cheap).abs().max() > 0.05
    assert (free - cheap).abs().max() > 0.5


@pytest.mark.parametrize("jacobian", ["none", "exact"])
def test_diffusion_heads_take_the_same_steps(jacobian: str) -> None:
    """An epsilon head on the discrete DDPM path, DDIM, and a flow head, Euler, at equal lambdas."""
    path, noise, previous = SquaredCos(100), row_noise(3).draw(), two_plans().means[:1].expand(3, -1, -1)
    lambdas = uniform_time_grid(path, 10)
    heads = [
        HeadField(MixtureHead(two_plans(), path, "epsilon"), path, "epsilon"),
        HeadField(MixtureHead(two_plans(), CondOT(), "velocity"), CondOT(), "velocity"),
    ]
    guided = [RealTimeChunking(head, previous, mask(), 10, jacobian=jacobian) for head in heads]  # type: ignore[arg-type]
    one, other = ddim(guided[0], noise, lambdas, None, row_noise(3)), euler(guided[1], noise, lambdas, None, row_noise(3))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_steps_longer_than_the_gap_are_refused() -> None:
    """The first Euler step moves the chunk by beta / steps of the gap to the old one: above 1 it lands on the other side."""
    previous, noise = two_plans().means[:1].expand(4, -1, -1), row_noise(4).draw()
    with pytest.raises(KineflowError, match=r"unstable with beta above the number of steps: beta is 50, steps 5; use beta <= 5"):
        RealTimeChunking(two_plans(), previous, mask(), 5, 50.0)
    first = uniform_time_grid(CondOT(), 5)[:2]
    gap = previous - two_plans()(noise, torch.full((4,), -math.inf, dtype=DOUBLE), None)
    free = euler(two_plans(), noise, first, None, row_noise(4))
    for beta, share in ((5.0, 1.0), (50.0, 10.0)):
        moved = euler(RealTimeChunking(two_plans(), previous, mask(), 50, beta), noise, first, None, row_noise(4)) - free
        # Canonical states: z = norm x with norm = hypot(0.2, 0.8).
        torch.testing.assert_close(math.hypot(0.2, 0.8) * moved[:, :2], share * gap[:, :2], rtol=1e-12, atol=1e-12)


def test_seams_are_far_smaller_with_guidance() -> None:
    """Free plans go round either side; guided plans go where the executed one went: 2.06 to 0.13 at the 99th percentile."""
    rows, delay = 64, 3
    previous, noise = two_plans().means[:1].expand(rows, -1, -1), row_noise(rows)
    lambdas, start = uniform_time_grid(CondOT(), 5), noise.draw()
    free = euler(two_plans(), start, lambdas, None, noise)
    guided = euler(RealTimeChunking(two_plans(), previous, mask(delay), 5), start, lambdas, None, noise)
    jumps = [(chunk[:, delay] - previous[:, delay]).norm(dim=-1).quantile(0.99).item() for chunk in (free, guided)]
    assert jumps[0] > 1.5
    assert jumps[1] < 0.25
    assert (guided[:, -2:].std(dim=0) > 0.05).all()  # the free end still varies


@pytest.mark.parametrize(
    ("shape", "middle"),
    [
        ("linear", [0.75, 0.5, 0.25]),
        ("ones", [1, 1, 1]),
        ("zeros", [0, 0, 0]),
        ("exponential", [c * (math.exp(c) - 1) / (math.e - 1) for c in (0.75, 0.5, 0.25)]),
    ],
)
def test_soft_masks(shape: MaskShape, middle: list[float]) -> None:
    """start = d = 2, end = H - s = 5: c_i = (end - i) / (end - d + 1)."""
    np.testing.assert_allclose(soft_mask(8, 2, 3, shape), [1, 1, *middle, 0, 0, 0], rtol=1e-12)


@pytest.mark.parametrize(("delay", "execution"), [(4, 3), (3, 6), (-1, 3), (0, 0)])
def test_impossible_timing_is_refused(delay: int, execution: int) -> None:
    with pytest.raises(KineflowError, match="needs delay <= execution <= horizon - delay"):
        soft_mask(8, delay, execution)


def test_what_is_left_of_the_previous_chunk() -> None:
    previous = ActionChunk(np.arange(32.0).reshape(2, 8, 2), 0.1, np.zeros(2))
    prefix = committed_prefix(previous, consumed=4, delay=1, execution=2)
    assert np.array_equal(prefix.actions[:, :4], previous.actions[:, 4:])
    assert np.array_equal(prefix.soft_mask[0] > 0, [True] * 4 + [False] * 4)  # padding, though before end = 6
    assert prefix.delay == 1


@pytest.mark.parametrize(("steps", "beta"), [(2, 2.0), (5, 5.0), (20, 5.0)])
def test_a_request_is_guided_with_five_or_as_many_as_steps(steps: int, beta: float) -> None:
    units = ActionUnits(torch.full((3, 1), 2.0), torch.ones(1, 3, 1))
    prefix = CommittedPrefix(np.full((1, 3, 1), 5.0, np.float32), np.array([[1, 0.5, 0]], np.float32), 1)
    field = continue_prefix(prefix, (1, 3, 1), units, steps)(lambda x, lam, condition: x)
    assert isinstance(field, RealTimeChunking)
    assert (field.beta, field.steps, field.jacobian) == (beta, steps, "none")
    assert (field.previous == 2).all()  # (5 - 1) / 2
    assert field.mask.tolist() == [[1, 0.5, 0]]


def test_weightless_values_are_never_read() -> None:
    units = ActionUnits(torch.full((HORIZON, 2), 2.0, dtype=DOUBLE), torch.zeros(1, HORIZON, 2, dtype=DOUBLE))
    actions, weight = 2 * two_plans().means[:1].numpy(), np.where(np.arange(HORIZON) < 3, 1.0, 0.0)[None]
    padded = np.where(weight[..., None] > 0, actions, np.nan)
    x, lam = row_noise(1).draw(), torch.zeros(1, dtype=DOUBLE)
    for values in (actions, padded):
        field = continue_prefix(CommittedPrefix(values, weight, 3), (1, HORIZON, 2), units, 4)(two_plans())
        assert isinstance(field, RealTimeChunking)
        assert field.beta == 4  # the default 5 would be unstable
        answer = field(x, lam, None)
        assert torch.equal(
            answer, RealTimeChunking(two_plans(), two_plans().means[:1], torch.from_numpy(weight), 4, 4.0)(x, lam, None)
        )
    for wrong, message in (((2, HORIZON, 2), "the policy's chunks are"), ((1, HORIZON, 2), "finite actions where")):
        bad = CommittedPrefix(np.full_like(actions, np.nan), weight, 3)
        with pytest.raises(KineflowError, match=message):
            continue_prefix(bad, wrong, units, 4)


def correlated() -> CorrelatedGaussian:
    step = torch.arange(5, dtype=DOUBLE)
    covariance = 0.5 * torch.exp(-((step[:, None] - step) ** 2) / 8) + 0.05 * torch.eye(5, dtype=DOUBLE)
    return CorrelatedGaussian(torch.linspace(0, 1, 5, dtype=DOUBLE)[:, None], covariance)


def test_committed_start_samples_the_exact_conditional_law() -> None:
    """A head with one level per action, its start at lambda = +inf: mean and covariance of the rest given the start."""
    law, lambdas = correlated(), torch.linspace(-7, 9, 150, dtype=DOUBLE)
    committed = torch.tensor([1.0, 1.4, math.nan, math.nan, math.nan], dtype=DOUBLE)[None, :, None]
    noise = torch.cat([torch.zeros(1, 5, 1, dtype=DOUBLE), torch.eye(5, dtype=DOUBLE)[..., None]])
    out = CommittedStart(heun, committed, torch.tensor([2]))(law, noise, lambdas, None, RowNoise(np.arange(6), (5, 1), DOUBLE))
    assert torch.equal(out[:, :2], committed[:, :2].expand(6, -1, -1))
    mean, covariance = law.given(committed.nan_to_num(), torch.arange(5)[:, None] < 2)
    torch.testing.assert_close(out[:1], mean, rtol=0, atol=3e-3)
    factor = (out[1:] - out[:1])[..., 0]
    torch.testing.assert_close(factor.T @ factor, covariance, rtol=0, atol=3e-3)
    wrong = law.given(torch.zeros(1, 5, 1, dtype=DOUBLE), torch.arange(5)[:, None] < 2)[0]
    assert (out[:1] - wrong).abs().max() > 0.3


def test_each_row_commits_to_its_own_delay() -> None:
    start = CommittedStart(ddim, two_plans().means[:1].expand(2, -1, -1), torch.tensor([0, 3]))
    out = start(two_plans(), row_noise(2).draw(), uniform_time_grid(CondOT(), 4), None, row_noise(2))
    free = ddim(two_plans(), row_noise(2).draw(), uniform_time_grid(CondOT(), 4), None, row_noise(2))
    torch.testing.assert_close(out[0], free[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(out[1, :3], two_plans().means[0, :3])
