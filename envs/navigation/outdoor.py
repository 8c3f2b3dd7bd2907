"""Outdoor worlds: a fenced yard of 20 to 40 m with paths, buildings, trees, bushes and rocks under a sky."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kineflow.envs.navigation.furniture import OUTDOOR_GOALS, SCATTERED, building
from kineflow.envs.navigation.placing import Site
from kineflow.envs.navigation.shapes import COLOURS, Block, Rgb

PATH_HEIGHT_M = 0.008  # above the ground: seen as its own surface, far enough not to flicker


def lay_out(generator: np.random.Generator, site: Site, density: float, goals: int) -> None:
    """Fill the site: what closes it in, paths, buildings at the rim, goals, then what is scattered about."""
    site.build(_fence(generator, site.bounds))
    site.build(_paths(generator, site.bounds))
    _place_buildings(generator, site)
    _place_goals(generator, site, goals)
    x0, y0, x1, y1 = site.bounds
    for _ in range(round(density * (x1 - x0) * (y1 - y0) * 0.075)):
        piece = SCATTERED[generator.integers(len(SCATTERED))](generator, None)
        x, y = generator.uniform(x0 + 1.2, x1 - 1.2), generator.uniform(y0 + 1.2, y1 - 1.2)
        site.place(piece, float(x), float(y), float(generator.uniform(-math.pi, math.pi)), margin=0.3)


def _fence(generator: np.random.Generator, bounds: tuple[float, float, float, float]) -> Iterator[Block]:
    x0, y0, x1, y1 = bounds
    kind = ("fence", "hedge", "brickwall")[generator.integers(3)]
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    sides = (
        ("x", middle_x, y0, x1 - x0), ("x", middle_x, y1, x1 - x0), ("y", x0, middle_y, y1 - y0), ("y", x1, middle_y, y1 - y0),
    )  # fmt: skip
    for number, (along, x, y, length) in enumerate(sides):
        if kind == "fence":
            wood: Rgb = (0.55, 0.45, 0.35)
            for rail, z in enumerate((0.3, 0.8)):
                yield _bar(f"rail{number}_{rail}", along, x, y, z, length / 2, 0.03, 0.07, wood, "wood")
            for post in range(round(length / 2.5) + 1):
                run = -length / 2 + post * length / round(length / 2.5)
                at = (x + run, y) if along == "x" else (x, y + run)
                yield Block(f"post{number}_{post}", "box", (*at, 0.55), (0.06, 0.06, 0.55), rgb=wood)
        else:
            height, thickness = (0.9, 0.35) if kind == "hedge" else (0.7, 0.12)
            rgb: Rgb = (0.42, 0.48, 0.34) if kind == "hedge" else (0.9, 0.86, 0.82)
            yield _bar(
                f"{kind}{number}",
                along,
                x,
                y,
                height,
                length / 2,
                thickness,
                height,
                rgb,
                "leaves" if kind == "hedge" else "brick",
            )


def _bar(
    name: str, along: str, x: float, y: float, z: float, length: float, thickness: float, height: float, rgb: Rgb, surface: str
) -> Block:
    half = (length + thickness, thickness, height) if along == "x" else (thickness, length + thickness, height)
    return Block(name, "box", (x, y, z), half, rgb=rgb, surface=surface, facing="y" if along == "x" else "x")


def _paths(generator: np.random.Generator, bounds: tuple[float, float, float, float]) -> Iterator[Block]:
    x0, y0, x1, y1 = bounds
    for number in range(generator.integers(1, 4)):
        width = generator.uniform(0.6, 1.2)
        is_along_x = bool(generator.random() < 0.5)
        length = ((x1 - x0) if is_along_x else (y1 - y0)) / 2 - 0.6
        x = (x0 + x1) / 2 if is_along_x else generator.uniform(x0 + 3, x1 - 3)
        y = generator.uniform(y0 + 3, y1 - 3) if is_along_x else (y0 + y1) / 2
        half = (length, width, PATH_HEIGHT_M) if is_along_x else (width, length, PATH_HEIGHT_M)
        # One that crosses another lies a little higher: equal heights flicker.
        path = Block(f"path{number}", "box", (float(x), float(y), 0.006 * number), half, surface="path", solid=False)
        yield replace(path, half_size=(float(half[0]), float(half[1]), half[2]))


def _place_buildings(generator: np.random.Generator, site: Site) -> None:
    x0, y0, x1, y1 = site.bounds
    for _ in range(generator.integers(1, 4)):
        piece = building(generator, None)
        inset = piece.size[0] / 2 + 0.5
        side = generator.integers(4)
        x = (generator.uniform(x0 + 5, x1 - 5), x1 - inset, generator.uniform(x0 + 5, x1 - 5), x0 + inset)[side]
        y = (y0 + inset, generator.uniform(y0 + 5, y1 - 5), y1 - inset, generator.uniform(y0 + 5, y1 - 5))[side]
        site.place(piece, float(x), float(y), (math.pi / 2, math.pi, -math.pi / 2, 0.0)[side], margin=0.1)


def _place_goals(generator: np.random.Generator, site: Site, goals: int) -> None:
    x0, y0, x1, y1 = site.bounds
    colours, nouns = generator.permutation(list(COLOURS))[:4], generator.permutation(list(OUTDOOR_GOALS))[:5]
    names = [(str(c), str(n)) for c in colours for n in nouns]
    for number in generator.permutation(len(names)):
        if len(site.goals) >= goals:
            return
        colour, noun = names[number]
        piece = OUTDOOR_GOALS[noun](generator, COLOURS[colour])
        for _ in range(10):
            x, y = generator.uniform(x0 + 2, x1 - 2), generator.uniform(y0 + 2, y1 - 2)
            yaw = float(generator.uniform(-math.pi, math.pi))
            if site.place_goal(piece, colour, float(x), float(y), yaw, (0.0, 0.5, -0.5)):
                break
