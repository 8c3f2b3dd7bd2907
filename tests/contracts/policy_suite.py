"""Conformance suite of `contracts.Policy`: subclass it, give the fixture `policy`, and pytest checks the promises.

class TestMyPolicy(PolicySuite):
    @pytest.fixture
    def policy(self) -> Policy:
        return load_my_policy()
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kineflow.config import from_plain
from kineflow.contracts import ContractError, Observation, Policy, PolicyContract, SamplingRequest, to_json

ROWS = 6


class PolicySuite:
    """What everything outside training relies on: pure, batched, seeded per row, checked."""

    @pytest.fixture
    def policy(self) -> Policy:
        raise NotImplementedError("give the policy under test")

    @pytest.fixture
    def observation(self, policy: Policy) -> Observation:
        """Different states within the limits of the contract; images of noise where cameras are needed."""
        contract, rng = policy.contract, np.random.default_rng(0)
        steps, interface = contract.horizons.observation, policy.contract.interface
        low = np.concatenate([np.clip(f.vector.low, -1e3, None) for f in interface.features.values()])
        high = np.concatenate([np.clip(f.vector.high, None, 1e3) for f in interface.features.values()])
        images = {
            name: rng.integers(0, 256, (ROWS, steps, camera.height, camera.width, 3), dtype=np.uint8)
            for name, camera in interface.cameras.items()
        }
        state = rng.uniform(low, high, (ROWS, steps, len(low))).astype(np.float32)
        return Observation(state, np.tile(np.arange(steps) / 10, (ROWS, 1)), images)

    @pytest.fixture
    def request_(self) -> SamplingRequest:
        return SamplingRequest(np.arange(ROWS, dtype=np.int64))

    def test_is_a_policy(self, policy: Policy) -> None:
        assert isinstance(policy, Policy)

    def test_chunk_has_the_promised_form(self, policy: Policy, observation: Observation, request_: SamplingRequest) -> None:
        chunk, contract = policy.predict(observation, request_), policy.contract
        assert chunk.actions.shape == (ROWS, contract.horizons.prediction, contract.interface.action.vector.size)
        assert chunk.actions.dtype == np.float32
        assert np.isfinite(chunk.actions).all()
        assert chunk.step_s == pytest.approx(1 / contract.interface.action.rate_hz)
        assert np.array_equal(chunk.stamp_s, observation.stamp_s[:, -1])

    def test_is_pure(self, policy: Policy, observation: Observation, request_: SamplingRequest) -> None:
        first = policy.predict(observation, request_).actions.copy()
        other = replace(observation, state=observation.state[::-1].copy())
        policy.predict(other, replace(request_, seeds=request_.seeds + 99))
        assert np.array_equal(policy.predict(observation, request_).actions, first)

    def test_inputs_are_not_changed(self, policy: Policy, observation: Observation, request_: SamplingRequest) -> None:
        before = observation.state.copy()
        policy.predict(observation, request_)
        assert np.array_equal(observation.state, before)

    def test_a_row_does_not_depend_on_its_neighbours(
        self, policy: Policy, observation: Observation, request_: SamplingRequest
    ) -> None:
        base = policy.predict(observation, request_).actions
        state, seeds = observation.state.copy(), request_.seeds.copy()
        state[1:], seeds[1:] = state[:0:-1], seeds[1:] + 50
        changed = policy.predict(replace(observation, state=state), replace(request_, seeds=seeds)).actions
        assert np.array_equal(changed[0], base[0])

    def test_observations_that_do_not_fit_are_refused(
        self, policy: Policy, observation: Observation, request_: SamplingRequest
    ) -> None:
        broken = observation.state.copy()
        broken[1, 0, 0] = np.nan
        for state in (broken, observation.state[:, :, :-1], observation.state[:-1]):
            with pytest.raises(ContractError):
                policy.predict(replace(observation, state=state), request_)

    def test_contract_survives_its_file(self, policy: Policy) -> None:
        assert from_plain(PolicyContract, json.loads(to_json(policy.contract)), "contract.json") == policy.contract
