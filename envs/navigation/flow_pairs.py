"""Pictures of moving bodies with the optical flow between them: what a flow network learns from, and is measured on.

    a drive in a world   . . . o . . o . . . . o . . .        o: a burst of three pictures, up to a second apart
    a burst                    0     1         2              the flow 0 -> 1, 1 -> 0, 0 -> 2, 2 -> 0, 1 -> 2, 2 -> 1

A world gives many pairs cheaply, but a network sees the same few textures in them: many worlds, few bursts each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int16, Int64, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.filmed_worlds import film_folder, read_arrays
from kineflow.envs.navigation.goal_clip import expert_for
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import Task, draw_trip
from kineflow.envs.navigation.values import CONTROL_HZ, EMBODIMENTS
from kineflow.envs.navigation.world import generate_world

UNITS = 64.0  # stored steps per pixel of flow
UNKNOWN = -32768  # in place of flow that leaves the second picture, or is hidden in it
STRIDE = 2  # flow is kept at every second pixel, rows and columns 0, 2, ..
ORDERED = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1))  # pictures of a burst that its flows go from and to
WANDER_S = 0.6  # how long one disturbance of the drive lasts on average


@dataclass(frozen=True)
class FlowWorlds:
    """Which worlds are filmed: `worlds` from number `first_world` on, in each `bursts` bursts over `trips` drives.

    Worlds take turns with the `embodiments`. Between the pictures of a burst lie the sum of two numbers drawn from `steps`
    (control steps of 0.1 s), at most. The expert drives, disturbed by up to `wander` of each axis' limit.
    """

    embodiments: tuple[str, ...] = EMBODIMENTS
    world: Literal["indoor", "outdoor", "mixed"] = "mixed"
    first_world: int = 0
    worlds: int = 500
    trips: int = 2
    bursts: int = 4
    steps: tuple[int, ...] = (1, 1, 2, 2, 3, 4)
    wander: float = 0.5
    movers: int = 2
    drive_steps: int = 50
    picture: Picture = field(default_factory=Picture)

    def __post_init__(self) -> None:
        if not self.embodiments or any(name not in EMBODIMENTS for name in self.embodiments):
            raise KineflowError(f"FlowWorlds.embodiments is {self.embodiments}; name some of {EMBODIMENTS}")
        if self.first_world < 0 or min(self.worlds, self.trips) < 1 or self.bursts < self.trips:
            raise KineflowError(
                f"FlowWorlds: first_world {self.first_world} (from 0 on), worlds {self.worlds}, trips {self.trips} (at least 1), "
                f"bursts {self.bursts} (at least one a trip)"
            )
        if not self.steps or min(self.steps) < 1 or 2 * max(self.steps) >= self.drive_steps:
            raise KineflowError(f"FlowWorlds.steps is {self.steps}; two of them must fit into drive_steps {self.drive_steps}")


@dataclass(frozen=True, eq=False)
class Bursts:
    """B bursts of one world. `flow[b, p]` in 1/64 px, right and down, belongs to the pictures `ORDERED[p]`, of which `gap` says
    how many control steps apart they are; `UNKNOWN` where there is none. It is kept at every second pixel of the first."""

    frames: UInt8[np.ndarray, "B 3 H W 3"]
    flow: Int16[np.ndarray, "B 6 H2 W2 2"]
    gap: Int64[np.ndarray, "B 6"]


def film_worlds(config: FlowWorlds, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Path]:
    """A file `world-<number>.npz` in `folder` for each world of `config`; those that are there are not filmed again.

    Raises:
        KineflowError: the folder holds worlds filmed otherwise, or a body is not available here.
    """

    def film(number: int) -> Mapping[str, np.ndarray] | None:
        bursts = film_world(config, number)
        return None if bursts is None else vars(bursts)

    return film_folder(config, folder, film, progress)


def read_bursts(file: Path) -> Bursts:
    """What `film_worlds` wrote. Raises KineflowError for another kind of file."""
    return Bursts(**read_arrays(file, [field.name for field in fields(Bursts)], "flow pairs"))


def film_world(config: FlowWorlds, number: int) -> Bursts | None:
    """The bursts of the world of that number; the same number, the same bursts. None: no drive could be drawn in it.

    Raises:
        KineflowError: the body of that world's turn is not available here.
    """
    ranges = RandomisationRanges()
    generator = np.random.default_rng([number, 0xF104])
    task = Task("video", config.world, movers=config.movers)
    world = generate_world(task.world_config(number))
    body = config.embodiments[number // 2 % len(config.embodiments)]  # by pairs: indoors and outdoors take turns, too
    stage = Stage(world, embodiment_of(body), config.picture, ranges.draw(number).texture_seed)
    filmed: list[tuple[np.ndarray, np.ndarray, list[int]]] = []
    try:
        for trip in range(config.trips):
            count = config.bursts // config.trips + (trip < config.bursts % config.trips)
            filmed += _film_drive(stage, task, config, count, number * 100 + trip, generator)
    finally:
        stage.close()
    if not filmed:
        return None
    frames, flow, gap = zip(*filmed)
    return Bursts(np.stack(frames), np.stack(flow), np.array(gap))


def _film_drive(
    stage: Stage, task: Task, config: FlowWorlds, count: int, seed: int, generator: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, list[int]]]:
    try:
        trip = draw_trip(task, stage.world, stage.planner, generator)
    except KineflowError:
        return []
    stage.begin(*trip.start, RandomisationRanges().draw(seed), seed)
    expert = expert_for(stage, trip)
    gaps = generator.choice(config.steps, (count, 2))
    latest = config.drive_steps - int(gaps.sum(axis=1).max())
    starts = np.sort(generator.integers(0, latest, count))
    wanted = [(int(s), int(s + a), int(s + a + b)) for s, (a, b) in zip(starts, gaps)]
    needed = {step for burst in wanted for step in burst}
    high = np.array(stage.embodiment.limits.high)
    reach, wander = np.where(high > 1e-3, config.wander * high, 0.0), np.zeros(4)
    seen: dict[int, tuple[np.ndarray, Any]] = {}
    for step in range(config.drive_steps):
        if step in needed:
            seen[step] = (stage.rgb(), stage.look())
        if generator.random() < 1 / (WANDER_S * CONTROL_HZ):
            wander = generator.uniform(-reach, reach) * (generator.random() < 0.7)  # sometimes as the expert means it
        stage.drive(expert.command(*stage.position, stage.yaw, stage.robot.velocity(), stage.walkers) + wander)
        if stage.touched or stage.robot.fallen():  # a camera in a wall sees what no camera sees
            break
    return [_burst(stage, [seen[step] for step in burst], burst) for burst in wanted if all(step in seen for step in burst)]


def _burst(stage: Stage, seen: list[tuple[np.ndarray, Any]], steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    flows = []
    for first, second in ORDERED:
        snapshot, depth, _ = seen[second][1]
        flow = stage.flow_to(seen[first][1], snapshot, depth)
        units = np.clip(np.rint(flow.pixels * UNITS), UNKNOWN + 1, -UNKNOWN - 1)
        flows.append(np.where(flow.valid[..., None], units, UNKNOWN).astype(np.int16)[::STRIDE, ::STRIDE])
    return np.stack([picture for picture, _ in seen]), np.stack(flows), [abs(steps[a] - steps[b]) for a, b in ORDERED]
