"""Reflow, Rectified Diffusion, SlimFlow and one-step distillation against a Gaussian whose straight coupling is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from kineflow.contracts import Horizons
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.distillation.one_step import OneStep, flow_guided
from kineflow.policies.distillation.reflow import Annealing, Reflow, annealed_source, annealing, first_order_error
from kineflow.policies.distillation.teaching import NOTHING_FRESH
from kineflow.policies.encoders.state import State
from kineflow.policies.field import HeadField
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.losses import draw_normal
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.paths import CondOT, Cosine, SquaredCos, over, variance_preserving
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.predictions import Denoised
from kineflow.policies.samplers import ddim
from kineflow.policies.time_grids import uniform_time_grid
from tests.policies.distillation.lessons import DOUBLE, GAUSSIAN, MEAN, SHAPE, STD, StraightHead, gaussian_ode, lesson

NOWHERE = Path("unused")
OBJECTIVES: list[FlowMatching | Diffusion] = [
    FlowMatching(),
    Diffusion(clip=math.inf),
    FlowMatching(path=Cosine(), prediction="sample", loss_space="sample"),
    FlowMatching(path=SquaredCos(1000), prediction="v", loss_space="v"),
]


def normal(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def name(objective: FlowMatching | Diffusion) -> str:
    return f"{type(objective).__name__}-{objective.path}-{objective.prediction}"


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name)
def test_the_straight_head_has_no_loss_in_the_form_of_the_teacher(objective: FlowMatching | Diffusion) -> None:
    """Rectified Diffusion: any path and prediction is reflowed as it is, without becoming a flow."""
    head = StraightHead(objective.path, objective.prediction)
    assert Reflow(NOWHERE).loss(objective, head, lesson()).max().item() < 1e-20
    off = Reflow(NOWHERE).loss(objective, lambda x, t, c: head(x, t, c) + 0.1, lesson())
    torch.testing.assert_close(off, torch.full_like(off, 0.01), rtol=1e-6, atol=0)
    teacher = MixtureHead(GAUSSIAN, objective.path, objective.prediction)
    assert Reflow(NOWHERE).loss(objective, teacher, lesson()).mean().item() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name)
def test_reflowed_once_nothing_changes_any_more(objective: FlowMatching | Diffusion) -> None:
    """Fixed point: the straight head's own ODE makes its chunks, in few steps or many, and so makes the same pairs again."""
    field = HeadField(StraightHead(objective.path, objective.prediction), objective.path, objective.prediction)
    x, chunks = normal(50), []
    for steps in (1, 2, 7, 50):
        chunks.append(ddim(field, x, uniform_time_grid(objective.path, steps), None, NOTHING_FRESH))
        torch.testing.assert_close(chunks[-1], chunks[0], rtol=1e-8, atol=1e-8)
    again = lesson(solve=lambda noise, condition: ddim(field, noise, uniform_time_grid(CondOT(), 3), None, NOTHING_FRESH))
    head = StraightHead(CondOT(), "velocity")
    # A discrete path begins at alpha = 5e-4, not 0, where its state is not the noise alone: that far from the teacher's chunk.
    assert Reflow(NOWHERE).loss(FlowMatching(), head, again).max().item() < 1e-8
    torch.testing.assert_close(chunks[0], gaussian_ode(x, None), rtol=0, atol=2e-3)


def test_first_order_error_by_its_closed_form() -> None:
    """y(u) = m + sqrt(S + u^2) c for a Gaussian, so eps_hat = dy/du = u / sqrt(S + u^2) c; a straight path has none."""
    lambdas = uniform_time_grid(Cosine(), 100)
    x = normal(6)
    u = torch.exp(-lambdas[1:-1])  # the first level is pure noise: eps_hat is x there
    slope = torch.cat([torch.ones(1, dtype=DOUBLE), u / torch.sqrt(STD**2 + u**2)])
    expected = (x**2).mean(dim=(1, 2)) * slope.var(correction=0)
    torch.testing.assert_close(first_order_error(GAUSSIAN, x, lambdas, None), expected, rtol=0.06, atol=0)
    straight = HeadField(StraightHead(CondOT(), "velocity"), CondOT(), "velocity")
    assert first_order_error(straight, x, lambdas, None).max().item() < 1e-20


