"""T13: heads that were really trained, on a conditional mixture of four modes in the plane, sampled in 1, 2 and 4 steps.

The bounds are 1.4 to 3 times what was measured; energy distance, 0 for the same law. One tiny flow head is trained once,
and every flow map starts from it (its second time is zero at first), so the file takes a quarter of a minute on an idle core.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kineflow.policies.field import SampleOptions
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.samplers import RowNoise

HEAD = MLP(width=96, depth=1, signal_width=32)
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4])  # of the modes, at quarter turns from the condition's angle
ANGLES = (0.2, 0.8, 1.4)
PER_ANGLE, BATCH = 600, 256

ONE_TIME = {  # how it predicts -> bounds on the energy distance after 1, 2 and 4 steps
    "velocity": (0.8, 0.3, 0.05),
    "epsilon": (1.1, 0.3, 0.05),
    "sample": (0.8, 0.3, 0.05),
}
MAPS = {  # objective, optimiser steps from the flow head, bounds
    "lsd": (FlowMap(method="lsd", diagonal=0.5), 150, (0.04, 0.03, 0.03)),
    "psd": (FlowMap(method="psd", diagonal=0.5), 300, (0.12, 0.03, 0.03)),
    "meanflow": (FlowMap(method="meanflow", derivative="central_difference", diagonal=0.5), 300, (0.14, 0.065, 0.045)),
}


def modes(angle: Tensor, generator: torch.Generator) -> Tensor:
    """One action of two dimensions for each angle `[B]`: `[B, 1, 2]`."""
    turned = angle + math.pi / 2 * torch.multinomial(SHARES, len(angle), replacement=True, generator=generator)
    centre = torch.stack([turned.cos(), turned.sin()], dim=-1)
    return (centre + 0.15 * torch.randn(len(angle), 2, generator=generator))[:, None]


def tokens(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]


def train(head: nn.Module, objective: FlowMatching | FlowMap, steps: int) -> nn.Module:
    """Adam with warm-up, cosine decay and averaged weights, as `kineflow train` does it."""
    generator, weights, weight = torch.Generator().manual_seed(1), list(head.parameters()), torch.ones(BATCH, 1)
    averaged = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 30) * (1 + math.cos(math.pi * step / steps)) / 2
        angle = math.pi / 2 * torch.rand(BATCH, generator=generator)
        loss = objective.loss(head, modes(angle, generator), tokens(angle), generator, weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averaged, [p.detach() for p in weights], 1 - min(0.98, (1 + step) / (10 + step)))
    with torch.no_grad():
        for p, mean in zip(weights, averaged, strict=True):
            p.copy_(mean)
    return head.eval()


@functools.cache
def one_time_head(prediction: str) -> nn.Module:
    torch.manual_seed(0)
    objective = FlowMatching(prediction=prediction, loss_space=prediction)  # type: ignore[arg-type]
    return train(HEAD.build(1, 2, (1, 2)), objective, 500)


def two_time_head() -> nn.Module:
    """The trained flow head, with a second time that it does not use yet."""
    torch.manual_seed(0)
    head = HEAD.build(1, 2, (1, 2), two_times=True)
    head.load_state_dict(one_time_head("velocity").state_dict(), strict=False)
    return head


@torch.no_grad()
def distances(objective: FlowMatching | FlowMap, head: nn.Module) -> list[float]:
    """Energy distance to the data after 1, 2 and 4 steps, mean over conditions."""
    found = []
    for steps in (1, 2, 4):
        angle = torch.tensor(ANGLES).repeat_interleave(PER_ANGLE)
        noise = RowNoise(np.arange(len(angle)), (1, 2))
        chunks = objective.sample(head, noise, tokens(angle), SampleOptions(steps=steps))[:, 0].split(PER_ANGLE)
        data = modes(torch.tensor(ANGLES).repeat_interleave(3000), torch.Generator().manual_seed(9))[:, 0].split(3000)
        found.append(sum(energy_distance(x, y) for x, y in zip(chunks, data, strict=True)) / len(ANGLES))
    return found


def energy_distance(x: Tensor, y: Tensor) -> float:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b).mean()

    return float(2 * mean(x, y) - mean(x, x) - mean(y, y))


def check(found: list[float], bounds: tuple[float, float, float]) -> None:
    assert all(distance < bound for distance, bound in zip(found, bounds, strict=True)), f"{found} against {bounds}"
    assert all(later < earlier + 0.005 for earlier, later in itertools.pairwise(found)), f"more steps are worse: {found}"


@pytest.mark.parametrize("prediction", ONE_TIME)
def test_heads_with_one_time(prediction: str) -> None:
    """One step can only give the conditional mean; four are close to the data."""
    objective = FlowMatching(prediction=prediction, loss_space=prediction)  # type: ignore[arg-type]
    found = distances(objective, one_time_head(prediction))
    check(found, ONE_TIME[prediction])
    assert found[0] > 0.4


@pytest.mark.parametrize("method", MAPS)
def test_flow_maps_need_one(method: str) -> None:
    objective, steps, bounds = MAPS[method]
    check(distances(objective, train(two_time_head(), objective, steps)), bounds)


def test_the_bounds_tell_a_trained_jump_from_an_untrained_one() -> None:
    """Negative control: the flow head jumps with its velocity, which is Euler."""
    found = distances(FlowMap(), two_time_head())
    for _, _, bounds in MAPS.values():
        assert found[0] > 2 * bounds[0]
        assert found[1] > 2 * bounds[1]
    assert found == pytest.approx(distances(FlowMatching(), one_time_head("velocity")), rel=1e-3)
