"""Worlds: the same from a seed, all different, connected, with goals that language can tell apart."""

from __future__ import annotations

import itertools
import math

import mujoco
import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.free_space import rasterise
from kineflow.envs.navigation.placing import ROBOT_RADIUS_M
from kineflow.envs.navigation.shapes import COLOURS, Block
from kineflow.envs.navigation.world import KINDS, WorldConfig, generate_world
from tests.envs.navigation.views import scene, world

SEEDS = range(6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_world(kind: str) -> None:
    again = generate_world(WorldConfig(kind=kind, seed=3, movers=2))  # type: ignore[arg-type]
    assert again == world(kind, 3, 2)
    assert again.fingerprint() == world(kind, 3, 2).fingerprint()


def test_the_worlds_are_these() -> None:
    """Across machines and versions of NumPy: a change here changes every stored world."""
    assert [world(kind, 1).fingerprint()[:8] for kind in KINDS] == ["5cb5aa52", "f4369920"]


def test_seeds_give_different_worlds() -> None:
    worlds = [world("indoor", seed) for seed in range(24)] + [world("outdoor", seed) for seed in range(12)]
    assert len({w.fingerprint() for w in worlds}) == 36
    # Not the same plan with other furniture: walls or the lay-out differ too.
    assert len({(w.bounds, w.rooms) for w in worlds}) == 36


@pytest.mark.parametrize(("kind", "seed"), list(itertools.product(KINDS, SEEDS)))
def test_goals_have_names_of_their_own_and_can_be_reached(kind: str, seed: int) -> None:
    here = world(kind, seed)
    names = [goal.name for goal in here.goals]
    assert len(names) == len(set(names)) == 6
    reachable = here.free_space.reachable(ROBOT_RADIUS_M - 0.05)
    for goal in here.goals:
        assert goal.name == f"{goal.colour} {goal.noun}"
        x, y, yaw = goal.stand_off
        assert reachable[here.free_space.cell(x, y)], goal.name
        bearing = math.atan2(goal.position[1] - y, goal.position[0] - x)
        assert abs(math.remainder(bearing - yaw, 2 * math.pi)) < 0.05
        assert {b.name for b in here.blocks} >= set(goal.blocks)


def test_colours_can_be_told_apart() -> None:
    """From each other, and from everything that is no goal."""
    for (a, first), (b, second) in itertools.combinations(COLOURS.items(), 2):
        assert math.dist(first, second) > 0.35, (a, b)
    for kind, seed in itertools.product(KINDS, SEEDS):
        of_goals = {name for goal in world(kind, seed).goals for name in goal.blocks}
        for block in world(kind, seed).blocks:
            if block.name not in of_goals:
                assert max(block.rgb) - min(block.rgb) < 0.35, block


def test_words_must_be_read_together() -> None:
    """In most worlds a colour or a noun alone fits several goals."""
    repeated = [
        len({g.colour for g in world(kind, seed).goals}) < 6 and len({g.noun for g in world(kind, seed).goals}) < 6
        for kind, seed in itertools.product(KINDS, SEEDS)
    ]
    assert sum(repeated) > 0.8 * len(repeated)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_room_can_be_entered(seed: int) -> None:
    here = world("indoor", seed)
    space = here.free_space
    reachable = space.reachable(ROBOT_RADIUS_M - 0.05)
    assert len(here.rooms) >= 3
    for x0, y0, x1, y1 in here.rooms:
        (top, left), (bottom, right) = space.cell(x0, y0), space.cell(x1, y1)
        assert reachable[top:bottom, left:right].sum() > 20


@pytest.mark.parametrize("kind", KINDS)
def test_clearance_is_what_rays_measure(kind: str) -> None:
    """Against MuJoCo's own geometry: no obstacle within the clearance, and one not much farther."""
    here = scene(kind, 2)
    points = here.world.free_space.sample(np.random.default_rng(1), 0.3, 25)
    geom = np.zeros(1, np.int32)
    for x, y in points:
        clearance = here.world.free_space.clearance_at(x, y)
        nearest = min(
            mujoco.mj_ray(here.model, here.data, [x, y, z], [math.cos(a), math.sin(a), 0.0], None, 1, -1, geom) % 1e9
            for z in (0.06, 0.2, 0.45, 0.7, 1.1, 1.6)
            for a in np.linspace(0, 2 * math.pi, 180)
        )
        # Half a cell for the point's place in it, half for the obstacle's; round things are taken a little large.
        assert nearest > clearance - 0.16
        assert nearest < clearance + 0.6


def test_space_above_and_below_the_band_is_free() -> None:
    low = Block("step", "box", (0.0, 0.0, 0.005), (1.0, 1.0, 0.005))
    high = Block("lintel", "box", (0.0, 0.0, 2.2), (1.0, 0.1, 0.1))
    ghost = Block("ghost", "box", (0.0, 0.0, 0.5), (0.5, 0.5, 0.5), solid=False)
    bounds = (-2.0, -2.0, 2.0, 2.0)
    assert not rasterise([low, high, ghost], bounds, 0.1).occupied[1:-1, 1:-1].any()
    assert rasterise([high], bounds, 0.1, band_m=(0.0, 2.3)).occupied[20, 20]
    assert rasterise([low], bounds, 0.1).occupied[0].all()  # the rim is


def test_a_turned_box_covers_what_it_covers() -> None:
    box = Block("b", "box", (0.3, -0.2, 0.5), (1.0, 0.2, 0.5), yaw=0.6)
    space = rasterise([box], (-3.0, -3.0, 3.0, 3.0), 0.05)
    rows, columns = np.nonzero(space.occupied[1:-1, 1:-1])
    assert len(rows) * 0.05**2 == pytest.approx(4 * 1.025 * 0.225, rel=0.05)
    x, y = space.point(int(rows.mean()) + 1, int(columns.mean()) + 1)
    assert (x, y) == pytest.approx((0.3, -0.2), abs=0.06)


def test_occupancy_grows_with_the_robot() -> None:
    here = world("indoor", 0)
    bare, origin = here.occupancy()
    grown, _ = here.occupancy(inflate_m=0.3)
    coarse, _ = here.occupancy(resolution_m=0.2)
    assert origin == here.bounds[:2]
    assert bare.sum() < grown.sum()
    assert (grown | ~bare).all()
    assert coarse.shape == tuple((n + 1) // 2 for n in bare.shape)
    assert (here.clearance()[~grown] > 0.3).all()


def test_samples_are_free_and_follow_the_generator() -> None:
    space = world("indoor", 1).free_space
    points = space.sample(np.random.default_rng(5), 0.3, 200)
    assert min(space.clearance_at(x, y) for x, y in points) > 0.25
    np.testing.assert_array_equal(points, space.sample(np.random.default_rng(5), 0.3, 200))
    with pytest.raises(KineflowError, match="no free point with 50"):
        space.sample(np.random.default_rng(0), 50.0)


def test_walkers_have_free_lines() -> None:
    for kind in KINDS:
        here = world(kind, 3, 2)
        assert len(here.movers) == 2
        for mover in here.movers:
            assert math.dist(mover.start, mover.end) >= 2.5
            assert here.free_space.is_clear(mover.start, mover.end, mover.radius)
    wall_between = [(-7.0, 0.0), (7.0, 0.0)]
    assert not world("indoor", 0).free_space.is_clear(*wall_between, 0.1)


def test_density_fills() -> None:
    empty, full = (generate_world(WorldConfig(seed=4, density=d)) for d in (0.0, 1.0))
    assert full.free_space.occupied.sum() > 1.2 * empty.free_space.occupied.sum()
    assert generate_world(WorldConfig(seed=4, goals=0)).goals == ()


@pytest.mark.parametrize(("kind", "size"), [("indoor", (6.0, 6.0)), ("indoor", (20.0, 8.0)), ("outdoor", (12.0, 12.0))])
def test_small_worlds_too_have_goals(kind: str, size: tuple[float, float]) -> None:
    for seed in range(4):
        here = generate_world(WorldConfig(kind=kind, seed=seed, size_m=size, density=1.0))  # type: ignore[arg-type]
        assert here.bounds == (-size[0] / 2, -size[1] / 2, size[0] / 2, size[1] / 2)
        assert len(here.goals) >= 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "underwater"}, "kind is 'underwater'"),
        ({"size_m": (3.0, 10.0)}, "indoor world needs at least 6 m"),
        ({"size_m": (10.0, 10.0), "kind": "outdoor"}, "outdoor world needs at least 12 m"),
        ({"density": 1.5}, "density is 1.5"),
    ],
)
def test_bad_configs_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        WorldConfig(**config)  # type: ignore[arg-type]


def test_asking_for_an_unknown_goal_names_the_goals() -> None:
    with pytest.raises(KineflowError, match="no 'plaid whale'; its goals are"):
        world("indoor", 0).goal("plaid whale")
    first = world("indoor", 0).goals[0]
    assert world("indoor", 0).goal(first.name) is first
