"""Pieces that stand in a world, each a few blocks around its own origin: x to its front, z up, the floor at z = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kineflow.envs.navigation.shapes import Block, Rgb

WOODS: tuple[Rgb, ...] = ((0.62, 0.46, 0.30), (0.45, 0.32, 0.22), (0.74, 0.62, 0.46), (0.55, 0.50, 0.45))
FABRICS: tuple[Rgb, ...] = ((0.48, 0.46, 0.44), (0.66, 0.60, 0.52), (0.36, 0.38, 0.42), (0.56, 0.50, 0.50))


@dataclass(frozen=True)
class Piece:
    """A noun and its blocks; `size` is the extent of its footprint along x and y, metres."""

    noun: str
    blocks: tuple[Block, ...]
    size: tuple[float, float]

    def at(self, name: str, x: float, y: float, yaw: float) -> tuple[Block, ...]:
        """The blocks in the world, their names prefixed with `name`."""
        cos, sin = math.cos(yaw), math.sin(yaw)
        placed = []
        for block in self.blocks:
            bx, by, bz = block.position
            position = (x + cos * bx - sin * by, y + sin * bx + cos * by, bz)
            placed.append(replace(block, name=f"{name}/{block.name}", position=position, yaw=block.yaw + yaw))
        return tuple(placed)


Maker = Callable[[np.random.Generator, "Rgb | None"], Piece]


def box(name: str, x: float, y: float, z: float, sx: float, sy: float, sz: float, rgb: Rgb, surface: str = "") -> Block:
    """A box by the centre of its underside (x, y, z) and its full size."""
    facing = "x" if surface in ("books", "facade") else "z"
    return Block(name, "box", (x, y, z + sz / 2), (sx / 2, sy / 2, sz / 2), rgb=rgb, surface=surface, facing=facing)  # type: ignore[arg-type]


def _round(name: str, shape: str, z: float, radius: float, height: float, rgb: Rgb, surface: str = "") -> Block:
    return Block(name, shape, (0.0, 0.0, z + height / 2), (radius, radius, height / 2), rgb=rgb, surface=surface)  # type: ignore[arg-type]


def _pick(generator: np.random.Generator, choices: tuple[Rgb, ...]) -> Rgb:
    return choices[generator.integers(len(choices))]


def _shade(rgb: Rgb, factor: float) -> Rgb:
    return (min(rgb[0] * factor, 1.0), min(rgb[1] * factor, 1.0), min(rgb[2] * factor, 1.0))


def cabinet(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    depth, width, height = generator.uniform(0.4, 0.6), generator.uniform(0.7, 1.2), generator.uniform(0.9, 1.9)
    rgb = colour or _pick(generator, WOODS)
    handle: Rgb = (0.75, 0.75, 0.72)
    return Piece(
        "cabinet",
        (
            box("body", 0, 0, 0, depth, width, height, rgb, "" if colour else "wood"),
            box("gap", 0.005, 0, 0.06, depth, 0.02, height - 0.12, _shade(rgb, 0.45)),
            box("handle", depth / 2 + 0.01, 0.08, height * 0.5, 0.03, 0.03, 0.16, handle),
            box("other_handle", depth / 2 + 0.01, -0.08, height * 0.5, 0.03, 0.03, 0.16, handle),
        ),
        (depth + 0.06, width),
    )


def shelf(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    width, height = generator.uniform(0.8, 1.6), generator.uniform(1.5, 2.0)
    rgb = colour or _pick(generator, WOODS)
    blocks = [
        box("back", -0.14, 0, 0, 0.04, width, height, rgb),
        box("left", 0, width / 2, 0, 0.32, 0.04, height, rgb),
        box("right", 0, -width / 2, 0, 0.32, 0.04, height, rgb),
        box("top", 0, 0, height - 0.04, 0.32, width, 0.04, rgb),
        box("base", 0, 0, 0, 0.32, width, 0.08, rgb),
        box("books", -0.03, 0, 0.08, 0.22, width - 0.06, height - 0.14, (1.0, 1.0, 1.0), "books"),
    ]
    return Piece("shelf", tuple(blocks), (0.34, width + 0.04))


def table(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    depth, width, height = generator.uniform(0.6, 0.9), generator.uniform(0.9, 1.5), generator.uniform(0.68, 0.78)
    rgb = colour or _pick(generator, WOODS)
    legs = [
        box(f"leg{i}{j}", i * (depth / 2 - 0.05), j * (width / 2 - 0.05), 0, 0.06, 0.06, height - 0.05, _shade(rgb, 0.8))
        for i in (-1, 1)
        for j in (-1, 1)
    ]
    top = box("top", 0, 0, height - 0.05, depth, width, 0.05, rgb, "" if colour else "wood")
    return Piece("table", (*legs, top), (depth, width))


def sofa(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    width = generator.uniform(1.3, 1.9)
    rgb = colour or _pick(generator, FABRICS)
    surface = "" if colour else "fabric"
    blocks = (
        box("seat", 0.05, 0, 0, 0.75, width, 0.42, rgb, surface),
        box("back", -0.33, 0, 0, 0.2, width, 0.85, _shade(rgb, 0.9), surface),
        box("left_arm", 0, width / 2 + 0.08, 0, 0.85, 0.18, 0.6, _shade(rgb, 0.85), surface),
        box("right_arm", 0, -width / 2 - 0.08, 0, 0.85, 0.18, 0.6, _shade(rgb, 0.85), surface),
    )
    return Piece("sofa", blocks, (0.87, width + 0.34))


def bed(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    rgb = colour or _pick(generator, FABRICS)
    blocks = (
        box("frame", 0, 0, 0, 2.0, 1.3, 0.25, _pick(generator, WOODS), "wood"),
        box("mattress", 0.02, 0, 0.25, 1.9, 1.24, 0.2, rgb, "fabric"),
        box("pillow", -0.75, 0, 0.45, 0.35, 0.9, 0.1, (0.9, 0.9, 0.88)),
        box("head", -1.02, 0, 0, 0.06, 1.34, 0.95, _pick(generator, WOODS), "wood"),
    )
    return Piece("bed", blocks, (2.1, 1.34))


def chair(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    rgb = colour or _pick(generator, WOODS)
    blocks = (
        box("seat", 0, 0, 0.4, 0.46, 0.46, 0.07, rgb),
        box("back", -0.21, 0, 0.47, 0.05, 0.46, 0.5, rgb),
        _round("post", "cylinder", 0, 0.05, 0.4, (0.25, 0.25, 0.26)),
        _round("foot", "cylinder", 0, 0.22, 0.05, (0.25, 0.25, 0.26)),
    )
    return Piece("chair", blocks, (0.5, 0.5))


def crate(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    size, height = generator.uniform(0.4, 0.75), generator.uniform(0.35, 0.8)
    rgb = colour or _pick(generator, WOODS)
    blocks = (
        box("body", 0, 0, 0, size, size, height, rgb, "" if colour else "wood"),
        box("lid", 0, 0, height, size + 0.04, size + 0.04, 0.04, _shade(rgb, 0.7)),
    )
    return Piece("box", blocks, (size + 0.04, size + 0.04))


def ball(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    radius = generator.uniform(0.25, 0.4)
    return Piece(
        "ball", (_round("body", "ellipsoid", 0, radius, 2 * radius, colour or _pick(generator, FABRICS)),), (radius * 2,) * 2
    )


def lamp(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    rgb = colour or (0.92, 0.88, 0.76)
    blocks = (
        _round("foot", "cylinder", 0, 0.17, 0.04, (0.3, 0.3, 0.3)),
        _round("post", "cylinder", 0.04, 0.03, 1.2, (0.3, 0.3, 0.3)),
        replace(_round("shade", "cylinder", 1.2, 0.24, 0.34, rgb), glow=0.3),
    )
    return Piece("lamp", blocks, (0.48, 0.48))


def plant(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    height = generator.uniform(0.5, 1.1)
    blocks = (
        _round("pot", "cylinder", 0, 0.2, 0.35, colour or (0.60, 0.50, 0.44)),
        _round("leaves", "ellipsoid", 0.3, 0.3, height, (0.42, 0.50, 0.36), "leaves"),
    )
    return Piece("plant", blocks, (0.6, 0.6))


def column(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    radius = generator.uniform(0.15, 0.25)
    rgb = colour or (0.78, 0.76, 0.72)
    shaft = _round("shaft", "cylinder", 0, radius, 2.6, rgb, "" if colour else "concrete")
    return Piece(
        "column", (shaft, _round("foot", "cylinder", 0, radius + 0.06, 0.12, _shade(rgb, 0.7))), (2 * radius + 0.12,) * 2
    )


def door(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    """A closed door on a wall: its back is at x = 0."""
    rgb = colour or _pick(generator, WOODS)
    frame: Rgb = (0.88, 0.86, 0.82)
    blocks = [
        box("leaf", 0.02, 0, 0, 0.05, 0.9, 2.02, rgb),
        box("left_post", 0.03, 0.5, 0, 0.09, 0.1, 2.1, frame),
        box("right_post", 0.03, -0.5, 0, 0.09, 0.1, 2.1, frame),
        box("head", 0.03, 0, 2.02, 0.09, 1.1, 0.1, frame),
        box("handle", 0.07, 0.36, 0.98, 0.06, 0.12, 0.04, (0.8, 0.8, 0.78)),
        box("upper_panel", 0.046, 0, 1.15, 0.012, 0.6, 0.7, _shade(rgb, 0.8)),
        box("lower_panel", 0.046, 0, 0.2, 0.012, 0.6, 0.7, _shade(rgb, 0.8)),
    ]
    return Piece("door", tuple(blocks), (0.12, 1.1))


def barrel(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    rgb = colour or (0.5, 0.48, 0.46)
    radius = generator.uniform(0.28, 0.4)
    hoops = [_round(f"hoop{i}", "cylinder", z, radius + 0.015, 0.05, _shade(rgb, 0.5)) for i, z in enumerate((0.2, 0.6))]
    return Piece("barrel", (_round("body", "cylinder", 0, radius, 0.9, rgb), *hoops), (2 * radius + 0.03,) * 2)


def bench(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    width = generator.uniform(1.3, 1.8)
    rgb = colour or _pick(generator, WOODS)
    blocks = (
        box("seat", 0.03, 0, 0.4, 0.5, width, 0.07, rgb),
        box("back", -0.22, 0, 0.47, 0.06, width, 0.42, rgb),
        box("left_foot", 0, width / 2 - 0.15, 0, 0.45, 0.08, 0.4, (0.35, 0.35, 0.36)),
        box("right_foot", 0, 0.15 - width / 2, 0, 0.45, 0.08, 0.4, (0.35, 0.35, 0.36)),
    )
    return Piece("bench", blocks, (0.56, width))


def car(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    """Side-on: its flank is its front, so that it is seen at its longest."""
    rgb = colour or (0.6, 0.6, 0.62)
    dark: Rgb = (0.16, 0.17, 0.19)
    wheels = [box(f"wheel{i}{j}", i * 0.78, j * 1.1, 0, 0.2, 0.6, 0.6, dark) for i in (-1, 1) for j in (-1, 1)]
    body = box("body", 0, 0, 0.25, 1.7, 3.8, 0.6, rgb)
    cabin = box("cabin", 0, -0.1, 0.85, 1.5, 2.0, 0.5, (0.30, 0.36, 0.42))
    return Piece("car", (*wheels, body, cabin, box("roof", 0, -0.1, 1.35, 1.5, 1.9, 0.06, rgb)), (1.76, 3.8))


def bin_(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    rgb = colour or (0.4, 0.42, 0.42)
    blocks = (box("body", 0, 0, 0, 0.55, 0.6, 0.95, rgb), box("lid", 0, 0, 0.95, 0.62, 0.66, 0.1, _shade(rgb, 0.6)))
    return Piece("bin", blocks, (0.62, 0.66))


def hut(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    depth, width = generator.uniform(1.4, 2.0), generator.uniform(1.6, 2.4)
    rgb = colour or (0.6, 0.55, 0.5)
    blocks = (
        box("body", 0, 0, 0, depth, width, 2.1, rgb),
        box("roof", 0, 0, 2.1, depth + 0.3, width + 0.3, 0.15, (0.42, 0.34, 0.30)),
        box("entry", depth / 2, 0, 0, 0.03, 0.8, 1.8, (0.25, 0.22, 0.20)),
    )
    return Piece("hut", blocks, (depth + 0.1, width + 0.1))


def sign(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    blocks = (
        _round("post", "cylinder", 0, 0.05, 1.7, (0.55, 0.55, 0.56)),
        box("board", 0.07, 0, 0.95, 0.05, 1.0, 0.75, colour or (0.8, 0.8, 0.78)),
        box("rim", 0.04, 0, 0.91, 0.04, 1.08, 0.83, (0.85, 0.85, 0.84)),
    )
    return Piece("sign", blocks, (0.2, 1.08))


def tree(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    radius, crown = generator.uniform(0.14, 0.3), generator.uniform(1.1, 2.0)
    green: Rgb = colour or (0.40 + generator.uniform(-0.08, 0.12), 0.48 + generator.uniform(-0.06, 0.08), 0.32)
    top = 2.0 + generator.uniform(0.2, 0.9)
    blocks = (
        _round("trunk", "cylinder", 0, radius, top, (0.42, 0.35, 0.29), "bark"),
        _round("crown", "ellipsoid", top - 0.5, crown, 2.0 * crown, green, "leaves"),
        _round("tip", "ellipsoid", top + crown * 0.6, crown * 0.7, crown * 1.5, _shade(green, 1.15), "leaves"),
    )
    # A crown that hangs low would block more than its trunk.
    return Piece("tree", tuple(replace(b, solid=b.name == "trunk") for b in blocks), (2 * radius, 2 * radius))


def bush(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    radius, height = generator.uniform(0.4, 0.9), generator.uniform(0.6, 1.3)
    green: Rgb = colour or (0.40, 0.47 + generator.uniform(-0.05, 0.06), 0.33)
    return Piece("bush", (_round("body", "ellipsoid", -0.1, radius, height, green, "leaves"),), (2 * radius, 2 * radius))


def rock(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    radius, height = generator.uniform(0.3, 0.8), generator.uniform(0.4, 0.9)
    return Piece(
        "rock", (_round("body", "ellipsoid", -0.15, radius, height, colour or (0.58, 0.56, 0.53), "concrete"),), (2 * radius,) * 2
    )


def street_lamp(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    grey: Rgb = (0.36, 0.37, 0.38)
    blocks = (_round("post", "cylinder", 0, 0.08, 3.2, grey), _round("head", "ellipsoid", 3.1, 0.25, 0.4, (0.95, 0.93, 0.85)))
    return Piece("street_lamp", blocks, (0.3, 0.3))


def building(generator: np.random.Generator, colour: Rgb | None) -> Piece:
    depth, width, height = generator.uniform(3.0, 5.0), generator.uniform(4.0, 8.0), generator.uniform(3.0, 7.0)
    rgb = colour or (0.85, 0.80, 0.74)
    blocks = (
        box("body", 0, 0, 0, depth, width - 0.02, height, rgb, "facade"),
        # Windows are upright on the two sides that a box's texture faces: the other two belong to a second box.
        replace(box("sides", 0, 0, 0, depth - 0.02, width, height, rgb, "facade"), facing="y"),
        box("roof", 0, 0, height, depth + 0.4, width + 0.4, 0.25, (0.40, 0.33, 0.30)),
        box("base", 0, 0, 0, depth + 0.06, width + 0.06, 0.4, (0.5, 0.49, 0.47), "concrete"),
    )
    return Piece("building", blocks, (depth + 0.06, width + 0.06))


INDOOR_GOALS: dict[str, Maker] = {
    "door": door, "ball": ball, "cabinet": cabinet, "chair": chair, "sofa": sofa, "box": crate, "lamp": lamp, "table": table,
}  # fmt: skip
OUTDOOR_GOALS: dict[str, Maker] = {
    "ball": ball, "barrel": barrel, "bench": bench, "car": car, "bin": bin_, "hut": hut, "sign": sign, "box": crate,
}  # fmt: skip
AGAINST_WALLS: tuple[Maker, ...] = (cabinet, shelf, shelf, table, sofa, bed, plant, crate, lamp)
FREE_STANDING: tuple[Maker, ...] = (table, chair, chair, crate, column, plant)
SCATTERED: tuple[Maker, ...] = (tree, tree, tree, bush, bush, rock, street_lamp, bench, barrel, column)
