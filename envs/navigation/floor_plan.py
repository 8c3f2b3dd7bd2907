"""Indoor worlds: rooms and corridors with doorways between them, furnished, with pictures, windows and a ceiling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kineflow.envs.navigation.furniture import AGAINST_WALLS, FREE_STANDING, INDOOR_GOALS
from kineflow.envs.navigation.placing import Site
from kineflow.envs.navigation.shapes import COLOURS, Block, Rgb

THICKNESS_M = 0.14
DOOR_HEIGHT_M = 2.05
MIN_ROOM_M = 2.9
WHITE: Rgb = (0.90, 0.89, 0.86)

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Wall:
    """A straight wall on the line y = at (along "x") or x = at (along "y"), from `start` to `end`; `gaps` are (centre, width)."""

    along: str
    at: float
    start: float
    end: float
    gaps: tuple[tuple[float, float], ...] = ()
    is_outer: bool = False


@dataclass(frozen=True)
class FloorPlan:
    """Rooms as (x0, y0, x1, y1) between the middles of walls; the first `corridors` of them are corridors."""

    rooms: tuple[Rect, ...]
    walls: tuple[Wall, ...]
    corridors: int


def draw_floor_plan(generator: np.random.Generator, bounds: Rect) -> FloorPlan:
    """Halve the floor until rooms are small, or lay a corridor through it first; each dividing wall has a doorway."""
    x0, y0, x1, y1 = bounds
    walls: list[Wall] = []
    rooms: list[Rect] = []
    corridors = 0
    if generator.random() < 0.55 and y1 - y0 >= 2 * MIN_ROOM_M + 2.5:
        width = generator.uniform(1.7, 2.4)
        low = generator.uniform(y0 + MIN_ROOM_M, y1 - MIN_ROOM_M - width)
        rooms.append((x0, low, x1, low + width))
        corridors = 1
        for rect, at in (((x0, y0, x1, low), low), ((x0, low + width, x1, y1), low + width)):
            cuts = _cuts(generator, x0, x1)
            doorways = tuple(_gap(generator, a, b) for a, b in itertools.pairwise(cuts))
            walls.append(Wall("x", at, x0, x1, doorways))
            for a, b in itertools.pairwise(cuts):
                rooms.append((a, rect[1], b, rect[3]))
            for cut in cuts[1:-1]:
                gaps = (_gap(generator, rect[1], rect[3]),) if generator.random() < 0.3 else ()
                walls.append(Wall("y", cut, rect[1], rect[3], gaps))
    else:
        _halve(generator, bounds, walls, rooms)
    outer = [Wall("x", at, x0, x1, is_outer=True) for at in (y0, y1)] + [Wall("y", at, y0, y1, is_outer=True) for at in (x0, x1)]
    return FloorPlan(tuple(rooms), (*walls, *outer), corridors)


def furnish(generator: np.random.Generator, site: Site, plan: FloorPlan, density: float, goals: int) -> float:
    """Build the plan with everything in it; returns the height of the ceiling in metres."""
    height = float(generator.uniform(2.45, 3.0))
    site.build(_walls(generator, plan, height))
    for wall in plan.walls:
        for centre, width in wall.gaps:
            x, y = (centre, wall.at) if wall.along == "x" else (wall.at, centre)
            site.keep_free(x, y, 0.5 * width + 0.35)
    _place_goals(generator, site, plan, goals)
    _place_furniture(generator, site, plan, density)
    site.build(_wall_decoration(generator, site, plan))
    site.build(_ceiling(generator, site.bounds, plan, height))
    return height


def _cuts(generator: np.random.Generator, start: float, end: float) -> list[float]:
    cuts = [start]
    while end - cuts[-1] >= 2 * MIN_ROOM_M:
        cuts.append(min(cuts[-1] + float(generator.uniform(MIN_ROOM_M, 5.5)), end - MIN_ROOM_M))
    return [*cuts, end]


def _gap(generator: np.random.Generator, start: float, end: float) -> tuple[float, float]:
    width = float(generator.uniform(1.15, 1.5))
    return float(generator.uniform(start + 0.5 + width / 2, end - 0.5 - width / 2)), width


def _halve(generator: np.random.Generator, rect: Rect, walls: list[Wall], rooms: list[Rect]) -> None:
    x0, y0, x1, y1 = rect
    along = "y" if x1 - x0 > y1 - y0 else "x"
    start, end = (x0, x1) if along == "y" else (y0, y1)
    is_done = end - start < 2 * MIN_ROOM_M or ((x1 - x0) * (y1 - y0) < 30 and generator.random() < 0.5)
    places = (
        []
        if is_done
        else [p for p in generator.uniform(start + MIN_ROOM_M, end - MIN_ROOM_M, 12) if _is_off_gaps(walls, rect, along, p)]
    )
    if not places:
        rooms.append(rect)
        return
    at = float(places[0])
    low, high = (y0, y1) if along == "y" else (x0, x1)
    gaps = [_gap(generator, low, high)]
    if high - low > 6.0 and generator.random() < 0.6:
        other = _gap(generator, low, high)
        if abs(other[0] - gaps[0][0]) > 2.5:
            gaps.append(other)
    walls.append(Wall(along, at, low, high, tuple(gaps)))
    halves = ((x0, y0, at, y1), (at, y0, x1, y1)) if along == "y" else ((x0, y0, x1, at), (x0, at, x1, y1))
    for half in halves:
        _halve(generator, half, walls, rooms)


def _is_off_gaps(walls: list[Wall], rect: Rect, along: str, at: float) -> bool:
    """Whether a wall there would end beside, not in, the doorways of the walls that it meets."""
    ends = (rect[1], rect[3]) if along == "y" else (rect[0], rect[2])
    met = [wall for wall in walls if wall.along != along and wall.at in ends]
    return all(abs(centre - at) > width / 2 + 0.45 for wall in met for centre, width in wall.gaps)


def _walls(generator: np.random.Generator, plan: FloorPlan, height: float) -> Iterator[Block]:
    frame = [WHITE, (0.48, 0.36, 0.26), (0.34, 0.34, 0.36)][generator.integers(3)]
    skirting = [WHITE, (0.38, 0.30, 0.24), (0.30, 0.30, 0.32)][generator.integers(3)]
    for number, wall in enumerate(plan.walls):
        surface = "wall" if wall.is_outer or generator.random() < 0.6 else "wall2"
        edges = [wall.start, *(e for c, w in sorted(wall.gaps) for e in (c - w / 2, c + w / 2)), wall.end]
        for piece, (a, b) in enumerate(zip(edges[::2], edges[1::2])):
            name = f"wall{number}_{piece}"
            yield _along(wall, name, a, b, 0.0, height, THICKNESS_M, surface=surface)
            yield _along(wall, f"{name}_skirting", a, b, 0.0, 0.1, THICKNESS_M + 0.03, skirting, solid=False)
        for gap, (centre, width) in enumerate(sorted(wall.gaps)):
            name, a, b = f"doorway{number}_{gap}", centre - width / 2, centre + width / 2
            yield _along(wall, f"{name}_lintel", a, b, DOOR_HEIGHT_M, height, THICKNESS_M, surface=surface)
            yield _along(wall, f"{name}_left", a - 0.05, a + 0.03, 0.0, DOOR_HEIGHT_M, THICKNESS_M + 0.06, frame)
            yield _along(wall, f"{name}_right", b - 0.03, b + 0.05, 0.0, DOOR_HEIGHT_M, THICKNESS_M + 0.06, frame)
            yield _along(wall, f"{name}_head", a - 0.05, b + 0.05, DOOR_HEIGHT_M, DOOR_HEIGHT_M + 0.08, THICKNESS_M + 0.06, frame)


def _along(
    wall: Wall, name: str, a: float, b: float, low: float, high: float, thickness: float, rgb: Rgb = (1.0, 1.0, 1.0),
    surface: str = "", solid: bool = True,
) -> Block:  # fmt: skip
    length, middle, z = (b - a) / 2, (a + b) / 2, (low + high) / 2
    if wall.along == "x":
        return Block(name, "box", (middle, wall.at, z), (length, thickness / 2, (high - low) / 2), 0.0, rgb, surface, "y", solid)
    return Block(name, "box", (wall.at, middle, z), (thickness / 2, length, (high - low) / 2), 0.0, rgb, surface, "x", solid)


def _sides(room: Rect) -> tuple[tuple[float, float, float, float, float], ...]:
    """Per side of a room: a point on the wall's face, the direction along it, its length, and the yaw that looks inward."""
    x0, y0, x1, y1 = room
    t = THICKNESS_M / 2
    return (
        (x0 + t, y0 + t, 0.0, x1 - x0 - 2 * t, math.pi / 2),
        (x1 - t, y1 - t, math.pi, x1 - x0 - 2 * t, -math.pi / 2),
        (x1 - t, y0 + t, math.pi / 2, y1 - y0 - 2 * t, math.pi),
        (x0 + t, y1 - t, -math.pi / 2, y1 - y0 - 2 * t, 0.0),
    )


