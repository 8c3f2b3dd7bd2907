"""Groups of views: places are where they are said to be, in pictures of several cameras and lights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.place_views import CELLS, FARTHEST_M, PlaceViews, film_views, film_world, read_groups
from kineflow.envs.navigation.shapes import COLOUR_NAMES, COLOURS, NOUNS
from kineflow.envs.navigation.tasks import Task
from kineflow.envs.navigation.world import generate_world

CONFIG = PlaceViews(worlds=2, groups=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return film_views(CONFIG, tmp_path_factory.mktemp("views"))


def test_places_are_there_and_back(files: list[Path]) -> None:
    """A cell that goes to a pixel in another picture comes back from the cell at that pixel, to within what a cell is wide."""
    errors, count = [], 0
    for file in files:
        groups = read_groups(file)
        size = groups.frames.shape[2] // CELLS
        middle = (np.arange(CELLS) * size + size // 2).astype(float)
        own = np.stack(np.broadcast_arrays(middle[None, :], middle[:, None]), axis=-1)
        for g, i, j in np.ndindex(len(groups.frames), 4, 4):
            assert not groups.seen[g, i, i].any()
            for row, column in np.argwhere(groups.seen[g, i, j]):
                there = groups.place[g, i, j, row, column].astype(float)
                assert (there > -0.6).all()
                assert (there < 95.6).all()
                cell = tuple(np.minimum(there[::-1] // size, CELLS - 1).astype(int))
                if groups.seen[(g, j, i, *cell)]:
                    offset = there - own[cell]
                    errors.append(np.abs(groups.place[(g, j, i, *cell)] + offset - own[row, column]).max())
                count += 1
    assert count > 5000
    assert np.median(errors) < 1.5
    assert np.mean(np.array(errors) < 8) > 0.9  # at the edges of near things a cell's neighbour lies far behind


def test_the_same_place_has_the_same_colours_where_lights_allow(files: list[Path]) -> None:
    """Pixels that correspond resemble each other far more than pixels at the same place of both pictures."""
    matched, unmatched = [], []
    for file in files:
        groups = read_groups(file)
        frames = groups.frames.astype(float)
        size = frames.shape[2] // CELLS
        shades = frames / (frames.mean(axis=(2, 3, 4), keepdims=True) + 1)
        for g, i, j in np.ndindex(len(frames), 4, 4):
            for row, column in np.argwhere(groups.seen[g, i, j]):
                u, v = np.clip(np.rint(groups.place[g, i, j, row, column].astype(float)), 0, 95).astype(int)
                y, x = row * size + size // 2, column * size + size // 2
                matched.append(np.abs(shades[g, i, y, x] - shades[g, j, v, u]).mean())
                unmatched.append(np.abs(shades[g, i, y, x] - shades[g, j, y, x]).mean())
    assert np.mean(matched) < 0.6 * np.mean(unmatched)


def test_named_things_are_where_their_colour_is(files: list[Path]) -> None:
    found = 0
    for number, file in enumerate(files):
        groups = read_groups(file)
        world = generate_world(Task("video", CONFIG.world).world_config(number))
        names = {(goal.colour, goal.noun) for goal in world.goals}
        size = groups.frames.shape[2] // CELLS
        for g, i, row, column in np.argwhere(groups.colour > 0):
            colour = COLOUR_NAMES[groups.colour[g, i, row, column] - 1]
            assert (colour, NOUNS[groups.noun[g, i, row, column] - 1]) in names
            cell = groups.frames[g, i, row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1, 3)
            if max(COLOURS[colour]) > 0.5:  # black things and dark ones say little
                strongest = cell.astype(float)[cell.max(axis=1).argsort()[-8:]].mean(axis=0)
                found += int(np.argmax(strongest) == np.argmax(COLOURS[colour])) - int(
                    np.argmax(strongest) != np.argmax(COLOURS[colour])
                )
        assert (groups.colour[groups.noun == 0] == 0).all()
    assert found > 0


def test_depths_are_of_what_is_seen(files: list[Path]) -> None:
    """Where a camera that moved straight ahead sees a cell again, it has come nearer; most of a room is within the farthest."""
    for file in files:
        groups = read_groups(file)
        assert groups.depth.shape == groups.colour.shape
        assert (groups.depth > 0.05).all()
        assert (groups.depth <= FARTHEST_M).all()
        middle = groups.depth[:, :, CELLS // 2, CELLS // 2].astype(float)
        floor = groups.depth[:, :, -1].astype(float)
        assert (np.median(floor) < np.median(middle)).all(), "the floor before the robot is near"


def test_a_world_is_filmed_once_and_always_the_same(files: list[Path]) -> None:
    again = film_world(CONFIG, 1)
    assert again is not None
    for name, value in vars(read_groups(files[1])).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    before = files[0].stat().st_mtime_ns
    assert film_views(CONFIG, files[0].parent) == files
    assert files[0].stat().st_mtime_ns == before
    with pytest.raises(KineflowError, match="filmed as"):
        film_views(PlaceViews(worlds=2, groups=3), files[0].parent)
    with pytest.raises(KineflowError, match="worlds and groups must be at least 1"):
        PlaceViews(groups=0)
