"""A renderer that needs no OpenGL: MuJoCo's own rays, shaded with NumPy to look like its OpenGL pictures.

One ray per pixel, `mj_multiRay` for geom, distance and normal, then the same rules as MuJoCo's fixed pipeline: ambient and
diffuse light per directional light, emission, textures projected along a geom's z with mip levels, a sky from a cube map.
Not drawn: shadows, specular light, the headlight and spotlights, meshes' own texture coordinates, transparency.
Deterministic: golden pictures use it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.rendering.camera import Culling, camera_id, tile_edges

TILES = 6  # per side: rays cost per geom that they might meet
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # what MuJoCo's pictures show by default
BALLS = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_ELLIPSOID)
ROUND = (*BALLS, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE)


@dataclass(frozen=True)
class _Hits:
    """What the rays of one camera met: geom ids (-1 nothing), metres along each ray, outward normals."""

    geoms: Int32[np.ndarray, "N"]
    distances: Float64[np.ndarray, "N"]
    normals: Float64[np.ndarray, "N 3"]


class RayRenderer:
    """See `backend.Renderer`. Reads the model's geoms once; colours changed later are not seen."""

    backend = "ray"

    def __init__(self, model: Any, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._model: Any = model
        self._surfaces = _Surfaces(model)
        self._rays: dict[tuple[int, float], Float64[np.ndarray, "N 3"]] = {}
        self._culling = Culling(model, width, height, TILES)
        self._order, self._starts = _tile_order(width, height)
        self._around: dict[int, set[int]] = {}

    def rgb(self, data: Any, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        number, rays, hits = self._cast(data, camera)
        pixel_rad = math.radians(float(self._model.cam_fovy[number])) / self.height
        colours = self._surfaces.shade(self._model, data, data.cam_xpos[number], rays, hits, pixel_rad)
        return (colours * 255.0 + 0.5).astype(np.uint8).reshape(self.height, self.width, 3)

    def depth(self, data: Any, camera: str) -> Float32[np.ndarray, "H W"]:
        return self.depth_and_segmentation(data, camera)[0]

    def segmentation(self, data: Any, camera: str) -> Int32[np.ndarray, "H W"]:
        return self._cast(data, camera)[2].geoms.reshape(self.height, self.width)

    def depth_and_segmentation(self, data: Any, camera: str) -> tuple[Float32[np.ndarray, "H W"], Int32[np.ndarray, "H W"]]:
        number, rays, hits = self._cast(data, camera)
        forward = -data.cam_xmat[number].reshape(3, 3)[:, 2]
        depth = np.where(hits.geoms >= 0, hits.distances * (rays @ forward), np.inf).astype(np.float32)
        return depth.reshape(self.height, self.width), hits.geoms.reshape(self.height, self.width)

    def close(self) -> None:
        self._model = None

    def _cast(self, data: Any, camera: str) -> tuple[int, Float64[np.ndarray, "N 3"], _Hits]:
        if self._model is None:
            raise KineflowError("this renderer is closed; open another with open_renderer")
        number = camera_id(self._model, camera)
        key = (number, float(self._model.cam_fovy[number]))
        if key not in self._rays:
            if len(self._rays) > 8:  # each episode may have a field of view of its own
                self._rays.clear()
            self._rays[key] = _pixel_rays(self.width, self.height, key[1])
        rays = np.ascontiguousarray(self._rays[key] @ data.cam_xmat[number].reshape(3, 3).T)
        around = set(self._around.setdefault(number, set()))
        while True:
            hits = self._meet(data, number, rays, around)
            # A rasteriser drops faces seen from behind, so a camera inside its own housing looks out of it; rays must be told.
            is_inner = (hits.geoms >= 0) & (np.einsum("ij,ij->i", hits.normals, rays) > 1e-9)
            if not is_inner.any():
                return number, rays, hits
            around.update(np.unique(hits.geoms[is_inner]).tolist())
            # What is fixed to the camera will surround it in the next picture too.
            fixed = self._model.cam_bodyid[number]
            self._around[number].update(g for g in around if self._model.geom_bodyid[g] == fixed)

    def _meet(self, data: Any, camera: int, rays: Float64[np.ndarray, "N 3"], around: set[int]) -> _Hits:
        model, count = self._model, len(rays)
        geoms, distances, normals = np.full(count, -1, np.int32), np.zeros(count), np.zeros(3 * count)
        outside = self._culling.outside(data, camera)
        outside[:, list(around)] = True
        origin, far = np.ascontiguousarray(data.cam_xpos[camera]), float(model.vis.map.zfar * model.stat.extent)
        tiled = rays[self._order].ravel()
        for hidden, start, end in zip(outside, self._starts, self._starts[1:]):
            part, part3, number = slice(start, end), slice(3 * start, 3 * end), end - start
            with self._culling.hiding(hidden):
                mujoco.mj_multiRay(
                    model, data, origin, tiled[part3], VISIBLE_GROUPS, 1, -1,
                    geoms[part], distances[part], normals[part3], number, far,
                )  # fmt: skip
        hits = _Hits(np.empty_like(geoms), np.empty_like(distances), np.empty((count, 3)))
        hits.geoms[self._order], hits.distances[self._order] = geoms, distances
        hits.normals[self._order] = normals.reshape(-1, 3)
        return hits


def _tile_order(width: int, height: int) -> tuple[Int64[np.ndarray, "N"], list[int]]:
    """Pixels (row by row numbers) sorted tile by tile, and where each tile begins in that order, with the end."""
    pixels = np.arange(width * height).reshape(height, width)
    rows, columns = tile_edges(height, TILES), tile_edges(width, TILES)
    tiles = [pixels[a:b, c:d].ravel() for a, b in itertools.pairwise(rows) for c, d in itertools.pairwise(columns)]
    return np.concatenate(tiles), [0, *np.cumsum([len(tile) for tile in tiles]).tolist()]


def _pixel_rays(width: int, height: int, fovy_deg: float) -> Float64[np.ndarray, "N 3"]:
    """Unit vectors through the pixels' centres, row by row, in MuJoCo's camera axes (right, up, backward)."""
    focal = 0.5 * height / math.tan(math.radians(fovy_deg) / 2)
    x = (np.arange(width) - (width - 1) / 2) / focal
    y = -(np.arange(height) - (height - 1) / 2) / focal
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], np.float64(-1.0)), axis=-1).reshape(-1, 3)
    return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))


