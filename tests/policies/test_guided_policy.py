"""Guidance through `predict`: prefixes, and guides written in physical units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kineflow.contracts import CommittedPrefix, ContractError, Observation, SamplingRequest
from kineflow.policies.constraints import ActionLimits, Constrain
from kineflow.policies.cost_guidance import CostGuidance
from kineflow.policies.field import Field, Guide
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.objectives import Diffusion, FlowMap, FlowMatching
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.policy_statistics import statistics_of
from kineflow.policies.real_time_chunking import committed_prefix
from tests.policies.conftest import INTERFACE, POLICY

SEEDS = np.arange(3)


def network(objective: FlowMatching | Diffusion | FlowMap | None = None) -> PolicyNetwork:
    rng = np.random.default_rng(0)
    state, action = rng.uniform(-3, 3, (64, 2, 3)).astype(np.float32), rng.uniform(-3, 3, (64, 8, 2)).astype(np.float32)
    raw = {"state": statistics_of(state[:, -1]), "action": statistics_of(action[:, 0])}
    config = replace(POLICY, objective=objective) if objective else POLICY
    torch.manual_seed(0)
    built = PolicyNetwork(config, INTERFACE, config.statistics(INTERFACE, raw, state, action))
    torch.nn.init.normal_(built.head.outputs.weight, std=0.1)
    return built.eval()


def observation() -> Observation:
    state = np.random.default_rng(1).uniform(-2, 2, (3, 2, 3)).astype(np.float32)
    return Observation(state, np.tile(np.arange(2.0), (3, 1)))


@pytest.mark.parametrize("objective", [FlowMatching(steps=4), Diffusion(steps=4), FlowMap(solver="euler", steps=4)], ids=str)
def test_a_prefix_in_physical_units_is_continued(objective: FlowMatching | Diffusion | FlowMap) -> None:
    net, seen = network(objective), observation()
    free = net.predict(seen, SamplingRequest(SEEDS))
    other = net.predict(seen, SamplingRequest(SEEDS + 10))
    prefix = committed_prefix(other, consumed=0, delay=3, execution=3)
    again = net.predict(seen, SamplingRequest(SEEDS, prefix=prefix)).actions
    kept = np.abs(again - other.actions)[:, :3].mean()
    assert kept < 0.25 * np.abs(free.actions - other.actions)[:, :3].mean()
    nothing = CommittedPrefix(prefix.actions, np.zeros_like(prefix.soft_mask), 0)
    np.testing.assert_allclose(net.predict(seen, SamplingRequest(SEEDS, prefix=nothing)).actions, free.actions, atol=1e-6)


def test_one_step_keeps_a_whole_chunk() -> None:
    """With one step beta is 1: the kept actions are the old ones, in metres and though they count from the robot's position."""
    net, seen = network(), observation()
    wanted = np.random.default_rng(2).uniform(-2, 2, (3, 8, 2)).astype(np.float32)
    prefix = CommittedPrefix(wanted, np.ones((3, 8), np.float32), 8)
    actions = net.predict(seen, SamplingRequest(SEEDS, steps=1, prefix=prefix)).actions
    np.testing.assert_allclose(actions, wanted, atol=1e-5)


def test_a_prefix_that_does_not_fit_is_refused() -> None:
    prefix = CommittedPrefix(np.zeros((3, 5, 2), np.float32), np.zeros((3, 5), np.float32), 1)
    with pytest.raises(ContractError, match=r"actions \(3, 5, 2\) and mask \(3, 5\); the policy's chunks are \(3, 8, 2\)"):
        network().predict(observation(), SamplingRequest(SEEDS, prefix=prefix))


def test_limits_hold_for_a_prefix_that_leaves_them() -> None:
    """The caller's guide is nearer to the solver than the prefix: what was planned out of the box is cut to it."""
    net, seen = network(), observation()
    prefix = CommittedPrefix(np.full((3, 8, 2), 2.0, np.float32), np.ones((3, 8), np.float32), 8)

    def limited(units: ActionUnits) -> Guide:
        return lambda field: Constrain(field, lambda chunk: units.normalise(units.restore(chunk).clamp(-1.5, 1.5)))

    actions = net.predict(seen, SamplingRequest(SEEDS, steps=1, prefix=prefix), limited).actions
    np.testing.assert_allclose(actions, 1.5, atol=1e-5)


def test_costs_and_limits_in_metres() -> None:
    """A cost pulls all chunks to a goal; limits of rate and box hold for what comes out, from the last executed action on."""
    net, seen = network(), observation()
    goal, last = torch.tensor([2.5, -2.0]), torch.from_numpy(seen.state[:, -1:, :2])
    vector = replace(INTERFACE.action.vector, low=(-2.2, -2.2), high=(2.2, 2.2), max_rate=(4.0, 4.0))
    limits = ActionLimits.from_spec(vector, 0.1, executed=last)

    def pulled(units: ActionUnits) -> Guide:
        return lambda field: CostGuidance(field, lambda chunk: 5 * (units.restore(chunk)[:, -1] - goal).square().sum(-1))

    def limited(units: ActionUnits) -> Guide:
        def guide(field: Field) -> Field:
            return Constrain(pulled(units)(field), lambda chunk: units.normalise(limits(units.restore(chunk))))

        return guide

    request = SamplingRequest(SEEDS)
    distance = [
        np.linalg.norm(net.predict(seen, request, guide).actions[:, -1] - goal.numpy(), axis=-1).max() for guide in (None, pulled)
    ]
    assert distance[1] < 0.5 * distance[0]
    actions = net.predict(seen, request, limited).actions
    step = np.diff(np.concatenate([last.numpy(), actions], axis=1), axis=1)
    assert np.abs(step).max() < 0.4 + 1e-5
    assert np.abs(actions).max() < 2.2 + 1e-5
