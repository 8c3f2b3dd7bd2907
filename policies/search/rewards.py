"""Rewards on candidate chunks in physical units: higher is better. Any function of the same form will do.

`dims` are the action dimensions that hold a position, or with `velocity` its rate, which is then summed up from the robot at the
origin. Each reward keeps the unit in its docstring; weigh them against each other with `WeightedSum`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import ContractError, KineflowError, Observation, SamplingRequest
from kineflow.policies.search.methods import Scores
from kineflow.policies.search.steps import Candidates

Positions = Float[Tensor, "B N H D"]


@dataclass(frozen=True)
class Situation:
    """What the chunks answer: rows of the batch are rows here."""

    observation: Observation
    request: SamplingRequest
    step_s: float  # time between actions


@runtime_checkable
class Reward(Protocol):
    """A finite number for each of N candidate chunks `[B, N, H, A]` in physical units.

    A reward that looks at `observation.goal` or `request.prefix` names it in `reads`, or a search refuses the policy call.
    """

    def __call__(self, actions: Candidates, situation: Situation) -> Scores: ...


@dataclass(frozen=True)
class WeightedSum:
    """sum of weight times reward."""

    terms: tuple[tuple[float, Reward], ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for _, reward in self.terms for name in getattr(reward, "reads", ()))

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        total = actions.new_zeros(actions.shape[:2])
        for weight, reward in self.terms:
            total = total + weight * reward(actions, situation)
        return total


@dataclass(frozen=True)
class Smoothness:
    """Minus the root mean square of the `order`-th derivative of all actions: 2 acceleration, 3 jerk; unit / s^order."""

    order: int = 3

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        if not 1 <= self.order < actions.shape[2]:
            raise KineflowError(
                f"smoothness of order {self.order} needs a chunk of more than {self.order} actions, got {actions.shape[2]}"
            )
        derivative = actions.diff(n=self.order, dim=2) / situation.step_s**self.order
        return -derivative.square().mean(dim=(-2, -1)).sqrt()


@dataclass(frozen=True)
class GoalDistance:
    """Minus the distance to the goal, from the last action or from the nearest one; the unit of the positions.

    Without `goal` the observation's goal "pose" or "point" counts, row by row, in the order of `dims`. With `heading_dim` its
    last number is a heading in rad, worth `radius` per rad.
    """

    goal: tuple[float, ...] | None = None
    dims: tuple[int, ...] = (0, 1)
    heading_dim: int | None = None
    radius: float = 0.1
    at: Literal["end", "nearest"] = "end"
    velocity: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("goal",) if self.goal is None else ()

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        goal = self._goal(actions, situation)
        place = positions(actions, self.dims, situation.step_s, self.velocity)
        squared = (place - goal[..., : len(self.dims)]).square().sum(dim=-1)
        if self.heading_dim is not None:
            turn = positions(actions, (self.heading_dim,), situation.step_s, self.velocity)[..., 0] - goal[..., -1]
            squared = squared + (self.radius * torch.atan2(torch.sin(turn), torch.cos(turn))).square()
        distance = squared.sqrt()
        return -distance[..., -1] if self.at == "end" else -distance.amin(dim=-1)

    def _goal(self, actions: Candidates, situation: Situation) -> Tensor:
        """`[1 or B, 1, 1, D]`."""
        size = len(self.dims) + (self.heading_dim is not None)
        given = situation.observation.goal
        value = self.goal if self.goal is not None else given.get("pose", given.get("point"))
        if value is None or np.shape(value)[-1] != size:
            raise ContractError(
                f"the goal of dimensions {self.dims}, heading {self.heading_dim}, must have {size} numbers, got "
                f"{None if value is None else np.shape(value)}; give `goal`, or observation.goal['pose'] or ['point']"
            )
        return torch.as_tensor(np.asarray(value), dtype=actions.dtype, device=actions.device).reshape(-1, 1, 1, size)


@dataclass(frozen=True)
class PathProgress:
    """Arc length won along a polyline from the first action to the last, minus `lateral_weight` times the mean distance to it."""

    path: tuple[tuple[float, float], ...]
    dims: tuple[int, int] = (0, 1)
    lateral_weight: float = 1.0
    velocity: bool = False

    def __post_init__(self) -> None:
        if len(self.path) < 2 or any(a == b for a, b in itertools.pairwise(self.path)):
            raise KineflowError(f"a path needs at least two points and no two equal neighbours, got {self.path}")

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        along, aside = self.project(positions(actions, self.dims, situation.step_s, self.velocity))
        return along[..., -1] - along[..., 0] - self.lateral_weight * aside.mean(dim=-1)

    def project(self, place: Positions) -> tuple[Float[Tensor, "B N H"], Float[Tensor, "B N H"]]:
        """Arc length of the nearest point of the path, and the distance to it."""
        points = torch.tensor(self.path, dtype=place.dtype, device=place.device)
        start, leg = points[:-1], points.diff(dim=0)
        length = leg.norm(dim=-1)
        offset = place.unsqueeze(-2) - start  # [B, N, H, legs, 2]
        share = ((offset * leg).sum(dim=-1) / length**2).clamp(0, 1)
        aside, nearest = (offset - share.unsqueeze(-1) * leg).norm(dim=-1).min(dim=-1)
        along = length.cumsum(dim=0) - length + share * length
        return along.gather(-1, nearest.unsqueeze(-1))[..., 0], aside


@dataclass(frozen=True)
class Clearance:
    """Minus the sum over actions of how far each intrudes upon the `margin` around discs and boxes; zero where all is clear.

    Positions are checked, not the straight lines between them: choose the margin for the largest step.
    """

    discs: tuple[tuple[float, float, float], ...] = ()  # x, y, radius
    boxes: tuple[tuple[float, float, float, float], ...] = ()  # x low, y low, x high, y high
    margin: float = 0.0
    dims: tuple[int, int] = (0, 1)
    velocity: bool = False

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        place = positions(actions, self.dims, situation.step_s, self.velocity)
        gap = self.distance(place)
        return -(self.margin - gap).clamp(min=0).sum(dim=(-2, -1))

    def distance(self, place: Positions) -> Float[Tensor, "B N H K"]:
        """Signed distance to each obstacle, negative inside."""
        gaps = [(place - place.new_tensor((x, y))).norm(dim=-1) - radius for x, y, radius in self.discs]
        for x_low, y_low, x_high, y_high in self.boxes:
            low, high = place.new_tensor((x_low, y_low)), place.new_tensor((x_high, y_high))
            beyond = torch.maximum(low - place, place - high)
            gaps.append(beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0))
        return torch.stack(gaps, dim=-1) if gaps else place.new_zeros((*place.shape[:3], 0))


@dataclass(frozen=True)
class BackwardCoherence:
    """Minus the masked mean square distance to the chunk being executed (Bidirectional Decoding, Liu et al. 2024).

    The chunk is `request.prefix`, with its soft mask over actions; without one, as at the start, every candidate scores zero.
    """

    reads: ClassVar[tuple[str, ...]] = ("prefix",)

    def __call__(self, actions: Candidates, situation: Situation) -> Scores:
        prefix = situation.request.prefix
        if prefix is None:
            return actions.new_zeros(actions.shape[:2])
        expected = (len(actions), *actions.shape[2:])
        if prefix.actions.shape != expected or prefix.soft_mask.shape != expected[:2]:
            raise ContractError(
                f"request.prefix has actions {prefix.actions.shape} and mask {prefix.soft_mask.shape}, the policy needs "
                f"{expected} and {expected[:2]}; pad the rest of the old chunk and give the padding mask 0"
            )
        target, mask = (
            torch.as_tensor(v, dtype=actions.dtype, device=actions.device) for v in (prefix.actions, prefix.soft_mask)
        )
        error = (actions - target[:, None]).square().mean(dim=-1) * mask[:, None]
        return -error.sum(dim=-1) / mask.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def positions(actions: Candidates, dims: tuple[int, ...], step_s: float, velocity: bool) -> Positions:
    """`dims` of the actions, or where they lead as velocities from the origin."""
    if not all(0 <= d < actions.shape[-1] for d in dims):
        raise KineflowError(f"position dimensions {dims} are not all among the {actions.shape[-1]} action dimensions")
    chosen = actions[..., list(dims)]
    return chosen.cumsum(dim=2) * step_s if velocity else chosen