class Small(nn.Module):
    """A little network of (x, t) for chunks of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        time = torch.stack([t, torch.sin(3 * t), torch.cos(3 * t), torch.sin(9 * t)], dim=-1)[:, None]
        return self.layers(torch.cat([x, time], dim=-1))  # type: ignore[no-any-return]


def two_modes() -> Mixture:
    means = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    return Mixture(torch.tensor([0.4, 0.6]), means, torch.full_like(means, 0.15))


def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and what the exact flow makes of it; interpolated from a table, because the exact one is solved by bisection."""
    law = two_modes()
    doubled = Mixture(*(v.double() for v in (law.weights, law.means, law.stds)))
    knots = torch.linspace(-4.5, 4.5, 400, dtype=DOUBLE)
    ends = doubled.flow(knots[:, None, None], torch.tensor(-20.0, dtype=DOUBLE), torch.tensor(20.0, dtype=DOUBLE)).flatten()
    noise = np.random.default_rng(0).normal(size=count)
    chunks = np.interp(noise, knots.numpy(), ends.numpy())
    return torch.tensor(noise).float()[:, None, None], torch.tensor(chunks).float()[:, None, None]


def learned(objective: Diffusion, noise: torch.Tensor, chunks: torch.Tensor) -> Small:
    torch.manual_seed(0)
    head, generator, steps = Small(), torch.Generator().manual_seed(1), 250
    optimizer = torch.optim.AdamW(head.parameters(), lr=4e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        rows = torch.randint(len(noise), (256,), generator=generator)
        t = torch.floor(torch.rand(256, generator=generator) * 100) / 100
        loss = objective.general.regress(head, Denoised(chunks[rows], noise[rows]), t, None, torch.ones(256, 1)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head


def test_an_epsilon_policy_becomes_first_order_by_reflow() -> None:
    """Before and after, on a law with two modes whose ODE bends; "before" trains as long, on independent pairs.

    Clipped as every epsilon policy: at the first level its chunk is (x - sigma eps) / 5e-4, noise of the network alone.
    """
    objective = Diffusion(clip=2.0)
    (noise, chunks), shuffled = pairs(8192), torch.randperm(8192, generator=torch.Generator().manual_seed(0))
    bend, miss = {}, {}
    for kind, partner in [("before", noise[shuffled]), ("after", noise)]:
        field = objective.field(learned(objective, partner, chunks))
        with torch.no_grad():
            bend[kind] = first_order_error(field, noise[:400], uniform_time_grid(SquaredCos(), 10), None).mean().item()
            few = ddim(field, noise[:400], uniform_time_grid(SquaredCos(), 4), None, NOTHING_FRESH)
            miss[kind] = (few - chunks[:400]).square().mean().item()
    assert bend["after"] < 0.4 * bend["before"]
    assert miss["after"] < 0.6 * miss["before"]


# --- SlimFlow ----------------------------------------------------------------------------------------------------------

SCHEDULES: list[Annealing] = [a for a in get_args(Annealing) if a != "none"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_annealing_goes_from_fresh_to_paired_noise(schedule: Annealing) -> None:
    values = [annealing(schedule, k / 100, share=0.5) for k in range(101)]
    assert values[0] == 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    expected = {"exponential": math.exp(-1), "cosine": 0.0, "linear": 0.0}[schedule]
    assert values[50] == pytest.approx(expected, abs=1e-12)
    assert {"exponential": math.exp(-0.5), "cosine": 0.5, "linear": 0.5}[schedule] == pytest.approx(values[25])
    assert annealing("none", 0.0, 0.5) == 0


@pytest.mark.parametrize("b", [0.0, 0.3, 0.8, 1.0])
def test_annealed_noise_stays_standard_normal(b: float) -> None:
    paired, fresh = normal(40_000), normal(40_000, seed=6)
    source = annealed_source(paired, fresh, b)
    assert source.var().item() == pytest.approx(1, abs=0.01)
    assert (source * paired).mean().item() == pytest.approx(math.sqrt(1 - b**2), abs=0.01)


@pytest.mark.parametrize(("progress", "correlation"), [(0.0, 0.0), (0.1, math.sqrt(1 - 0.25)), (0.5, 1.0)])
def test_the_student_sees_the_annealed_source(progress: float, correlation: float) -> None:
    """With chunk 0 everywhere, what the head sees is sigma times the source; the teacher's ODE saw the paired noise."""
    drawn: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def solve(noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        drawn.append(noise)
        return torch.zeros_like(noise)

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        seen.append(x / over(1 - t, x))
        return x

    method = Reflow(NOWHERE, annealing="linear", annealing_share=0.2, times_per_pair=1)
    method.loss(FlowMatching(), head, lesson(4000, solve=solve, progress=progress))
    assert (drawn[0] * seen[0]).mean().item() == pytest.approx(correlation, abs=0.03)
    assert seen[0].var().item() == pytest.approx(1, abs=0.03)


def test_times_are_those_that_the_objective_trains_on() -> None:
    """A head that asks for more noise in training gets it from pairs too; guidance is in the pairs, so nothing is hidden."""
    times: list[torch.Tensor] = []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        times.append(t)
        return x

    objective = FlowMatching(time_density="beta", time_parameters=(8.0, 1.0), condition_dropout=0.2, guidance_scale=2.0)
    Reflow(NOWHERE).loss(objective, head, lesson(2000))
    assert (1 - times[0]).mean().item() == pytest.approx(8 / 9, abs=0.01)
    config = PolicyConfig(Horizons(1, 3, 1), MLP(), objective, State())
    student = Reflow(NOWHERE).student(config, None, 4).objective
    assert student == replace(objective, steps=4, condition_dropout=0.0, guidance_scale=1.0)


def test_one_pair_serves_several_times() -> None:
    calls: list[int] = []
    times: list[torch.Tensor] = []

    def solve(noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        calls.append(len(noise))
        return gaussian_ode(noise, condition)

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        times.append(t)
        return StraightHead(CondOT(), "velocity")(x, t, condition)

    losses = Reflow(NOWHERE, times_per_pair=3).loss(FlowMatching(), head, lesson(10, solve=solve))
    assert calls == [10]
    assert times[0].unique().numel() == 30
    assert losses.shape == (10,)
    assert losses.max().item() < 1e-20


# --- one step ----------------------------------------------------------------------------------------------------------


def test_one_step_student_that_makes_the_teachers_chunk_has_no_loss() -> None:
    head = StraightHead(CondOT(), "velocity")
    objective = FlowMatching(steps=1)
    assert OneStep(NOWHERE).loss(objective, head, lesson()).max().item() < 1e-20
    off = OneStep(NOWHERE).loss(objective, lambda x, t, c: head(x, t, c) - 0.2, lesson())
    torch.testing.assert_close(off, torch.full_like(off, 0.04), rtol=1e-9, atol=0)
    bent = MixtureHead(GAUSSIAN, CondOT(), "velocity")
    assert OneStep(NOWHERE).loss(objective, bent, lesson()).mean().item() == pytest.approx(STD**2, rel=0.1)


def test_flow_guidance_is_the_formula_and_agrees_with_a_straight_teacher() -> None:
    """d = a - z; target x + (1 - t) v(x, t) - z; the same in chunks: |a - a_hat(x, t)|^2."""
    noise = normal(300)
    straight = lesson(300, field=HeadField(StraightHead(CondOT(), "velocity"), CondOT(), "velocity"))
    assert flow_guided(noise, gaussian_ode(noise, None), straight).max().item() < 1e-20
    bent, jumped = lesson(300), (MEAN - 0.1 + STD * noise).requires_grad_()
    state = bent.generator.get_state()
    loss = flow_guided(noise, jumped, bent)
    bent.generator.set_state(state)
    t = (0.2 + 0.6 * torch.rand(300, generator=bent.generator, dtype=DOUBLE))[:, None, None]
    assert 0.2 <= float(t.min()) < 0.22
    assert 0.78 < float(t.max()) <= 0.8
    x = (1 - t) * noise + t * jumped.detach()
    lam = torch.log(t / (1 - t))[:, 0, 0]
    alpha, _ = variance_preserving(over(lam, x))
    target = GAUSSIAN(alpha / t * x, lam, None)
    torch.testing.assert_close(loss, ((jumped - target) ** 2).mean(dim=(1, 2)), rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), jumped)
    torch.testing.assert_close(gradient, 2 * (jumped - target).detach() / 6, rtol=1e-9, atol=1e-12)


def test_flow_guidance_adds_to_the_pair_loss() -> None:
    head = MixtureHead(GAUSSIAN, CondOT(), "velocity")
    objective = FlowMatching(steps=1)
    alone = OneStep(NOWHERE).loss(objective, head, lesson())
    given = lesson()
    both = OneStep(NOWHERE, flow_guidance=0.5).loss(objective, head, given)
    given = lesson()
    noise = draw_normal(given.chunk, given.generator)
    term = flow_guided(noise, torch.full_like(noise, MEAN), given)
    torch.testing.assert_close(both, alone + 0.5 * term, rtol=1e-9, atol=1e-12)


def test_rows_without_weight_do_not_count() -> None:
    given = lesson(8)
    half = replace(given, weight=torch.tensor(np.r_[np.ones(4), np.zeros(4)])[:, None].expand(8, SHAPE[0]))
    head = MixtureHead(GAUSSIAN, CondOT(), "velocity")
    for method, objective in [(Reflow(NOWHERE), FlowMatching()), (OneStep(NOWHERE, 1.0), FlowMatching(steps=1))]:
        losses = method.loss(objective, head, half)
        assert (losses[:4] > 0).all()
        assert (losses[4:] == 0).all()
