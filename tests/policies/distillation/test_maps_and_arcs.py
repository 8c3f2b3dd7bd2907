"""Maps learned from a teacher, maps that run both ways, and bent steps: losses at the exact answer, and next to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.distillation.arc_flow import ArcFlow
from kineflow.policies.distillation.flow_maps import BiFM, MapDistillation, both_ways, inverted, warm_start
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.flow_map_losses import Method
from kineflow.policies.heads.arc import ArcStep
from kineflow.policies.paths import over
from tests.policies.distillation.lessons import DOUBLE, MEAN, SHAPE, STD, exact_map, gaussian_ode, lesson

NOWHERE = Path("unused")
METHODS: list[Method] = ["psd", "lsd", "meanflow", "imf"]


def normal(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def exact_head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, end: torch.Tensor | None = None) -> torch.Tensor:
    return exact_map(x, t, t if end is None else end)


@pytest.mark.parametrize("method", METHODS)
def test_the_teachers_exact_map_has_no_loss(method: Method) -> None:
    """Every row, because the teacher's velocity is not that of single pairs; without a teacher it has (the control)."""
    objective = FlowMap(method=method, diagonal=0.5)
    loss = MapDistillation(NOWHERE, method).loss(objective, exact_head, lesson(64))
    assert loss.max().item() < 1e-16
    given = lesson(64)
    alone = objective.loss(exact_head, given.chunk, None, given.generator, given.weight)
    assert alone.mean().item() > 1e-2

    def off(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, end: torch.Tensor | None = None) -> torch.Tensor:
        return exact_head(x, t, condition, end) + 0.1 * over((t if end is None else end) - t, x)

    jumps = MapDistillation(NOWHERE, method).loss(objective, off, lesson(64))[32:]
    assert jumps.mean().item() > 1e-5


# --- BiFM --------------------------------------------------------------------------------------------------------------


def test_the_exact_map_runs_both_ways() -> None:
    assert both_ways(exact_map, lesson(64), consistency=1.0).max().item() < 1e-20
    assert BiFM(NOWHERE).loss(FlowMap(diagonal=0.5), exact_head, lesson(64)).max().item() < 1e-16


