"""A trip seen from above: rooms, walls, furniture, goals and paths of its world, and on them what the robot did and plans.

x is to the right, y up, as in the world frame. `draw_world` is drawn once per trip, `draw_trip` on a copy of it at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from kineflow.envs.navigation.drawing import INK, WHITE, Colour, Layer, shades
from kineflow.envs.navigation.shapes import COLOURS, Block
from kineflow.envs.navigation.world import World

OUTSIDE: Colour = (32, 35, 43)
FLOOR: Colour = (50, 54, 67)
GRASS: Colour = (36, 47, 42)
PATH: Colour = (84, 80, 72)
WALL: Colour = (164, 169, 182)
LOW, HIGH = np.array((74, 79, 94)), np.array((122, 128, 146))  # of furniture, by the height of its top
LEAVES: Colour = (74, 112, 82)
REFERENCE: Colour = (226, 228, 236)
DRIVEN: Colour = (56, 189, 248)
GOAL: Colour = (79, 209, 161)
TOUCH: Colour = (248, 100, 100)
WALKER: Colour = (250, 204, 90)
ROBOT: Colour = (255, 255, 255)

HEAD_HEIGHT_M = 1.9  # what begins above this is not on the map
TALL_M = 1.8
RIM_M = 0.3  # of what lies outside a world, that its map may show
SIGHT_M = 2.2  # length of the wedge that shows where the camera looks
Image = UInt8[np.ndarray, "size size 3"]


@dataclass(frozen=True)
class MapView:
    """A square of the world: its middle x, y and side in metres, drawn at `size` pixels."""

    middle: tuple[float, float]
    side_m: float
    size: int

    @staticmethod
    def around(
        points: Float[np.ndarray, "P 2"],
        size: int,
        bounds: tuple[float, float, float, float] | None = None,
        margin_m: float = 1.9,
        least_m: float = 6.0,
    ) -> MapView:
        """The square that holds all points with a margin and is at least so large; within `bounds` x0, y0, x1, y1 if it fits."""
        low, high = np.asarray(points).min(axis=0), np.asarray(points).max(axis=0)
        side = max(float((high - low).max()) + 2 * margin_m, least_m)
        middle = (low + high) / 2
        if bounds is not None:
            inside = np.array([bounds[:2], bounds[2:]]) + np.array([[-RIM_M], [RIM_M]]) + np.array([[side / 2], [-side / 2]])
            fits = inside[0] <= inside[1]
            middle = np.where(fits, np.clip(middle, inside[0], np.maximum(*inside)), np.asarray(inside).mean(axis=0))
        return MapView((float(middle[0]), float(middle[1])), side, size)

    @property
    def scale(self) -> float:
        """Pixels per metre."""
        return self.size / self.side_m

    def pixels(self, points: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
        """Pixels u, v (the centre of the top-left one is (0, 0)) of points x, y in the world."""
        offset = (np.asarray(points, np.float64)[..., :2] - np.asarray(self.middle)) * self.scale
        return np.asarray((self.size - 1) / 2 + offset * np.array([1.0, -1.0]))


@dataclass(frozen=True, eq=False)
class TripState:
    """What is drawn on a world: all in the world frame, metres and radians.

    `pose` x, y, yaw; `driven` the way so far; `reference` the way to go; `goal` with `radius_m` around it; `plans` N chunks as
    places x, y, yaw; `walkers` x, y, radius; `touches` where something was struck; `sight_rad` the camera's horizontal view.
    """

    pose: tuple[float, float, float]
    radius_body_m: float
    driven: Float[np.ndarray, "T 2"]
    reference: Float[np.ndarray, "R 2"]
    goal: tuple[float, float]
    radius_m: float
    plans: Float[np.ndarray, "N S 3"] | None = None
    walkers: tuple[tuple[float, float, float], ...] = ()
    touches: tuple[tuple[float, float], ...] = ()
    sight_rad: float = field(default=math.radians(70.0))


def draw_world(world: World, view: MapView) -> Image:
    """The plan of `world` without anybody in it."""
    canvas = np.full((view.size, view.size, 3), OUTSIDE, np.uint8)
    x0, y0, x1, y1 = world.bounds
    ground = Layer(view.size, view.size)
    ground.polygon(view.pixels(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])), FLOOR if world.ceiling_m else GRASS)
    ground.onto(canvas)
    things = {name: COLOURS[goal.colour] for goal in world.goals for name in goal.blocks}
    seen = [block for block in world.blocks if _is_on_map(block)]
    for opacity, blocks in ((0.6, [b for b in seen if _is_crown(b)]), (1.0, [b for b in seen if not _is_crown(b)])):
        # What hangs over other things is drawn translucent, and first: trunks show through crowns.
        layer = Layer(view.size, view.size)
        for block in sorted(blocks, key=lambda b: (b.name in things, _top(b))):
            outline = view.pixels(footprint(block))
            layer.polygon(outline, _colour(block, things.get(block.name)))
            if block.name not in things and block.solid and not _is_wall(block):
                layer.line(np.vstack([outline, outline[:1]]), INK, 0.6)
        for goal in world.goals:
            _outline(layer, [view.pixels(footprint(b)) for b in world.blocks if b.name in goal.blocks])
        layer.onto(canvas, opacity)
    return canvas


def draw_trip(background: Image, view: MapView, trip: TripState) -> Image:
    """`background` with the state of a trip on it."""
    canvas = background.copy()
    size, middle = view.size, view.pixels(np.array([trip.goal]))[0]
    around = Layer(size, size)
    around.disc(middle, trip.radius_m * view.scale, GOAL)
    around.onto(canvas, 0.22)
    sight = Layer(size, size)
    sight.polygon(view.pixels(_sight(trip.pose, trip.sight_rad)), ROBOT)
    sight.onto(canvas, 0.10)
    lines = Layer(size, size)
    lines.disc(middle, trip.radius_m * view.scale, GOAL, 1.2)
    for dash in dashes(trip.reference, 0.13, 0.11):
        lines.line(view.pixels(dash), REFERENCE, 1.4)
    lines.disc(middle, 3.2, GOAL)
    lines.onto(canvas, 0.85)
    things = Layer(size, size)
    if len(trip.driven) > 1:
        things.line(view.pixels(trip.driven), DRIVEN, 2.6)
    for x, y, radius in trip.walkers:
        things.disc(view.pixels(np.array([(x, y)]))[0], radius * view.scale, WALKER)
    for touch in trip.touches:
        _cross(things, view.pixels(np.array([touch]))[0], 5.0)
    things.onto(canvas)
    _draw_plans(canvas, view, trip)
    _draw_robot(canvas, view, trip)
    _draw_scale(canvas, view)
    return canvas


def footprint(block: Block) -> Float[np.ndarray, "C 2"]:
    """Corners x, y (m) of what a block covers."""
    hx, hy = block.half_size[:2]
    if block.shape == "box":
        corners = np.array([(hx, hy), (-hx, hy), (-hx, -hy), (hx, -hy)])
    else:
        angles = np.linspace(0.0, math.tau, 25)[:-1]
        corners = np.stack([hx * np.cos(angles), hy * np.sin(angles)], axis=1)
    cos, sin = math.cos(block.yaw), math.sin(block.yaw)
    return np.asarray(corners @ np.array([(cos, sin), (-sin, cos)]) + np.asarray(block.position[:2]))


def dashes(way: Float[np.ndarray, "P 2"], dash_m: float, gap_m: float) -> list[Float[np.ndarray, "D 2"]]:
    """Pieces of a way of `dash_m`, with `gap_m` between them."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    starts = np.arange(0.0, along[-1], dash_m + gap_m)
    places = np.stack([np.minimum(starts + share * dash_m, along[-1]) for share in (0.0, 0.5, 1.0)], axis=1)
    return list(np.stack([np.interp(places, along, way[:, axis]) for axis in (0, 1)], axis=-1))


