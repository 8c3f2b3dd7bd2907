"""A differential-drive base: real wheels that roll on the ground, driven by velocity servos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco

from kineflow.contracts import VectorSpec
from kineflow.envs.navigation.embodiments.embodiment import PREFIX, Command, Robot, command_limits

WHEEL_RADIUS_M = 0.085
TRACK_M = 0.4  # between the points where the wheels touch the ground
TIPPED_RAD = 0.6
LIMITS = command_limits(vx=(-0.5, 1.0, 1.5), yaw_rate=(-1.5, 1.5, 4.0))

_MODEL = Path(__file__).with_suffix(".xml")


@dataclass(frozen=True)
class Wheeled:
    """Two driven wheels and two casters, 14 kg, camera at 0.45 m. It drives and turns; it has no sideways or up."""

    name: str = "wheeled"
    limits: VectorSpec = LIMITS
    radius_m: float = 0.26
    height_m: float = 0.48
    timestep_s: float = 0.005

    def spec(self) -> mujoco.MjSpec:
        """The base's own model, from `wheeled.xml`."""
        return mujoco.MjSpec.from_file(str(_MODEL))

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> WheeledRobot:
        """The base in a compiled scene."""
        return WheeledRobot(self, model, data, prefix)


class WheeledRobot(Robot):
    """A wheeled base in a scene."""

    def __init__(self, embodiment: Wheeled, model: mujoco.MjModel, data: mujoco.MjData, prefix: str = PREFIX) -> None:
        super().__init__(embodiment, model, data, prefix)
        self._left = self.id_of(mujoco.mjtObj.mjOBJ_ACTUATOR, "left_wheel")
        self._right = self.id_of(mujoco.mjtObj.mjOBJ_ACTUATOR, "right_wheel")

    def fallen(self) -> bool:
        """Tipped over by more than 0.6 rad."""
        return self.tilt > TIPPED_RAD

    def _control(self, index: int, command: Command) -> None:
        vx, _, _, yaw_rate = command
        turn = yaw_rate * TRACK_M / 2
        self.data.ctrl[self._left] = (vx - turn) / WHEEL_RADIUS_M
        self.data.ctrl[self._right] = (vx + turn) / WHEEL_RADIUS_M