class _Surfaces:
    """What a model's geoms look like, as arrays indexed by geom."""

    def __init__(self, model: Any) -> None:
        has_material = model.geom_matid >= 0
        material = np.maximum(model.geom_matid, 0)
        self.colour = np.asarray(model.geom_rgba[:, :3], np.float32).copy()
        self.texture = np.full(model.ngeom, -1, np.int64)
        self.emission = np.zeros(model.ngeom, np.float32)
        self.repeat = np.ones((model.ngeom, 2), np.float32)
        self.half = _half_sizes(model)
        kinds = np.asarray(model.geom_type)
        self.is_plane = kinds == int(mujoco.mjtGeom.mjGEOM_PLANE)
        self.is_round = np.isin(kinds, [int(t) for t in ROUND])
        self.is_ball = np.isin(kinds, [int(t) for t in BALLS])
        if model.nmat:
            # A colour that is not the default wins over the material's, as MuJoCo does it.
            is_default = (model.geom_rgba == np.float32(0.5)).all(axis=1) ^ (model.geom_rgba[:, 3] == 1.0)
            plain = has_material & is_default & (model.geom_rgba[:, :3] == 0.5).all(axis=1)
            self.colour[plain] = model.mat_rgba[material[plain], :3]
            role = model.mat_texid.reshape(model.nmat, -1)[:, mujoco.mjtTextureRole.mjTEXROLE_RGB]
            self.texture = np.where(has_material, role[material], -1).astype(np.int64)
            self.emission = np.where(has_material, model.mat_emission[material], 0.0).astype(np.float32)
            is_uniform = model.mat_texuniform[material].astype(bool)
            self.repeat = (model.mat_texrepeat[material] * np.where(is_uniform[:, None], self.half[:, :2], 1.0)).astype(
                np.float32
            )
        self.pyramid = _Pyramid(model)
        self.texture[~np.isin(self.texture, self.pyramid.flat_textures)] = -1
        self.sky = _sky(model)

    def shade(
        self,
        model: Any,
        data: Any,
        origin: Float64[np.ndarray, "3"],
        rays: Float64[np.ndarray, "N 3"],
        hits: _Hits,
        pixel_rad: float,
    ) -> Float32[np.ndarray, "N 3"]:
        """Colours 0..1 of what the rays from `origin` met."""
        colours = np.empty((len(rays), 3), np.float32)
        seen = hits.geoms >= 0
        if not seen.all():
            colours[~seen] = _sky_colour(self.sky, rays[~seen])
        geoms = hits.geoms[seen]
        normals = hits.normals[seen].astype(np.float32)
        light = np.repeat(self.emission[geoms][:, None], 3, axis=1)
        for lamp in range(model.nlight):
            if model.light_active[lamp]:
                towards = -np.asarray(data.light_xdir[lamp], np.float32)
                facing = np.maximum(normals @ towards, 0.0)
                light += model.light_ambient[lamp] + facing[:, None] * model.light_diffuse[lamp]
        shaded = np.minimum(light * self.colour[geoms], 1.0)
        textured = self.texture[geoms] >= 0
        if textured.any():
            picked = np.flatnonzero(textured)
            shaded[picked] *= self._texels(
                data, origin, rays[seen][picked], hits.distances[seen][picked], geoms[picked], normals[picked], pixel_rad
            )
        colours[seen] = shaded
        return colours

    def _texels(
        self,
        data: Any,
        origin: np.ndarray,
        rays: np.ndarray,
        distances: np.ndarray,
        geoms: np.ndarray,
        normals: np.ndarray,
        pixel_rad: float,
    ) -> Float32[np.ndarray, "N 3"]:
        """Texture colours at the hits: the point in the geom's own axes, its x and y are the texture's."""
        rays = rays.astype(np.float32)
        points = rays * distances[:, None].astype(np.float32) + (origin - data.geom_xpos[geoms]).astype(np.float32)
        axes = data.geom_xmat.astype(np.float32).reshape(-1, 3, 3)[geoms]
        unit = np.einsum("nij,ni->nj", axes, points) / self.half[geoms]
        s, t, per_metre = self._unwrap(unit, geoms)
        repeat = self.repeat[geoms]
        # How much of the texture a pixel covers, along its longer side; blurred as far as a rasteriser's mip levels do.
        slant = np.maximum(np.abs(np.einsum("ij,ij->i", rays, normals)), 0.03)
        footprint = distances.astype(np.float32) * np.float32(pixel_rad) / slant * (per_metre * repeat).max(axis=1)
        return self.pyramid.look_up(self.texture[geoms], s * repeat[:, 0], t * repeat[:, 1], footprint)

    def _unwrap(
        self, unit: Float32[np.ndarray, "N 3"], geoms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, "N 2"]]:
        """Texture coordinates (0..1 over a face) as MuJoCo 4 lays them, and how much of them a metre is.

        Boxes: each face by its own two axes. Round things: azimuth, and height or elevation. Planes: x and y.
        """
        half = self.half[geoms]
        face = np.where(self.is_plane[geoms], 2, np.abs(unit).argmax(axis=1))
        across, up = np.where(face == 0, 1, 0), np.where(face == 2, 1, 2)
        rows = np.arange(len(unit))
        s, t = 0.5 + 0.5 * unit[rows, across], 0.5 - 0.5 * unit[rows, up]
        per_metre = np.stack([0.5 / half[rows, across], 0.5 / half[rows, up]], axis=1)
        radius = np.hypot(unit[:, 0], unit[:, 1])
        rounds = np.flatnonzero(self.is_round[geoms] & (self.is_ball[geoms] | (radius > np.abs(unit[:, 2]))))
        if len(rounds):
            x, y, z = unit[rounds].T
            s[rounds] = np.arctan2(y, x) / (2 * np.pi) % 1.0
            # A seam where the azimuth jumps is sharp here and smeared over one pixel by a rasteriser.
            ball = self.is_ball[geoms[rounds]]
            t[rounds] = np.where(ball, 0.5 - np.arcsin(np.clip(z, -1, 1)) / np.pi, 0.5 - 0.5 * z)
            per_metre[rounds, 0] = 1 / (2 * np.pi * np.maximum(half[rounds, 0] * radius[rounds], 1e-3))
            per_metre[rounds, 1] = np.where(ball, 1 / np.pi, 0.5) / half[rounds, 2]
        return s, t, per_metre