def _on_side(
    side: tuple[float, float, float, float, float], share: float, width: float, depth: float
) -> tuple[float, float, float]:
    x, y, along, length, yaw = side
    run = 0.08 + width / 2 + share * max(length - width - 0.16, 0.0)
    out = depth / 2 + 0.03
    return x + math.cos(along) * run + math.cos(yaw) * out, y + math.sin(along) * run + math.sin(yaw) * out, yaw


def _place_goals(generator: np.random.Generator, site: Site, plan: FloorPlan, goals: int) -> None:
    # Few colours and nouns, so that a world holds two red things or two balls: one word alone does not name the goal.
    colours = generator.permutation(list(COLOURS))[:4]
    nouns = ["door", *generator.permutation([n for n in INDOOR_GOALS if n != "door"])[:4]]
    names = [(str(c), str(n)) for c in colours for n in nouns]
    order = iter(generator.permutation(len(names)))
    for _ in range(6 * goals):
        if len(site.goals) >= goals:
            return
        number = next(order, None)
        if number is None:
            return
        colour, noun = names[number]
        piece = INDOOR_GOALS[noun](generator, COLOURS[colour])
        for _ in range(12):
            room = plan.rooms[generator.integers(len(plan.rooms))]
            if noun in ("ball", "box", "chair", "lamp") and generator.random() < 0.5:
                x, y = generator.uniform(room[0] + 0.7, room[2] - 0.7), generator.uniform(room[1] + 0.7, room[3] - 0.7)
                yaw, views = generator.uniform(-math.pi, math.pi), tuple(np.linspace(-2.4, 2.4, 5).tolist())
            else:
                side = _sides(room)[generator.integers(4)]
                depth = 0.0 if noun == "door" else piece.size[0]
                x, y, yaw = _on_side(side, generator.random(), piece.size[1], depth)
                views = (0.0, 0.5, -0.5)
                if noun == "door":
                    # Its back is the wall's face: the margin that other pieces keep would let it float.
                    x, y = x - 0.03 * math.cos(yaw), y - 0.03 * math.sin(yaw)
            if site.place_goal(piece, colour, float(x), float(y), float(yaw), views):
                break


