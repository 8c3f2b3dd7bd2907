"""Optimal-transport coupling: exact, changes neither law, refused where it would bias; side by side with torchcfm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.couplings import coupled, optimal_assignment, transport_costs
from kineflow.policies.losses import draw_normal
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.paths import CondOT, Cosine, Path
from kineflow.policies.predictions import Denoised, from_denoised

DOUBLE = torch.float64


def batch(count: int, horizon: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, chunks, and full weight."""
    generator = torch.Generator().manual_seed(seed)
    noise, actions = torch.randn(2, count, horizon, 2, generator=generator, dtype=DOUBLE)
    return noise, 0.5 * actions + 1, torch.ones(count, horizon, dtype=DOUBLE)


def test_no_assignment_is_cheaper() -> None:
    """Against all 720 of them."""
    noise, actions, weight = batch(6)
    chosen = optimal_assignment(noise, actions, weight)
    assert sorted(chosen.tolist()) == list(range(6))
    prices = [((actions - noise[list(order)]) ** 2).sum().item() for order in itertools.permutations(range(6))]
    assert ((actions - noise[chosen]) ** 2).sum().item() == pytest.approx(min(prices), rel=1e-12)


def test_costs_are_weighted_squared_distances() -> None:
    noise, actions, weight = batch(5)
    torch.testing.assert_close(transport_costs(noise, actions, weight), torch.cdist(actions.flatten(1), noise.flatten(1)) ** 2)
    weight[0, 1:] = 0
    expected = ((actions[0, 0] - noise[:, 0]) ** 2).sum(-1)
    torch.testing.assert_close(transport_costs(noise, actions, weight)[0], expected)
    garbage = actions.clone()
    garbage[0, 1:] = 1e6
    assert torch.equal(optimal_assignment(noise, garbage, weight), optimal_assignment(noise, actions, weight))


def test_both_laws_stay_what_they_are() -> None:
    """The coupled noise is the same set of rows, so every batch keeps its marginals; only the pairs are closer."""
    noise, actions, weight = batch(256)
    paired = coupled("optimal_transport", noise, actions, None, weight)
    assert torch.equal(paired.flatten(1)[paired[:, 0, 0].argsort()], noise.flatten(1)[noise[:, 0, 0].argsort()])
    assert ((paired - actions) ** 2).mean() < 0.8 * ((noise - actions) ** 2).mean()
    assert coupled("independent", noise, actions, None, weight) is noise


def test_one_number_is_coupled_by_rank() -> None:
    """In one dimension optimal transport is monotone."""
    noise, actions, weight = (v[:, :1] for v in batch(64))
    noise, actions = noise[..., :1], actions[..., :1]
    paired = coupled("optimal_transport", noise, actions, None, weight)
    assert torch.equal(paired.flatten().argsort(), actions.flatten().argsort())


def two_modes(count: int, seed: int) -> torch.Tensor:
    sign = torch.randint(2, (count, 1, 1), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return sign.double()


def test_fewer_steps_go_further() -> None:
    """Chunks are -1 or 1. With independent pairs one Euler step ends at their mean, 0; coupled, near the mode of its side."""

    def one_step_error(coupling: str) -> float:
        """Of the best velocity at t = 0, fitted per bin of the noise, followed for one step."""
        total = torch.zeros(40, dtype=DOUBLE)
        counts = torch.zeros(40, dtype=DOUBLE)
        edges = torch.linspace(-3, 3, 41, dtype=DOUBLE)[1:-1].contiguous()
        for seed in range(20):
            actions, noise = two_modes(256, seed), batch(256, 1, seed)[0][..., :1]
            paired = coupled(coupling, noise, actions, None, torch.ones(256, 1))  # type: ignore[arg-type]
            where = torch.bucketize(paired.flatten().contiguous(), edges)
            total.index_add_(0, where, (actions - paired).flatten())
            counts.index_add_(0, where, torch.ones(256, dtype=DOUBLE))
        start = torch.randn(4000, generator=torch.Generator().manual_seed(99), dtype=DOUBLE)
        end = start + (total / counts.clamp(min=1))[torch.bucketize(start, edges)]
        return (end.abs() - 1).abs().mean().item()

    assert one_step_error("independent") > 0.8
    assert one_step_error("optimal_transport") < 0.15


def test_different_conditions_are_refused() -> None:
    objective = FlowMatching(coupling="optimal_transport")
    actions, weight, generator = torch.randn(8, 4, 2), torch.ones(8, 4), torch.Generator()
    condition = torch.randn(1, 1, 3).expand(8, 1, 3).clone()
    assert objective.loss(lambda x, t, c: x, actions, condition, generator, weight).shape == (8,)
    condition[3] += 1
    with pytest.raises(KineflowError, match=r"different conditions.*coupling: independent"):
        objective.loss(lambda x, t, c: x, actions, condition, generator, weight)


def test_why_conditions_are_refused() -> None:
    """Condition -1 or 1, chunk = condition: a condition trains on its own half of the bell curve, with mean +-sqrt(2 / pi),
    while sampling starts from all of it."""
    condition = two_modes(400, 3)
    noise = batch(400, 1)[0][..., :1]
    paired = coupled("optimal_transport", noise, condition, None, torch.ones(400, 1))
    own_half = paired[condition > 0].mean().item()
    assert own_half == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)
    assert abs(noise[condition > 0].mean().item()) < 0.2


