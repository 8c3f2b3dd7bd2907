"""T11: the identities of flow maps on exact maps, and the losses: zero there, uphill elsewhere, wrong variants not zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import pytest
import torch

from kineflow.policies import flow_map_losses
from kineflow.policies.analytic import Mixture, MixtureJumps
from kineflow.policies.flow_map import FlowMap, Teacher, average_velocity
from kineflow.policies.flow_map_losses import (
    RESIDUALS,
    AverageVelocity,
    Derivative,
    Jumps,
    Method,
    Residual,
    central_difference,
    jump,
    jvp,
    velocity_error,
)
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.paths import CondOT, over

DOUBLE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
B = 40


def two_modes() -> Mixture:
    means = torch.tensor([-1.0, 0.7], dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), means, torch.tensor([0.3, 0.4], dtype=DOUBLE)[:, None, None])


def gaussian() -> Mixture:
    generator = torch.Generator().manual_seed(3)
    mean, std = (
        torch.randn(1, 4, 2, generator=generator, dtype=DOUBLE),
        0.2 + torch.rand(1, 4, 2, generator=generator, dtype=DOUBLE),
    )
    return Mixture(torch.ones(1, dtype=DOUBLE), mean, std)


ORACLES = {"O1": (gaussian(), (4, 2)), "O3": (two_modes(), (1, 1))}


def on_path(name: str) -> tuple[AverageVelocity, Jumps]:
    """The exact map and jumps that start on its path, with the exact velocity; gaps of at least 0.1."""
    mixture, shape = ORACLES[name]
    generator = torch.Generator().manual_seed(1)
    start = 0.02 + 0.7 * torch.rand(B, generator=generator, dtype=DOUBLE)
    end = start + 0.1 + (0.88 - start) * torch.rand(B, generator=generator, dtype=DOUBLE)
    which = torch.multinomial(mixture.weights, B, replacement=True, generator=generator)
    noise, spread = (torch.randn(B, *shape, generator=generator, dtype=DOUBLE) for _ in range(2))
    sample = mixture.means[which] + mixture.stds[which] * spread
    x = over(start, noise) * sample + over(1 - start, noise) * noise
    velocity = mixture.velocity(x, CondOT().at(start).over(x))
    split = torch.rand(B, generator=generator, dtype=DOUBLE)
    return average_velocity(MixtureJumps(mixture), None), Jumps(x, start, end, velocity, split)


def fine_difference(
    f: Callable[..., torch.Tensor], at: tuple[torch.Tensor, ...], along: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourth order, h = 1e-3: errors of 1e-9 where a bisected flow has noise of 1e-15."""
    h = 1e-3
    value = [f(*(a + k * h * d for a, d in zip(at, along, strict=True))) for k in (-2, -1, 0, 1, 2)]
    return value[2], (value[0] - 8 * value[1] + 8 * value[3] - value[4]) / (12 * h)