def _place_furniture(generator: np.random.Generator, site: Site, plan: FloorPlan, density: float) -> None:
    for number, room in enumerate(plan.rooms):
        area = (room[2] - room[0]) * (room[3] - room[1])
        count = generator.poisson(density * area * (0.15 if number < plan.corridors else 0.45))
        for _ in range(min(int(count), 12)):
            if generator.random() < 0.75:
                piece = AGAINST_WALLS[generator.integers(len(AGAINST_WALLS))](generator, None)
                side = _sides(room)[generator.integers(4)]
                x, y, yaw = _on_side(side, generator.random(), piece.size[1], piece.size[0])
            else:
                piece = FREE_STANDING[generator.integers(len(FREE_STANDING))](generator, None)
                x, y = generator.uniform(room[0] + 0.8, room[2] - 0.8), generator.uniform(room[1] + 0.8, room[3] - 0.8)
                yaw = generator.uniform(-math.pi, math.pi)
            site.place(piece, float(x), float(y), float(yaw))


def _wall_decoration(generator: np.random.Generator, site: Site, plan: FloorPlan) -> Iterator[Block]:
    """Pictures, windows and plain doors where the wall is whole; they stand off it by less than a robot notices."""
    x0, y0, x1, y1 = site.bounds
    number = 0
    for room in plan.rooms:
        for side in _sides(room):
            spans = _whole_spans(plan, room, side)
            for start, end in spans:
                at = start + 0.4
                while at + 0.5 < end:
                    width = float(generator.uniform(0.5, 1.2))
                    if at + width > end - 0.2:
                        break
                    if generator.random() < 0.55:
                        x, y = side[0] + math.cos(side[2]) * (at + width / 2), side[1] + math.sin(side[2]) * (at + width / 2)
                        if site.is_filled(x, y, side[2], side[4], width):
                            at += width
                            continue
                        is_outer = min(x - x0, x1 - x, y - y0, y1 - y) < THICKNESS_M
                        is_window = is_outer and generator.random() < 0.4
                        yield from _panel(generator, f"panel{number}", x, y, side[4], width, is_window)
                        number += 1
                    at += width + float(generator.uniform(0.3, 1.8))