def _is_on_map(block: Block) -> bool:
    return block.name != "ceiling" and (block.position[2] - block.half_size[2] < HEAD_HEIGHT_M or _is_crown(block))


def _is_crown(block: Block) -> bool:
    return block.surface == "leaves" and not block.solid


def _is_wall(block: Block) -> bool:
    return block.name.startswith(("wall", "doorway", "rail", "post", "brickwall"))


def _top(block: Block) -> float:
    return block.position[2] + block.half_size[2]


def _colour(block: Block, thing: tuple[float, float, float] | None) -> Colour:
    if thing is not None:
        return _rgb(thing)
    if block.surface == "path":
        return PATH
    if _is_wall(block):
        return WALL
    if block.surface == "leaves":
        return LEAVES
    share = min(max(_top(block) / TALL_M, 0.0), 1.0)
    own = np.array(block.rgb) * 255
    # A little of its own colour, so that wood is told from stone; never as bright as a goal.
    r, g, b = (0.75 * (LOW + share * (HIGH - LOW)) + 0.25 * np.minimum(own, 170)).astype(int).tolist()
    return r, g, b


def _rgb(colour: tuple[float, float, float]) -> Colour:
    r, g, b = (round(255 * min(channel, 1.0)) for channel in colour)
    return r, g, b