def test_the_loss_trains_on_the_coupled_noise() -> None:
    """The state at the time drawn lies on the line between a chunk and the noise that the assignment gave it."""
    actions, weight = batch(32)[1], torch.ones(32, 4)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        seen.append((x, t))
        return x

    for coupling in ("independent", "optimal_transport"):
        FlowMatching(coupling=coupling).loss(head, actions, None, torch.Generator().manual_seed(3), weight)  # type: ignore[arg-type]
    (plain, t), (x, same_t) = seen
    assert torch.equal(t, same_t)
    share = t[:, None, None]
    drawn, used = ((v - share * actions) / (1 - share) for v in (plain, x))
    torch.testing.assert_close(used, drawn[optimal_assignment(drawn, actions, weight)], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(used, drawn)


# --- side by side with torchcfm (installed by `make test`) -----------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 64, 256])
def test_same_plan_cost_as_torchcfm(count: int) -> None:
    torchcfm = pytest.importorskip("torchcfm.optimal_transport")
    noise, actions, weight = batch(count)
    plan = torchcfm.OTPlanSampler("exact").get_map(noise, actions)
    theirs = count * (torch.from_numpy(plan) * torch.cdist(noise.flatten(1), actions.flatten(1)) ** 2).sum().item()
    ours = ((actions - coupled("optimal_transport", noise, actions, None, weight)) ** 2).sum().item()
    assert ours == pytest.approx(theirs, rel=1e-10)
    chosen = optimal_assignment(noise, actions, weight).numpy()
    assert np.array_equal(plan.argmax(axis=0), chosen), "the plan of random points is unique: the same pairs too"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ConditionalFlowMatcher", CondOT()),
        ("ExactOptimalTransportConditionalFlowMatcher", CondOT()),
        ("VariancePreservingConditionalFlowMatcher", Cosine()),
    ],
)
def test_same_states_and_targets_as_torchcfm(name: str, path: Path) -> None:
    """x_t and u_t of I-CFM and OT-CFM are ours on CondOT, those of VP-CFM ours on the cosine path; same pairs and times."""
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    noise, actions, _ = batch(50)
    t = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    matcher = getattr(torchcfm, name)(sigma=0.0)
    if name.startswith("Exact"):
        np.random.seed(0)  # noqa: NPY002  (torchcfm draws pairs from the plan with NumPy's global generator)
        noise, actions = matcher.ot_sampler.sample_plan(noise, actions)
        matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    _, x, target = matcher.sample_location_and_conditional_flow(noise, actions, t=t)
    point = path.at(t).over(actions)
    torch.testing.assert_close(point.alpha * actions + point.sigma * noise, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(from_denoised("velocity", Denoised(actions, noise), point), target, rtol=1e-12, atol=1e-12)


def test_loss_equals_one_written_with_torchcfm() -> None:
    """Same generator, same network: the mean squared error against torchcfm's targets is our loss."""
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    actions, generator = batch(40)[1], torch.Generator().manual_seed(4)
    t = 1 - (1 - torch.rand(40, generator=generator, dtype=DOUBLE))
    noise = draw_normal(actions, generator)
    _, x, target = torchcfm.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(noise, actions, t=t)
    expected = ((torch.sin(x) * t[:, None, None] - target) ** 2).mean(dim=(1, 2))
    ours = FlowMatching().loss(
        lambda x, t, c: torch.sin(x) * t[:, None, None], actions, None, generator.manual_seed(4), torch.ones(40, 4)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)
