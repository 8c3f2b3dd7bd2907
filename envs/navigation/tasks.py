"""What a robot may be asked to do, and how starts and goals are drawn for it.

    kind        told by                        drawn                                                        done when at rest
    point       x, y, z in the world           anywhere reachable, 2-8 m of path away                       at the point
    image       the picture at the goal        2-8 m away, the way hardly longer than the straight line     at the point
    video       the clip of the whole way      anywhere reachable, 3-12 m of path away                      at its end
    language    "go to the red door and stop"  a named thing in view at the start, 2-8 m away, looked at     before the thing
    route       the clip of the whole way      through 2 places in between, 6-20 m of path                  at its end, all passed

A seed says everything: the world (`seed // episodes_per_world`), start, goal, words and randomisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.planner import NoPath, Path, Planner
from kineflow.envs.navigation.shapes import GoalObject
from kineflow.envs.navigation.world import World, WorldConfig

Kind = Literal["point", "image", "video", "language", "route"]
KINDS: tuple[Kind, ...] = ("point", "image", "video", "language", "route")
PATH_M: dict[Kind, tuple[float, float]] = {
    "point": (2.0, 8.0),
    "image": (2.0, 8.0),
    "video": (3.0, 12.0),
    "language": (1.5, 8.0),
    "route": (6.0, 20.0),
}
PHRASES = (
    "go to the {} and stop",
    "drive to the {} and stop",
    "go to the {}",
    "move to the {} and stop in front of it",
    "stop in front of the {}",
    "navigate to the {}",
    "head for the {} and stop there",
    "find the {} and stop next to it",
)
DETOUR = 1.35  # longest way to an image's place, as a multiple of the straight line
IN_VIEW_RAD = math.radians(26.0)  # of the camera's axis: inside the picture with the camera's jitter and the thing's width
START_YAW_RAD = math.radians(35.0)  # how far from the direction of the path a start may look
VIEW_M = 1.5  # free space ahead at the end of a way that pictures tell
ATTEMPTS = 200


@dataclass(frozen=True)
class Task:
    """One kind of task in one kind of world.

    `world`: "mixed" is indoors for even world numbers and outdoors for odd ones. `radius_m`: how near counts as there.
    `time_limit_s`: then the episode is cut off. `path_m`: shortest and longest path ((0, 0): that of the kind, see the module).
    """

    kind: Kind = "video"
    world: Literal["indoor", "outdoor", "mixed"] = "indoor"
    radius_m: float = 1.0
    time_limit_s: float = 60.0
    path_m: tuple[float, float] = (0.0, 0.0)
    movers: int = 0
    density: float = 0.5
    episodes_per_world: int = 4
    phrases: tuple[str, ...] = field(default=PHRASES)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise KineflowError(f"Task.kind is '{self.kind}'; choose one of {KINDS}")
        if not (self.radius_m > 0 and self.time_limit_s > 0 and self.episodes_per_world >= 1):
            raise KineflowError(
                f"Task needs radius_m and time_limit_s above 0 and episodes_per_world of at least 1, got {self.radius_m}, "
                f"{self.time_limit_s} and {self.episodes_per_world}"
            )
        low, high = self.path_m
        if self.path_m != (0.0, 0.0) and not 0 < low < high:
            raise KineflowError(f"Task.path_m is {self.path_m}; it is a shortest and a longest path in metres")
        if not self.phrases or any("{}" not in phrase for phrase in self.phrases):
            raise KineflowError(f"Task.phrases are {self.phrases}; each needs {{}} where the thing's name goes")

    def path_range(self) -> tuple[float, float]:
        """Metres of the shortest and longest path."""
        return PATH_M[self.kind] if self.path_m == (0.0, 0.0) else self.path_m

    def world_config(self, number: int) -> WorldConfig:
        """The world of that number."""
        indoor = self.world == "indoor" or (self.world == "mixed" and number % 2 == 0)
        return WorldConfig("indoor" if indoor else "outdoor", number, density=self.density, movers=self.movers)


@dataclass(frozen=True, eq=False)
class Trip:
    """One drawn task: from `start` (x, y, yaw) along `path` to its end; `goal_yaw` where it ends facing something.

    `via`: places x, y to pass on the way, in order. `thing`: name of what the words speak of ("": nothing).
    """

    start: tuple[float, float, float]
    path: Path
    goal_yaw: float | None = None
    via: tuple[tuple[float, float], ...] = ()
    thing: str = ""
    instruction: str = ""

    @property
    def goal(self) -> tuple[float, float]:
        """x, y where the path ends, m."""
        x, y = self.path.points[-1].tolist()
        return x, y

    @property
    def end_yaw(self) -> float:
        """Heading at the goal, rad: that of the path where none is asked for."""
        return float(self.path.headings[-1]) if self.goal_yaw is None else self.goal_yaw


def draw_trip(task: Task, world: World, planner: Planner, generator: np.random.Generator) -> Trip:
    """A start and a goal for `task`, with the way between them.

    Raises:
        KineflowError: the world offers none in many attempts.
    """
    draw = _draw_to_thing if task.kind == "language" else _draw_to_place
    for _ in range(ATTEMPTS):
        try:
            trip = draw(task, world, planner, generator)
        except NoPath:
            continue
        if trip is not None:
            return trip
    raise KineflowError(
        f"no start and goal for a {task.kind} task of {task.path_range()} m in world {world.config} after {ATTEMPTS} attempts; "
        "widen path_m, or take another world"
    )


def _draw_to_place(task: Task, world: World, planner: Planner, generator: np.random.Generator) -> Trip | None:
    low, high = task.path_range()
    places = world.free_space.sample(generator, planner.radius_m + 0.15, 4 if task.kind == "route" else 2)
    gaps = np.hypot(*np.diff(places, axis=0).T)
    if not 0.5 * low <= gaps.sum() <= high or gaps.min() < 1.0:
        return None
    path = planner.plan(*places.tolist())
    longest = min(high, DETOUR * float(gaps[0])) if task.kind == "image" else high
    if not low <= path.length <= longest:
        return None
    if not _looks_far(world, path):
        return None
    yaw = float(path.headings[0] + generator.uniform(-START_YAW_RAD, START_YAW_RAD))
    via = tuple((float(x), float(y)) for x, y in places[1:-1])
    return Trip((float(places[0, 0]), float(places[0, 1]), math.remainder(yaw, math.tau)), path, via=via)


def _looks_far(world: World, path: Path) -> bool:
    """Whether the view at the end is more than a bare wall, which is no goal to recognise."""
    x, y = path.points[-1].tolist()
    heading = float(path.headings[-1])
    ahead = (x + VIEW_M * math.cos(heading), y + VIEW_M * math.sin(heading))
    return world.free_space.is_clear((x, y), ahead, 0.0)


def _draw_to_thing(task: Task, world: World, planner: Planner, generator: np.random.Generator) -> Trip | None:
    if not world.goals:
        raise KineflowError(f"world {world.config} has no named things; a language task needs WorldConfig.goals of at least 1")
    thing = world.goals[generator.integers(len(world.goals))]
    x, y = world.free_space.sample(generator, planner.radius_m + 0.15)[0].tolist()
    low, high = task.path_range()
    gap = math.dist((x, y), thing.stand_off[:2])
    if not 0.8 * low <= gap <= high or not is_in_sight(world, (x, y), thing):
        return None
    path = planner.plan((x, y), thing.stand_off[:2])
    if not low <= path.length <= high:
        return None
    bearing = math.atan2(thing.position[1] - y, thing.position[0] - x)
    yaw = math.remainder(bearing + generator.uniform(-IN_VIEW_RAD, IN_VIEW_RAD), math.tau)
    words = task.phrases[generator.integers(len(task.phrases))].format(thing.name)
    return Trip((x, y, yaw), path, goal_yaw=thing.stand_off[2], thing=thing.name, instruction=words)


def is_in_sight(world: World, place: tuple[float, float], thing: GoalObject) -> bool:
    """Whether nothing stands between a place and a thing's stand-off, nor between the place and the thing itself.

    On the floor plan, where everything is as high as the camera: what is called seen is seen.
    """
    space = world.free_space
    if not space.is_clear(place, thing.stand_off[:2], 0.05):
        return False
    sizes = [max(b.reach) + math.dist(b.position[:2], thing.position[:2]) for b in world.blocks if b.name in thing.blocks]
    gap = math.dist(place, thing.position[:2])
    share = max(gap - max(sizes, default=0.0) - 0.25, 0.1) / gap
    short = [a + share * (b - a) for a, b in zip(place, thing.position[:2])]
    return space.is_clear(place, short, 0.0)
