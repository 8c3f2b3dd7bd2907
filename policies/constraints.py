"""Constraints: the denoised chunk is projected onto what the robot can do, at every step; solvers re-derive the noise from it.

`Constrain` never touches the noisy state x: projecting that would leave the law it must have. `ActionLimits` is the set of
chunks within limits on value, rate and acceleration that continue the executed actions, and within limits in a plane. All are
convex, so the projection is the one nearest chunk (policies/nearest.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.nearest import Balls, Planes, nearest

Projection: TypeAlias = Callable[[Chunk], Chunk]
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Constrain:
    """A Field whose denoised chunk always satisfies a projection. The last Field before the solver, after all guidance:

    limits = ActionLimits.from_spec(network.interface.action.vector, step_s=0.1, executed=last_actions)  # [B, 2, A]

    def guide(units):
        return lambda field: Constrain(field, lambda chunk: units.normalise(limits(units.restore(chunk))))

    network.predict(observation, request, guide=guide)
    """

    field: Field
    project: Projection

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        return self.project(self.field(x, lam, condition))


@dataclass(frozen=True)
class PlanarSpeed:
    """At most `max_speed` in the plane of two dimensions: of the actions themselves (velocities) or, with `of_positions`, of
    the motion from one to the next."""

    max_speed: float  # unit of the positions per second
    dimensions: tuple[int, int] = (0, 1)
    of_positions: bool = False

    def __post_init__(self) -> None:
        _require_positive("PlanarSpeed.max_speed", self.max_speed)


@dataclass(frozen=True)
class Unicycle:
    """A robot that drives forward and cannot turn on the spot: actions (v, omega), v >= 0, |omega| <= v / min_turn_radius."""

    min_turn_radius: float  # metres
    dimensions: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        _require_positive("Unicycle.min_turn_radius", self.min_turn_radius)


Plane: TypeAlias = PlanarSpeed | Unicycle


@dataclass(frozen=True)
class ActionLimits:
    """What actions `[B, H, A]` in physical units, `step_s` apart, may do; calling it gives the nearest such chunk.

    One limit for each dimension; infinite means none. `executed` are the last actions, oldest first: with one of them the
    rate limit holds from it to the new chunk, with two the acceleration limit, too. A start from which a limit cannot be met,
    such as one outside the box, loosens that limit as far as returning at full rate and acceleration needs.
    """

    step_s: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_rate: tuple[float, ...]  # of change, per second
    max_acceleration: tuple[float, ...]  # of change, per second squared
    plane: Plane | None = None
    executed: Float[Tensor, "#B E A"] | None = None

    @classmethod
    def from_spec(
        cls,
        spec: VectorSpec,
        step_s: float,
        max_acceleration: tuple[float, ...] = (),
        plane: Plane | None = None,
        executed: Float[Tensor, "#B E A"] | None = None,
    ) -> ActionLimits:
        """The limits that the action vector of a contract declares."""
        acceleration = max_acceleration or (math.inf,) * spec.size
        return cls(step_s, spec.low, spec.high, spec.max_rate, acceleration, plane, executed)

    def __post_init__(self) -> None:
        if len({len(self.low), len(self.high), len(self.max_rate), len(self.max_acceleration)}) != 1:
            raise KineflowError("ActionLimits needs one low, high, max_rate and max_acceleration for each action dimension")
        if not all(low <= high for low, high in zip(self.low, self.high)):
            raise KineflowError(f"ActionLimits: low {self.low} is above high {self.high} in some dimension; swap them")
        _require_positive(
            "ActionLimits step_s, max_rate and max_acceleration", self.step_s, *self.max_rate, *self.max_acceleration
        )

    def __call__(self, actions: Chunk) -> Chunk:
        if actions.shape[-1] != len(self.low):
            raise KineflowError(f"these limits are for {len(self.low)} action dimensions, the chunk has {actions.shape[-1]}")
        coupled = list(self.plane.dimensions) if self.plane else []
        # A dimension that shares no limit is a problem of its own, which is small.
        groups = [coupled] * bool(coupled) + [[d] for d in range(len(self.low)) if d not in coupled]
        past = actions[:, :0] if self.executed is None else self.executed[:, -2:].to(actions).expand(len(actions), -1, -1)
        result = actions.clone()
        for size in {len(group) for group in groups}:
            alike = [group for group in groups if len(group) == size]
            # [B, H, A] -> [B G, H, size]
            chunk, before = (v[..., alike].double().movedim(-2, 1).flatten(0, 1) for v in (actions, past))
            limits = _Limits.of(self, alike, chunk)
            nearest_chunk = limits.nearest(chunk, before).view(len(actions), len(alike), *chunk.shape[1:]).movedim(1, -2)
            result[..., alike] = nearest_chunk.to(actions)
        return result


@dataclass(frozen=True)
class _Limits:
    """Limits per action instead of per second, `[N, 1, D]` for N groups of D dimensions that share the limit `plane`."""

    low: Tensor
    high: Tensor
    step: Tensor
    bend: Tensor
    plane: Plane | None
    speed: float  # in the plane, per action

    @classmethod
    def of(cls, limits: ActionLimits, groups: list[list[int]], chunk: Tensor) -> _Limits:
        rows = len(chunk) // len(groups)
        low, high, rate, acceleration = (
            torch.tensor([[values[d] for d in group] for group in groups], dtype=torch.float64).to(chunk).repeat(rows, 1)[:, None]
            for values in (limits.low, limits.high, limits.max_rate, limits.max_acceleration)
        )
        plane, dt = limits.plane if len(groups[0]) == 2 else None, limits.step_s
        if isinstance(plane, Unicycle):  # drives forward
            low = torch.maximum(low, torch.tensor([0, -math.inf]).to(low))
        speed = plane.max_speed * (dt if plane.of_positions else 1) if isinstance(plane, PlanarSpeed) else math.inf
        return cls(low, high, rate * dt, acceleration * dt**2, plane, speed)

    def nearest(self, chunk: Tensor, past: Tensor) -> Tensor:
        """`chunk` `[N, H, D]` projected; solved for its distance from a motion that is always possible."""
        safe = self._returning(chunk, past, effort=1.0)
        room, offsets = self._room(safe, past)
        broken = (room < -TOLERANCE).any(dim=1) | (offsets.norm(dim=-1) > self.speed + TOLERANCE).any(dim=1)
        if broken.any():  # some limit must give way; with some effort in reserve the motion still has a choice
            safe = torch.where(broken[:, None, None], self._returning(chunk, past, effort=0.9), safe)
            room, offsets = self._room(safe, past)
        identity = torch.eye(chunk.shape[2]).to(chunk)
        value, step, bend = (rule[:, past.shape[1] :].contiguous() for rule in self._rules(chunk, past))
        normals = [torch.kron(rule, side * identity) for rule in (value, step, bend) for side in (1, -1)]
        if isinstance(self.plane, Unicycle):
            normals.append(torch.kron(value, self._turn(chunk)))
        maps = torch.kron(self._round_rule(value, step), identity)
        # A limit that even the safe motion breaks is loosened to it.
        planes = Planes(torch.cat(normals), room.clamp(min=0))
        balls = Balls(maps.view(-1, len(identity), maps.shape[1]), offsets, offsets.norm(dim=-1).clamp(min=self.speed))
        wanted = (chunk - safe).flatten(1)
        moved = nearest(wanted, planes, balls)
        kept = (moved == wanted).all(dim=1)[:, None, None]  # as it is, to the last bit
        return torch.where(kept, chunk, safe + moved.view_as(chunk))

    def _room(self, chunk: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """How far `chunk` is from each linear limit, `[N, M]`, and what the limit in the plane bounds, `[N, K, D]`."""
        whole = torch.cat([past, chunk], dim=1)
        value, step, bend = self._rules(chunk, past)
        room = []
        for rule, low, high in [(value, self.low, self.high), (step, -self.step, self.step), (bend, -self.bend, self.bend)]:
            room += [(high - rule @ whole).flatten(1), (rule @ whole - low).flatten(1)]
        if isinstance(self.plane, Unicycle):
            room.append(-(chunk @ self._turn(chunk).T).flatten(1))
        return torch.cat(room, dim=1), self._round_rule(value, step) @ whole

    def _rules(self, chunk: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, first and second differences of [past, new] actions that involve a new one, `[R, E + H]`."""
        rules, old = [torch.eye(past.shape[1] + chunk.shape[1]).to(chunk)], past.shape[1]
        for _ in range(2):
            rules.append(rules[-1][1:] - rules[-1][:-1])
        return rules[0][old:], rules[1][max(old - 1, 0) :], rules[2][max(old - 2, 0) :]

    def _round_rule(self, value: Tensor, step: Tensor) -> Tensor:
        if not isinstance(self.plane, PlanarSpeed):
            return value[:0]
        return step if self.plane.of_positions else value

    def _turn(self, like: Tensor) -> Tensor:
        """Rows that are positive where a unicycle (v, omega) turns too sharply."""
        assert isinstance(self.plane, Unicycle)
        curvature = 1 / self.plane.min_turn_radius
        return torch.tensor([[-curvature, 1], [-curvature, -1]], dtype=torch.float64).to(like)

    def _returning(self, chunk: Tensor, past: Tensor, effort: float) -> Tensor:
        """Staying where the robot is, or returning into the limits with a share of what it may, `[N, H, D]`."""
        if past.shape[1] == 0:
            return self._allowed(chunk[:, :1]).expand_as(chunk)
        here, actions, step, bend = past[:, -1:], [], effort * self.step, effort * self.bend
        speed = here - past[:, -2:-1] if past.shape[1] == 2 else None
        for _ in range(chunk.shape[1]):
            wanted = (self._allowed(here) - here).clamp(-step, step)
            wanted = _shortened(wanted, effort * self.speed) if self._of_positions else wanted
            speed = wanted if speed is None else wanted.clamp(speed - bend, speed + bend)
            here = here + speed
            actions.append(here)
        return torch.cat(actions, dim=1)

    def _allowed(self, action: Tensor) -> Tensor:
        """An action near `action` `[N, 1, D]` that breaks no limit of single actions."""
        inside = action.clamp(self.low, self.high)
        if isinstance(self.plane, PlanarSpeed) and not self._of_positions:
            return _shortened(inside, self.speed)
        if isinstance(self.plane, Unicycle):
            forward, most = inside[..., :1], inside[..., :1] / self.plane.min_turn_radius
            return torch.cat([forward, inside[..., 1:].clamp(-most, most)], dim=-1)
        return inside

    @property
    def _of_positions(self) -> bool:
        return isinstance(self.plane, PlanarSpeed) and self.plane.of_positions


def _shortened(vector: Tensor, length: float) -> Tensor:
    share: Tensor = (length / vector.norm(dim=-1, keepdim=True)).clamp(max=1)
    return vector * share


def _require_positive(name: str, *values: float) -> None:
    if not all(value > 0 for value in values):
        raise KineflowError(f"{name} must be positive, got {values[0] if len(values) == 1 else values}")