def _half_sizes(model: Any) -> Float32[np.ndarray, "G 3"]:
    """Half extents of each geom along its own axes, metres; 1 where it has none."""
    half = np.asarray(model.geom_size, np.float32).copy()
    kinds = np.asarray(model.geom_type)
    upright = np.isin(kinds, [int(mujoco.mjtGeom.mjGEOM_CYLINDER), int(mujoco.mjtGeom.mjGEOM_CAPSULE)])
    half[upright] = half[upright][:, [0, 0, 1]]
    ball = kinds == int(mujoco.mjtGeom.mjGEOM_SPHERE)
    half[ball] = half[ball][:, [0, 0, 0]]
    return np.where(half > 0, half, np.float32(1.0))


class _Pyramid:
    """All 2-D textures of a model with their mip levels, in one flat array of texels."""

    def __init__(self, model: Any) -> None:
        self.flat_textures = [i for i in range(model.ntex) if model.tex_type[i] == mujoco.mjtTexture.mjTEXTURE_2D]
        self.levels = 9
        self.start = np.zeros((max(model.ntex, 1), self.levels), np.int64)
        self.width = np.ones_like(self.start)
        self.height = np.ones_like(self.start)
        texels, at = [], 0
        for texture in self.flat_textures:
            level = _pixels(model, texture)
            for number in range(self.levels):
                if number:
                    level = _halved(level)
                self.start[texture, number], self.height[texture, number], self.width[texture, number] = at, *level.shape[:2]
                texels.append(level.reshape(-1, 3))
                at += len(texels[-1])
        self.texels = np.concatenate(texels) if texels else np.ones((1, 3), np.float32)

    def look_up(self, texture: np.ndarray, s: np.ndarray, t: np.ndarray, footprint: np.ndarray) -> Float32[np.ndarray, "N 3"]:
        """Trilinear: four texels each of the two levels around one texel per pixel. `footprint`: repeats of it per pixel."""
        exact = np.log2(np.maximum(footprint * self.width[texture, 0], 1.0))
        level = np.minimum(exact.astype(np.int64), self.levels - 2)
        share = np.clip(exact - level, 0.0, 1.0)[:, None].astype(np.float32)
        coarse = share[:, 0] > 0.02
        colours = self._bilinear(texture, level, s, t)
        if coarse.any():
            upper = self._bilinear(texture[coarse], level[coarse] + 1, s[coarse], t[coarse])
            colours[coarse] += share[coarse] * (upper - colours[coarse])
        return colours

    def _bilinear(self, texture: np.ndarray, level: np.ndarray, s: np.ndarray, t: np.ndarray) -> Float32[np.ndarray, "N 3"]:
        width, height, start = self.width[texture, level], self.height[texture, level], self.start[texture, level]
        x, y = (s % 1.0) * width - 0.5, (t % 1.0) * height - 0.5
        x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
        left, right = x0 % width, (x0 + 1) % width
        above, below = start + (y0 % height) * width, start + ((y0 + 1) % height) * width
        texels = self.texels
        top = texels[above + left] * (1 - fx) + texels[above + right] * fx
        bottom = texels[below + left] * (1 - fx) + texels[below + right] * fx
        return np.asarray(top * (1 - fy) + bottom * fy, np.float32)