def test_a_map_that_only_runs_forwards_is_seen() -> None:
    def forwards(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return torch.where(over(end >= start, x), exact_map(x, start, end), 0)

    assert both_ways(forwards, lesson(64), consistency=1.0).min().item() > 1e-6


def test_the_round_trip_sees_what_the_semigroup_cannot() -> None:
    """Backwards along another flow (here: no motion at all) is a semigroup of its own; only the round trip tells."""

    def inconsistent(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return torch.where(over(end >= start, x), exact_map(x, start, end), 0)

    assert both_ways(inconsistent, lesson(64), consistency=0.0).max().item() == 0
    assert both_ways(inconsistent, lesson(64), consistency=1.0).mean().item() > 1e-2


def test_rows_start_at_the_data_and_reach_the_noise() -> None:
    """Inversion jumps from t = 1 to t = 0: a quarter of the rows trains exactly that, and every jump goes back in time."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        seen.append((start, end))
        return exact_map(x, start, end)

    both_ways(watched, lesson(64), consistency=0.0)
    start, end = seen[-1]
    assert ((start == 1) & (end == 0)).sum() == 16
    assert (start == 1).sum() == 32
    assert (start >= end).all()


def test_inversion_finds_the_noise_in_one_call() -> None:
    noise = normal(20)
    torch.testing.assert_close(inverted(exact_map, gaussian_ode(noise, None)), noise, rtol=1e-12, atol=1e-12)


def test_warm_start_goes_from_the_previous_chunk_to_a_fresh_one() -> None:
    previous, fresh = gaussian_ode(normal(20_000), None), normal(20_000, seed=6)
    torch.testing.assert_close(warm_start(exact_map, previous, fresh, 0.0), previous, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(warm_start(exact_map, previous, fresh, 1.0), gaussian_ode(fresh, None), rtol=1e-12, atol=1e-12)
    half = warm_start(exact_map, previous, fresh, 0.6)
    assert half.std().item() == pytest.approx(STD, rel=0.01)
    likeness = ((half - MEAN) * (previous - MEAN)).mean().item() / STD**2
    assert likeness == pytest.approx(math.sqrt(1 - 0.6**2), abs=0.02)
    with pytest.raises(KineflowError, match=r"renewal is 1\.5"):
        warm_start(exact_map, previous, fresh, 1.5)


# --- ArcFlow -----------------------------------------------------------------------------------------------------------

RATE = 1.7


def growing(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """The Field of dz/dt = RATE z: a_hat = z + (1 - t) RATE z. Its way is one exponential mode."""
    t = over(torch.sigmoid(lam), x)
    z = x * torch.hypot(t, 1 - t)
    return z + (1 - t) * RATE * z


@dataclass(frozen=True)
class OneMode:
    """An arc head that knows it, or nearly."""

    rate: float

    def step(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> ArcStep:
        ones = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
        return ArcStep((RATE * x)[:, :, None], ones, self.rate * ones)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return RATE * x


@pytest.mark.parametrize("steps", [1, 2])
def test_bent_steps_that_follow_the_teacher_have_no_loss(steps: int) -> None:
    """Times beyond 0.999 are held there, hence not 1e-20. The straight control is the best first-order step."""
    objective = FlowMap(steps=steps)
    losses = ArcFlow(NOWHERE).loss(objective, OneMode(RATE), lesson(200, field=growing))
    assert losses.max().item() < 1e-6
    assert losses.median().item() < 1e-20
    straight = ArcFlow(NOWHERE).loss(objective, OneMode(0.0), lesson(200, field=growing))
    assert straight.mean().item() > 0.1
    wrong_clock = ArcFlow(NOWHERE).loss(objective, OneMode(-RATE), lesson(200, field=growing))
    assert wrong_clock.mean().item() > straight.mean().item()


def test_states_move_from_the_teachers_way_to_the_students() -> None:
    """Early on a wrong student is asked about at states of the teacher; at the end about its own."""
    asked: list[torch.Tensor] = []

    def field(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        asked.append(x)
        return growing(x, lam, condition)

    states = {}
    for progress in (0.0, 0.1, 0.2, 1.0):
        asked.clear()
        ArcFlow(NOWHERE, teacher_share=0.2).loss(FlowMap(), OneMode(0.0), lesson(2000, field=field, progress=progress))
        states[progress] = asked[-1]
    moved = {p: (state != states[1.0]).flatten(1).any(dim=1).double().mean().item() for p, state in states.items()}
    assert moved[0.0] == 1
    assert moved[0.1] == pytest.approx(0.5, abs=0.05)
    assert moved[0.2] == 0
    # and the teacher's states lie on its way: there the right student has (nearly) no loss either.
    early = ArcFlow(NOWHERE).loss(FlowMap(), OneMode(RATE), lesson(200, field=growing, progress=0.0))
    assert early.mean().item() < 0.02


def test_near_the_data_the_velocity_keeps_its_digits() -> None:
    """(a_hat - z) / (1 - t) in float32 at t = 1 - 1e-7 would be noise; times beyond 0.999 are held there."""
    given = lesson(50, field=growing)
    z = given.chunk.float()
    for late in (0.999, 1 - 1e-7, 1.0):
        found = given.velocity(z, torch.full((50,), late))
        torch.testing.assert_close(found, RATE * z, rtol=1e-3, atol=1e-3)


def test_the_teacher_is_asked_at_the_time_of_the_state() -> None:
    """dz/dt = exp(RATE t), the same for every z: an arc that starts at s has velocity exp(RATE s) and that rate."""

    def field(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        t = over(torch.sigmoid(lam), x)
        return x * torch.hypot(t, 1 - t) + (1 - t) * torch.exp(RATE * t)

    class Knows(OneMode):
        def step(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> ArcStep:
            ones = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
            return ArcStep(torch.exp(RATE * over(t, x)).expand_as(x)[:, :, None], ones, RATE * ones)

    losses = ArcFlow(NOWHERE).loss(FlowMap(steps=2), Knows(RATE), lesson(100, field=field))
    assert losses.median().item() < 1e-20
