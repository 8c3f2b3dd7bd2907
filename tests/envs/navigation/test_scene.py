"""Scenes: the model that a world becomes, what randomisation does to it, and who walks about in it."""

from __future__ import annotations

import dataclasses
import math

import mujoco
import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.wheeled import Wheeled
from kineflow.envs.navigation.movers import YIELD_M, Movers
from kineflow.envs.navigation.randomise import Randomisation, RandomisationRanges
from kineflow.envs.navigation.scene import build_scene
from kineflow.envs.navigation.textures import FAMILIES, draw_sky, draw_texture
from tests.envs.navigation.views import scene, world

ARRAYS = (
    "geom_pos",
    "geom_quat",
    "geom_size",
    "geom_rgba",
    "geom_matid",
    "tex_data",
    "mat_texrepeat",
    "light_diffuse",
    "cam_pos",
    "cam_quat",
)


def differences(a: object, b: object) -> set[str]:
    """Names of the model arrays that differ."""
    return {name for name in ARRAYS if not np.array_equal(getattr(a, name), getattr(b, name))}


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_a_scene_follows_from_world_and_randomisation(kind: str) -> None:
    drawn = RandomisationRanges().draw(3)
    first, second = (build_scene(world(kind, 1, 2), randomisation=drawn).model for _ in range(2))
    assert differences(first, second) == set()
    assert first.names == second.names
    assert {"tex_data", "light_diffuse", "cam_pos", "cam_quat"} == differences(first, scene(kind, 1, 2).model)


def test_geoms_are_where_the_blocks_are() -> None:
    here = scene("indoor", 1)
    for block in here.world.blocks:
        geom = here.model.geom(block.name).id
        np.testing.assert_allclose(here.data.geom_xpos[geom], block.position, atol=1e-6)
        # Half extents along the world's axes, from the geom's own box however it was turned.
        reach = np.abs(here.data.geom_xmat[geom].reshape(3, 3)) @ here.model.geom_aabb[geom, 3:]
        exact = block.shape == "box"
        np.testing.assert_allclose(reach[2], block.half_size[2], atol=1e-5)
        if exact:
            np.testing.assert_allclose(reach[:2], block.reach, atol=1e-5)
        assert bool(here.model.geom_contype[geom]) == block.solid


def test_names_of_floor_goals_and_movers() -> None:
    here = scene("indoor", 1, 2)
    assert here.floor_geom == here.model.geom("floor").id
    assert set(here.goal_geoms) == {goal.name for goal in here.world.goals}
    for goal in here.world.goals:
        middle = np.mean([here.data.geom_xpos[g][:2] for g in here.goal_geoms[goal.name]], axis=0)
        assert math.dist(middle, goal.position[:2]) < 0.5
    assert [here.model.body(b).name for b in here.mover_bodies] == ["mover0", "mover1"]


def test_a_robot_stands_on_the_floor_and_is_stopped_by_walls() -> None:
    wheeled = Wheeled()
    here = build_scene(world("indoor", 1), wheeled)
    robot = wheeled.bind(here.model, here.data)
    x, y, yaw = here.world.goals[0].stand_off
    robot.start(x, y, yaw)
    for _ in range(40):
        robot.drive(np.array([1.0, 0.0, 0.0, 0.0], np.float32))
    assert set(robot.touched) <= set(here.goal_geoms[here.world.goals[0].name])
    assert robot.touched
    assert here.camera == "robot/front"


def test_what_is_only_seen_touches_nothing() -> None:
    here = scene("indoor", 1)
    pictures = [b for b in here.world.blocks if "panel" in b.name or "skirting" in b.name]
    assert len(pictures) > 20
    assert all(here.model.geom(b.name).contype[0] == here.model.geom(b.name).conaffinity[0] == 0 for b in pictures)


def test_an_embodiment_without_camera_is_refused() -> None:
    class Blind(Wheeled):
        def spec(self) -> mujoco.MjSpec:
            spec = super().spec()
            spec.delete(spec.camera("front"))
            return spec

    with pytest.raises(KineflowError, match="no camera 'front'"):
        build_scene(world("indoor", 1), Blind())


def test_texture_seed_changes_surfaces_only() -> None:
    here = scene("indoor", 1)
    other = build_scene(here.world, randomisation=Randomisation(texture_seed=99)).model
    assert "tex_data" in differences(here.model, other)
    assert differences(here.model, other) == {"tex_data"}


