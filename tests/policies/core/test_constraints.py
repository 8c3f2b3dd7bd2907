"""T14: the projected chunk is feasible and the nearest one, whatever the network says; only the denoised chunk is touched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from scipy.optimize import minimize

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.policies.analytic import Mixture
from kineflow.policies.constraints import ActionLimits, Constrain, PlanarSpeed, Plane, Unicycle
from kineflow.policies.cost_guidance import CostGuidance
from kineflow.policies.samplers import RowNoise, ddim

DOUBLE = torch.float64
DT = 0.1
FREE = (math.inf,) * 3


def chunks(rows: int, horizon: int = 6, seed: int = 0, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(rows, horizon, 3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def limits(plane: Plane | None = None, executed: torch.Tensor | None = None, **options: object) -> ActionLimits:
    settings = {
        "low": (-1.0, -0.8, -2.0),
        "high": (1.0, 1.2, 2.0),
        "max_rate": (4.0, 3.0, 6.0),
        "max_acceleration": FREE,
        **options,
    }
    return ActionLimits(step_s=DT, plane=plane, executed=executed, **settings)  # type: ignore[arg-type]


def violation(chunk: torch.Tensor, rules: ActionLimits) -> float:
    """The largest violation of any limit, written out again from the definitions."""
    past = chunk[:, :0] if rules.executed is None else rules.executed.expand(len(chunk), -1, -1)
    whole, old = torch.cat([past, chunk], dim=1), past.shape[1]
    step, bend = whole.diff(dim=1)[:, max(old - 1, 0) :] / DT, whole.diff(n=2, dim=1)[:, max(old - 2, 0) :] / DT**2
    low, high, rate, acceleration = (
        torch.tensor(bound, dtype=DOUBLE) for bound in (rules.low, rules.high, rules.max_rate, rules.max_acceleration)
    )
    broken = [low - chunk, chunk - high, (step.abs() - rate) * DT, (bend.abs() - acceleration) * DT**2]
    match rules.plane:
        case PlanarSpeed(of_positions=True) as plane:
            broken.append((step[..., plane.dimensions].norm(dim=-1) - plane.max_speed) * DT)
        case PlanarSpeed() as plane:
            broken.append(chunk[..., plane.dimensions].norm(dim=-1) - plane.max_speed)
        case Unicycle() as plane:
            v, omega = chunk[..., plane.dimensions].unbind(-1)
            broken += [-v, omega.abs() - v / plane.min_turn_radius]
    return max(value.max().item() for value in broken if value.numel())


PLANES = [None, PlanarSpeed(2.0, (0, 2), of_positions=True), PlanarSpeed(0.7), Unicycle(0.5)]


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(PLANES),
    st.sampled_from([FREE, (60.0, 30.0, 40.0)]),
    st.integers(0, 2),
    st.integers(0, 10_000),
    st.sampled_from([0.1, 1.0, 30.0]),
)
def test_every_projection_is_feasible_and_stays(
    plane: Plane | None, acceleration: tuple[float, ...], known: int, seed: int, size: float
) -> None:
    executed = torch.full((1, known, 3), 0.1, dtype=DOUBLE) if known else None  # at rest, inside
    rules, wanted = limits(plane, executed, max_acceleration=acceleration), chunks(2, seed=seed, size=size)
    projected = rules(wanted)
    assert violation(projected, rules) < 1e-8 * max(size, 1)
    torch.testing.assert_close(rules(projected), projected, rtol=0, atol=1e-6 * max(size, 1))
    # Nearest point of a convex set: no feasible chunk lies on the far side. 0.1 everywhere is feasible; so are projections.
    for other in (rules(chunks(2, seed=seed + 1)), projected.clone()):
        along = ((wanted - projected) * (other - projected)).sum(dim=(1, 2))
        assert along.max().item() < 1e-6 * max(size, 1) ** 2


@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_nearest_point_agrees_with_an_independent_optimiser(plane: Plane | None) -> None:
    executed = torch.tensor([[[0.2, 0.1, 0.0], [0.3, 0.05, 0.1]]], dtype=DOUBLE)
    rules, wanted = limits(plane, executed, max_acceleration=(60.0, 40.0, 80.0)), chunks(1, horizon=5, seed=3, size=1.0)

    def room(flat: np.ndarray) -> np.ndarray:
        chunk = torch.from_numpy(flat).view(1, 5, 3)
        step = torch.cat([executed[:, -1:], chunk], dim=1).diff(dim=1)
        bend = torch.cat([executed, chunk], dim=1).diff(n=2, dim=1)
        low, high, rate, most = (
            torch.tensor(bound, dtype=DOUBLE)
            for bound in (rules.low, rules.high, [DT * r for r in rules.max_rate], [DT**2 * a for a in rules.max_acceleration])
        )
        parts = [chunk - low, high - chunk, rate - step, rate + step, most - bend, most + bend]
        match rules.plane:
            case PlanarSpeed(of_positions=True) as plane:
                parts.append((plane.max_speed * DT) ** 2 - step[..., plane.dimensions].square().sum(-1))
            case PlanarSpeed() as plane:
                parts.append(plane.max_speed**2 - chunk[..., plane.dimensions].square().sum(-1))
            case Unicycle() as plane:
                v, omega = chunk[..., plane.dimensions].unbind(-1)
                parts += [v, v / plane.min_turn_radius - omega, v / plane.min_turn_radius + omega]
        return torch.cat([part.flatten() for part in parts]).numpy()

    target = wanted.flatten().numpy()
    reference = minimize(
        lambda z: ((z - target) ** 2).sum() / 2,
        executed[0, -1].repeat(5).numpy(),
        jac=lambda z: z - target,
        constraints={"type": "ineq", "fun": room},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert reference.status in (0, 8)  # 8: no further descent within rounding
    np.testing.assert_allclose(rules(wanted).flatten().numpy(), reference.x, rtol=0, atol=2e-5)


def test_closed_forms() -> None:
    wanted = chunks(4)
    box = limits(max_rate=FREE)(wanted)
    torch.testing.assert_close(
        box, wanted.clamp(torch.tensor(limits().low, dtype=DOUBLE), torch.tensor(limits().high, dtype=DOUBLE)), rtol=0, atol=1e-8
    )
    wide = {"low": (-math.inf,) * 3, "high": FREE, "max_rate": FREE}
    round_off = limits(PlanarSpeed(0.7, (0, 2)), **wide)(wanted)
    length = wanted[..., [0, 2]].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(round_off[..., [0, 2]], wanted[..., [0, 2]] * (0.7 / length).clamp(max=1), rtol=0, atol=1e-7)
    assert torch.equal(round_off[..., 1], wanted[..., 1])
    stuck = limits(Unicycle(0.5), **wide)(torch.tensor([[[0.0, 1.0, 0.0]]], dtype=DOUBLE))
    torch.testing.assert_close(stuck[0, 0], torch.tensor([0.4, 0.8, 0.0], dtype=DOUBLE), rtol=0, atol=1e-7)  # onto omega = 2 v


@pytest.mark.parametrize("plane", [None, PlanarSpeed(2.0, (0, 1), of_positions=True)], ids=str)
def test_outside_the_box_it_returns_as_fast_as_it_may(plane: Plane | None) -> None:
    """No feasible chunk exists: the rate limits hold, the box gives way, and a few steps later it holds again."""
    executed = torch.tensor([[[1.9, 0.0, 0.0]]], dtype=DOUBLE)
    rules, wanted = limits(plane, executed), chunks(1, horizon=12, seed=8)
    projected = rules(wanted)
    step = torch.cat([executed, projected], dim=1).diff(dim=1)
    assert (step.abs() - torch.tensor(rules.max_rate, dtype=DOUBLE) * DT).max() < 1e-8
    assert (projected[0, :, 0].diff()[:2] < 0).all()
    assert projected[0, 6:, 0].max() < 1 + 1e-8


def test_outside_the_box_the_nearest_chunk_is_found_all_the_same() -> None:
    """Home at the full rate, 0.4 an action, and not only as far as the box; the other dimensions are as wanted."""
    executed = torch.tensor([[[1.9, 0.0, 0.0]]], dtype=DOUBLE)
    projected = limits(None, executed)(torch.zeros(1, 6, 3, dtype=DOUBLE))
    torch.testing.assert_close(projected[0, :, 0], torch.tensor([1.5, 1.1, 0.7, 0.3, 0, 0], dtype=DOUBLE), rtol=0, atol=1e-7)
    assert not projected[..., 1:].any()


def test_braking_before_a_wall() -> None:
    """Full speed at the wall with bounded acceleration: the box gives way by the braking distance only."""
    executed = torch.tensor([[[0.6, 0.0, 0.0], [0.95, 0.0, 0.0]]], dtype=DOUBLE)
    rules = limits(None, executed, max_acceleration=(10.0, 10.0, 10.0))
    projected = rules(torch.full((1, 12, 3), 5.0, dtype=DOUBLE))
    bend = torch.cat([executed, projected], dim=1).diff(n=2, dim=1)
    assert bend.abs().max() < 0.1 + 1e-8
    distance = 0.25 + 0.15 + 0.05
    assert distance <= projected[0, :, 0].max() - 0.95 < 1.4 * distance


def test_rows_and_dtypes() -> None:
    wanted = chunks(3)
    together = limits(PlanarSpeed(0.7))(wanted)
    torch.testing.assert_close(limits(PlanarSpeed(0.7))(wanted[1:2]), together[1:2], rtol=0, atol=1e-12)
    assert limits()(wanted.float()).dtype == torch.float32
    broken = wanted.clone()
    broken[1, 2, 0] = math.nan
    answer = limits()(broken)
    assert answer[1, :, 0].isnan().any()  # never hidden
    torch.testing.assert_close(answer[[0, 2]], limits()(wanted)[[0, 2]], rtol=0, atol=1e-12)


def law() -> Mixture:
    means = chunks(2, horizon=4, seed=5)
    return Mixture(torch.tensor([0.5, 0.5], dtype=DOUBLE), means, torch.full_like(means, 0.3))


def test_sampled_chunks_are_feasible_and_guidance_comes_before() -> None:
    """Guided away from the box, the chunk still keeps it, because Constrain is the last Field before the solver."""
    rules, noise = limits(), RowNoise(np.arange(5), (4, 3), DOUBLE)
    away = CostGuidance(law(), lambda chunk: -5 * chunk.sum(dim=(1, 2)))
    lambdas = torch.cat([torch.linspace(-4, 4, 8, dtype=DOUBLE), torch.tensor([math.inf], dtype=DOUBLE)])
    out = ddim(Constrain(away, rules), noise.draw(), lambdas, None, noise)
    assert violation(out, rules) < 1e-8
    free = ddim(away, RowNoise(np.arange(5), (4, 3), DOUBLE).draw(), lambdas, None, noise)
    assert violation(free, rules) > 1


def test_from_the_contract() -> None:
    spec = VectorSpec(("x", "y"), ("m", "m"), "odom", (-1.0, -1.0), (1.0, 1.0), (2.0, 2.0))
    rules = ActionLimits.from_spec(spec, 0.1)
    assert (rules.low, rules.max_rate, rules.max_acceleration) == ((-1.0, -1.0), (2.0, 2.0), (math.inf, math.inf))
    with pytest.raises(KineflowError, match="for 2 action dimensions, the chunk has 3"):
        rules(chunks(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: limits(low=(2.0, 0.0, 0.0)), "is above high"),
        (lambda: limits(max_rate=(1.0, 0.0, 1.0)), "max_rate and max_acceleration must be positive"),
        (lambda: limits(max_acceleration=(1.0,)), "one low, high, max_rate and max_acceleration for each"),
        (lambda: PlanarSpeed(0.0), "PlanarSpeed.max_speed must be positive, got 0"),
        (lambda: Unicycle(-1.0), "Unicycle.min_turn_radius must be positive"),
    ],
)
def test_impossible_limits_are_refused(build: object, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        build()  # type: ignore[operator]
