"""The Unitree G1, 29 joints, that really walks: a public reinforcement-learned policy moves its joints at 50 Hz.

The model is mjlab's G1 without meshes: its 33 collision primitives are what is simulated and seen. The policy is Holosoma's
FastSAC walker (see `g1_assets.py`); it needs the armature of the motors (without it the robot falls after some seconds).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from xml.etree import ElementTree

import mujoco
import numpy as np
from jaxtyping import Float32

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.envs.navigation.embodiments.embodiment import BASE, PREFIX, Command, Robot, command_limits
from kineflow.envs.navigation.embodiments.g1_assets import MODEL, POLICY, g1_files
from kineflow.envs.navigation.values import COMMAND, FRONT

if TYPE_CHECKING:
    import onnxruntime

_T = TypeVar("_T")

POLICY_STEPS = 4  # physics steps per step of the policy: 50 Hz
ACTION_SCALE = 0.25  # rad of joint target per unit of action
STANDING = 0.01  # below this command the policy was trained to stand
FALLEN_HEIGHT_M, FALLEN_TILT_RAD = 0.45, 0.9
START_HEIGHT_M = 0.76
LIMITS = command_limits(vx=(-0.4, 0.7, 1.0), vy=(-0.25, 0.25, 1.0), yaw_rate=(-0.85, 0.85, 2.0))
# The policy falls short of its command (0.6 m/s is walked at 0.49). Speeds that were measured, each axis by itself, over 6 s of
# walking on the flat, and the commands that gave them: a wanted speed is asked for by interpolation.
WALKED = {
    "vx": (
        (-0.596, -0.475, -0.324, -0.169, 0.0, 0.149, 0.326, 0.494, 0.634, 0.737),
        (-0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1),
    ),
    "vy": ((-0.260, -0.197, -0.108, 0.0, 0.108, 0.197, 0.260), (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)),
    "yaw_rate": ((-0.882, -0.538, -0.270, 0.0, 0.270, 0.538, 0.882), (-1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0)),
}

# Inertia of the rotor behind its gear (kg m^2) and greatest torque (N m) by motor, from mjlab's Unitree G1 (its motors'
# data sheets). Ankles and waist are moved by two motors of type 5020 through a linkage.
MOTORS = {
    "hip_pitch": (0.0102, 88.0),
    "hip_yaw": (0.0102, 88.0),
    "waist_yaw": (0.0102, 88.0),
    "hip_roll": (0.0251, 139.0),
    "knee": (0.0251, 139.0),
    "ankle": (0.0072, 50.0),
    "waist": (0.0072, 50.0),
    "shoulder": (0.0036, 25.0),
    "elbow": (0.0036, 25.0),
    "wrist_roll": (0.0036, 25.0),
    "wrist": (0.0043, 5.0),
}
FRICTION = 0.1  # N m, dry friction of every joint
# Joint angles (rad) that the policy's actions are added to: knees bent, elbows bent.
POSE = {
    "hip_pitch": -0.312,
    "knee": 0.669,
    "ankle_pitch": -0.363,
    "shoulder_pitch": 0.2,
    "left_shoulder_roll": 0.2,
    "right_shoulder_roll": -0.2,
    "elbow": 0.6,
}
# What people see: shells round the links, without mass or contact.
SHELLS = {
    "pelvis": [("ellipsoid", "0.08 0.1 0.08", "0 0 -0.06")],
    "torso_link": [("ellipsoid", "0.085 0.12 0.16", "0 0 0.17"), ("ellipsoid", "0.075 0.07 0.1", "0.005 0 0.42")],
    "left_shoulder_roll_link": [("sphere", "0.055", "0 0 0")],
    "right_shoulder_roll_link": [("sphere", "0.055", "0 0 0")],
}


@dataclass(frozen=True)
class Humanoid:
    """A Unitree G1 of 33 kg and 1.3 m, camera in its head. It walks forward and sideways and turns; it cannot jump."""

    name: str = "humanoid"
    limits: VectorSpec = LIMITS
    radius_m: float = 0.3
    height_m: float = 1.32
    timestep_s: float = 0.005
    cache: Path | None = None  # of model and policy; None: the user's cache folder

    def spec(self) -> mujoco.MjSpec:
        """The robot without its meshes, with actuators and a head camera; fetches it at the first use.

        Raises:
            KineflowError: it is not in the cache and cannot be fetched.
        """
        folder = g1_files(self.cache)
        return mujoco.MjSpec.from_string(_mesh_free((folder / MODEL).read_text(), _walker(folder / POLICY)))

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> HumanoidRobot:
        """The robot in a compiled scene."""
        return HumanoidRobot(self, model, data, prefix)


class HumanoidRobot(Robot):
    """A G1 in a scene, and the memory of its walking policy."""

    start_height_m = START_HEIGHT_M

    def __init__(self, embodiment: Humanoid, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> None:
        super().__init__(embodiment, model, data, prefix)
        self._walker = _walker(g1_files(embodiment.cache) / POLICY)
        joints = [self.id_of(mujoco.mjtObj.mjOBJ_JOINT, name) for name in self._walker.joints]
        self._angles, self._speeds = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._targets = [self.id_of(mujoco.mjtObj.mjOBJ_ACTUATOR, name) for name in self._walker.joints]
        self._pose = np.array([_of_joint(POSE, name, 0.0) for name in self._walker.joints])
        self._restart()

    def fallen(self) -> bool:
        """Pelvis below 0.45 m (0.74 m when walking) or tilted by more than 0.9 rad."""
        return float(self.data.qpos[self._q + 2]) < FALLEN_HEIGHT_M or self.tilt > FALLEN_TILT_RAD

    def _restart(self) -> None:
        self.data.qpos[self._angles] = self._pose
        self.data.ctrl[self._targets] = self._pose
        self._action = np.zeros(len(self._pose), dtype=np.float32)
        self._phase: tuple[float, float] = (math.pi, math.pi)
        self._standing = True

    def _control(self, index: int, command: Command) -> None:
        if index % POLICY_STEPS:
            return
        vx, vy, yaw_rate = (float(np.interp(wanted, *WALKED[axis])) for axis, wanted in zip(COMMAND, command) if axis in WALKED)
        self._step_phase(math.hypot(vx, vy) < STANDING and abs(yaw_rate) < STANDING)
        self._action = self._walker.act(self._observation(vx, vy, yaw_rate))
        self.data.ctrl[self._targets] = self._pose + ACTION_SCALE * self._action

    def _step_phase(self, stand: bool) -> None:
        """Where each foot is in its step, rad. Both at pi: on the ground."""
        if stand:
            self._phase = (math.pi, math.pi)
        elif self._standing:
            self._phase = (0.0, math.pi)
        else:
            left, right = (phase + math.tau / 50 for phase in self._phase)
            self._phase = math.remainder(left, math.tau), math.remainder(right, math.tau)
        self._standing = stand

    def _observation(self, vx: float, vy: float, yaw_rate: float) -> Float32[np.ndarray, "100"]:
        """What the policy was trained on: its terms in alphabetical order of their names."""
        w, x, y, z = self.data.qpos[self._q + 3 : self._q + 7].tolist()
        (left, right), values = self._phase, np.empty(100, dtype=np.float32)
        values[0:29] = self._action
        values[29:32] = self.data.qvel[self._v + 3 : self._v + 6] * 0.25
        values[32:35] = yaw_rate, vx, vy
        values[35:37] = math.cos(left), math.cos(right)
        values[37:66] = self.data.qpos[self._angles] - self._pose
        values[66:95] = self.data.qvel[self._speeds] * 0.05
        values[95:98] = 2 * (w * y - x * z), -2 * (y * z + w * x), 2 * (x * x + y * y) - 1  # down, in the pelvis
        values[98:100] = math.sin(left), math.sin(right)
        return values


@dataclass(frozen=True)
class Walker:
    """The walking policy: 100 observations to 29 joint actions, with the joints' order, stiffness and damping."""

    session: onnxruntime.InferenceSession
    joints: tuple[str, ...]
    stiffness: tuple[float, ...]
    damping: tuple[float, ...]

    def act(self, observation: Float32[np.ndarray, "100"]) -> Float32[np.ndarray, "29"]:
        """Actions for one observation."""
        (actions,) = self.session.run(None, {"actor_obs": observation[None]})
        action: Float32[np.ndarray, "29"] = actions[0]
        return action


