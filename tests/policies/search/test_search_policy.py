"""A trained policy that searches: still a Policy, in physical units, within its budget of network rows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.contracts import CommittedPrefix, ContractError, KineflowError, Observation, Policy, SamplingRequest
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.objectives import FlowMatching, Regression
from kineflow.policies.paths import CondOT
from kineflow.policies.search.methods import BestOfN, Method, RolloverBudgetForcing, WeightedParticles
from kineflow.policies.search.policy import SearchPolicy
from kineflow.policies.search.rewards import BackwardCoherence, GoalDistance, Situation, Smoothness
from kineflow.policies.search.steps import Steps
from kineflow.policies.time_grids import uniform_time_grid
from kineflow.policies.train import TrainConfig, train
from tests.contracts.policy_suite import PolicySuite

SIX = Steps.along(uniform_time_grid(CondOT(), 6), k=1.0)
METHODS: list[Method] = [BestOfN(SIX), WeightedParticles(SIX, temperature=0.1), RolloverBudgetForcing(SIX, first=5)]


@pytest.fixture
def plain(trained: Path) -> ChunkPolicy:
    return load_policy(trained)


def asked(rows: int = 6) -> tuple[Observation, SamplingRequest]:
    angle = np.linspace(0, 5, rows)
    state = np.stack([np.cos(angle), np.sin(angle), angle], axis=-1)[:, None].repeat(2, axis=1).astype(np.float32)
    return Observation(state, np.tile([0.0, 0.1], (rows, 1))), SamplingRequest(np.arange(rows, dtype=np.int64))


class TestBestOfNPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, plain: ChunkPolicy) -> Policy:
        return SearchPolicy(plain, Smoothness(), METHODS[0], budget=20)


class TestParticlesPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, plain: ChunkPolicy) -> Policy:
        return SearchPolicy(plain, Smoothness(2), METHODS[1], budget=20)


class TestRolloverPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, plain: ChunkPolicy) -> Policy:
        return SearchPolicy(plain, GoalDistance((1.0, 1.0)), METHODS[2], budget=20)


def test_best_of_one_is_the_policy(plain: ChunkPolicy) -> None:
    observation, request = asked()
    method = BestOfN(Steps.along(uniform_time_grid(CondOT(), 4), k=0.0))
    searched = SearchPolicy(plain, Smoothness(), method, budget=7).predict(observation, request)
    expected = plain.predict(observation, request)
    np.testing.assert_allclose(searched.actions, expected.actions, rtol=1e-4, atol=1e-4)
    assert np.array_equal(searched.stamp_s, expected.stamp_s)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_search_gets_closer_to_a_goal_in_physical_units(plain: ChunkPolicy, method: Method) -> None:
    observation, request = asked(16)
    goal = np.array([0.3, -0.2])

    def distance(policy: Policy) -> float:
        return float(np.linalg.norm(policy.predict(observation, request).actions[:, -1] - goal, axis=-1).mean())

    found = distance(SearchPolicy(plain, GoalDistance((0.3, -0.2)), method, budget=60))
    assert found < 0.9 * distance(plain)


def test_reward_sees_what_the_robot_would_get(plain: ChunkPolicy) -> None:
    """The actions are relative to the state of each row and scaled; the reward sees metres, the last ones it saw are returned."""
    seen: list[torch.Tensor] = []

    def reward(actions: torch.Tensor, situation: Situation) -> torch.Tensor:
        seen.append(actions)
        assert situation.step_s == pytest.approx(0.1)
        return actions.new_zeros(actions.shape[:2])

    found = SearchPolicy(plain, reward, BestOfN(SIX), budget=6).predict(*asked())
    np.testing.assert_allclose(found.actions, seen[-1][:, 0].numpy(), rtol=1e-6, atol=1e-6)


def test_budget_counts_rows_of_the_network(config: TrainConfig, tmp_path: Path) -> None:
    objective = FlowMatching(condition_dropout=0.2, guidance_scale=2.0)
    policy = train(replace(config, steps=2, policy=replace(config.policy, objective=objective)), tmp_path / "run")
    rows: list[int] = []
    policy.network.head.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    observation, request = asked(3)
    for method, scale in itertools.product(METHODS, (None, 1.0, 0.0, 3.0)):
        rows.clear()
        SearchPolicy(policy, Smoothness(), method, budget=25).predict(observation, replace(request, guidance_scale=scale))
        assert 3 * 10 <= sum(rows) <= 3 * 25, (method, scale)


def test_prefix_makes_chunks_continue(plain: ChunkPolicy) -> None:
    """Backward coherence: of many samples, the one that goes on like the chunk in force."""
    observation, request = asked()
    old = plain.predict(observation, replace(request, seeds=request.seeds + 1000)).actions
    mask = np.tile(np.linspace(1, 0, 8, dtype=np.float32), (6, 1))
    committed = replace(request, prefix=CommittedPrefix(old, mask, 0))

    def seam(policy: Policy, request: SamplingRequest) -> float:
        return float((np.abs(policy.predict(observation, request).actions - old).mean(-1) * mask).mean())

    ten = SearchPolicy(plain, BackwardCoherence(), BestOfN(SIX), budget=60)
    one = replace(ten, budget=6)
    assert seam(ten, committed) < 0.8 * seam(one, committed)
    with pytest.raises(ContractError, match="does not look at the prefix"):
        SearchPolicy(plain, Smoothness(), BestOfN(SIX), budget=60).predict(observation, committed)


def test_goal_reaches_the_reward_but_not_the_network(plain: ChunkPolicy) -> None:
    observation, request = asked()
    goal = {"point": np.tile([0.3, -0.2], (6, 1))}
    policy = SearchPolicy(plain, GoalDistance(), BestOfN(SIX), budget=60)
    fixed = SearchPolicy(plain, GoalDistance((0.3, -0.2)), BestOfN(SIX), budget=60)
    found = policy.predict(replace(observation, goal=goal), request)
    assert np.array_equal(found.actions, fixed.predict(observation, request).actions)
    with pytest.raises(ContractError, match="takes no goal"):
        fixed.predict(replace(observation, goal=goal), request)


def test_what_cannot_be_searched_is_refused(plain: ChunkPolicy, config: TrainConfig, tmp_path: Path) -> None:
    observation, request = asked()
    policy = SearchPolicy(plain, Smoothness(), BestOfN(SIX), budget=60)
    with pytest.raises(ContractError, match="levels belong to its method"):
        policy.predict(observation, replace(request, steps=3))
    with pytest.raises(KineflowError, match="at least 1"):
        replace(policy, budget=0)
    with pytest.raises(KineflowError, match="no field to search"):
        replace(policy, policy=policy).predict(observation, request)
    regression = train(replace(config, steps=1, policy=replace(config.policy, objective=Regression())), tmp_path / "run")
    with pytest.raises(KineflowError, match="Regression policy has no noise levels"):
        replace(policy, policy=regression).predict(observation, request)


def test_contract_says_how_it_samples(plain: ChunkPolicy) -> None:
    policy = SearchPolicy(plain, Smoothness(), RolloverBudgetForcing(SIX), budget=60)
    assert policy.contract.sampler.solver == "RolloverBudgetForcing of 60 calls"
    assert policy.contract.sampler.steps == 6
    assert policy.contract.interface == plain.contract.interface