def _pixels(model: Any, texture: int) -> Float32[np.ndarray, "H W 3"]:
    height, width, channels = int(model.tex_height[texture]), int(model.tex_width[texture]), int(model.tex_nchannel[texture])
    start = int(model.tex_adr[texture])
    pixels = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
    return np.asarray(pixels[:, :, :3] / 255.0, np.float32)


def _halved(level: Float32[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "h w 3"]:
    height, width = level.shape[:2]
    if height > 1:
        level = 0.5 * (level[0 : height - 1 : 2] + level[1:height:2])
    if width > 1:
        level = 0.5 * (level[:, 0 : width - 1 : 2] + level[:, 1:width:2])
    return level


def _sky(model: Any) -> Float32[np.ndarray, "6 S S 3"] | None:
    for texture in range(model.ntex):
        if model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            pixels = _pixels(model, texture)
            return pixels.reshape(6, -1, pixels.shape[1], 3)
    return None


def _sky_colour(sky: Float32[np.ndarray, "6 S S 3"] | None, rays: Float64[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
    """The cube map in the directions of world vectors, by OpenGL's rule; MuJoCo looks it up with (x, z, -y). Black without."""
    if sky is None:
        return np.zeros((len(rays), 3), np.float32)
    x, y, z = rays[:, 0], rays[:, 2], -rays[:, 1]
    sizes = np.abs(np.stack([x, y, z]))
    axis: np.ndarray = sizes.argmax(axis=0)
    major = sizes.max(axis=0)
    is_back: Bool[np.ndarray, "N"] = np.choose(axis, [x, y, z]) < 0
    face = 2 * axis + is_back
    u = np.choose(face, [-z, z, x, x, x, -x]) / major
    v = np.choose(face, [-y, -y, z, -z, -y, -y]) / major
    size: int = sky.shape[1]
    # Between texels, not across the edges of a face.
    column, row = (np.clip((w + 1) * size / 2 - 0.5, 0, size - 1) for w in (u, v))
    left, above = np.minimum(column.astype(np.int64), size - 2), np.minimum(row.astype(np.int64), size - 2)
    fx, fy = (column - left)[:, None].astype(np.float32), (row - above)[:, None].astype(np.float32)
    top = sky[face, above, left] * (1 - fx) + sky[face, above, left + 1] * fx
    bottom = sky[face, above + 1, left] * (1 - fx) + sky[face, above + 1, left + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy, np.float32)
