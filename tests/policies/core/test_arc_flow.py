"""T20: ArcFlow's in-step integral against quadrature, its limit g -> 0, and the head that speaks the flow-map language."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import quad

from kineflow.contracts import KineflowError
from kineflow.policies.heads.arc import Arc, ArcStep, mean_growth
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet

DOUBLE = torch.float64
HEADS = [MLP(width=16, depth=1), DiT(width=16, depth=1, attention_heads=2), UNet(channels=(8, 16), groups=4, signal_width=16)]


def arc(rate_scale: float, count: int = 3, modes: int = 5) -> ArcStep:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    rates = rate_scale * normal(count, 4, modes)
    rates[..., 0] = 0
    return ArcStep(normal(count, 4, modes, 2), torch.softmax(normal(count, 4, modes), dim=-1), rates)


@pytest.mark.parametrize("rate_scale", [5.0, 1.0, 1e-2, 1e-5, 1e-12, 0.0])
def test_displacement_is_the_integral_of_the_velocity(rate_scale: float) -> None:
    """T20, with rates on both sides of the series' border."""
    step = arc(rate_scale, count=1)
    for start, end in [(0.0, 1.0), (0.2, 0.7), (0.9, 0.1)]:
        ours = step.displacement(torch.tensor([start], dtype=DOUBLE), torch.tensor([end], dtype=DOUBLE))

        def speed(elapsed: float) -> float:
            return float(step.velocity(torch.tensor([elapsed], dtype=DOUBLE))[0, 1, 0])

        reference, _ = quad(speed, start, end, epsabs=1e-13, epsrel=1e-13)
        assert float(ours[0, 1, 0]) == pytest.approx(reference, rel=1e-12, abs=1e-12)


def test_without_rates_the_step_is_straight() -> None:
    step = arc(0.0)
    straight = (step.weights[..., None] * step.velocities).sum(dim=2)
    elapsed = torch.tensor([0.3, 0.5, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(step.velocity(elapsed), straight, rtol=1e-14, atol=0)
    zero = torch.zeros_like(elapsed)
    torch.testing.assert_close(step.displacement(zero, elapsed), elapsed[:, None, None] * straight, rtol=1e-14, atol=1e-15)


def test_pieces_add_up_and_the_way_back_is_the_way_out() -> None:
    step = arc(2.0)
    a, b, c = (torch.full((3,), v, dtype=DOUBLE) for v in (0.1, 0.45, 0.8))
    whole = step.displacement(a, c)
    torch.testing.assert_close(step.displacement(a, b) + step.displacement(b, c), whole, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(step.displacement(c, a), -whole, rtol=1e-13, atol=1e-14)


def test_growth_is_smooth_where_its_formula_is_zero_by_zero() -> None:
    """phi' = (1 + (z - 1) e^z) / z^2, by its series near zero; the plain formula's gradient is noise there."""
    z = torch.tensor([-3.0, -1.1e-2, -0.9e-2, -1e-9, 0.0, 1e-9, 1e-4, 0.9e-2, 1.1e-2, 3.0], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(mean_growth(z).sum(), z)
    series = 0.5 + z / 3 + z**2 / 8 + z**3 / 30 + z**4 / 144
    exact = torch.where(z.abs() < 0.1, series, (1 + (z - 1) * torch.exp(z)) / z**2)
    torch.testing.assert_close(slope, exact.detach(), rtol=1e-9, atol=0)
    naive = torch.tensor([1.3e-14, 2.7e-15, 3.1e-15], dtype=DOUBLE, requires_grad=True)
    (wrong,) = torch.autograd.grad((torch.expm1(naive) / naive).sum(), naive)
    assert (wrong - 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("config", HEADS, ids=lambda c: type(c).__name__)
def test_head_answers_mean_velocities_of_its_own_motion(config: MLP | DiT | UNet) -> None:
    torch.manual_seed(0)
    head = Arc(config, modes=3).build(8, 2, (1, 6)).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition = torch.randn(5, 8, 2, dtype=DOUBLE), torch.randn(5, 1, 6, dtype=DOUBLE)
    t, end = torch.linspace(0, 0.5, 5, dtype=DOUBLE), torch.linspace(0.4, 1, 5, dtype=DOUBLE)
    step = head.step(x, t, condition)
    assert (step.rates[..., 0] == 0).all()
    torch.testing.assert_close(step.weights.sum(dim=-1), torch.ones(5, 8, dtype=DOUBLE), rtol=1e-14, atol=0)
    moved = (end - t)[:, None, None] * head(x, t, condition, end)
    torch.testing.assert_close(moved, step.displacement(torch.zeros_like(t), end - t), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(head(x, t, condition), step.velocity(torch.zeros_like(t)), rtol=1e-14, atol=0)
    torch.testing.assert_close(head(x, t, condition, t), head(x, t, condition), rtol=1e-14, atol=0)
    rows = t[:, None].expand(5, 8)
    torch.testing.assert_close(
        head(x, rows, condition, end[:, None].expand(5, 8)), head(x, t, condition, end), rtol=1e-10, atol=1e-12
    )


def test_modes_differ_from_the_first_step_on() -> None:
    """Equal rates at the start would give every mode the same gradient for ever: K modes would be one."""
    torch.manual_seed(0)
    head = Arc(MLP(width=16, depth=1), modes=3).build(4, 2, (1, 6))
    x, t, condition = torch.randn(6, 4, 2), torch.zeros(6), torch.randn(6, 1, 6)
    assert head(x, t, condition, torch.ones(6)).abs().max() == 0
    step = head.step(x, t, condition)
    step.velocities.retain_grad()
    (step.displacement(t, torch.full((6,), 0.5)) - 1).square().mean().backward()  # type: ignore[no-untyped-call]
    assert step.velocities.grad is not None
    gradients = step.velocities.grad[0, 0, :, 0]
    assert gradients.unique().numel() == 3


def test_impossible_mode_counts_are_refused() -> None:
    with pytest.raises(KineflowError, match=r"Arc\.modes must be at least 1, got 0"):
        Arc(MLP(), modes=0)
