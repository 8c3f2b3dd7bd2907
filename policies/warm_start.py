"""Chunks that continue the previous one: a policy whose noise starts where the last plan is, not at random.

previous chunk, minus what was executed since, last action repeated, in the units of now
  -> an invertible flow map (`distill --method bifm`): the noise behind it, partly renewed, and back in one jump
  -> a MixFlow policy (`distill --method mixflow`): the learned source, mixed with white noise
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from kineflow.contracts import ActionChunk, ContractError, KineflowError, Observation, PolicyContract, SamplingRequest
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.distillation.flow_maps import renewed
from kineflow.policies.field import Chunk, Tokens
from kineflow.policies.flow_map import FlowMap, average_velocity
from kineflow.policies.heads.guessing import GuessingHead
from kineflow.policies.mix_flow import MixFlow, shifted
from kineflow.policies.samplers import RowNoise


@dataclass
class WarmStartPolicy:
    """A Policy with a memory: row b of every call is the same robot; `reset` before an episode and between robots.

    `renewal` 1 forgets the previous chunk, 0 starts from it alone. How much of it is executed is read off the stamps. Rows whose
    previous chunk is used up, and the first call, are sampled as the policy always does.
    """

    policy: ChunkPolicy
    renewal: float = 0.5
    _previous: ActionChunk | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.renewal <= 1:
            raise KineflowError(f"renewal is {self.renewal:g}; it is the share of fresh noise, from 0 to 1")
        objective = self.policy.network.config.objective
        if not (
            isinstance(objective, MixFlow)
            or (isinstance(objective, FlowMap) and objective.invertible and objective.solver == "jump")
        ):
            raise KineflowError(
                f"this {type(objective).__name__} policy cannot start from a previous chunk; make a student that can, and jumps: "
                "`kineflow distill RUN --method bifm` or mixflow"
            )

    @property
    def contract(self) -> PolicyContract:
        return self.policy.contract

    def reset(self) -> None:
        """Forget the previous chunks."""
        self._previous = None

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        if request.prefix is not None or request.steps is not None:
            raise ContractError("a warm start takes no prefix and no other number of steps; leave them out")
        before, now = self._previous, np.asarray(observation.stamp_s)[..., -1]
        if before is not None and len(before.actions) != len(request.seeds):
            raise ContractError(f"the memory is of {len(before.actions)} robots, got {len(request.seeds)} rows; reset() between")
        gone = None if before is None else np.rint((now - before.stamp_s) / before.step_s).astype(np.int64)
        warm = np.zeros(len(now), bool) if gone is None else (gone >= 0) & (gone < self.contract.horizons.prediction)
        # Every row's cold answer comes from the same call as ever, so that a row does not depend on its neighbours.
        answer = None if warm.all() else self.policy.predict(observation, request)
        if before is not None and gone is not None and warm.any():
            continued = self._continued(before.actions, np.where(warm, gone, 0), observation, request)
            cold = continued if answer is None else answer.actions
            answer = ActionChunk(np.where(warm[:, None, None], continued, cold), before.step_s, now)
        assert answer is not None
        self._previous = answer
        return answer

    def _continued(self, before: np.ndarray, gone: np.ndarray, observation: Observation, request: SamplingRequest) -> np.ndarray:
        network = self.policy.network
        encoded, device = network.encode(observation), network.action_scale.device
        left = shifted(torch.from_numpy(before).to(device), torch.from_numpy(gone).to(device))
        noise = RowNoise(request.seeds, (before.shape[1], before.shape[2]), device=device)
        chunk = self._warm(encoded.units.normalise(left), noise, encoded.condition)
        actions: np.ndarray = encoded.units.restore(chunk).float().cpu().numpy()
        return actions

    def _warm(self, previous: Chunk, noise: RowNoise, condition: Tokens) -> Chunk:
        head, objective = self.policy.network.head, self.policy.network.config.objective
        if isinstance(objective, MixFlow):
            assert isinstance(head, GuessingHead)
            return objective.sample_from(head, head.guess(previous, condition), noise.draw(), condition, 1 - self.renewal)
        assert isinstance(objective, FlowMap)
        start = renewed(average_velocity(head, condition), previous, noise.draw(), self.renewal)
        return objective.jumped(head, start, objective.steps, condition, noise)
