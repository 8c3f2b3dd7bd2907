"""A quadrotor whose geometric controller flies velocity commands: tilt the thrust to accelerate, turn the rotors to tilt.

Geometric tracking on SE(3) after Lee, Leok and McClamroch (2010): the thrust acts along the body's own axis and is turned
with it, the torque follows the attitude error on the group itself, here as a unit quaternion (no Euler angles, no
singularity). Around it a velocity loop with feed-forward of the commanded acceleration and an integral for the air's drag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Float

from kineflow.contracts import KineflowError, VectorSpec
from kineflow.envs.navigation.embodiments.embodiment import PREFIX, Command, Robot, command_limits

FLIGHT_HEIGHT_M = 1.2
CRASH_ACCELERATION = 100.0  # m/s^2: meeting something hard at 0.95 m/s, and three times what the rotors can do
LIMITS = command_limits(vx=(-2.0, 2.0, 2.5), vy=(-1.5, 1.5, 2.5), vz=(-1.0, 1.0, 2.0), yaw_rate=(-1.5, 1.5, 3.0))

# Gains: of velocity (1/s) and its integral (1/s^2), of attitude (1/s^2) and body rates (1/s) for roll and pitch, and for yaw.
VELOCITY, INTEGRAL = 3.0, 1.0
ATTITUDE, RATE = 150.0, 22.0
LAG_S = (
    0.14,
    0.14,
    0.03,
)  # per axis, from wanting an acceleration to having it; errors count against a reference that lags as much
DRAG = 0.2  # 1/s, of the air, per velocity
HEADING, YAW_RATE = 25.0, 9.0
MAX_DRAG = 1.5  # m/s^2 that the integral may claim: a drone held by a wall must not wind up
MAX_SLANT = 0.7  # of horizontal over vertical acceleration: 35 degrees of tilt
MAX_LAG_RAD = 0.3  # of the heading behind its reference

_MODEL = Path(__file__).with_suffix(".xml")


@dataclass(frozen=True)
class Drone:
    """A quadrotor of 1.3 kg, 0.34 m in radius with its guard, that starts hovering at 1.2 m and moves on all four axes."""

    name: str = "drone"
    limits: VectorSpec = LIMITS
    radius_m: float = 0.36
    height_m: float = 0.12
    timestep_s: float = 0.005

    def spec(self) -> mujoco.MjSpec:
        """The quadrotor's own model, from `drone.xml`."""
        return mujoco.MjSpec.from_file(str(_MODEL))

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> DroneRobot:
        """The quadrotor in a compiled scene."""
        return DroneRobot(self, model, data, prefix)


