"""Domain randomisation: everything that may differ between two looks at the same world, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kineflow.contracts import KineflowError


@dataclass(frozen=True)
class Randomisation:
    """One look and feel of a world. The defaults change nothing (`Randomisation.none()`).

    `texture_seed` picks surfaces and their colours (None: the world's own). `light_azimuth_rad`, `light_elevation_rad`: where
    the main light comes from; `light_diffuse`, `light_ambient`: its strength, 0..1; `light_tint`: factors of r, g, b.
    `camera_offset_m` (x forward, y left, z up) and `camera_turn_rad` (roll, pitch, yaw; pitch > 0 looks down) move the camera on
    its mount; `fov_scale` multiplies the vertical field of view. `friction` multiplies the sliding friction of the floor.
    `delay_steps`: control steps between a command and its effect; `command_noise`: standard deviation of the noise on a
    command, as a share of each axis' limit. The last two are carried here and applied by whoever drives the body.
    """

    texture_seed: int | None = None
    light_azimuth_rad: float = 0.7
    light_elevation_rad: float = 0.95
    light_diffuse: float = 0.5
    light_ambient: float = 0.42
    light_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    camera_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fov_scale: float = 1.0
    friction: float = 1.0
    delay_steps: int = 0
    command_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fov_scale", "friction"):
            if not getattr(self, name) > 0:
                raise KineflowError(f"Randomisation.{name} is {getattr(self, name)}; it is a factor above 0")
        if self.delay_steps < 0 or self.command_noise < 0:
            raise KineflowError(
                f"Randomisation: delay_steps {self.delay_steps} and command_noise {self.command_noise} cannot be below 0"
            )

    @staticmethod
    def none() -> Randomisation:
        """Nothing changed."""
        return Randomisation()


@dataclass(frozen=True)
class RandomisationRanges:
    """How far each value may go; 0 leaves it at its default."""

    textures: bool = True
    light: float = 1.0
    camera_offset_m: float = 0.03
    camera_turn_rad: float = math.radians(3.0)
    fov: float = 0.1
    friction: float = 0.3
    delay_steps: int = 2
    command_noise: float = 0.03

    def draw(self, seed: int) -> Randomisation:
        """The randomisation of that seed: the same seed and ranges, the same values."""
        generator = np.random.default_rng([seed, 0x5EED])
        strength, none = self.light, Randomisation.none()

        def spread(low: float, high: float, default: float) -> float:
            return default + strength * (float(generator.uniform(low, high)) - default)

        def triple(width: float) -> tuple[float, float, float]:
            return tuple(float(v) for v in generator.uniform(-width, width, 3))  # type: ignore[return-value]

        # Every value is drawn whatever its range is, so that switching one off leaves the others as they were.
        texture_seed = int(generator.integers(2**31))
        tint = tuple(1.0 + strength * float(v) for v in generator.uniform(-0.06, 0.06, 3))
        return Randomisation(
            texture_seed=texture_seed if self.textures else None,
            light_azimuth_rad=spread(-math.pi, math.pi, none.light_azimuth_rad),
            light_elevation_rad=spread(0.5, 1.4, none.light_elevation_rad),
            light_diffuse=spread(0.25, 0.75, none.light_diffuse),
            light_ambient=spread(0.25, 0.6, none.light_ambient),
            light_tint=tint,  # type: ignore[arg-type]
            camera_offset_m=triple(self.camera_offset_m),
            camera_turn_rad=triple(self.camera_turn_rad),
            fov_scale=1.0 + float(generator.uniform(-self.fov, self.fov)),
            friction=1.0 + float(generator.uniform(-self.friction, self.friction)),
            delay_steps=int(generator.integers(0, self.delay_steps + 1)),
            command_noise=float(generator.uniform(0.0, self.command_noise)),
        )