def test_light_is_randomised() -> None:
    low = build_scene(
        world("indoor", 1), randomisation=Randomisation(light_diffuse=0.2, light_azimuth_rad=2.0, light_tint=(1, 0.9, 0.8))
    )
    assert differences(scene("indoor", 1).model, low.model) == {"light_diffuse"}
    sun = low.model.light("sun")
    np.testing.assert_allclose(sun.diffuse, [0.2, 0.18, 0.16], atol=1e-6)
    assert math.atan2(-sun.dir[1], -sun.dir[0]) == pytest.approx(2.0)


def test_the_camera_is_moved_and_turned_on_its_mount() -> None:
    drawn = Randomisation(camera_offset_m=(0.1, 0.02, 0.3), camera_turn_rad=(0.0, 0.2, 0.1), fov_scale=1.2)
    here, moved = scene("indoor", 1), build_scene(world("indoor", 1), randomisation=drawn)
    # The carrier looks along the world's x.
    np.testing.assert_allclose(moved.data.cam_xpos[0] - np.array([0, 0, 0.6]), [0.1, 0.02, 0.3], atol=1e-9)
    forward = -moved.data.cam_xmat[0].reshape(3, 3)[:, 2]
    assert math.asin(-forward[2]) == pytest.approx(0.2)  # pitch > 0 looks down
    assert math.atan2(forward[1], forward[0]) == pytest.approx(0.1)  # yaw > 0 looks left
    rolled = build_scene(world("indoor", 1), randomisation=Randomisation(camera_turn_rad=(0.3, 0.0, 0.0)))
    left = -rolled.data.cam_xmat[0].reshape(3, 3)[:, 0]
    assert math.asin(left[2]) == pytest.approx(0.3)  # roll > 0 lifts the left side
    assert moved.model.cam_fovy[0] == pytest.approx(1.2 * here.model.cam_fovy[0])


def test_friction_is_randomised() -> None:
    slippery = build_scene(world("indoor", 1), randomisation=Randomisation(friction=0.4))
    assert slippery.model.geom("floor").friction[0] == pytest.approx(0.4)
    assert scene("indoor", 1).model.geom("floor").friction[0] == 1.0


def test_randomisation_follows_its_seed_and_ranges() -> None:
    ranges = RandomisationRanges()
    drawn = [ranges.draw(seed) for seed in range(200)]
    assert drawn[:3] == [ranges.draw(seed) for seed in range(3)]
    for field in dataclasses.fields(Randomisation):
        assert len({getattr(d, field.name) for d in drawn}) > 2, field.name
    assert {d.delay_steps for d in drawn} == {0, 1, 2}
    assert max(abs(v) for d in drawn for v in d.camera_offset_m) <= ranges.camera_offset_m
    assert all(0.7 <= d.friction <= 1.3 and 0.9 <= d.fov_scale <= 1.1 and 0 <= d.command_noise <= 0.03 for d in drawn)


def test_what_is_switched_off_stays_and_leaves_the_rest() -> None:
    nothing = RandomisationRanges(
        textures=False,
        light=0.0,
        camera_offset_m=0.0,
        camera_turn_rad=0.0,
        fov=0.0,
        friction=0.0,
        delay_steps=0,
        command_noise=0.0,
    )
    assert nothing.draw(5) == Randomisation.none()
    everything = RandomisationRanges().draw(5)
    for name in (field.name for field in dataclasses.fields(RandomisationRanges)):
        drawn = dataclasses.replace(RandomisationRanges(), **{name: getattr(nothing, name)}).draw(5)
        changed = {f.name for f in dataclasses.fields(drawn) if getattr(drawn, f.name) != getattr(everything, f.name)}
        assert changed, name
        # "textures" is about texture_seed, "fov" about fov_scale, "light" about all that begins with it.
        assert {value.startswith(name.removesuffix("s")) for value in changed} == {True}


@pytest.mark.parametrize(("values", "message"), [({"friction": 0.0}, "friction is 0"), ({"delay_steps": -1}, "delay_steps -1")])
def test_impossible_randomisations_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        Randomisation(**values)  # type: ignore[arg-type]


