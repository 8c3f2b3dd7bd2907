"""Encoder + head + objective + normaliser: the network that is trained, and how it answers an observation.

state [B, T, S] --encoder--> condition [B, N, D] --head, objective--> chunk [B, H, A] --restore--> actions in physical units
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import ActionChunk, ContractError, FeatureStatistics, Horizons, Interface, Observation, SamplingRequest
from kineflow.policies.encoders.state import State, StateFeatures
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.normaliser import Normaliser, Scaling
from kineflow.policies.objectives import MIP, Diffusion, FlowMatching, Regression
from kineflow.policies.policy_statistics import joined_statistics, origin_dimensions, required, state_spec, training_statistics
from kineflow.policies.samplers import RowNoise


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that defines the network and its sampling; saved as config.yaml beside the weights."""

    horizons: Horizons
    head: MLP | DiT | UNet
    objective: FlowMatching | Diffusion | Regression | MIP
    encoder: State
    features: tuple[str, ...] = ("state",)
    # Names of the state dimensions that the action dimensions are measured from, at the last observed step; empty: absolute.
    relative_to: tuple[str, ...] = ()
    action_scaling: Scaling = "gaussian"

    def statistics(
        self,
        interface: Interface,
        raw: Mapping[str, FeatureStatistics],
        state: Float[np.ndarray, "N T S"],
        action: Float[np.ndarray, "N H A"],
    ) -> dict[str, FeatureStatistics]:
        """What a network of this configuration needs, from all training windows and the store's `raw` statistics."""
        spec = state_spec(interface, self.features)
        features = StateFeatures(self.encoder, spec, self.horizons.observation)
        return training_statistics(features, origin_dimensions(self.relative_to, interface, spec), raw, state, action)


class PolicyNetwork(nn.Module):
    """The trained network. `statistics` needs each feature, "action", "encoded_state" and "action_chunk" (normalised from)."""

    def __init__(self, config: PolicyConfig, interface: Interface, statistics: Mapping[str, FeatureStatistics]) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        spec, horizons, self.action_dim = state_spec(interface, config.features), config.horizons, interface.action.vector.size
        self.origin = origin_dimensions(config.relative_to, interface, spec)
        self.state_statistics = joined_statistics(statistics, config.features)
        self.encoder = config.encoder.build(spec, horizons.observation)
        encoded = required(statistics, "encoded_state")
        self.encoder.mean.copy_(torch.tensor(encoded.mean))
        self.encoder.std.copy_(Normaliser.from_statistics(encoded, "gaussian").scale)
        chunk = Normaliser.from_statistics(required(statistics, "action_chunk"), config.action_scaling)
        self.register_buffer("action_offset", chunk.offset.view(horizons.prediction, -1), persistent=False)
        self.register_buffer("action_scale", chunk.scale.view(horizons.prediction, -1), persistent=False)
        self.head = config.head.build(horizons.prediction, self.action_dim, self.encoder.token_shape)
        self.null_condition = (
            nn.Parameter(torch.zeros(1, *self.encoder.token_shape)) if config.objective.condition_dropout > 0 else None
        )

    action_offset: Tensor
    action_scale: Tensor

    def loss(
        self,
        state: Float[Tensor, "B T S"],
        action: Float[Tensor, "B H A"],
        weight: Float[Tensor, "B H"],
        generator: torch.Generator,
        noise_samples: int = 1,
    ) -> Float[Tensor, ""]:
        """Mean loss over the batch. Each window is encoded once and seen under `noise_samples` noises and times."""
        condition = self._hide(self.encoder(state), generator)
        chunk = self.normalise(action, state)
        repeated = [v.repeat(noise_samples, *(1,) * (v.ndim - 1)) for v in (chunk, condition, weight)]
        return self.config.objective.loss(self.head, repeated[0], repeated[1], generator, repeated[2]).mean()

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """State `[B, T, S]` and seeds `[B]` to actions `[B, H, A]`; ContractError for other shapes or non-finite values."""
        self._check(observation, request)
        device = self.action_scale.device
        state = torch.from_numpy(np.ascontiguousarray(observation.state, dtype=np.float32)).to(device)
        noise = RowNoise(request.seeds, (self.config.horizons.prediction, self.action_dim), device=device)
        chunk = self.config.objective.sample(
            self.head, noise, self.encoder(state), self.null_condition, request.steps, request.guidance_scale
        )
        actions = self.restore(chunk, state).float().cpu().numpy()
        return ActionChunk(actions, 1 / self.interface.action.rate_hz, np.asarray(observation.stamp_s)[..., -1])

    def normalise(self, action: Float[Tensor, "B H A"], state: Float[Tensor, "B T S"]) -> Float[Tensor, "B H A"]:
        """Physical units to the head's: relative to the origin, then scaled per step and dimension."""
        return (self.relative(action, state) - self.action_offset) / self.action_scale

    def restore(self, chunk: Float[Tensor, "B H A"], state: Float[Tensor, "B T S"]) -> Float[Tensor, "B H A"]:
        actions = chunk * self.action_scale + self.action_offset
        return actions + state[:, -1:, self.origin] if self.origin else actions

    def relative(self, action: Float[Tensor, "B H A"], state: Float[Tensor, "B T S"]) -> Float[Tensor, "B H A"]:
        return action - state[:, -1:, self.origin] if self.origin else action

    def _hide(self, condition: Float[Tensor, "B N D"], generator: torch.Generator) -> Float[Tensor, "B N D"]:
        if self.null_condition is None:
            return condition
        hidden = (
            torch.rand(len(condition), generator=generator, device=condition.device) < self.config.objective.condition_dropout
        )
        return torch.where(hidden[:, None, None], self.null_condition, condition)

    def _check(self, observation: Observation, request: SamplingRequest) -> None:
        # Better refused than silently ignored: the caller believes that these steer the policy.
        extras = {"goal": observation.goal, "instruction": observation.instruction, "prefix": request.prefix}
        if given := [name for name, value in extras.items() if value]:
            raise ContractError(f"this policy takes no {given[0]}, but was given one; leave it out or use another policy")
        expected = (len(request.seeds), self.config.horizons.observation, len(self.state_statistics.mean))
        if observation.state.shape != expected:
            raise ContractError(
                f"observation.state has shape {observation.state.shape}, the policy needs {expected}: "
                f"seeds, observation horizon, dimensions of {self.config.features}"
            )
        if not np.isfinite(observation.state).all():
            row, step, dim = np.argwhere(~np.isfinite(observation.state))[0]
            raise ContractError(
                f"observation.state[{row}, {step}, {dim}] is {observation.state[row, step, dim]}; "
                "drop the observation, do not act on it"
            )
