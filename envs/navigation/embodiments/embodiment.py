"""What every body offers, so that one task, one policy and one data set serve all of them.

    world = mujoco.MjSpec()                      # anything with a ground geom named "floor"
    attach(world, embodiment)                    # names get the prefix "robot/"; step and integrator are the embodiment's
    model = world.compile()
    robot = embodiment.bind(model, mujoco.MjData(model))   # looks every name up once
    robot.start(x=0.0, y=0.0, yaw=0.0)
    robot.drive(command)                         # 0.1 s of physics
    robot.velocity(), robot.fallen(), robot.touched

An `Embodiment` is a description that many scenes share; a `Robot` is one body in one scene, with its controller's memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import mujoco
import numpy as np
from jaxtyping import Float

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.envs.navigation.values import COMMAND, COMMAND_UNITS, CONTROL_HZ, FRONT

PREFIX = "robot/"  # of all names of the body inside a scene
GROUND = "floor"  # touching this geom is standing, not colliding
BASE = "base"  # the site whose body carries the free joint
LACKING = 1e-6  # bound of an axis that a body lacks: a VectorSpec wants low < high

_GROUND, _OWN, _FOREIGN = 0, 1, 2  # kinds of geoms: only own + foreign makes 3
# MuJoCo answers these with a silent reset of the whole scene.
_UNSTABLE = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)

Command = tuple[float, float, float, float]


class Embodiment(Protocol):
    """A kind of body: its limits, its size and its model.

    `limits` bounds the command (`low`, `high`) and its change per second (`max_rate`, the acceleration); an axis that the
    body lacks is bounded by +-1e-6, ignored by `drive` and reported 0. `radius_m` and `height_m` are of the upright cylinder
    that holds the body, for planning with clearance.
    """

    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> VectorSpec: ...
    @property
    def radius_m(self) -> float: ...
    @property
    def height_m(self) -> float: ...
    @property
    def timestep_s(self) -> float: ...

    def spec(self) -> mujoco.MjSpec:
        """A new stand-alone model: a body with a free joint, its actuators, site "base", camera "front"."""
        ...

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> Robot:
        """The robot of this kind in a compiled scene.

        Raises:
            KineflowError: the scene lacks the body, or has another time step or integrator than `attach` sets.
        """
        ...


class Robot(ABC):
    """One body in one scene.

    Attributes:
        applied: float32 [4], the command in force at the end of the last `drive`, clamped and rate limited.
        touched: ids of the geoms, other than the ground and its own, that the body touched during the last `drive`.
        geoms: ids of the body's own geoms.
        base: id of the body that carries the free joint.
        front: id of the camera "front".
    """

    start_height_m = 0.0  # of the base, above the ground

    def __init__(self, embodiment: Embodiment, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> None:
        self.embodiment, self.model, self.data, self.prefix = embodiment, model, data, prefix
        self._check_options()
        self.base = int(model.site_bodyid[self.id_of(mujoco.mjtObj.mjOBJ_SITE, BASE)])
        self.front = self.id_of(mujoco.mjtObj.mjOBJ_CAMERA, FRONT)
        joint = int(model.body_jntadr[self.base])
        self._q, self._v = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        own_body = model.body_rootid == model.body_rootid[self.base]
        self._kind = np.where(own_body[model.geom_bodyid], _OWN, _FOREIGN)
        self.geoms: tuple[int, ...] = tuple(np.flatnonzero(self._kind == _OWN).tolist())
        ground = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, GROUND)
        if ground >= 0:
            self._kind[ground] = _GROUND
        self._foreign = frozenset(np.flatnonzero(self._kind == _FOREIGN).tolist())
        self._joints = np.flatnonzero(own_body[model.jnt_bodyid])[1:]  # all but the free one
        self._dofs = np.flatnonzero(own_body[model.dof_bodyid])
        self._actuators = [i for i in range(model.nu) if model.actuator(i).name.startswith(prefix)]
        limits = embodiment.limits
        self._low, self._high = np.array(limits.low), np.array(limits.high)
        self._low[self._high <= LACKING] = self._high[self._high <= LACKING] = 0.0
        substeps = round(1 / (CONTROL_HZ * embodiment.timestep_s))
        # How far the command may have moved after 1, 2, ... physics steps.
        self._reach = np.array(limits.max_rate) * embodiment.timestep_s * np.arange(1, substeps + 1)[:, None]
        self.applied: Float[np.ndarray, "4"] = np.zeros(4, dtype=np.float32)
        self.touched: tuple[int, ...] = ()
        self._moved = np.zeros(4)

    def start(self, x: float, y: float, yaw: float) -> None:
        """Put the body at rest at `x`, `y` (m) with heading `yaw` (rad), forgetting all that happened.

        The rest of the scene stays as it is. The same start and the same commands give the same motion to the last bit.
        """
        data = self.data
        data.qpos[self._q : self._q + 3] = x, y, self.start_height_m
        data.qpos[self._q + 3 : self._q + 7] = math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)
        adr = self.model.jnt_qposadr[self._joints]
        data.qpos[adr] = self.model.qpos0[adr]
        # The solver starts from the last acceleration: left over, it would make the first steps depend on the past.
        data.qvel[self._dofs] = data.qacc_warmstart[self._dofs] = data.qacc[self._dofs] = 0.0
        data.qfrc_applied[self._dofs] = 0.0
        data.ctrl[self._actuators] = 0.0
        for kind in _UNSTABLE:
            data.warning[kind].number = 0
        self.applied = np.zeros(4, dtype=np.float32)
        self.touched = ()
        self._moved = np.zeros(4)
        self._restart()
        mujoco.mj_forward(self.model, data)

    def drive(self, command: Float[np.ndarray, "4"]) -> None:
        """Run physics for one control period (0.1 s) with `command` (vx, vy, vz, yaw rate; body frame) held.

        The command is clamped to the limits and approached no faster than `max_rate`; axes that the body lacks are ignored.

        Raises:
            KineflowError: the command is not four finite numbers, or the physics became unstable.
        """
        steps = self._ramp(command)
        model, data, touched = self.model, self.data, set[int]()
        yaw, place = self.yaw, data.qpos[self._q : self._q + 3].copy()
        for index, (vx, vy, vz, yaw_rate) in enumerate(steps.tolist()):
            self._control(index, (vx, vy, vz, yaw_rate))
            mujoco.mj_step(model, data)
            touched.update(self._touching())
        if any(data.warning[kind].number for kind in _UNSTABLE):
            raise KineflowError(
                f"{self.embodiment.name}: the physics became unstable while driving {command}, and the scene was reset; "
                "start anew, and look for frictions near 0 or bodies inside each other"
            )
        self.applied = steps[-1].astype(np.float32)
        self.touched = tuple(sorted(touched))
        turned = math.remainder(self.yaw - yaw, math.tau)
        x, y, z = (data.qpos[self._q : self._q + 3] - place).tolist()
        cos, sin = math.cos(yaw + turned / 2), math.sin(yaw + turned / 2)
        self._moved = CONTROL_HZ * np.array([cos * x + sin * y, cos * y - sin * x, z, turned])

    def velocity(self) -> Float[np.ndarray, "4"]:
        """Measured vx, vy, vz (m/s) of the base and yaw rate (rad/s), float32, in the gravity-aligned body frame.

        As odometry has it: the mean over the last control period, 0 after a start. Adding it up follows the path; at one
        instant a walking body sways at several times the speed that it gets along with. Axes that the body lacks are 0.
        """
        measured = self._moved.astype(np.float32)
        measured[self._high == 0.0] = 0.0
        return measured

    @abstractmethod
    def fallen(self) -> bool:
        """Whether the body can no longer do its work: tipped over or crashed."""

    @property
    def yaw(self) -> float:
        """Heading (rad): where the body's forward axis points on the ground plane."""
        w, x, y, z = self.data.qpos[self._q + 3 : self._q + 7].tolist()
        return math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))

    @property
    def tilt(self) -> float:
        """Angle (rad, 0..pi) between the body's up axis and up."""
        _, x, y, _ = self.data.qpos[self._q + 3 : self._q + 7].tolist()
        return math.acos(max(-1.0, min(1.0, 1 - 2 * (x * x + y * y))))

    def motion(self) -> Command:
        """Velocity of the base at this instant, on all four axes: in the gravity-aligned body frame, and the change of `yaw`."""
        w, x, y, z = self.data.qpos[self._q + 3 : self._q + 7].tolist()
        # A free joint's linear velocity is in the world frame, its angular one in the body's own.
        vx, vy, vz, _, q, r = self.data.qvel[self._v : self._v + 6].tolist()
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        nose, left, up = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)  # how far each body axis points up
        # Not the turn about world z: rolling with the nose up is one, and leaves the heading alone.
        yaw_rate = (left * q + up * r) / max(1 - nose * nose, 0.05)
        return cos * vx + sin * vy, cos * vy - sin * vx, vz, yaw_rate

    def id_of(self, kind: mujoco.mjtObj, name: str) -> int:
        """Id of the body's part `name` (without the prefix)."""
        found = int(mujoco.mj_name2id(self.model, kind, self.prefix + name))
        if found < 0:
            what = kind.name.removeprefix("mjOBJ_").lower()
            raise KineflowError(
                f"the scene has no {what} '{self.prefix}{name}'; attach the {self.embodiment.name} before compiling it"
            )
        return found

    def _restart(self) -> None:  # noqa: B027 (a controller without memory has nothing to forget)
        """Set joints and controller for a new start; called before the scene is brought up to date."""

    @abstractmethod
    def _control(self, index: int, command: Command) -> None:
        """Set the actuators for physics step `index` of this control period."""

    def _ramp(self, command: Float[np.ndarray, "4"]) -> Float[np.ndarray, "N 4"]:
        wanted = np.asarray(command, dtype=np.float64)
        if wanted.shape != (4,) or not np.isfinite(wanted).all():
            raise KineflowError(
                f"{self.embodiment.name}: a command is four finite numbers {COMMAND} in {COMMAND_UNITS}, got {command}; "
                "send zeros to stop"
            )
        change = np.clip(wanted, self._low, self._high) - self.applied
        ramp: Float[np.ndarray, "N 4"] = self.applied + np.clip(change, -self._reach, self._reach)
        return ramp

    def _touching(self) -> list[int]:
        pairs = self.data.contact.geom
        if self._foreign.isdisjoint(pairs.ravel().tolist()):  # nearly always, at a fifth of what follows
            return []
        struck = pairs[self._kind[pairs].sum(axis=1) == _OWN + _FOREIGN]
        if not len(struck):
            return []
        found: list[int] = struck[self._kind[struck] == _FOREIGN].tolist()
        return found

    def _check_options(self) -> None:
        option, wanted = self.model.opt, self.embodiment.timestep_s
        if not math.isclose(option.timestep, wanted) or option.integrator != mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
            raise KineflowError(
                f"{self.embodiment.name} is controlled at a time step of {wanted} s with implicitfast, the scene has "
                f"{option.timestep} s with integrator {option.integrator}; build it with `attach(world, embodiment)`"
            )


def attach(world: mujoco.MjSpec, embodiment: Embodiment, prefix: str = PREFIX) -> None:
    """Put the body into `world` before it is compiled, and give the world the body's time step and integrator."""
    world.attach(embodiment.spec(), prefix=prefix, frame=world.worldbody.add_frame())
    world.option.timestep = embodiment.timestep_s
    world.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST


def command_limits(**axes: tuple[float, float, float]) -> VectorSpec:
    """Limits from `axis=(low, high, max_rate)`; axes that are not named are ones that the body lacks."""
    rows = [axes.get(name, (-LACKING, LACKING, math.inf)) for name in COMMAND]
    low, high, max_rate = zip(*rows)
    return VectorSpec(names=COMMAND, units=COMMAND_UNITS, frame="base", low=low, high=high, max_rate=max_rate)