class DroneRobot(Robot):
    """A quadrotor in a scene, and the memory of its controller."""

    start_height_m = FLIGHT_HEIGHT_M

    def __init__(self, embodiment: Drone, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> None:
        super().__init__(embodiment, model, data, prefix)
        self._rotors = [self.id_of(mujoco.mjtObj.mjOBJ_ACTUATOR, f"rotor_{i}") for i in (1, 2, 3, 4)]
        self._states = model.actuator_actadr[self._rotors]
        self._max_thrust = float(model.actuator_ctrlrange[self._rotors, 1].min())
        self._mass = float(model.body_mass[self.base])
        self._inertia: list[float] = model.body_inertia[self.base].tolist()
        self._gravity = -float(model.opt.gravity[2])
        sites = model.actuator_trnid[self._rotors, 0]
        arms, gears = model.site_pos[sites] - model.body_ipos[self.base], model.actuator_gear[self._rotors]
        self._thrusts_of: list[list[float]] = np.linalg.inv(mixer(arms, gears[:, 5])).tolist()
        self._restart()

    def fallen(self) -> bool:
        """Upside down, or hit something hard enough (100 m/s^2, which is meeting a wall or the ground at 0.95 m/s) to break."""
        return self._crashed or self.tilt > math.pi / 2

    def _restart(self) -> None:
        self._heading = self.yaw
        self._integral, self._reference = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        self._last: Command = (0.0, 0.0, 0.0, 0.0)
        self._last_velocity = [0.0, 0.0, 0.0]
        self._crashed = False
        hover = self._mass * self._gravity / 4
        self.data.act[self._states] = hover
        self.data.ctrl[self._rotors] = hover

    def _control(self, index: int, command: Command) -> None:
        step = self.embodiment.timestep_s
        self._feel()
        self.data.qfrc_applied[self._v : self._v + 3] = [-DRAG * self._mass * v for v in self._last_velocity]
        # Acceleration that the command itself asks for: its ramp, and the centripetal part of flying a curve.
        vx, vy, _, yaw_rate = command
        ahead, aside, up, turn = ((new - old) / step for new, old in zip(command, self._last))
        wanted = [ahead - yaw_rate * vy, aside + yaw_rate * vx, up]
        for axis, velocity in enumerate(self.motion()[:3]):
            self._reference[axis] += (command[axis] - self._reference[axis]) * step / LAG_S[axis]
            error = self._reference[axis] - velocity
            self._integral[axis] = _clip(self._integral[axis] + INTEGRAL * error * step, MAX_DRAG)
            wanted[axis] += DRAG * self._reference[axis] + VELOCITY * error + self._integral[axis]
        ax, ay, az = wanted[0], wanted[1], max(wanted[2] + self._gravity, 0.3 * self._gravity)
        slant = math.hypot(ax, ay) / (MAX_SLANT * az)
        if slant > 1:
            ax, ay = ax / slant, ay / slant
        self._last = command
        yaw = self.yaw
        self._heading = yaw + _clip(math.remainder(self._heading + yaw_rate * step - yaw, math.tau), MAX_LAG_RAD)
        cos, sin = math.cos(yaw), math.sin(yaw)
        self._fly((cos * ax - sin * ay, sin * ax + cos * ay, az), yaw_rate, turn)

    def _fly(self, acceleration: tuple[float, float, float], yaw_rate: float, turn: float) -> None:
        """Set the rotors for this acceleration (world frame, gravity included), yaw rate and change of yaw rate."""
        w, x, y, z = self.data.qpos[self._q + 3 : self._q + 7].tolist()
        rates: list[float] = self.data.qvel[self._v + 3 : self._v + 6].tolist()
        up = 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)  # the body's up axis, in the world
        # World up in the body: the commanded rate is about this axis.
        wanted_rates = (
            yaw_rate * 2 * (x * z - w * y),
            yaw_rate * 2 * (y * z + w * x),
            yaw_rate * up[2],
        )
        ex, ey, ez = _rotation_between((w, x, y, z), _attitude(acceleration, self._heading))
        p, q, r = (wanted - rate for wanted, rate in zip(wanted_rates, rates))
        spin = [inertia * rate for inertia, rate in zip(self._inertia, rates)]
        torque = (
            self._inertia[0] * (ATTITUDE * ex + RATE * p) + rates[1] * spin[2] - rates[2] * spin[1],
            self._inertia[1] * (ATTITUDE * ey + RATE * q) + rates[2] * spin[0] - rates[0] * spin[2],
            self._inertia[2] * (turn + HEADING * ez + YAW_RATE * r) + rates[0] * spin[1] - rates[1] * spin[0],
        )
        # Height first: the vertical part of the thrust is the wanted one already while the tilt is still on its way.
        force = self._mass * acceleration[2] / max(up[2], 0.5)
        self.data.ctrl[self._rotors] = self._thrusts(min(force, 4 * self._max_thrust), torque)

    def _thrusts(self, force: float, torque: tuple[float, float, float]) -> list[float]:
        """Thrust of each rotor (N). Where one would leave its range, the torque shrinks as a whole: it keeps its axis."""
        lift = [row[0] * force for row in self._thrusts_of]
        turn = [row[1] * torque[0] + row[2] * torque[1] + row[3] * torque[2] for row in self._thrusts_of]
        room = (base / -part if part < 0 else (self._max_thrust - base) / max(part, 1e-9) for base, part in zip(lift, turn))
        share = min(1.0, *room)
        return [base + share * part for base, part in zip(lift, turn)]

    def _feel(self) -> None:
        """Notice a crash: more change of velocity in one step than flying can explain."""
        velocity: list[float] = self.data.qvel[self._v : self._v + 3].tolist()
        self._crashed |= math.dist(velocity, self._last_velocity) > CRASH_ACCELERATION * self.embodiment.timestep_s
        self._last_velocity = velocity


def mixer(arms: Float[np.ndarray, "4 3"], reactions: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4 4"]:
    """Thrust (N) and torques about x, y, z (N m) per newton of each rotor.

    Args:
        arms: Positions of the rotors from the centre of mass, m.
        reactions: Torque about z per newton of thrust, m; the sign is against the rotor's turn.

    Raises:
        KineflowError: some torque is a combination of the others, so that it cannot be commanded.
    """
    matrix = np.stack([np.ones(4), arms[:, 1], -arms[:, 0], reactions])
    if abs(np.linalg.det(matrix / np.abs(matrix).max(axis=1, keepdims=True))) < 1e-3:
        raise KineflowError(
            f"the rotors at {arms[:, :2].tolist()} with reactions {reactions.tolist()} cannot turn all ways; "
            "give neighbouring rotors opposite signs"
        )
    return matrix


Quaternion = tuple[float, float, float, float]  # w x y z, as MuJoCo has them


def _attitude(acceleration: tuple[float, float, float], heading: float) -> Quaternion:
    """Attitude whose up axis points along `acceleration`, turned to `heading`."""
    ax, ay, az = acceleration
    length = math.sqrt(ax * ax + ay * ay + az * az)
    # The shortest turn from world up: half-way between, so 1 + cos and the cross product (-ay, ax, 0).
    w, x, y = length + az, -ay, ax
    norm = math.sqrt(w * w + x * x + y * y)
    w, x, y = w / norm, x / norm, y / norm
    cos, sin = math.cos(heading / 2), math.sin(heading / 2)
    return w * cos, x * cos + y * sin, y * cos - x * sin, w * sin


def _rotation_between(now: Quaternion, wanted: Quaternion) -> tuple[float, float, float]:
    """Turn (about x, y, z of the body; rad for small ones) that takes `now` to `wanted` the short way."""
    w, x, y, z = now
    a, b, c, d = wanted
    side = 2.0 if w * a + x * b + y * c + z * d >= 0 else -2.0
    return side * (w * b - x * a - y * d + z * c), side * (w * c + x * d - y * a - z * b), side * (w * d - x * c + y * b - z * a)


def _clip(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)
