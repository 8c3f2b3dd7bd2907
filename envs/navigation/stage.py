"""One world with one body in it, ready for many episodes: scene, renderer, walkers, and what commands go through.

Compiling a scene and opening its renderer costs 0.2 to 0.4 s, as much as an episode; a stage is made once per world.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Float32, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.embodiments.embodiment import Embodiment
from kineflow.envs.navigation.ground_truth import Flow, Snapshot, intrinsics, optical_flow, snapshot
from kineflow.envs.navigation.movers import Movers
from kineflow.envs.navigation.planner import Planner
from kineflow.envs.navigation.randomise import Randomisation
from kineflow.envs.navigation.rendering.backend import Backend, open_renderer
from kineflow.envs.navigation.restyle import Restyler
from kineflow.envs.navigation.scene import build_scene
from kineflow.envs.navigation.values import CONTROL_HZ, EMBODIMENTS
from kineflow.envs.navigation.world import World

FREE_START_M = 0.5
HARD_MPS = 0.35  # a touch at this speed or above is a crash


@dataclass(frozen=True)
class Picture:
    """Size of the camera's pictures in pixels, and what draws them."""

    height: int = 96
    width: int = 96
    backend: Backend = "auto"


def embodiment_of(name: str) -> Embodiment:
    """The body of that name.

    Raises:
        KineflowError: there is none.
    """
    if name == "wheeled":
        from kineflow.envs.navigation.embodiments.wheeled import Wheeled

        return Wheeled()
    if name == "drone":
        from kineflow.envs.navigation.embodiments.drone import Drone

        return Drone()
    if name == "humanoid":
        from kineflow.envs.navigation.embodiments.humanoid import Humanoid

        return Humanoid()
    raise KineflowError(f"no embodiment '{name}'; choose one of {EMBODIMENTS}")


class Stage:
    """See the module. After `begin`, everything follows from its arguments and the commands, to the last bit.

    Attributes:
        touched: whether the body touched something other than the ground during the last `drive`.
        crashed: whether it did so at `HARD_MPS` or faster.
    """

    def __init__(
        self, world: World, embodiment: Embodiment, picture: Picture | None = None, texture_seed: int | None = None
    ) -> None:
        self.world, self.embodiment, self.picture_spec = world, embodiment, picture or Picture()
        self.scene = build_scene(world, embodiment, Randomisation(texture_seed=texture_seed))
        self.robot = embodiment.bind(self.scene.model, self.scene.data)
        self.planner = Planner(world.free_space, embodiment.radius_m)
        self._restyler, self._movers = Restyler(self.scene), Movers(self.scene)
        self._renderer: Any = None
        self._waiting: deque[np.ndarray] = deque()
        self._noise, self._generator = np.zeros(4), np.random.default_rng(0)
        self.touched = self.crashed = False

    def begin(self, x: float, y: float, yaw: float, look: Randomisation | None = None, seed: int = 0) -> None:
        """Put the body at rest at `x`, `y` (m), `yaw` (rad) under `look`; `seed` draws the walkers' time and command noise."""
        look = look or Randomisation.none()
        model, data = self.scene.model, self.scene.data
        mujoco.mj_resetData(model, data)
        self._restyler.apply(look)
        self._generator = np.random.default_rng([seed, 0xD21E])
        for time_s in self._generator.uniform(0.0, 60.0, 20):
            self._movers.start(data, float(time_s))
            # Nobody may stand in the body, nor so close that it could not do anything about it.
            if all(math.dist((x, y), (a, b)) > r + self.embodiment.radius_m + FREE_START_M for a, b, r in self.walkers):
                break
        self.robot.start(x, y, yaw)
        self._waiting = deque([np.zeros(4, np.float32)] * look.delay_steps)
        self._noise = look.command_noise * np.array(self.embodiment.limits.high)
        self.touched = self.crashed = False

    def drive(self, command: Float[np.ndarray, "4"]) -> None:
        """One control period with `command`, which takes effect after the look's delay and with its noise."""
        self._waiting.append(np.asarray(command, dtype=np.float64))
        wanted = self._waiting.popleft()
        noise = self._generator.normal(size=4) * self._noise  # drawn always: the stream does not depend on commands
        speed = self.speed
        # A body that is told to stand still stands still: noise is on motion.
        self.robot.drive(wanted + noise if np.any(wanted) else wanted)
        if self.world.movers:
            x, y, _ = self.position
            self._movers.advance(self.scene.data, 1 / CONTROL_HZ, (x, y), self.embodiment.radius_m)
        # A step ends with new joint positions, but bodies and cameras as they were before it; walkers have moved since, too.
        mujoco.mj_kinematics(self.scene.model, self.scene.data)
        mujoco.mj_camlight(self.scene.model, self.scene.data)
        self.touched = bool(self.robot.touched)
        self.crashed = self.touched and max(speed, self.speed) >= HARD_MPS

    @property
    def position(self) -> tuple[float, float, float]:
        """x, y, z of the base, m."""
        x, y, z = self.scene.data.xpos[self.robot.base].tolist()
        return x, y, z

    @property
    def yaw(self) -> float:
        """Heading, rad."""
        return self.robot.yaw

    @property
    def speed(self) -> float:
        """Measured, over the ground, m/s."""
        vx, vy, _, _ = self.robot.velocity().tolist()
        return math.hypot(vx, vy)

    @property
    def pose(self) -> Float[np.ndarray, "7"]:
        """x y z (m) qx qy qz qw of the base in the world."""
        data, base = self.scene.data, self.robot.base
        w, x, y, z = data.xquat[base].tolist()
        return np.array([*data.xpos[base].tolist(), x, y, z, w])

    @property
    def walkers(self) -> list[tuple[float, float, float]]:
        """x, y, radius (m) of each moving obstacle now."""
        return [(x, y, plan.radius) for (x, y), plan in zip(self._movers.positions().tolist(), self._movers.plans)]

    def rgb(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees."""
        return self._drawing().rgb(self.scene.data, self.scene.camera)  # type: ignore[no-any-return]

    def depth(self) -> Float32[np.ndarray, "H W"]:
        """Metres along the optical axis, inf in the sky."""
        return self._drawing().depth(self.scene.data, self.scene.camera)  # type: ignore[no-any-return]

    def look(self) -> tuple[Snapshot, Float32[np.ndarray, "H W"], np.ndarray]:
        """Poses of all bodies, depth and segmentation: what `flow_to` needs of the earlier instant."""
        model, data = self.scene.model, self.scene.data
        return snapshot(model, data, self.scene.camera), *self._drawing().depth_and_segmentation(data, self.scene.camera)

    def flow_to(
        self, earlier: tuple[Snapshot, Float32[np.ndarray, "H W"], np.ndarray], now: Snapshot, depth: Float32[np.ndarray, "H W"]
    ) -> Flow:
        """Optical flow in pixels from the picture of `earlier` to the one of `now`, whose depth says what is hidden there."""
        spec = self.picture_spec
        k = intrinsics(self.scene.model, self.scene.camera, spec.width, spec.height)
        return optical_flow(self.scene.model, k, earlier[0], now, earlier[1], earlier[2], depth)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _drawing(self) -> Any:
        if self._renderer is None:
            spec = self.picture_spec
            self._renderer = open_renderer(self.scene.model, spec.width, spec.height, spec.backend)
        return self._renderer
