"""Another look at a world that is compiled already: light, camera mount and floor friction change, textures stay.

Compiling a scene and giving its textures to OpenGL takes as long as an episode; this takes less than a millisecond.
"""

from __future__ import annotations

from typing import Any

import mujoco

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.randomise import Randomisation
from kineflow.envs.navigation.scene import Scene, add_lights, move_camera
from kineflow.envs.navigation.values import FRONT


class Restyler:
    """Puts randomisations onto one scene, each as if the scene had been compiled with it."""

    def __init__(self, scene: Scene) -> None:
        """The scene must have been compiled with the camera where the body has it.

        Raises:
            KineflowError: its camera or friction is randomised.
        """
        drawn, none = scene.randomisation, Randomisation.none()
        for name in ("camera_offset_m", "camera_turn_rad", "fov_scale", "friction"):
            if getattr(drawn, name) != getattr(none, name):
                raise KineflowError(f"the scene was compiled with {name} {getattr(drawn, name)}; compile it with textures alone")
        self._scene = scene
        camera = scene.model.camera(scene.camera)
        self._pos, self._quat, self._fovy = camera.pos.copy(), camera.quat.copy(), float(camera.fovy[0])
        self._friction = scene.model.geom_friction[scene.floor_geom].copy()

    def apply(self, drawn: Randomisation) -> None:
        """Change the model; `mj_forward` makes it seen."""
        model = self._scene.model
        # The scene's own functions on a model that is never compiled: one formula, not two.
        lights = mujoco.MjSpec()
        add_lights(lights, self._scene.world, drawn)
        for light in lights.lights:
            compiled = model.light(light.name)
            compiled.dir[:], compiled.diffuse[:], compiled.ambient[:] = light.dir, light.diffuse, light.ambient
        mount = self._mount()
        move_camera(mount, drawn)
        camera = model.camera(self._scene.camera)
        camera.pos[:], camera.quat[:], camera.fovy[:] = mount.pos, mount.quat, min(self._fovy * drawn.fov_scale, 170.0)
        model.geom_friction[self._scene.floor_geom] = self._friction
        model.geom_friction[self._scene.floor_geom, 0] *= drawn.friction

    def _mount(self) -> Any:
        spec = mujoco.MjSpec()
        return spec.worldbody.add_camera(name=FRONT, pos=self._pos.tolist(), quat=self._quat.tolist())