def test_textures_tile_differ_and_keep_contrast() -> None:
    for family in FAMILIES:
        first, other = (draw_texture(family, np.random.default_rng(seed)) for seed in (1, 2))
        np.testing.assert_array_equal(first, draw_texture(family, np.random.default_rng(1)))
        assert not np.array_equal(first, other)
    grey = draw_texture("floor", np.random.default_rng(3)).mean(axis=2)
    assert grey.std() > 8  # optical flow needs something to hold on to
    with pytest.raises(KineflowError, match="no texture family 'velvet'"):
        draw_texture("velvet", np.random.default_rng(0))


def test_noise_has_no_seam() -> None:
    """The step from the last column to the first is like any other."""
    for family in ("wood", "concrete", "ground", "leaves"):
        picture = draw_texture(family, np.random.default_rng(4)).astype(float)
        steps = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))
        assert np.abs(picture[:, 0] - picture[:, -1]).mean() < 3 * steps.mean() + 2


def test_the_sky_has_no_seams() -> None:
    front, back = draw_sky(np.random.default_rng(2)).reshape(6, 64, 64, 3).astype(int)[[0, 4]]
    # The right edge of face +z meets the left edge of face +x.
    assert np.abs(back[:, -1] - front[:, 0]).mean() < 4
    assert front[:20].mean() > front[40:].mean()  # light above the horizon, dark below


def test_walkers_go_to_and_fro() -> None:
    here = scene("indoor", 1, 2)
    movers, plan = Movers(here), here.world.movers[0]
    period = 2 * math.dist(plan.start, plan.end) / plan.speed
    movers.start(here.data)
    begin = movers.positions()
    path, speeds = [begin[0]], []
    for _ in range(200):
        velocity = movers.velocities()[0]
        movers.advance(here.data, period / 200)
        path.append(movers.positions()[0])
        speeds.append(np.linalg.norm((path[-1] - path[-2]) / (period / 200) - velocity))
    np.testing.assert_allclose(movers.positions()[0], begin[0], atol=1e-6)
    assert np.median(speeds) < 1e-9
    ends = np.array([plan.start, plan.end])
    assert all(np.linalg.norm(np.array(path) - end, axis=1).min() < 0.05 for end in ends)
    mujoco.mj_forward(here.model, here.data)
    np.testing.assert_allclose(here.data.xpos[here.mover_bodies[1]][:2], movers.positions()[1])
    movers.start(here.data, time_s=1.0)
    np.testing.assert_allclose(movers.positions(), _after(here, 1.0), atol=1e-9)


def _after(here: object, seconds: float) -> np.ndarray:
    movers = Movers(here)  # type: ignore[arg-type]
    movers.start(here.data)  # type: ignore[attr-defined]
    movers.advance(here.data, seconds)  # type: ignore[attr-defined]
    return movers.positions()


def test_a_walker_waits_for_what_stands_in_its_way_and_only_for_that() -> None:
    here = scene("indoor", 1, 2)
    movers = Movers(here)
    movers.start(here.data)
    place, velocity = movers.positions()[0], movers.velocities()[0]
    ahead = place + velocity / np.linalg.norm(velocity) * (YIELD_M + 0.3)
    behind = 2 * place - ahead
    movers.advance(here.data, 0.1, robot=ahead.tolist())
    np.testing.assert_array_equal(movers.positions()[0], place)
    assert not np.array_equal(movers.positions()[1], _after(here, 0.0)[1])
    movers.advance(here.data, 0.1, robot=behind.tolist())
    assert not np.array_equal(movers.positions()[0], place)


def test_running_into_a_walker_is_a_contact() -> None:
    wheeled = Wheeled()
    here = build_scene(world("indoor", 1, 2), wheeled)
    robot, movers = wheeled.bind(here.model, here.data), Movers(here)
    movers.start(here.data)
    (x, y), (vx, vy) = movers.positions()[0], movers.velocities()[0]
    yaw = math.atan2(vy, vx)
    robot.start(x - 0.9 * math.cos(yaw), y - 0.9 * math.sin(yaw), yaw)
    touched: set[int] = set()
    for _ in range(25):
        robot.drive(np.array([0.8, 0.0, 0.0, 0.0], np.float32))
        touched |= set(robot.touched)
    assert {here.model.geom_bodyid[g] for g in touched} & set(here.mover_bodies)
