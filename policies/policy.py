"""Encoder + head + objective + normaliser: the network that is trained, and how it answers an observation.

observed --encoder--> condition [B, N, D] --head, objective--> chunk [B, H, A] --restore--> actions in physical units
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import (
    ActionChunk,
    ContractError,
    FeatureStatistics,
    Interface,
    Observation,
    SamplingRequest,
)
from kineflow.policies.field import Guide, SampleOptions, Tokens
from kineflow.policies.guidance import hidden, in_order
from kineflow.policies.heads.flow_dit import FlowDiTHead
from kineflow.policies.mix_flow import MixFlow
from kineflow.policies.normaliser import ActionUnits, Normaliser
from kineflow.policies.objectives import MIP, FlowMap, Regression
from kineflow.policies.observed import Observed, TrainingBatch as TrainingBatch, observed
from kineflow.policies.policy_config import HeadConfig as HeadConfig, PolicyConfig as PolicyConfig
from kineflow.policies.policy_statistics import (
    joined_statistics,
    narrowed,
    origin_dimensions,
    required,
    state_spec,
)
from kineflow.policies.real_time_chunking import committed_start, continue_prefix
from kineflow.policies.samplers import RowNoise
from kineflow.policies.side_heads import SideHeads

PhysicalGuide: TypeAlias = Callable[[ActionUnits], Guide]  # costs, constraints and rewards are written in physical units


@dataclass(frozen=True)
class Encoded:
    """One batch of observations as the head sees it, and the units in which it answers them."""

    condition: Tokens
    units: ActionUnits
    told: tuple[str, ...] = ()  # the goals that were given


class PolicyNetwork(SideHeads):
    """The trained network. `statistics` needs each feature, "action", "action_chunk" and, with features, "encoded_state"."""

    def __init__(self, config: PolicyConfig, interface: Interface, statistics: Mapping[str, FeatureStatistics]) -> None:
        super().__init__()
        self.config, self.interface = config, narrowed(interface, config.features, config.cameras, config.goals)
        spec, horizons, self.action_dim = state_spec(interface, config.features), config.horizons, interface.action.vector.size
        self.origin = origin_dimensions(config.relative_to, interface, spec)
        self.state_statistics = joined_statistics(statistics, config.features)
        told = {"goals": config.goals} if config.goals else {}  # other encoders need not know the word
        self.encoder = config.encoder.build(spec, horizons.observation, self.interface.cameras, **told)
        if spec.size:
            encoded = required(statistics, "encoded_state")
            self.encoder.standardise(torch.tensor(encoded.mean), Normaliser.from_statistics(encoded, "gaussian").scale)
        chunk = Normaliser.from_statistics(required(statistics, "action_chunk"), config.action_scaling)
        self.register_buffer("action_offset", chunk.offset.view(horizons.prediction, -1), persistent=False)
        self.register_buffer("action_scale", chunk.scale.view(horizons.prediction, -1), persistent=False)
        jumps = {"two_times": True} if isinstance(config.objective, FlowMap) else {}  # other heads need not know the word
        self.head = config.head.build(horizons.prediction, self.action_dim, self.encoder.token_shape, **jumps)
        kept, similarity = (getattr(self.encoder, name, None) for name in ("kept_tokens", "similarity"))  # not every encoder's
        self.add_side_heads(config, interface, statistics, self.encoder.token_shape, similarity)
        null = torch.zeros(1, self.encoder.token_shape[0] - (kept or 0), self.encoder.token_shape[1])
        self.null_condition = nn.Parameter(null) if config.objective.condition_dropout > 0 else None

    action_offset: Tensor
    action_scale: Tensor

    def loss(self, batch: TrainingBatch, generator: torch.Generator, noise_samples: int = 1) -> Float[Tensor, ""]:
        """Mean loss over the batch. Each window is encoded once and seen under `noise_samples` noises and times."""
        batch = batch if self.distance is None else self.distance.questions(batch, generator)
        encoded = self.encoder(batch.observed)
        condition = self._hide(encoded, generator)
        chunk = self.units(batch.observed).normalise(batch.action)
        repeated = [v.repeat(noise_samples, *(1,) * (v.ndim - 1)) for v in (chunk, condition, batch.weight)]
        head = self.head.fixed(condition, repeated[1]) if isinstance(self.head, FlowDiTHead) else self.head
        loss = self.config.objective.loss(head, repeated[0], repeated[1], generator, repeated[2]).mean()
        return loss + self.side_loss(encoded, batch)

    @torch.no_grad()
    def encode(self, observation: Observation) -> Encoded:
        """Raises ContractError for another shape than the contract's, non-finite values, or inputs it does not take."""
        needs_goal = self.distance is None or not self.distance.explores
        seen = observed(observation, self.interface, self.config.horizons, self.action_scale.device, needs_goal=needs_goal)
        return Encoded(self.encoder(seen), self.units(seen), (*observation.goal,))

    def units(self, observed: Observed) -> ActionUnits:
        """Physical actions are scaled per step and dimension, and may count from the last observed state."""
        offset = self.action_offset[None]
        return ActionUnits(self.action_scale, offset + observed.state[:, -1:, self.origin] if self.origin else offset)

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest, guide: PhysicalGuide | None = None) -> ActionChunk:
        """Observation `[B, T, ...]` and seeds `[B]` to actions `[B, H, A]`; `guide` wraps the Field, the prefix's guidance
        included, before it is solved."""
        if len(request.seeds) != len(observation.state):
            raise ContractError(f"{len(request.seeds)} seeds for {len(observation.state)} observations; give one seed per row")
        return self.answer(self.encode(observation), observation.stamp_s, request, guide)

    @torch.no_grad()
    def answer(
        self, encoded: Encoded, stamp_s: np.ndarray, request: SamplingRequest, guide: PhysicalGuide | None = None
    ) -> ActionChunk:
        """`predict` for what is encoded already; `stamp_s` `[B, T]` is the observation's."""
        noise = RowNoise(request.seeds, (self.config.horizons.prediction, self.action_dim), device=self.action_scale.device)
        shape = (len(request.seeds), *self.action_scale.shape)
        begins = request.prefix is not None and request.prefix.method == "start"
        committed = committed_start(request.prefix, shape, encoded.units) if begins and request.prefix else None
        guides = [self._continue(request, encoded.units), guide(encoded.units) if guide else None]
        options = SampleOptions(self.null_condition, request.steps, request.guidance_scale, in_order(*guides), committed)
        head = self.head.fixed(encoded.condition) if isinstance(self.head, FlowDiTHead) else self.head
        chunk = self.config.objective.sample(head, noise, encoded.condition, options)
        actions = encoded.units.restore(chunk).float().cpu().numpy()
        said = self.side_answers(encoded.condition, encoded.told)
        return ActionChunk(actions, 1 / self.interface.action.rate_hz, np.asarray(stamp_s)[..., -1], **said)

    def _continue(self, request: SamplingRequest, units: ActionUnits) -> Guide | None:
        """Real-Time Chunking, where the request brings actions of the previous chunk."""
        if request.prefix is None:
            return None
        objective = self.config.objective
        if isinstance(objective, Regression | MIP | MixFlow):
            raise ContractError(
                f"this policy takes no prefix: {type(objective).__name__} has no noise levels at which to guide it; "
                "leave it out or use a flow or diffusion policy"
            )
        if request.prefix.method == "start":
            if isinstance(objective, FlowMap):
                raise ContractError("a FlowMap policy jumps and cannot begin with given actions; ask for a guided prefix")
            return None
        chunk_shape = (len(request.seeds), *self.action_scale.shape)
        return continue_prefix(request.prefix, chunk_shape, units, request.steps or objective.steps)

    def _hide(self, condition: Tokens, generator: torch.Generator) -> Tokens:
        if self.null_condition is None:
            return condition
        drawn = torch.rand(len(condition), generator=generator, device=condition.device)
        share = self.config.objective.condition_dropout
        return torch.where((drawn < share)[:, None, None], hidden(condition, self.null_condition), condition)
