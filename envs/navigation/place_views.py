"""Pictures of the same places from different points of view, with where each place is in the others and what stands there.

    a place in a world    o            a group: four pictures around it, each under a light and with a camera of its own
                         o  o    o     for each of 12 x 12 cells of each picture: where its middle is in the three others, if it
                                       is seen there at all; the colour and kind of the named thing in it, if any

Half of the groups look at a named thing. Nothing moves but the camera. Half of the pictures in a group are near each other, as
those of a drive are; the others are up to 7 m ahead, as goals are. What `kineflow train-scene` learns from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.filmed_worlds import film_folder, read_arrays
from kineflow.envs.navigation.ground_truth import intrinsics, reprojected
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.shapes import COLOUR_NAMES, NOUNS
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import Task
from kineflow.envs.navigation.world import World, generate_world

CELLS, VIEWS = 12, 4
ENOUGH = 0.2  # share of a cell that a thing has to fill to be what stands there
ATTEMPTS = 30  # for each group of a world
FARTHEST_M = 20.0


@dataclass(frozen=True)
class PlaceViews:
    """Which worlds are filmed: `worlds` worlds from number `first_world` on, up to `groups` groups in each."""

    world: Literal["indoor", "outdoor", "mixed"] = "mixed"
    first_world: int = 0
    worlds: int = 900
    groups: int = 12
    picture: Picture = field(default_factory=Picture)

    def __post_init__(self) -> None:
        if min(self.worlds, self.groups) < 1 or self.first_world < 0 or self.picture.height % CELLS or self.picture.width % CELLS:
            raise KineflowError(
                f"{self}: worlds and groups must be at least 1, first_world at least 0, the picture a multiple of {CELLS} px"
            )


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups. `place[g, i, j]` is where the cells of picture i are in picture j (column, row, px), valid where `seen`.

    `colour` and `noun`: 1 + index in COLOUR_NAMES and NOUNS, 0 where no named thing is. `depth`: metres along the optical axis in
    the middle of a cell, at most `FARTHEST_M`.
    """

    frames: UInt8[np.ndarray, "G 4 H W 3"]
    place: Float16[np.ndarray, "G 4 4 12 12 2"]
    seen: Bool[np.ndarray, "G 4 4 12 12"]
    colour: UInt8[np.ndarray, "G 4 12 12"]
    noun: UInt8[np.ndarray, "G 4 12 12"]
    depth: Float16[np.ndarray, "G 4 12 12"]


def film_views(config: PlaceViews, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Path]:
    """A file `world-<number>.npz` in `folder` for each world; those that are there are not filmed again.

    Raises:
        KineflowError: the folder holds worlds that were filmed otherwise.
    """

    def film(number: int) -> Mapping[str, np.ndarray] | None:
        groups = film_world(config, number)
        return None if groups is None else vars(groups)

    return film_folder(config, folder, film, progress)


def read_groups(file: Path) -> Groups:
    """What `film_views` wrote. Raises KineflowError for another kind of file."""
    return Groups(**read_arrays(file, [field.name for field in fields(Groups)], "views"))


def film_world(config: PlaceViews, number: int) -> Groups | None:
    """The groups of the world of that number; the same number, the same groups. None: no place had room for one."""
    ranges, generator = RandomisationRanges(), np.random.default_rng([number, 0x3A7C])
    world = generate_world(Task("video", config.world).world_config(number))
    stage = Stage(world, embodiment_of("wheeled"), config.picture, ranges.draw(number).texture_seed)
    groups: list[tuple[np.ndarray, ...]] = []
    try:
        things = _Things(stage)
        for _ in range(config.groups * ATTEMPTS):
            poses = _poses(world, generator)
            if len(groups) < config.groups and all(world.free_space.is_clear(poses[0][:2], p[:2], 0.22) for p in poses):
                groups.append(_film(stage, poses, things, ranges, generator))
    finally:
        stage.close()
    return Groups(*(np.stack(part) for part in zip(*groups))) if groups else None


