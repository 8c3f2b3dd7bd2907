"""The shipped policies keep the promises of the Policy protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kineflow.contracts import Policy
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.objectives import MIP, Diffusion
from kineflow.policies.train import TrainConfig, train
from tests.contracts.policy_suite import PolicySuite


class TestFlowPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, trained: Path) -> Policy:
        return load_policy(trained)


class TestDiffusionPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, config: TrainConfig, tmp_path: Path) -> Policy:
        objective = Diffusion(solver="ddpm", steps=5)
        return train(
            replace(config, steps=3, policy=replace(config.policy, objective=objective, action_scaling="range")), tmp_path / "r"
        )


class TestMipPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, config: TrainConfig, tmp_path: Path) -> Policy:
        return train(replace(config, steps=3, policy=replace(config.policy, objective=MIP())), tmp_path / "r")