def _outline(layer: Layer, outlines: list[Float[np.ndarray, "C 2"]]) -> None:
    """A white line around all parts of one thing."""
    if outlines:
        hull = cv2.convexHull(np.concatenate(outlines).astype(np.float32))[:, 0]
        layer.line(np.vstack([hull, hull[:1]]), WHITE, 1.2)


def _sight(pose: tuple[float, float, float], angle: float) -> Float[np.ndarray, "C 2"]:
    x, y, yaw = pose
    rays = yaw + np.linspace(-angle / 2, angle / 2, 13)
    return np.vstack([[x, y], np.stack([x + SIGHT_M * np.cos(rays), y + SIGHT_M * np.sin(rays)], axis=1)])


def _draw_plans(canvas: Image, view: MapView, trip: TripState) -> None:
    if trip.plans is None:
        return
    opacity = 1.0 if len(trip.plans) == 1 else max(1.2 / math.sqrt(len(trip.plans)), 0.4)
    for plan in trip.plans:
        layer, pixels = Layer(view.size, view.size), view.pixels(plan[:, :2])
        if len(trip.plans) == 1:
            layer.line(pixels, INK, 5.0)
        for i, colour in enumerate(shades(len(plan) - 1)):
            layer.line(pixels[i : i + 2], colour, 3.0 if len(trip.plans) == 1 else 1.6)
        layer.onto(canvas, opacity)


def _draw_robot(canvas: Image, view: MapView, trip: TripState) -> None:
    x, y, yaw = trip.pose
    middle, radius = view.pixels(np.array([(x, y)]))[0], max(trip.radius_body_m * view.scale, 6.0)
    layer = Layer(view.size, view.size)
    layer.disc(middle, radius + 1.6, INK)
    layer.disc(middle, radius, ROBOT)
    angles = yaw + np.array([0.0, 2.5, math.pi, -2.5])
    reach = radius * np.array([0.82, 0.72, 0.28, 0.72])
    layer.polygon(middle + reach[:, None] * np.stack([np.cos(angles), -np.sin(angles)], axis=1), (109, 63, 217))
    layer.onto(canvas)


def _cross(layer: Layer, middle: Float[np.ndarray, "2"], reach: float) -> None:
    for colour, width in ((INK, 4.0), (TOUCH, 2.2)):
        for side in (1.0, -1.0):
            arm = np.array([reach, side * reach])
            layer.line(np.stack([middle - arm, middle + arm]), colour, width)


def _draw_scale(canvas: Image, view: MapView) -> None:
    """A bar of 1 m at the lower left; the panel writes its length beside it."""
    left, low = 14.0, view.size - 15.0
    bar = np.array([(left, low - 4), (left, low), (left + view.scale, low), (left + view.scale, low - 4)])
    layer = Layer(view.size, view.size)
    layer.line(bar, INK, 4.0)
    layer.line(bar, WHITE, 1.6)
    layer.onto(canvas, 0.9)
