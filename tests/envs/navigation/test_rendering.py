"""Pictures by EGL, OSMesa and rays: they agree, they fall through, they say what to install; and the traps on the way."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.wheeled import Wheeled
from kineflow.envs.navigation.rendering import gl
from kineflow.envs.navigation.rendering.backend import ORDER, Renderer, open_renderer
from kineflow.envs.navigation.rendering.camera import Culling
from kineflow.envs.navigation.rendering.gl import GlRenderer
from kineflow.envs.navigation.rendering.ray import RayRenderer
from kineflow.envs.navigation.scene import Scene, build_scene
from tests.envs.navigation.golden.pictures import GOLDEN, golden_picture
from tests.envs.navigation.views import SIZE, look, poses, scene, simple_model, world

CAMERA = "robot/front"
# MuJoCo 3 projects textures along z on every side of a geom; rays, and MuJoCo 4, unwrap each side.
UNWRAPS = int(mujoco.__version__.split(".")[0]) >= 4


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


needs_egl = pytest.mark.skipif(not has_library("libEGL.so.1"), reason="libEGL.so.1 is missing; see .ci/system.sh egl")
needs_osmesa = pytest.mark.skipif(not has_library("libOSMesa.so.8"), reason="libOSMesa.so.8 is missing; see .ci/system.sh osmesa")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Scene, GlRenderer, RayRenderer]]:
    """A scene of either kind, with both renderers."""
    scenes = [scene("indoor", 1, 2), scene("outdoor", 1, 2)]
    return [(s, GlRenderer(s.model, SIZE, SIZE, "egl"), RayRenderer(s.model, SIZE, SIZE)) for s in scenes]


def views(scene: Scene) -> list[tuple[float, float, float]]:
    return [goal.stand_off for goal in scene.world.goals[:2]] + poses(scene, 3)


def in_new_process(code: str, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a fresh interpreter, which must end well."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=inherited | environment, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


BOX = '<geom type="box" pos="2 0 0.5" size="0.5 0.5 0.5" rgba="0.8 0.6 0.4 1"/>'
DRAW = f"""
import numpy as np
import mujoco
from tests.envs.navigation.views import simple_model
from kineflow.envs.navigation.rendering.backend import open_renderer
model = simple_model({BOX!r})
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
"""


# -- agreement


@needs_egl
def test_depth_of_gl_and_rays_agrees_within_a_centimetre(pairs: list) -> None:
    for here, egl, ray in pairs:
        for pose in views(here):
            look(here, pose)
            mine, theirs = ray.depth(here.data, CAMERA), egl.depth(here.data, CAMERA)
            assert mine.dtype == theirs.dtype == np.float32
            shown = ray.segmentation(here.data, CAMERA)
            # Edges fall to one side or the other; drawn round things have corners.
            same = (shown >= 0) & (shown == egl.segmentation(here.data, CAMERA)) & (mine < 30)
            is_flat = np.isin(here.model.geom_type[shown], (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE))
            flat, bent = (np.abs(mine[same & part] - theirs[same & part]) for part in (is_flat, ~is_flat))
            assert (flat < 0.01).mean() > 0.99
            assert len(bent) == 0 or np.median(bent) < 0.05
            assert (np.isinf(mine) == np.isinf(theirs)).mean() > 0.98


@needs_egl
def test_segmentation_of_gl_and_rays_agrees(pairs: list) -> None:
    for here, egl, ray in pairs:
        for pose in views(here):
            look(here, pose)
            mine, theirs = ray.segmentation(here.data, CAMERA), egl.segmentation(here.data, CAMERA)
            assert mine.dtype == theirs.dtype == np.int32
            assert (mine == theirs).mean() > 0.97
    assert (mine == -1).any()  # the sky of the last, outdoors


@needs_egl
def test_colours_of_gl_and_rays_are_close(pairs: list) -> None:
    for here, egl, ray in pairs:
        for pose in views(here):
            look(here, pose)
            mine, theirs = ray.rgb(here.data, CAMERA).astype(int), egl.rgb(here.data, CAMERA).astype(int)
            assert np.abs(mine.mean(axis=(0, 1)) - theirs.mean(axis=(0, 1))).max() < (2 if UNWRAPS else 8)
            if UNWRAPS:
                assert np.abs(mine - theirs).mean() < 3


@needs_osmesa
def test_osmesa_draws_the_same(tmp_path: Path) -> None:
    code = f"""{DRAW}