def _poses(world: World, generator: np.random.Generator) -> list[tuple[float, float, float]]:
    """Four poses x, y, yaw: the first anywhere, or before a named thing; the others around it, most of them ahead, some far."""
    x, y = world.free_space.sample(generator, 0.3)[0].tolist()
    yaw = float(generator.uniform(-math.pi, math.pi))
    if world.goals and generator.random() < 0.5:
        thing = world.goals[generator.integers(len(world.goals))].position
        away, bearing = float(generator.uniform(0.8, 6.0)), math.atan2(y - thing[1], x - thing[0])
        x, y = thing[0] + away * math.cos(bearing), thing[1] + away * math.sin(bearing)
        yaw = bearing + math.pi + float(generator.uniform(-0.6, 0.6))
    poses = [(x, y, yaw)]
    for _ in range(VIEWS - 1):
        far = generator.random() < 0.5
        ahead = float(generator.uniform(1.0, 7.0) if far else generator.uniform(-0.5, 1.8) * generator.random() ** 0.3)
        left = float(generator.normal() * (0.2 * ahead if far else 0.3))
        turn = float(np.clip(generator.normal() * 0.35, -1, 1))
        sin, cos = math.sin(yaw), math.cos(yaw)
        poses.append((x + cos * ahead - sin * left, y + sin * ahead + cos * left, yaw + turn))
    return poses


class _Things:
    """Which geom belongs to which named thing, and what that is called."""

    def __init__(self, stage: Stage) -> None:
        self.of_geom = np.zeros(stage.scene.model.ngeom + 1, np.int64)  # 0: none
        self.colour, self.noun = [0], [0]
        for place, goal in enumerate(stage.world.goals):
            self.of_geom[list(stage.scene.goal_geoms[goal.name])] = place + 1
            self.colour.append(1 + COLOUR_NAMES.index(goal.colour))
            self.noun.append(1 + NOUNS.index(goal.noun))

    def cells(self, segmentation: np.ndarray) -> tuple[UInt8[np.ndarray, "12 12"], UInt8[np.ndarray, "12 12"]]:
        shown = np.where(segmentation >= 0, self.of_geom[segmentation], 0)
        height, width = (side // CELLS for side in shown.shape)
        blocks = shown.reshape(CELLS, height, CELLS, width).transpose(0, 2, 1, 3).reshape(CELLS, CELLS, -1)
        thing = np.zeros((CELLS, CELLS), np.int64)
        for index in range(1, len(self.colour)):
            thing[(blocks == index).mean(axis=-1) >= ENOUGH] = index
        return np.array(self.colour, np.uint8)[thing], np.array(self.noun, np.uint8)[thing]


def _film(
    stage: Stage,
    poses: list[tuple[float, float, float]],
    things: _Things,
    ranges: RandomisationRanges,
    generator: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """One group, in the order of `Groups`' fields. Half of the cameras are as high as those of drones and walkers."""
    lift = float(generator.choice([0.0, 0.0, generator.uniform(0.0, 0.6), generator.uniform(0.3, 1.1)]))
    spec, seen, frames, named = stage.picture_spec, list[Any](), [], []
    for pose in poses:
        look = ranges.draw(int(generator.integers(2**31)))
        forward, left, up = look.camera_offset_m
        up += lift + float(generator.normal() * 0.05) * (lift > 0)
        stage.begin(*pose, replace(look, camera_offset_m=(forward, left, up)))
        frames.append(stage.rgb())
        seen.append((*stage.look(), intrinsics(stage.scene.model, stage.scene.camera, spec.width, spec.height)))
        named.append(things.cells(seen[-1][2]))
    step, middle = spec.height // CELLS, spec.height // CELLS // 2
    rows = np.arange(middle, spec.height, step)
    columns = np.arange(spec.width // CELLS // 2, spec.width, spec.width // CELLS)
    place = np.zeros((VIEWS, VIEWS, CELLS, CELLS, 2), np.float16)
    valid = np.zeros((VIEWS, VIEWS, CELLS, CELLS), bool)
    for i, (before, depth, _, k) in enumerate(seen):
        for j, (after, depth_after, _, k_after) in enumerate(seen):
            if i != j:
                pixels, ok = reprojected(k, k_after, before, after, depth, depth_after)
                ok = ok[rows[:, None], columns]
                place[i, j] = np.where(ok[..., None], pixels[rows[:, None], columns], 0.0)
                valid[i, j] = ok
    colour, noun = (np.stack(part) for part in zip(*named))
    depth = np.stack([np.minimum(depth[rows[:, None], columns], FARTHEST_M) for _, depth, _, _ in seen]).astype(np.float16)
    return np.stack(frames), place, valid, colour, noun, depth