@pytest.mark.parametrize("name", ORACLES)
class TestExactMaps:
    def test_identity_semigroup_inverse(self, name: str) -> None:
        u, at = on_path(name)
        torch.testing.assert_close(jump(u, at.x, at.start, at.start), at.x, rtol=0, atol=0)
        middle, reached = (at.start + at.end) / 2, jump(u, at.x, at.start, at.end)
        halfway = jump(u, at.x, at.start, middle)
        torch.testing.assert_close(jump(u, halfway, middle, at.end), reached, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(jump(u, reached, at.end, at.start), at.x, rtol=1e-12, atol=1e-12)

    def test_tangent_lagrangian_eulerian_and_meanflow(self, name: str) -> None:
        u, at = on_path(name)
        one, mixture = torch.ones_like(at.start), ORACLES[name][0]

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return mixture.velocity(x, CondOT().at(t).over(x))

        tangent = fine_difference(lambda end: jump(u, at.x, at.start, end), (at.start,), (one,))[1]
        torch.testing.assert_close(tangent, at.velocity, rtol=1e-7, atol=1e-7)
        reached, moved = fine_difference(lambda end: jump(u, at.x, at.start, end), (at.end,), (one,))
        torch.testing.assert_close(moved, velocity(reached, at.end), rtol=1e-7, atol=1e-7)
        along = (at.velocity, one)
        still = fine_difference(lambda x, start: jump(u, x, start, at.end), (at.x, at.start), along)[1]
        torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-7)
        gap = over(at.end - at.start, at.x)
        average, change = fine_difference(lambda x, start: u(x, start, at.end), (at.x, at.start), along)
        torch.testing.assert_close(average, at.velocity + gap * change, rtol=1e-7, atol=1e-7)

        # The same in MeanFlow's clock: tau = 1 - t runs from data to noise, velocity eps - a, u_mf = -u, r = 1 - end <= tau.
        def backward(z: torch.Tensor, tau: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
            return -u(z, 1 - tau, 1 - r)

        tau, r = 1 - at.start, 1 - at.end
        average, change = fine_difference(lambda z, s: backward(z, s, r), (at.x, tau), (-at.velocity, one))
        torch.testing.assert_close(average, -at.velocity - over(tau - r, at.x) * change, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("method", [*RESIDUALS, "velocity"])
class TestLosses:
    def residual(self, method: str) -> Residual:
        return velocity_error if method == "velocity" else RESIDUALS[method]  # type: ignore[index]

    def test_zero_on_the_exact_map(self, name: str, method: str) -> None:
        u, jumps = on_path(name)
        residual = self.residual(method)(u, jumps, fine_difference)
        assert residual.abs().max() < 1e-7
        if name == "O1":  # this map is written in torch: forward-mode derivatives are exact
            assert self.residual(method)(u, jumps, jvp).abs().max() < 1e-12

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_grows_away_from_it(self, name: str, method: str, sign: int) -> None:
        """On u + k bump the gradient for k points away from zero, on both sides."""
        exact, jumps = on_path(name)
        k = torch.tensor(0.05 * sign, dtype=DOUBLE, requires_grad=True)

        def u(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
            return exact(x, start, end) + k * (1 + torch.sin(2 * x) * over(1 + end - start, x))

        loss = self.residual(method)(u, jumps, fine_difference).square().mean()
        loss.backward()
        assert loss > 1e-5
        assert k.grad is not None
        assert k.grad * sign > 1e-3


class TestStopGradients:
    """Which terms teach and which only say: values and gradients at u = k (1 + 2 s + 3 t + 4 x), in closed form."""

    def test_value_and_gradient_of_each_method(self) -> None:
        jumps, k = on_path("O3")[1], torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        jumps = dataclasses.replace(jumps, velocity=torch.full_like(jumps.x, 0.7))
        x, s, t, g = jumps.x, *(over(v, jumps.x) for v in (jumps.start, jumps.end, jumps.split))
        gap = t - s

        def f(x: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 1 + 2 * s + 3 * t + 4 * x

        def u(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
            return k * f(x, over(start, x), over(end, x))

        c = k.item()
        own, reached, m = c * f(x, s, s), x + gap * c * f(x, s, t), s + (1 - g) * gap
        halfway = x + (m - s) * c * f(x, s, m)
        expected: dict[Method, tuple[torch.Tensor, torch.Tensor]] = {  # residual, and its derivative in k
            "lsd": (c * f(x, s, t) + 3 * c * gap - c * f(reached, t, t), f(x, s, t) + 3 * gap),
            "psd": (c * (f(x, s, t) - (1 - g) * f(x, s, m) - g * f(halfway, m, t)), f(x, s, t)),
            "esd": (
                -c * f(x, s, t) + 2 * c * gap + (1 + 4 * c * gap) * own,
                -f(x, s, t) + 2 * gap + 4 * gap * own,
            ),
            "meanflow": (c * f(x, s, t) - 0.7 - gap * c * (2 + 4 * 0.7), f(x, s, t)),  # along the velocity of the pair
            "imf": (c * f(x, s, t) - 0.7 - gap * c * (2 + 4 * own), f(x, s, t)),  # along the head's own
        }
        assert expected.keys() == RESIDUALS.keys()
        for method, (value, slope) in expected.items():
            residual = RESIDUALS[method](u, jumps, jvp)
            torch.testing.assert_close(residual, value, rtol=1e-12, atol=1e-12, msg=method)
            (gradient,) = torch.autograd.grad(residual.square().sum(), k)
            torch.testing.assert_close(gradient, (2 * value * slope).sum(), rtol=1e-11, atol=0, msg=method)

    @pytest.mark.parametrize("balance", [False, True])
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_weights_of_rows_are_numbers(self, balance: bool, adaptive: bool) -> None:
        """A weight that had a gradient would reward large losses (adaptive) or trade the velocity for jumps (balance)."""
        k = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

        def head(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None, end: torch.Tensor | None = None) -> torch.Tensor:
            return k * (1 + over(t if end is None else end, x) + x**2)

        def losses(objective: FlowMap) -> torch.Tensor:
            actions, condition, weight = draw(20)
            return objective.loss(head, actions, condition, torch.Generator().manual_seed(0), weight)

        plain = losses(FlowMap(diagonal=0.5))
        said = plain.detach()
        factor = 1 / (said + 0.01) if adaptive else torch.ones_like(said)
        weighted = said * factor
        if balance:
            factor = torch.cat([factor[:10], factor[10:] * weighted[:10].mean() / weighted[10:].mean()])
        found = losses(FlowMap(diagonal=0.5, adaptive=adaptive, balance=balance))
        torch.testing.assert_close(found, plain * factor, rtol=1e-12, atol=0)
        gradient, expected = (torch.autograd.grad(loss.sum(), k)[0] for loss in (found, plain * factor))
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


class TestTraps:
    """Variants found in public code (specification, section 11) must not pass where ours do."""

    def residual_of(self, residual: Residual) -> float:
        u, jumps = on_path("O3")
        return float(residual(u, jumps, fine_difference).abs().max())

    def test_1_psd_with_swapped_weights(self) -> None:
        def swapped(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> torch.Tensor:
            g = over(jumps.split, jumps.x)
            middle = jumps.start + (1 - jumps.split) * (jumps.end - jumps.start)
            before = u(jumps.x, jumps.start, middle)
            after = u(jump(u, jumps.x, jumps.start, middle), middle, jumps.end)
            return u(jumps.x, jumps.start, jumps.end) - (g * before + (1 - g) * after)

        assert self.residual_of(RESIDUALS["psd"]) < 1e-12
        assert self.residual_of(swapped) > 0.1

    def test_2_esd_along_the_velocity_of_the_end(self) -> None:
        def transported(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> torch.Tensor:
            reached = jump(u, jumps.x, jumps.start, jumps.end)
            elsewhere = u(reached, jumps.end, jumps.end)
            along = (elsewhere, torch.ones_like(jumps.start))
            return derivative(lambda x, s: jump(u, x, s, jumps.end), (jumps.x, jumps.start), along)[1]

        assert self.residual_of(RESIDUALS["esd"]) < 1e-7
        assert self.residual_of(transported) > 0.1

    def test_8_meanflow_with_the_gap_held(self) -> None:
        """A network of (x, start, gap): the gap shrinks while the start moves, its tangent is -1 here (1 in noise time)."""

        def held(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> torch.Tensor:
            gap = jumps.end - jumps.start
            along = (jumps.velocity, torch.ones_like(jumps.start))
            value, change = derivative(lambda x, s: u(x, s, s + gap), (jumps.x, jumps.start), along)
            return value - (jumps.velocity + over(gap, jumps.x) * change)

        assert self.residual_of(RESIDUALS["meanflow"]) < 1e-7
        assert self.residual_of(held) > 0.1


HEADS = [
    UNet(channels=(16, 32), signal_width=32),
    DiT(width=32, depth=2, attention_heads=2),
    MLP(width=64, depth=2),
    FlagDiT(width=32, depth=1, attention_heads=2),
]
HeadConfig: TypeAlias = UNet | DiT | MLP | FlagDiT


def excited(config: HeadConfig, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    head = (dataclasses.replace(config, dropout=dropout) if dropout else config).build(8, 2, (1, 6), two_times=True)
    for parameter in head.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return head


def random_jumps(dtype: torch.dtype) -> tuple[Jumps, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, velocity = (torch.randn(5, 8, 2, generator=generator, dtype=dtype) for _ in range(2))
    start, split = (0.5 * torch.rand(5, generator=generator, dtype=dtype) for _ in range(2))
    return Jumps(x, start, start + 0.4, velocity, split), torch.randn(5, 1, 6, generator=generator, dtype=dtype)


@pytest.mark.parametrize("config", HEADS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("method", ["lsd", "esd", "meanflow"])  # imf differentiates as meanflow does, psd not at all
class TestDerivatives:
    def gradients(self, head: torch.nn.Module, method: Method, derivative: Derivative, dtype: torch.dtype) -> torch.Tensor:
        jumps, condition = random_jumps(dtype)
        torch.manual_seed(7)
        head.zero_grad()
        RESIDUALS[method](average_velocity(head, condition), jumps, derivative).square().mean().backward()  # type: ignore[arg-type]
        return torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])

    def test_jvp_and_central_difference_agree(self, config: HeadConfig, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
        """In residual gradients for every weight; the difference falls with the square of the step."""
        head = excited(config).double()
        exact = self.gradients(head, method, jvp, DOUBLE)
        errors = []
        for step in (1e-5, 5e-6):
            monkeypatch.setattr(flow_map_losses, "DIFFERENCE_STEP", step)
            errors.append(float((self.gradients(head, method, central_difference, DOUBLE) - exact).norm() / exact.norm()))
        assert errors[0] < 1e-4
        assert errors[1] / errors[0] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("derivative", [jvp, central_difference])
def test_derivatives_are_taken_outside_autocast(derivative: Derivative) -> None:
    """bfloat16 would drown a difference of 5e-3: even tokens that came in bfloat16 are used in float32."""
    head, (jumps, condition) = excited(HEADS[1]), random_jumps(torch.float32)
    u = average_velocity(head, condition.bfloat16())

    def f(x: torch.Tensor) -> torch.Tensor:
        return u(x, jumps.start, jumps.end)

    plain = derivative(f, (jumps.x,), (jumps.velocity,))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = derivative(f, (jumps.x,), (jumps.velocity,))
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("config", HEADS[1:], ids=lambda c: type(c).__name__)
def test_student_and_teacher_drop_the_same_units(config: DiT | MLP | FlagDiT) -> None:
    head = excited(config, dropout=0.5).train()
    jumps, condition = random_jumps(torch.float32)
    u = average_velocity(head, condition)
    first = u(jumps.x, jumps.start, jumps.end)
    torch.testing.assert_close(u(jumps.x, jumps.start, jumps.end), first, rtol=0, atol=0)
    other = average_velocity(head, condition)(jumps.x, jumps.start, jumps.end)
    assert (other - first).abs().max() > 1e-3  # but the next loss drops others


def test_without_the_switch_attention_has_no_forward_mode() -> None:
    """Why `jvp` picks the kernel: when torch implements this, the switch can go."""
    head, (jumps, condition) = excited(HEADS[1]), random_jumps(torch.float32)
    u = average_velocity(head, condition)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda end: u(jumps.x, jumps.start, end), (jumps.end,), (jumps.end,))


# ---- the objective


class Recorder:
    """A head that writes down where it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, end: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.calls.append((t, t if end is None else end, condition))
        return torch.zeros_like(x)


class AskedField:
    """A Field that writes down whom it was asked about."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        assert condition is not None
        self.tokens.append(condition)
        return x


def draw(count: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    actions = 0.3 * torch.randn(count, 1, 1, generator=generator, dtype=DOUBLE) + 1
    return actions, torch.arange(count, dtype=DOUBLE)[:, None, None], torch.ones(count, 1)


class TestObjective:
    def test_which_rows_jump_and_where(self) -> None:
        head, (actions, condition, weight) = Recorder(), draw()
        objective = FlowMap(method="psd", diagonal=0.5, jumps_to_data=0.25)
        losses = objective.loss(head, actions, condition, torch.Generator().manual_seed(0), weight)
        assert losses.shape == (400,)
        (start, end, rows), (jump_start, jump_end, jump_rows) = head.calls[0], head.calls[-1]
        torch.testing.assert_close(start, end, rtol=0, atol=0)
        assert torch.cat([rows, jump_rows]).flatten().tolist() == list(range(400))
        assert len(jump_start) == 200
        assert bool((jump_end > jump_start).all())
        assert int((jump_end == 1).sum()) == 50
        assert 0.25 < float(jump_start[:150].mean()) < 0.42  # the smaller of two uniform draws: 1/3
        assert 0.42 < float(jump_start[150:].mean()) < 0.6  # towards the data from anywhere

    @pytest.mark.parametrize("split", ["half", "uniform"])
    def test_where_psd_splits_a_jump(self, split: Literal["half", "uniform"]) -> None:
        head, (actions, condition, weight) = Recorder(), draw()
        FlowMap(diagonal=0.5, split=split).loss(head, actions, condition, torch.Generator().manual_seed(0), weight)
        (start, middle, _), (again, end, _) = head.calls[1], head.calls[2]
        torch.testing.assert_close(again, middle, rtol=0, atol=0)
        share = (end - middle) / (end - start)  # of the second part: g
        assert share.mean().item() == pytest.approx(0.5, abs=0.05)
        assert share.var().item() == pytest.approx(0 if split == "half" else 1 / 12, abs=0.01)

    def test_a_single_row_trains_the_velocity(self) -> None:
        actions, condition, weight = draw(1)
        losses = FlowMap().loss(Recorder(), actions, condition, torch.Generator().manual_seed(0), weight)
        assert losses.shape == (1,)

    @pytest.mark.parametrize("method", RESIDUALS)
    def test_zero_for_the_exact_map_of_an_exact_teacher(self, method: Method) -> None:
        mixture = two_modes()
        actions, condition, weight = draw(200)
        teacher = Teacher(mixture, None)
        objective = FlowMap(method=method, derivative="central_difference")
        losses = objective.loss(MixtureJumps(mixture), actions, condition, torch.Generator().manual_seed(0), weight, teacher)
        assert losses.median() < 1e-8  # differences of 5e-3 are rough where the flow bends most, near the data
        wrong = Teacher(dataclasses.replace(mixture, means=mixture.means + 0.3), None)
        losses = objective.loss(MixtureJumps(mixture), actions, condition, torch.Generator().manual_seed(0), weight, wrong)
        assert losses[:150].median() > 1e-3

    def test_a_teacher_gets_its_own_tokens_row_by_row(self) -> None:
        actions, _, weight = draw(40)
        tokens = torch.arange(40, dtype=DOUBLE)[:, None, None]
        for method, expected in (("psd", 30), ("imf", 40)):
            asked = AskedField()
            objective = FlowMap(method=method, derivative="central_difference")
            objective.loss(Recorder(), actions, None, torch.Generator().manual_seed(0), weight, Teacher(asked, tokens))
            assert torch.cat(asked.tokens).flatten().tolist() == list(range(expected))

    def test_balance_gives_jumps_the_mean_of_the_diagonal(self) -> None:
        actions, condition, weight = draw()
        losses = FlowMap(method="imf", derivative="central_difference", balance=True).loss(
            Recorder(), actions, condition, torch.Generator().manual_seed(0), weight
        )
        torch.testing.assert_close(losses[300:].mean(), losses[:300].mean())

    def test_the_adaptive_weight_is_not_the_mean(self) -> None:
        """Why it is off: with few dimensions the best constant velocity under it is not E[a - eps]."""
        generator = torch.Generator().manual_seed(0)
        velocity = torch.where(torch.rand(20_000, generator=generator) < 0.2, 3.0, 0.0) + 0.1 * torch.randn(
            20_000, generator=generator
        )
        guess = torch.linspace(-0.5, 1.5, 201)
        loss = (guess[:, None] - velocity) ** 2
        assert abs(float(guess[loss.mean(dim=1).argmin()]) - 0.6) < 0.03
        slope = (2 * (guess[:, None] - velocity) / (loss + 0.01)).mean(dim=1)  # of loss / sg(loss + 0.01)
        assert abs(float(guess[slope.abs().argmin()])) < 0.1
