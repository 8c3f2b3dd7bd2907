"""From a world to a MuJoCo model: blocks, textures, lights, sky, movers and a robot, deterministic from its inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.embodiment import GROUND, PREFIX, Embodiment, attach
from kineflow.envs.navigation.randomise import Randomisation
from kineflow.envs.navigation.shapes import Block, MoverPlan
from kineflow.envs.navigation.textures import draw_sky, draw_texture, metres_per_repeat
from kineflow.envs.navigation.values import FRONT
from kineflow.envs.navigation.world import World

SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
}
OBSERVER_FOV_DEG = 75.0


@dataclass(frozen=True, eq=False)
class Scene:
    """A compiled world. `data` is at its first state, positions computed; names of the robot's parts begin with "robot/".

    `goal_geoms`: ids of the geoms of each goal by its name. `mover_bodies`: body ids in the order of `world.movers`.
    """

    world: World
    randomisation: Randomisation
    model: Any
    data: Any
    floor_geom: int
    goal_geoms: dict[str, tuple[int, ...]]
    mover_bodies: tuple[int, ...]
    camera: str = PREFIX + FRONT


def build_scene(world: World, embodiment: Embodiment | None = None, randomisation: Randomisation | None = None) -> Scene:
    """Compile `world` with the embodiment attached under "robot/"; without one there is a weightless camera (a mocap body).

    Raises:
        KineflowError: the embodiment has no camera "front".
    """
    drawn = randomisation or Randomisation.none()
    spec = mujoco.MjSpec()
    _set_options(spec)
    add_lights(spec, world, drawn)
    looks = _Looks(spec, world, drawn)
    _add_floor(spec, world, drawn, looks)
    for block in world.blocks:
        _add_block(spec.worldbody, block, looks)
    for mover in world.movers:
        _add_mover(spec, mover, looks)
    _attach(spec, embodiment, drawn)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return Scene(
        world=world,
        randomisation=drawn,
        model=model,
        data=data,
        floor_geom=model.geom(GROUND).id,
        goal_geoms={goal.name: tuple(model.geom(name).id for name in goal.blocks) for goal in world.goals},
        mover_bodies=tuple(model.body(mover.name).id for mover in world.movers),
    )


def _set_options(spec: Any) -> None:
    # Without a fixed extent the clipping planes would depend on the size of the world.
    spec.stat.extent = 1.0
    spec.visual.map.znear = 0.02
    spec.visual.map.zfar = 120.0
    # Shadow maps and multi-sampling cost six times the frame on a software rasteriser and are switched off where they are made.
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.quality.numquads = 1
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks = 10
    spec.visual.headlight.active = 0
    spec.compiler.degree = False


def add_lights(spec: Any, world: World, drawn: Randomisation) -> None:
    azimuth, elevation = drawn.light_azimuth_rad, drawn.light_elevation_rad
    sun = -np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)])
    tint = np.asarray(drawn.light_tint)
    # A weaker one from behind and below keeps the sides that the main light misses, and the ceiling, from going flat.
    back = np.array([-0.8 * sun[0] + 0.3 * sun[1], -0.8 * sun[1] - 0.3 * sun[0], 0.45 if world.ceiling_m else -0.2])
    for name, direction, diffuse, ambient in (("sun", sun, 1.0, 1.0), ("fill", back, 0.45, 0.0)):
        spec.worldbody.add_light(
            name=name,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            pos=[0.0, 0.0, 10.0],
            dir=(direction / np.linalg.norm(direction)).tolist(),
            diffuse=(tint * drawn.light_diffuse * diffuse).tolist(),
            ambient=(tint * drawn.light_ambient * ambient).tolist(),
            specular=[0.0, 0.0, 0.0],
            castshadow=False,
        )


class _Looks:
    """Textures and materials, each made when it is first asked for; pictures follow from name and seed alone."""

    def __init__(self, spec: Any, world: World, drawn: Randomisation) -> None:
        self._spec = spec
        self._seed = world.config.seed if drawn.texture_seed is None else drawn.texture_seed
        self._made: dict[tuple[str, float, bool], str] = {}
        if world.ceiling_m is None:
            self._add_texture("sky", mujoco.mjtTexture.mjTEXTURE_SKYBOX, draw_sky(self.generator("sky")))

    def generator(self, surface: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *surface.encode()])

    def material(self, surface: str, glow: float, is_round: bool = False) -> str:
        key = (surface, glow, is_round)
        if key not in self._made:
            name = f"{surface}_{glow:g}{'_round' * is_round}"
            if not any(made[0] == surface for made in self._made):
                self._add_texture(surface, mujoco.mjtTexture.mjTEXTURE_2D, draw_texture(surface, self.generator(surface)))
            material = self._spec.add_material(name=name, emission=glow, specular=0.0, shininess=0.0, reflectance=0.0)
            textures = [""] * mujoco.mjtTextureRole.mjNTEXROLE
            textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = surface
            material.textures = textures
            metres = metres_per_repeat(surface)
            # Around a round thing only whole repeats meet without a seam.
            material.texuniform = metres > 0 and not is_round
            # MuJoCo repeats a uniform texture once per 2 / texrepeat metres.
            material.texrepeat = [3.0, 2.0] if is_round else [2.0 / metres] * 2 if metres > 0 else [1.0, 1.0]
            self._made[key] = name
        return self._made[key]

    def plain(self, glow: float) -> str:
        key = ("", glow, False)
        if key not in self._made:
            self._made[key] = f"plain_{glow:g}"
            self._spec.add_material(name=self._made[key], emission=glow, specular=0.0, shininess=0.0, reflectance=0.0)
        return self._made[key]

    def _add_texture(self, name: str, kind: Any, pixels: np.ndarray) -> None:
        texture = self._spec.add_texture(name=name, type=kind, width=pixels.shape[1], height=pixels.shape[0], nchannel=3)
        texture.data = pixels.tobytes()


def _add_floor(spec: Any, world: World, drawn: Randomisation, looks: _Looks) -> None:
    x0, y0, x1, y1 = world.bounds
    beyond = 1.0 if world.ceiling_m else 70.0  # outdoors the ground goes on to where hills hide its end
    spec.worldbody.add_geom(
        name=GROUND,
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        # The third number is the spacing of the drawn grid: a small one draws ten thousands of triangles.
        size=[(x1 - x0) / 2 + beyond, (y1 - y0) / 2 + beyond, 50.0],
        material=looks.material("floor" if world.ceiling_m else "ground", 0.0),
        friction=[drawn.friction, 0.005, 0.0001],
    )


def _add_block(body: Any, block: Block, looks: _Looks, at: tuple[float, float, float] | None = None) -> None:
    half, quat = _turned(block)
    body.add_geom(
        name=block.name,
        type=SHAPES[block.shape],
        pos=list(at or block.position),
        quat=quat,
        size=half,
        rgba=[*block.rgb, 1.0],
        material=looks.material(block.surface, block.glow, block.shape != "box") if block.surface else looks.plain(block.glow),
        contype=int(block.solid),
        conaffinity=int(block.solid),
    )


# A 2-D texture is projected along the geom's own z, its top towards +y: boxes are turned so that z is the textured side
# and +y is up. Columns: the block's axes that become the geom's x, y, z.
_HALF = math.sqrt(0.5)
_FACING = {
    "z": ((0, 1, 2), (1.0, 0.0, 0.0, 0.0)),
    "x": ((1, 2, 0), (0.5, 0.5, 0.5, 0.5)),
    "y": ((0, 2, 1), (_HALF, _HALF, 0.0, 0.0)),
}


def _turned(block: Block) -> tuple[list[float], list[float]]:
    """Half sizes and quaternion (w x y z, MuJoCo's order) of a block's geom."""
    order, quat = _FACING[block.facing] if block.shape == "box" else _FACING["z"]
    half = [block.half_size[i] for i in order]
    if block.shape == "cylinder":
        half = [block.half_size[0], block.half_size[2], 0.0]
    w, z = math.cos(block.yaw / 2), math.sin(block.yaw / 2)
    a, b, c, d = quat
    return half, [w * a - z * d, w * b - z * c, w * c + z * b, w * d + z * a]


def _add_mover(spec: Any, mover: MoverPlan, looks: _Looks) -> None:
    """A walker: legs, coat, head. It is a mocap body, so nothing pushes it; movers.py moves it."""
    body = spec.worldbody.add_body(name=mover.name, mocap=True, pos=[*mover.start, 0.0])
    r, h = mover.radius, mover.height
    legs, coat, head = 0.42 * h, 0.42 * h, 0.16 * h
    dark = (mover.rgb[0] * 0.5, mover.rgb[1] * 0.5, mover.rgb[2] * 0.55)
    parts = (
        Block(f"{mover.name}/legs", "cylinder", (0, 0, legs / 2), (0.7 * r, 0.7 * r, legs / 2), rgb=dark),
        Block(f"{mover.name}/coat", "cylinder", (0, 0, legs + coat / 2), (r, r, coat / 2), rgb=mover.rgb, surface="clothes"),
        Block(
            f"{mover.name}/head",
            "ellipsoid",
            (0, 0, legs + coat + head / 2),
            (head / 2, head / 2, head / 2),
            rgb=(0.78, 0.62, 0.52),
        ),
        Block(
            f"{mover.name}/face",
            "box",
            (head * 0.42, 0, legs + coat + head * 0.6),
            (0.02, head * 0.3, 0.02),
            rgb=(0.2, 0.16, 0.14),
        ),
    )
    for part in parts:
        _add_block(body, part, looks)


def _attach(spec: Any, embodiment: Embodiment | None, drawn: Randomisation) -> None:
    if embodiment is None:
        spec.attach(_observer(), prefix=PREFIX, frame=spec.worldbody.add_frame())
    else:
        attach(spec, embodiment)
    if all(camera.name != PREFIX + FRONT for camera in spec.cameras):
        raise KineflowError(f"the embodiment {embodiment!r} has no camera '{FRONT}'; add one to its spec")
    camera = spec.camera(PREFIX + FRONT)
    camera.fovy = min(camera.fovy * drawn.fov_scale, 170.0)
    move_camera(camera, drawn)


def move_camera(camera: Any, drawn: Randomisation) -> None:
    """Jitter a camera that is not compiled yet; of `drawn` its offset and turn."""
    _resolve_orientation(camera)
    rotation = np.zeros(9)
    quat = np.asarray(camera.quat, dtype=np.float64)
    mujoco.mju_quat2Mat(rotation, quat)
    # MuJoCo's camera axes are right, up, backward; the jitter is given along forward, left, up.
    axes = rotation.reshape(3, 3) @ np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    camera.pos = np.asarray(camera.pos) + axes @ np.asarray(drawn.camera_offset_m)
    roll, pitch, yaw = drawn.camera_turn_rad
    turned = quat
    # About the camera's own axes: its forward is -z, its left is -x, its up is y.
    for axis, angle in (((0.0, 1.0, 0.0), yaw), ((-1.0, 0.0, 0.0), pitch), ((0.0, 0.0, -1.0), roll)):
        step, product = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(step, np.array(axis), angle)
        mujoco.mju_mulQuat(product, turned, step)
        turned = product
    camera.quat = turned


def _resolve_orientation(camera: Any) -> None:
    """Turn "xyaxes" into the quaternion that it stands for: until a spec is compiled, `quat` does not know of it."""
    if getattr(camera, "alt", None) is None or camera.alt.type != mujoco.mjtOrientation.mjORIENTATION_XYAXES:
        return
    right, up = np.asarray(camera.alt.xyaxes, dtype=np.float64).reshape(2, 3)
    right = right / np.linalg.norm(right)
    up = up - right * (right @ up)
    up /= np.linalg.norm(up)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, up, np.cross(right, up)], axis=1).ravel())
    camera.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT
    camera.quat = quat


def _observer() -> Any:
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="base", mocap=True, pos=[0.0, 0.0, 0.0])
    # Forward is the body's x: camera right = -y, up = z.
    body.add_camera(name=FRONT, pos=[0.0, 0.0, 0.6], quat=[0.5, 0.5, -0.5, -0.5], fovy=OBSERVER_FOV_DEG)
    return spec
