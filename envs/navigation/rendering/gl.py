"""MuJoCo's OpenGL renderer without a window, by EGL or OSMesa, made for many small pictures on a CPU.

The context is made explicitly, so the choice is free at run time and MUJOCO_GL is not needed. MuJoCo and PyOpenGL look up
OpenGL's functions once per process: whichever of EGL and OSMesa comes first stays (MUJOCO_GL=osmesa makes it OSMesa at import).
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.rendering.camera import Culling, camera_id

PACKAGES = {"egl": "libegl1 libgl1-mesa-dri libopengl0", "osmesa": "libosmesa6"}
FLAGS_OFF = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE)

_process: dict[str, int] = {}  # the kind of OpenGL in use, and the process that began with it
_contexts = threading.local()


class GlRenderer:
    """See `backend.Renderer`. Pictures of one model; contexts are shared by all renderers of a thread."""

    def __init__(self, model: Any, width: int, height: int, backend: str) -> None:
        self.backend, self.width, self.height = backend, width, height
        self._resources: Any = None
        self._context = _context(backend)
        self._model = model
        visual = model.vis
        # The picture may not exceed the off-screen buffer, and a larger one only costs.
        visual.global_.offwidth, visual.global_.offheight = width, height
        visual.quality.shadowsize = visual.quality.offsamples = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 64)
        for flag in FLAGS_OFF:
            self._scene.flags[flag] = 0
        self._option = _geoms_only()
        self._culling = Culling(model, width, height)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context.make_current()
        self._resources = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._resources)
        # Reversed depth keeps the precision of far distances.
        self._resources.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR

    def rgb(self, data: Any, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        self._draw(data, camera)
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._resources)
        return np.ascontiguousarray(pixels[::-1])

    def depth(self, data: Any, camera: str) -> Float32[np.ndarray, "H W"]:
        return self.depth_and_segmentation(data, camera)[0]

    def segmentation(self, data: Any, camera: str) -> Int32[np.ndarray, "H W"]:
        return self.depth_and_segmentation(data, camera)[1]

    def depth_and_segmentation(self, data: Any, camera: str) -> tuple[Float32[np.ndarray, "H W"], Int32[np.ndarray, "H W"]]:
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            self._draw(data, camera)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        buffer = np.empty((self.height, self.width), np.float32)
        mujoco.mjr_readPixels(pixels, buffer, self._rect, self._resources)
        return self._metres(buffer[::-1]), self._geoms(pixels[::-1])

    def close(self) -> None:
        if self._resources is not None:
            self._context.make_current()
            self._resources.free()
            self._resources = None

    def __del__(self) -> None:
        # At exit the context goes before the renderer; what it held goes with the process.
        if getattr(self, "_resources", None) is not None and getattr(_contexts, "context", None) is self._context:
            self.close()

    def _draw(self, data: Any, camera: str) -> None:
        if self._resources is None:
            raise KineflowError("this renderer is closed; open another with open_renderer")
        self._camera.fixedcamid = camera_id(self._model, camera)
        self._context.make_current()
        with self._culling.hiding(self._culling.outside(data, self._camera.fixedcamid)[0]):
            every = mujoco.mjtCatBit.mjCAT_ALL.value
            mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, every, self._scene)
        # Renderers share a context: the last one's buffer is still bound.
        mujoco.mjr_restoreBuffer(self._resources)
        mujoco.mjr_render(self._rect, self._scene, self._resources)

    def _metres(self, buffer: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        # Reversed depth b in 0..1: b = near (far - z) / (z (far - near)).
        with np.errstate(divide="ignore"):
            metres = near * far / (buffer.astype(np.float64) * (far - near) + near)
        metres[buffer <= 0.0] = np.inf
        return np.asarray(metres, dtype=np.float32)

    def _geoms(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
        packed = pixels.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        ids = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                ids[geom.segid + 1] = geom.objid
        return np.asarray(ids[np.minimum(packed, self._scene.ngeom)])


def _geoms_only() -> Any:
    option = mujoco.MjvOption()
    for group in ("sitegroup", "jointgroup", "tendongroup", "actuatorgroup"):
        getattr(option, group)[:] = 0
    return option


def _context(backend: str) -> Any:
    """The thread's context, made on first use: a context costs more than everything that a model puts into it."""
    for used, process in _process.items():
        if used != backend:
            raise KineflowError(
                f"this process already draws with '{used}' and MuJoCo cannot change to '{backend}'; "
                "use that one, 'ray', or another process"
            )
        if process != os.getpid():
            raise KineflowError(
                f"this process was forked from one that draws with '{used}', whose OpenGL cannot be shared; "
                "start workers with 'spawn', or fork before the first picture"
            )
    if getattr(_contexts, "context", None) is None:
        # Software rasterisers start a thread per core. Pictures of 96 pixels are faster, and other workers better off, without.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        try:
            if backend == "egl":
                from mujoco.egl import GLContext
            else:
                from mujoco.osmesa import GLContext
            context = GLContext(64, 64)
            context.make_current()
        except Exception as error:  # PyOpenGL fails with whatever it stumbles over where a library is missing
            raise KineflowError(
                f"the rendering backend '{backend}' cannot be used here ({type(error).__name__}: {error}); install it with "
                f"`apt-get install --no-install-recommends {PACKAGES[backend]}`, or use 'ray', which needs nothing"
            ) from error
        # OSMesa's context complains on stderr when the interpreter destroys it; freed before, it is silent.
        atexit.register(_free_context)
        _process.setdefault(backend, os.getpid())
        _contexts.context = context
    return _contexts.context


def _free_context() -> None:
    context = getattr(_contexts, "context", None)
    if context is not None:
        _contexts.context = None
        context.free()
