"""Which renderer: OpenGL by EGL, OpenGL by OSMesa, or rays on the CPU; `auto` takes the first of them that works here."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from kineflow.contracts import KineflowError

Backend = Literal["auto", "egl", "osmesa", "ray"]
ORDER: tuple[Literal["egl", "osmesa", "ray"], ...] = ("egl", "osmesa", "ray")


class Renderer(Protocol):
    """Pictures of a model's cameras. Positions in `data` must be computed (`mj_forward` or a step). Use in one thread."""

    backend: str
    width: int
    height: int

    def rgb(self, data: Any, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """Colours as the camera sees them."""

    def depth(self, data: Any, camera: str) -> Float32[np.ndarray, "H W"]:
        """Metres along the optical axis (not along the ray); inf where nothing is."""

    def segmentation(self, data: Any, camera: str) -> Int32[np.ndarray, "H W"]:
        """Id of the geom that each pixel shows; -1 where nothing is."""

    def depth_and_segmentation(self, data: Any, camera: str) -> tuple[Float32[np.ndarray, "H W"], Int32[np.ndarray, "H W"]]:
        """Both for the price of one."""

    def close(self) -> None:
        """Free what the renderer holds. Twice does no harm; drawing after it is an error."""


def open_renderer(model: Any, width: int, height: int, backend: Backend = "auto") -> Renderer:
    """A renderer for `model`; its attribute `backend` says which one it is.

    A process uses one kind of OpenGL only (MuJoCo binds it once): the first of EGL and OSMesa that is opened.
    Sets `model.vis` to the picture's size with neither shadow maps nor multi-sampling.

    Raises:
        KineflowError: the size is no size, or the named backend is unknown or cannot be used here.
    """
    if width < 1 or height < 1:
        raise KineflowError(f"a picture of {width} x {height} pixels cannot be drawn; give a width and a height of at least 1")
    if backend == "auto":
        for name in ORDER:
            try:
                return open_renderer(model, width, height, name)
            except KineflowError:
                if name == ORDER[-1]:
                    raise
    if backend == "ray":
        from kineflow.envs.navigation.rendering.ray import RayRenderer

        return RayRenderer(model, width, height)
    if backend in ("egl", "osmesa"):
        from kineflow.envs.navigation.rendering.gl import GlRenderer

        return GlRenderer(model, width, height, backend)
    raise KineflowError(f"no rendering backend '{backend}'; choose 'auto' or one of {ORDER}")
