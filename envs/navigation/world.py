"""Procedural worlds: what stands where, what can be driven to, what moves. Pure data from a seed; scene.py builds it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.floor_plan import draw_floor_plan, furnish
from kineflow.envs.navigation.free_space import FreeSpace, rasterise
from kineflow.envs.navigation.outdoor import lay_out
from kineflow.envs.navigation.placing import ROBOT_RADIUS_M, Site
from kineflow.envs.navigation.shapes import Block, GoalObject, MoverPlan, Rgb

KINDS = ("indoor", "outdoor")
CLOTHES: tuple[Rgb, ...] = ((0.45, 0.42, 0.40), (0.30, 0.32, 0.38), (0.60, 0.54, 0.46), (0.38, 0.40, 0.36))


@dataclass(frozen=True)
class WorldConfig:
    """A world by its seed. `size_m` is its extent along x and y (None: drawn, 10-16 by 9-13 indoors, 20-40 square outdoors);
    `density` 0..1 how full it stands; `goals` how many named objects it has at most; `movers` how many obstacles walk about.
    """

    kind: Literal["indoor", "outdoor"] = "indoor"
    seed: int = 0
    size_m: tuple[float, float] | None = None
    density: float = 0.5
    goals: int = 6
    movers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise KineflowError(f"WorldConfig.kind is '{self.kind}'; choose one of {KINDS}")
        least = 6.0 if self.kind == "indoor" else 12.0
        if self.size_m is not None and min(self.size_m) < least:
            raise KineflowError(f"WorldConfig.size_m is {self.size_m}; an {self.kind} world needs at least {least:g} m each way")
        if not 0.0 <= self.density <= 1.0:
            raise KineflowError(f"WorldConfig.density is {self.density}; it is a share between 0 and 1")


@dataclass(frozen=True)
class World:
    """What was drawn. `bounds` = x0, y0, x1, y1 (m); `rooms` likewise, empty outdoors; `ceiling_m` is None under the sky."""

    config: WorldConfig
    bounds: tuple[float, float, float, float]
    blocks: tuple[Block, ...]
    goals: tuple[GoalObject, ...]
    movers: tuple[MoverPlan, ...]
    rooms: tuple[tuple[float, float, float, float], ...]
    ceiling_m: float | None

    @cached_property
    def free_space(self) -> FreeSpace:
        """Static obstacles between 3 cm and 1.9 m above the floor on a grid of 0.1 m; movers are not in it."""
        return rasterise(self.blocks, self.bounds, 0.1)

    def occupancy(self, resolution_m: float = 0.1, inflate_m: float = 0.0) -> tuple[Bool[np.ndarray, "R C"], tuple[float, float]]:
        """Occupied cells [rows along y, columns along x] grown by `inflate_m`, and x, y of the centre of cell (0, 0)."""
        space = self.free_space if resolution_m == 0.1 else rasterise(self.blocks, self.bounds, resolution_m)
        return space.inflated(inflate_m), space.origin

    def clearance(self, resolution_m: float = 0.1) -> Float[np.ndarray, "R C"]:
        """Metres from each cell's centre to the nearest obstacle, on the grid of `occupancy`."""
        space = self.free_space if resolution_m == 0.1 else rasterise(self.blocks, self.bounds, resolution_m)
        return space.clearance

    def goal(self, name: str) -> GoalObject:
        """The goal of that name.

        Raises:
            KineflowError: there is none.
        """
        for goal in self.goals:
            if goal.name == name:
                return goal
        raise KineflowError(f"this world has no '{name}'; its goals are {[g.name for g in self.goals]}")

    def fingerprint(self) -> str:
        """A digest of everything in the world, to the micrometre: equal worlds, equal digests, whatever the config says."""
        content = dataclasses.asdict(dataclasses.replace(self, config=WorldConfig()))
        return hashlib.sha256(json.dumps(_rounded(content), sort_keys=True).encode()).hexdigest()


def generate_world(config: WorldConfig) -> World:
    """The world of that config, the same on every machine: connected free space, and at least one goal where asked for any.

    Raises:
        KineflowError: no such world was found in several attempts (too dense or too small).
    """
    for attempt in range(8):
        world = _draw(config, np.random.default_rng([KINDS.index(config.kind), config.seed, attempt]))
        if len(world.goals) >= min(config.goals, 2) and _is_open(world):
            return world
    raise KineflowError(f"no connected world with goals found for {config}; lower its density or enlarge size_m")


def _rounded(value: Any) -> Any:
    """Numbers to 6 places: the last bits of a cosine differ between machines."""
    if isinstance(value, float):
        return round(value, 6) + 0.0  # -0.0 is 0.0
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _draw(config: WorldConfig, generator: np.random.Generator) -> World:
    if config.kind == "indoor":
        width, depth = config.size_m or (round(generator.uniform(10, 16), 1), round(generator.uniform(9, 13), 1))
    else:
        width, depth = config.size_m or (round(generator.uniform(20, 40), 1), round(generator.uniform(20, 40), 1))
    bounds = (-width / 2, -depth / 2, width / 2, depth / 2)
    site = Site(bounds, 0.1 if config.kind == "indoor" else 0.25)
    ceiling: float | None = None
    rooms: tuple[tuple[float, float, float, float], ...] = ()
    if config.kind == "indoor":
        plan = draw_floor_plan(generator, bounds)
        ceiling = furnish(generator, site, plan, config.density, config.goals)
        rooms = plan.rooms
    else:
        lay_out(generator, site, config.density, config.goals)
    world = World(config, bounds, tuple(site.blocks), tuple(site.goals), (), rooms, ceiling)
    if config.movers:
        world = dataclasses.replace(world, movers=_draw_movers(generator, world.free_space, config.movers))
    return world


def _is_open(world: World) -> bool:
    """Whether every goal is reachable by the widest robot from most of what is free."""
    space = world.free_space
    reachable = space.reachable(ROBOT_RADIUS_M - 0.05)
    if reachable.sum() < 0.9 * (~space.inflated(ROBOT_RADIUS_M - 0.05)).sum():
        return False
    return all(reachable[space.cell(*goal.stand_off[:2])] for goal in world.goals)


def _draw_movers(generator: np.random.Generator, space: FreeSpace, count: int) -> tuple[MoverPlan, ...]:
    plans: list[MoverPlan] = []
    for _ in range(60 * count):
        if len(plans) == count:
            break
        (start, end) = space.sample(generator, 0.5, 2)
        if not 2.5 <= math.dist(start, end) <= 9.0 or not space.is_clear(start, end, 0.35):
            continue
        plans.append(
            MoverPlan(
                name=f"mover{len(plans)}",
                start=(float(start[0]), float(start[1])),
                end=(float(end[0]), float(end[1])),
                speed=float(generator.uniform(0.3, 0.8)),
                phase=float(generator.uniform()),
                radius=float(generator.uniform(0.2, 0.28)),
                height=float(generator.uniform(1.2, 1.8)),
                rgb=CLOTHES[generator.integers(len(CLOTHES))],
            )
        )
    return tuple(plans)