def _whole_spans(plan: FloorPlan, room: Rect, side: tuple[float, float, float, float, float]) -> list[tuple[float, float]]:
    """Parts of a room's side without doorways, as distances along it."""
    x, y, along, length, _ = side
    spans = [(0.0, length)]
    for wall in plan.walls:
        is_parallel = (wall.along == "x") == (abs(math.cos(along)) > 0.5)
        off = y - wall.at if wall.along == "x" else x - wall.at
        if not is_parallel or abs(off) > THICKNESS_M:
            continue
        for centre, width in wall.gaps:
            run = (centre - (x if wall.along == "x" else y)) * (math.cos(along) if wall.along == "x" else math.sin(along))
            low, high = run - width / 2 - 0.1, run + width / 2 + 0.1
            spans = [s for a, b in spans for s in ((a, min(b, low)), (max(a, high), b)) if s[1] - s[0] > 0.6]
    return spans


def _panel(
    generator: np.random.Generator, name: str, x: float, y: float, yaw: float, width: float, is_window: bool
) -> Iterator[Block]:
    height = float(generator.uniform(0.9, 1.2) if is_window else generator.uniform(0.4, 0.9))
    z = 1.55 if is_window else float(generator.uniform(1.35, 1.65))
    frame: Rgb = WHITE if is_window else [(0.16, 0.15, 0.14), (0.50, 0.38, 0.24), (0.82, 0.80, 0.76)][generator.integers(3)]
    surface = "window" if is_window else f"picture{generator.integers(4)}"

    def slab(part: str, out: float, half: tuple[float, float], rgb: Rgb, texture: str, glow: float) -> Block:
        position = (x + math.cos(yaw) * out, y + math.sin(yaw) * out, z)
        # Turned so that a box's own +x looks into the room: pictures are the right way up on every wall.
        return Block(f"{name}_{part}", "box", position, (0.012, *half), yaw, rgb, texture, "x", False, glow)

    yield slab("frame", 0.004, (width / 2 + 0.04, height / 2 + 0.04), frame, "", 0.0)
    yield slab("face", 0.012, (width / 2, height / 2), (1.0, 1.0, 1.0), surface, 0.35 if is_window else 0.0)


def _ceiling(generator: np.random.Generator, bounds: Rect, plan: FloorPlan, height: float) -> Iterator[Block]:
    x0, y0, x1, y1 = bounds
    yield Block(
        "ceiling",
        "box",
        ((x0 + x1) / 2, (y0 + y1) / 2, height + 0.05),
        ((x1 - x0) / 2, (y1 - y0) / 2, 0.05),
        surface="ceiling",
        solid=False,
    )
    for number, (a, b, c, d) in enumerate(plan.rooms):
        half_x, half_y = min(0.6, (c - a) / 4), min(0.3, (d - b) / 4)
        for spot in range(max(1, round((c - a) / 4))):
            x = a + (c - a) * (spot + 0.5) / max(1, round((c - a) / 4))
            yield Block(
                f"light{number}_{spot}", "box", (x, (b + d) / 2, height - 0.005), (half_x, half_y, 0.02), solid=False, glow=1.0
            )