@lru_cache(maxsize=4)
def _walker(path: Path) -> Walker:
    try:
        import onnxruntime
    except ImportError as error:
        raise KineflowError(f"the humanoid walks by onnxruntime ({error}); pip install 'kineflow[humanoid]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # 0.1 ms of work: more threads cost more than they bring
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    held = session.get_modelmeta().custom_metadata_map
    joints, stiffness, damping = (tuple(json.loads(held[name])) for name in ("dof_names", "kp", "kd"))
    return Walker(session, joints, stiffness, damping)


def _mesh_free(text: str, walker: Walker) -> str:
    """mjlab's MJCF without meshes, sensors and cameras, with the motors that the policy was trained with."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("mesh", "light", "camera", "sensor") or child.get("mesh"):
                parent.remove(child)
    bodies = {body.get("name", ""): body for body in root.iter("body")}
    ElementTree.SubElement(bodies["pelvis"], "site", name=BASE)
    # Just in front of the head, 8 degrees down.
    ElementTree.SubElement(
        bodies["torso_link"], "camera", name=FRONT, pos="0.09 0 0.43", xyaxes="0 -1 0 0.139 0 0.990", fovy="75"
    )
    for geom in root.iter("geom"):
        if "foot" in geom.get("name", ""):
            geom.set("friction", "0.01")  # of two touching geoms the greater counts: the ground's is what it walks by
    for name, shells in SHELLS.items():
        for kind, size, position in shells:
            look = {"contype": "0", "conaffinity": "0", "density": "0", "group": "2", "rgba": ".8 .81 .84 1"}
            ElementTree.SubElement(bodies[name], "geom", look, type=kind, size=size, pos=position)
    for default in root.iter("default"):
        if default.get("class") == "collision":
            (geom,) = default.findall("geom")
            geom.set("group", "2")
            geom.set("rgba", ".22 .23 .26 1")
    actuators = ElementTree.SubElement(root, "actuator")
    joints = {joint.get("name", ""): joint for joint in root.iter("joint")}
    for name, kp, kd in zip(walker.joints, walker.stiffness, walker.damping):
        armature, torque = _of_joint(MOTORS, name, (0.0, 0.0))
        joints[name].set("armature", str(armature))
        joints[name].set("frictionloss", str(FRICTION))
        limits = f"-{torque} {torque}"
        ElementTree.SubElement(actuators, "position", name=name, joint=name, kp=str(kp), kv=str(kd), forcerange=limits)
    return ElementTree.tostring(root, encoding="unicode")


def _of_joint(table: dict[str, _T], joint: str, otherwise: _T) -> _T:
    """The entry whose key is part of the joint's name; the first one counts."""
    return next((value for key, value in table.items() if key in joint), otherwise)