renderer = open_renderer(model, 48, 48, "osmesa")
assert renderer.backend == "osmesa"
np.savez({str(tmp_path / "it")!r}, rgb=renderer.rgb(data, "front"), depth=renderer.depth(data, "front"))
"""
    _, errors = in_new_process(code)
    assert errors == ""  # nothing is said at exit about contexts that outlive the interpreter
    drawn = np.load(tmp_path / "it.npz")
    model = simple_model(BOX)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    ray = RayRenderer(model, SIZE, SIZE)
    depth = ray.depth(data, "front")
    near = depth < 20
    assert np.abs(drawn["depth"][near] - depth[near]).max() < 0.01
    np.testing.assert_array_equal(np.isinf(drawn["depth"]), np.isinf(depth))
    assert np.abs(drawn["rgb"].astype(int) - ray.rgb(data, "front")).mean() < 2


@needs_egl
def test_a_moving_obstacle_is_in_every_picture(pairs: list) -> None:
    here, egl, ray = pairs[0]
    plan = here.world.movers[0]
    body = here.model.body_mocapid[here.mover_bodies[0]]
    for x, y in (plan.start, plan.end):
        here.data.mocap_pos[body, :2] = x, y
        yaw = math.atan2(plan.end[1] - plan.start[1], plan.end[0] - plan.start[0]) + (math.pi if (x, y) == plan.end else 0)
        back = 1.5 if (x, y) == plan.end else -1.5
        look(here, (x - back * math.cos(yaw) * 0 + 1.5 * math.cos(yaw), y + 1.5 * math.sin(yaw), yaw + math.pi))
        shares = [
            np.isin(here.model.geom_bodyid[r.segmentation(here.data, CAMERA)], here.mover_bodies[0]).mean() for r in (egl, ray)
        ]
        assert min(shares) > 0.05
        assert shares[0] == pytest.approx(shares[1], abs=0.02)


@pytest.mark.parametrize("backend", ["egl", "ray"])
def test_a_robot_sees_itself_where_it_is_and_not_from_inside(backend: str) -> None:
    """The camera is in a box that has a mast in front: rays would end at the box's inner wall."""
    if backend == "egl" and not has_library("libEGL.so.1"):
        pytest.skip("libEGL.so.1 is missing; see .ci/system.sh egl")
    model = simple_model(
        """<geom name="housing" type="box" pos="0 0 0.5" size="0.2 0.2 0.2"/>
        <geom name="head" type="sphere" pos="0 0 0.5" size="0.1"/>
        <geom name="mast" type="cylinder" pos="0.5 0 0.5" size="0.05 0.3"/>
        <geom name="wall" type="box" pos="3 0 1" size="0.1 4 1" rgba="0.8 0.2 0.2 1"/>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    groups = model.geom_group.copy()
    renderer = open_renderer(model, 32, 32, backend)  # type: ignore[arg-type]
    for _ in range(2):
        seen = {model.geom(g).name for g in np.unique(renderer.segmentation(data, "front")) if g >= 0}
        assert seen == {"mast", "wall", "floor"}
        assert renderer.depth(data, "front")[5, 5] == pytest.approx(2.9, abs=0.01)
    np.testing.assert_array_equal(model.geom_group, groups)
    renderer.close()


@needs_egl
def test_a_real_robot_is_drawn_alike() -> None:
    wheeled = Wheeled()
    here = build_scene(world("indoor", 1), wheeled)
    wheeled.bind(here.model, here.data).start(*here.world.goals[0].stand_off)
    egl, ray = GlRenderer(here.model, SIZE, SIZE, "egl"), RayRenderer(here.model, SIZE, SIZE)
    assert (egl.segmentation(here.data, CAMERA) == ray.segmentation(here.data, CAMERA)).mean() > 0.96
    if UNWRAPS:
        assert np.abs(egl.rgb(here.data, CAMERA).astype(int) - ray.rgb(here.data, CAMERA)).mean() < 4


# -- rays


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pictures(name: str) -> None:
    """Drawn by rays alone, so they are the same everywhere; `python -m tests.envs.navigation.golden.pictures` draws new ones."""
    stored = np.load(Path(__file__).parent / "golden" / f"{name}.npy")
    off = np.abs(stored.astype(int) - golden_picture(name))
    assert off.mean() < 0.2
    assert (off.max(axis=2) > 3).mean() < 0.005


def test_rays_draw_the_same_twice() -> None:
    here = scene("outdoor", 1, 2)
    look(here, here.world.goals[0].stand_off)
    first, second = (RayRenderer(here.model, SIZE, SIZE) for _ in range(2))
    np.testing.assert_array_equal(first.rgb(here.data, CAMERA), second.rgb(here.data, CAMERA))
    np.testing.assert_array_equal(first.rgb(here.data, CAMERA), first.rgb(here.data, CAMERA))


def test_the_goal_is_seen_from_its_stand_off() -> None:
    for kind, seed in itertools.product(("indoor", "outdoor"), (1, 2)):
        here = scene(kind, seed, 2 if seed == 1 else 0)
        ray = RayRenderer(here.model, 32, 32)
        for goal in here.world.goals:
            look(here, goal.stand_off)
            shown = np.isin(ray.segmentation(here.data, CAMERA), here.goal_geoms[goal.name])
            assert shown.mean() > 0.02, (kind, seed, goal.name)
            assert shown[:, 8:24].any()


def test_light_and_emission_shade_as_told() -> None:
    """A side in the light, one in the dark, and one that glows, against the sum by hand."""
    model = simple_model(BOX)
    data = mujoco.MjData(model)
    towards_box = -np.array([-1.0, 0.0, 0.0])  # opposite to the normal of the side that faces the camera
    for direction in (np.array([0.3, 0.2, -1.0]), np.array([-1.0, 0.0, -1.0])):
        model.light_dir[0] = direction / np.linalg.norm(direction)
        mujoco.mj_forward(model, data)
        lit = max(0.0, float(model.light_dir[0] @ towards_box))
        side = RayRenderer(model, 9, 9).rgb(data, "front")[4, 4]
        np.testing.assert_allclose(side, np.array([0.8, 0.6, 0.4]) * (0.3 + 0.6 * lit) * 255, atol=1)
    lamp = scene("indoor", 1)
    spot = next(b for b in lamp.world.blocks if b.name.startswith("light"))
    look(lamp, (*spot.position[:2], 0.0))
    colours = RayRenderer(lamp.model, SIZE, SIZE).rgb(lamp.data, CAMERA)
    shown = RayRenderer(lamp.model, SIZE, SIZE).segmentation(lamp.data, CAMERA)
    glowing = np.isin(shown, [lamp.model.geom(b.name).id for b in lamp.world.blocks if b.glow == 1.0])
    assert not glowing.any() or (colours[glowing] == 255).all()


# -- choice of the backend


def test_auto_falls_through_to_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(backend: str) -> None:
        asked.append(backend)
        raise KineflowError(f"no {backend}")

    monkeypatch.setattr(gl, "_context", missing)
    renderer = open_renderer(scene("indoor", 1).model, 16, 16)
    assert asked == ["egl", "osmesa"]
    assert renderer.backend == "ray"
    assert ORDER == ("egl", "osmesa", "ray")


@needs_egl
@needs_osmesa
def test_auto_prefers_egl_then_osmesa() -> None:
    code = f"""{DRAW}
print(open_renderer(model, 16, 16).backend)"""
    assert in_new_process(code)[0] == "egl"  # MUJOCO_GL is unset and there is no display: MuJoCo alone would fail
    assert in_new_process(code, MUJOCO_GL="osmesa")[0] == "osmesa"
    without_egl = "import sys; sys.modules['mujoco.egl'] = None\n" + code
    assert in_new_process(without_egl)[0] == "osmesa"


@pytest.mark.parametrize(("backend", "package"), [("egl", "libegl1 libgl1-mesa-dri libopengl0"), ("osmesa", "libosmesa6")])
def test_a_missing_backend_names_its_packages(backend: str, package: str) -> None:
    code = f"""import sys; sys.modules["OpenGL"] = None
{DRAW}
from kineflow.contracts import KineflowError
try:
    open_renderer(model, 16, 16, {backend!r})
except KineflowError as error:
    print(error)
renderer = open_renderer(model, 16, 16)
print(renderer.backend, renderer.rgb(data, "front").std() > 5)"""
    message, drawn = in_new_process(code)[0].splitlines()
    assert f"'{backend}' cannot be used here" in message
    assert f"apt-get install --no-install-recommends {package}" in message
    assert drawn == "ray True"


@needs_egl
def test_one_process_one_kind_of_opengl() -> None:
    """MuJoCo binds OpenGL once; the second kind would crash, not fail."""
    model = scene("indoor", 1).model
    GlRenderer(model, 16, 16, "egl").close()
    with pytest.raises(KineflowError, match=r"already draws with 'egl'.*'ray', or another process"):
        open_renderer(model, 16, 16, "osmesa")
    assert open_renderer(model, 16, 16, "ray").backend == "ray"


@needs_egl
def test_a_forked_process_is_told_to_be_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scene("indoor", 1).model
    GlRenderer(model, 16, 16, "egl").close()
    monkeypatch.setattr(gl.os, "getpid", lambda: -1)
    with pytest.raises(KineflowError, match="start workers with 'spawn'"):
        open_renderer(model, 16, 16, "egl")


def test_unknown_backends_sizes_and_cameras_are_refused() -> None:
    here = scene("indoor", 1)
    with pytest.raises(KineflowError, match=r"no rendering backend 'vulkan'; choose 'auto' or one of"):
        open_renderer(here.model, 16, 16, "vulkan")  # type: ignore[arg-type]
    with pytest.raises(KineflowError, match="0 x 16 pixels"):
        open_renderer(here.model, 0, 16)
    with pytest.raises(KineflowError, match=r"no camera 'rear'; it has \['robot/front'\]"):
        open_renderer(here.model, 16, 16, "ray").rgb(here.data, "rear")


# -- traps


@needs_egl
def test_shadows_reflections_and_multi_sampling_are_off() -> None:
    here = scene("indoor", 1)
    renderer = GlRenderer(here.model, 16, 16, "egl")
    assert not any(renderer._scene.flags[flag] for flag in gl.FLAGS_OFF)
    assert (renderer._resources.shadowSize, renderer._resources.offSamples) == (0, 0)
    assert not here.model.light_castshadow.any()
    assert not here.model.mat_reflectance.any()
    renderer.close()


def test_the_floor_is_drawn_in_few_pieces() -> None:
    for kind in ("indoor", "outdoor"):
        floor = scene(kind, 1, 2).model.geom("floor")
        assert (floor.size[:2] / floor.size[2] < 4).all()


@needs_egl
@pytest.mark.parametrize("size", [(16, 9), (800, 100)])
def test_pictures_may_exceed_the_models_buffer(size: tuple[int, int]) -> None:
    """Larger than MuJoCo's default off-screen buffer of 640 x 480, and not square."""
    here = scene("indoor", 1)
    look(here, here.world.goals[0].stand_off)
    width, height = size
    renderer: Renderer = GlRenderer(here.model, width, height, "egl")
    assert renderer.rgb(here.data, CAMERA).shape == (height, width, 3)
    theirs, mine = (r.segmentation(here.data, CAMERA) for r in (renderer, RayRenderer(here.model, width, height)))
    assert theirs.shape == (height, width)
    assert (theirs == mine)[:, -width // 4 :].mean() > 0.9
    renderer.close()


@needs_egl
def test_closing_twice_is_fine_and_drawing_after_is_an_error() -> None:
    here = scene("indoor", 1)
    for renderer in (GlRenderer(here.model, 16, 16, "egl"), RayRenderer(here.model, 16, 16)):
        renderer.rgb(here.data, CAMERA)
        renderer.close()
        renderer.close()
        with pytest.raises(KineflowError, match="closed; open another"):
            renderer.rgb(here.data, CAMERA)


@needs_egl
def test_a_process_ends_silently_with_an_open_renderer() -> None:
    out, errors = in_new_process(
        f"{DRAW}\nrenderer = open_renderer(model, 16, 16, 'egl'); print(renderer.rgb(data, 'front').shape)"
    )
    assert (out, errors) == ("(16, 16, 3)", "")


@needs_egl
def test_renderers_of_one_thread_do_not_disturb_each_other() -> None:
    """They share a context: colours, sizes and textures must not leak from one into the other."""
    here, there = scene("indoor", 1), scene("outdoor", 1, 2)
    look(here, here.world.goals[0].stand_off)
    look(there, there.world.goals[0].stand_off)
    first, second = GlRenderer(here.model, 48, 32, "egl"), GlRenderer(there.model, 24, 24, "egl")
    alone = first.rgb(here.data, CAMERA), second.rgb(there.data, CAMERA)
    for _ in range(2):
        np.testing.assert_array_equal(first.rgb(here.data, CAMERA), alone[0])
        first.depth(here.data, CAMERA)
        np.testing.assert_array_equal(second.rgb(there.data, CAMERA), alone[1])
    first.close()
    np.testing.assert_array_equal(second.rgb(there.data, CAMERA), alone[1])
    second.close()


@needs_egl
def test_a_second_thread_may_draw_too() -> None:
    import threading

    here = build_scene(world("indoor", 1))
    mine = GlRenderer(here.model, 16, 16, "egl").rgb(here.data, CAMERA)
    found: list[np.ndarray] = []

    def work() -> None:
        renderer = GlRenderer(here.model, 16, 16, "egl")
        found.append(renderer.rgb(here.data, CAMERA))
        renderer.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], mine)


def test_leaving_out_what_is_not_in_view_changes_no_pixel(pairs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = SimpleNamespace(outside=None)
    left_out = []
    for here, egl, ray in pairs:
        for pose in views(here):
            look(here, pose)
            number = here.model.camera(CAMERA).id
            left_out.append(Culling(here.model, SIZE, SIZE).outside(here.data, number).mean())
            with_it = egl.rgb(here.data, CAMERA), ray.rgb(here.data, CAMERA), ray.segmentation(here.data, CAMERA)
            with monkeypatch.context() as patch:
                everything.outside = Culling.outside
                patch.setattr(
                    Culling, "outside", lambda self, data, camera: np.zeros_like(everything.outside(self, data, camera))
                )
                without = egl.rgb(here.data, CAMERA), ray.rgb(here.data, CAMERA), ray.segmentation(here.data, CAMERA)
            for a, b in zip(with_it, without):
                np.testing.assert_array_equal(a, b)
    assert np.mean(left_out) > 0.4  # and it does leave out
