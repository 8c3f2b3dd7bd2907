"""Low-dimensional state to one condition token: geometry made explicit, then a residual MLP.

A network sees an angle of 0.01 and one of 6.27 rad as far apart, and must learn a rotation from data to know where a
corner of a body is. Both are one line of mathematics, so `StateFeatures` does them and the MLP learns the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import CameraSpec, KineflowError, VectorSpec
from kineflow.policies.observed import Observed


@dataclass(frozen=True)
class PlanarBody:
    """A rigid body in the plane: names of its pose dimensions and points on it in its own frame, in the unit of x and y."""

    x: str
    y: str
    angle: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class State:
    """Encoder configuration. `observers` are (x, y) names of points that are also expressed in each body's frame.

    There they are also given as sine and cosine of each of `periods` (unit of x and y): contact is a matter of a few
    millimetres at the surface of a body, finer than an MLP resolves in raw coordinates (Tancik et al. 2020).
    """

    width: int = 512
    depth: int = 3
    token: int = 256
    dropout: float = 0.0
    bodies: tuple[PlanarBody, ...] = ()
    observers: tuple[tuple[str, str], ...] = ()
    periods: tuple[float, ...] = ()

    def geometry(self, spec: VectorSpec, observation_horizon: int) -> StateFeatures:
        """Raises KineflowError when a named dimension is not in `spec`."""
        if spec.size == 0:
            raise KineflowError(
                "a State encoder needs at least one feature in policy.features; for images alone use kind: Vision"
            )
        return StateFeatures(self, spec, observation_horizon)

    def build(self, spec: VectorSpec, observation_horizon: int, cameras: Mapping[str, CameraSpec]) -> StateEncoder:
        """Raises KineflowError for unknown dimensions, or when there are cameras that it would ignore."""
        if cameras:
            raise KineflowError(f"policy.cameras names {sorted(cameras)}, but a State encoder sees no images; use kind: Vision")
        return StateEncoder(self, self.geometry(spec, observation_horizon))


class StateFeatures:
    """`[B, T, S]` in physical units to `[B, F]`: the last step's geometry and its change over the earlier steps.

    Angles (unit "rad") become sine and cosine, their change is wrapped to (-pi, pi]; bodies add their points and the
    observers in their own frame.
    """

    def __init__(self, config: State, spec: VectorSpec, observation_horizon: int) -> None:
        self.horizon = observation_horizon
        self.is_angle = torch.tensor([unit == "rad" for unit in spec.units], dtype=torch.bool)
        where = {name: i for i, name in enumerate(spec.names)}
        named = [n for b in config.bodies for n in (b.x, b.y, b.angle)] + [n for o in config.observers for n in o]
        if unknown := [n for n in named if n not in where]:
            raise KineflowError(f"State encoder names {unknown}, but the state has {spec.names}")
        self.bodies = [(where[b.x], where[b.y], where[b.angle], torch.tensor(b.points)) for b in config.bodies]
        self.observers = [(where[x], where[y]) for x, y in config.observers]
        self.frequencies = [2 * torch.pi / period for period in config.periods]
        self.size = self(torch.zeros(1, observation_horizon, spec.size)).shape[1]

    def __call__(self, state: Float[Tensor, "B T S"]) -> Float[Tensor, "B F"]:
        is_angle = self.is_angle.to(state.device)
        now = state[:, -1]
        angles = now[:, is_angle]
        parts = [now[:, ~is_angle], angles.sin(), angles.cos()]
        for x, y, angle, points in self.bodies:
            parts.extend(self._body(now, now[:, [x, y]], now[:, angle], points.to(state)))
        change = now[:, None] - state[:, :-1]
        wrapped = torch.remainder(change + torch.pi, 2 * torch.pi) - torch.pi
        parts.append(torch.where(is_angle, wrapped, change).flatten(1))
        return torch.cat(parts, dim=1)

    def _body(self, now: Tensor, centre: Tensor, angle: Tensor, points: Tensor) -> list[Tensor]:
        cos, sin = angle.cos(), angle.sin()
        world_from_body = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # [B, 2, 2]
        corners = centre[:, None] + torch.einsum("bij,kj->bki", world_from_body, points)
        seen = [torch.einsum("bji,bj->bi", world_from_body, now[:, list(o)] - centre) for o in self.observers]
        waves = [wave(f * point) for point in seen for f in self.frequencies for wave in (torch.sin, torch.cos)]
        return [corners.flatten(1), *seen, *waves]


class StateEncoder(nn.Module):
    """Standardised features to one token `[B, 1, D]`. `mean` and `std` are the features' statistics over the training split."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: State, features: StateFeatures) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features.size), persistent=False)
        self.register_buffer("std", torch.ones(features.size), persistent=False)
        self.inputs = nn.Linear(features.size, config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, config.dropout) for _ in range(config.depth))
        self.token = nn.Linear(config.width, config.token)
        self.token_shape = (1, config.token)

    def standardise(self, mean: Float[Tensor, "F"], std: Float[Tensor, "F"]) -> None:
        """Take the statistics of the geometry features over the training split."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, observed: Observed) -> Float[Tensor, "B 1 D"]:
        hidden = self.inputs((self.features(observed.state) - self.mean) / self.std)
        for block in self.blocks:
            hidden = block(hidden)
        return self.token(F.rms_norm(hidden, hidden.shape[-1:]))[:, None]  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Pre-norm residual MLP block; zero at initialisation."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
        last = self.layers[3]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(F.rms_norm(x, x.shape[-1:]))  # type: ignore[no-any-return]
