"""A policy that searches: the same interface, a reward, and a budget of network calls for every observation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kineflow.contracts import ActionChunk, ContractError, KineflowError, Observation, Policy, PolicyContract, SamplingRequest
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.question import question
from kineflow.policies.samplers import RowNoise
from kineflow.policies.search.methods import Method
from kineflow.policies.search.rewards import Reward, Situation
from kineflow.policies.search.steps import Candidates


@dataclass(frozen=True)
class SearchPolicy:
    """Pure and batched like any Policy: a row's chunk depends on its observation, its seed and nothing else.

    `budget` counts the rows that the network sees for one observation; under classifier-free guidance a call costs two.
    The levels of the method replace the policy's own solver and steps.
    """

    policy: Policy  # a ChunkPolicy, or one with question()
    reward: Reward
    method: Method
    budget: int

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise KineflowError(f"the budget of a search is {self.budget}; it counts network calls and must be at least 1")

    @property
    def contract(self) -> PolicyContract:
        """The searched policy's; its golden pair is of plain sampling."""
        inner = self.policy.contract
        solver, steps = f"{type(self.method).__name__} of {self.budget} calls", len(self.method.steps.lambdas)
        return replace(inner, sampler=replace(inner.sampler, solver=solver, steps=steps))

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """The best chunk found. `request.steps` is refused: the method has levels of its own."""
        reads = getattr(self.reward, "reads", ())
        if request.prefix is not None and "prefix" not in reads:
            raise ContractError(f"{type(self.reward).__name__} does not look at the prefix given; leave it out or reward it")
        if request.steps is not None:
            raise ContractError(f"steps {request.steps} asked of a search, whose levels belong to its method; build another")
        seen = replace(observation, goal={}) if "goal" in reads else observation  # for the reward, not for the network
        asked = question(self.policy, seen, request)
        shape = (self.contract.horizons.prediction, self.contract.interface.action.vector.size)
        situation = Situation(observation, request, 1 / self.contract.interface.action.rate_hz)

        def score(chunks: Candidates) -> Tensor:
            return self.reward(physical(chunks, asked.units), situation)

        noise = RowNoise(request.seeds, shape, device=asked.device)
        chunk = self.method(asked.field, score, noise, asked.condition, self.budget // asked.calls)
        actions = asked.units.restore(chunk).float().cpu().numpy()
        return ActionChunk(actions, situation.step_s, np.asarray(observation.stamp_s)[..., -1])


def physical(chunks: Candidates, units: ActionUnits) -> Candidates:
    """Candidates in the units of the robot."""
    return chunks * units.scale + units.offset.unsqueeze(1)
