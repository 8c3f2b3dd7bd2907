"""A policy's Field at one observation: what search and streaming work on instead of `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from kineflow.contracts import ContractError, KineflowError, Observation, Policy, PolicyContract, SamplingRequest
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.field import Field, Head, NullTokens, Tokens
from kineflow.policies.normaliser import ActionUnits


@dataclass(frozen=True)
class Question:
    """What is left to solve: a field, the tokens of each row, and the units of the answer."""

    field: Field
    condition: Tokens | None
    units: ActionUnits
    calls: int = 1  # network rows behind each row of a field call; 2 under classifier-free guidance
    device: torch.device | str = "cpu"


@runtime_checkable
class AsksField(Protocol):
    """A policy that is not a ChunkPolicy but has a Field, for instance a composed one."""

    @property
    def contract(self) -> PolicyContract: ...

    def question(self, observation: Observation, request: SamplingRequest) -> Question:
        """`request.guidance_scale` is applied; raises ContractError for observations that do not fit."""
        ...


@runtime_checkable
class _HasField(Protocol):
    def field(self, head: Head, null_condition: NullTokens | None = None, guidance_scale: float | None = None) -> Field: ...


def question(policy: Policy, observation: Observation, request: SamplingRequest) -> Question:
    """The field of `policy` at `observation`, guided as requested.

    Raises:
        KineflowError: the policy has no noise levels (regression), or is neither a ChunkPolicy nor an AsksField.
        ContractError: the observation does not fit the policy.
    """
    if len(request.seeds) != len(observation.state):
        raise ContractError(f"{len(request.seeds)} seeds for {len(observation.state)} observations; give one seed per row")
    if isinstance(policy, AsksField):
        return policy.question(observation, request)
    if not isinstance(policy, ChunkPolicy):
        raise KineflowError(f"a {type(policy).__name__} gives no field to search; use a ChunkPolicy or one with question()")
    network = policy.network
    objective = network.config.objective
    if not isinstance(objective, _HasField):
        raise KineflowError(
            f"a {type(objective).__name__} policy has no noise levels, so nothing to search; take a flow or diffusion one"
        )
    encoded = network.encode(observation)
    field = objective.field(network.head, network.null_condition, request.guidance_scale)
    configured = getattr(objective, "guidance_scale", 1.0)
    scale = configured if request.guidance_scale is None else request.guidance_scale
    return Question(field, encoded.condition, encoded.units, 1 if scale in (0, 1) else 2, network.action_scale.device)
