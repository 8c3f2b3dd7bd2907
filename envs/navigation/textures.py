"""Procedural textures: uint8 RGB pictures [S, S, 3] that tile without a seam, from a seed, and cube maps for the sky."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from kineflow.contracts import KineflowError

SIZE = 128
SKY_SIZE = 64
Picture = Float[np.ndarray, "S S 3"]
Maker = Callable[[np.random.Generator], Picture]


def draw_texture(family: str, generator: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    """A texture of that family ("floor", "wall", "wood", ...); digits at its end only tell several of a family apart.

    Raises:
        KineflowError: no such family.
    """
    makers = FAMILIES.get(family.rstrip("0123456789"))
    if makers is None:
        raise KineflowError(f"no texture family '{family}'; there are {sorted(FAMILIES)}")
    picture = makers[generator.integers(len(makers))](generator)
    return np.asarray(np.clip(picture * 255.0, 0, 255), dtype=np.uint8)


def metres_per_repeat(family: str) -> float:
    """Width of one repeat of a texture in metres; 0: the texture is stretched over the face."""
    return SCALES.get(family.rstrip("0123456789"), 1.0)


def _noise(generator: np.random.Generator, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Float[np.ndarray, "S S"]:
    """Smooth noise with spread 1 that tiles: white noise filtered to a spectrum of f^-slope, stretched along y and x."""
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE * stretch[0]
    fx = np.fft.rfftfreq(SIZE)[None, :] * SIZE * stretch[1]
    weight = np.maximum(np.hypot(fy, fx), 1.0) ** -slope
    weight[0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((SIZE, SIZE))) * weight, s=(SIZE, SIZE))
    return np.asarray(field / (field.std() + 1e-9))


def _colour(generator: np.random.Generator, low: float, high: float, saturation: float) -> Float[np.ndarray, "3"]:
    """A muted colour: strong ones belong to goals."""
    return np.asarray(np.clip(generator.uniform(low, high) * (1 + saturation * generator.uniform(-1, 1, 3)), 0, 1))


def _grid() -> tuple[Float[np.ndarray, "S S"], Float[np.ndarray, "S S"]]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    return y, x


def _paint(base: Float[np.ndarray, "3"], *fields: Float[np.ndarray, "S S"]) -> Picture:
    return np.asarray(base * (1.0 + np.sum(fields, axis=0))[:, :, None])


def _cells(generator: np.random.Generator, rows: int, columns: int, shift: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """A wall of bricks: one brightness per brick, and how far each pixel is from its joint (in bricks, 0 at the joint)."""
    y, x = _grid()
    row = np.floor(y * rows).astype(int)
    along = x * columns + shift * (row % 2)
    column = np.floor(along).astype(int) % columns
    shade = generator.normal(0.0, spread, (rows, columns))[row, column]
    joint = np.minimum(np.minimum(along % 1, 1 - along % 1) / columns, np.minimum(y * rows % 1, 1 - y * rows % 1) / rows)
    return shade, joint


def _planks(generator: np.random.Generator) -> Picture:
    shade, joint = _cells(generator, 8, 2, 0.5, 0.16)
    grain = 0.10 * _noise(generator, 1.2, (1.0, 12.0))
    hue = np.array([1.0, generator.uniform(0.72, 0.86), generator.uniform(0.48, 0.68)])
    return _paint(generator.uniform(0.45, 0.8) * hue, shade, grain, -0.45 * (joint < 0.006))


def _tiles(generator: np.random.Generator) -> Picture:
    count = int(generator.choice([2, 4]))
    shade, joint = _cells(generator, count, count, 0.0, 0.05)
    y, x = _grid()
    checker = (np.floor(y * count) + np.floor(x * count)) % 2 if generator.random() < 0.6 else np.zeros_like(x)
    speckle = 0.06 * _noise(generator, 0.6)
    return _paint(
        _colour(generator, 0.6, 0.9, 0.07), shade, speckle, -generator.uniform(0.3, 0.6) * checker, -0.4 * (joint < 0.012)
    )


def _carpet(generator: np.random.Generator) -> Picture:
    y, x = _grid()
    waves = generator.integers(2, 6)
    pattern = np.sign(np.sin(2 * np.pi * waves * x) * np.sin(2 * np.pi * waves * y))
    base = _colour(generator, 0.35, 0.65, 0.1)
    return _paint(base, 0.16 * pattern, 0.14 * _noise(generator, 0.3), 0.08 * _noise(generator, 1.5))


def _terrazzo(generator: np.random.Generator) -> Picture:
    chips = _noise(generator, 1.0)
    picture = _paint(_colour(generator, 0.6, 0.85, 0.08), 0.03 * _noise(generator, 0.5))
    for low, high in ((1.1, 9.0), (-9.0, -1.2)):
        picture[(chips > low) & (chips < high)] = _colour(generator, 0.25, 0.7, 0.15)
    return picture


def _concrete(generator: np.random.Generator) -> Picture:
    return _paint(_colour(generator, 0.5, 0.75, 0.06), 0.10 * _noise(generator, 1.3), 0.06 * _noise(generator, 0.4))


def _plaster(generator: np.random.Generator) -> Picture:
    y, _ = _grid()
    picture = _paint(_colour(generator, 0.7, 0.95, 0.09), 0.03 * _noise(generator, 1.2), 0.02 * _noise(generator, 0.3))
    if generator.random() < 0.5:  # painted darker up to the waist, with a rail
        low = y > 0.62
        picture[low] *= _colour(generator, 0.6, 0.85, 0.1)
        picture[(y > 0.60) & (y <= 0.63)] *= 0.55
    return picture


def _brick(generator: np.random.Generator) -> Picture:
    shade, joint = _cells(generator, 12, 4, 0.5, 0.14)
    base = np.array([0.66, 0.46, 0.38]) if generator.random() < 0.5 else _colour(generator, 0.5, 0.85, 0.1)
    picture = _paint(base, shade, 0.08 * _noise(generator, 0.6))
    picture[joint < 0.009] = _colour(generator, 0.6, 0.8, 0.04)
    return picture


def _stripes(generator: np.random.Generator) -> Picture:
    _, x = _grid()
    bands = np.floor(x * 2 * int(generator.integers(3, 8))) % 2
    return _paint(_colour(generator, 0.65, 0.9, 0.12), -generator.uniform(0.1, 0.3) * bands, 0.02 * _noise(generator, 0.5))


def _panels(generator: np.random.Generator) -> Picture:
    shade, joint = _cells(generator, 2, 4, 0.0, 0.05)
    return _paint(
        _colour(generator, 0.55, 0.85, 0.12), shade, 0.05 * _noise(generator, 1.2, (12.0, 1.0)), -0.35 * (joint < 0.008)
    )


def _ceiling(generator: np.random.Generator) -> Picture:
    _, joint = _cells(generator, 2, 2, 0.0, 0.0)
    return _paint(_colour(generator, 0.8, 0.95, 0.04), 0.03 * _noise(generator, 0.2), -0.25 * (joint < 0.012))


def _wood(generator: np.random.Generator) -> Picture:
    """Grain only, near white: the block's own colour shows through."""
    return _paint(np.full(3, 0.9), 0.12 * _noise(generator, 1.1, (1.0, 10.0)))


def _fabric(generator: np.random.Generator) -> Picture:
    y, x = _grid()
    weave = np.sign(np.sin(2 * np.pi * 16 * (x + y)))
    return _paint(np.full(3, 0.88), 0.06 * weave, 0.07 * _noise(generator, 0.3))


def _books(generator: np.random.Generator) -> Picture:
    picture = np.full((SIZE, SIZE, 3), 0.12)
    shelves = 4
    height = SIZE // shelves
    for shelf in range(shelves):
        at = 1
        while at < SIZE - 3:
            width, tall = int(generator.integers(3, 8)), int(generator.uniform(0.6, 0.92) * height)
            bottom = (shelf + 1) * height - 2
            picture[bottom - tall : bottom, at : at + width - 1] = _colour(generator, 0.3, 0.8, 0.3)
            at += width
        picture[(shelf + 1) * height - 2 : (shelf + 1) * height] = 0.5
    return picture


def _art(generator: np.random.Generator) -> Picture:
    y, x = _grid()
    field = np.stack([_noise(generator, 1.8) for _ in range(3)], axis=-1)
    picture = 0.55 + 0.14 * field
    for _ in range(int(generator.integers(2, 6))):
        cy, cx, radius = generator.uniform(0.1, 0.9), generator.uniform(0.1, 0.9), generator.uniform(0.08, 0.3)
        is_disc = bool(generator.random() < 0.5)
        inside = np.hypot(y - cy, x - cx) < radius if is_disc else (abs(y - cy) < radius) & (abs(x - cx) < radius * 0.6)
        picture[inside] = _colour(generator, 0.2, 0.9, 0.4)
    return picture


def _landscape(generator: np.random.Generator) -> Picture:
    y, _ = _grid()
    sky, land = _colour(generator, 0.6, 0.9, 0.2), _colour(generator, 0.3, 0.6, 0.3)
    picture = sky * (1.1 - 0.5 * y[:, :, None]) * np.ones((SIZE, SIZE, 1))
    for layer in range(3):
        ridge = 0.45 + 0.15 * layer + 0.06 * np.cumsum(generator.normal(0, 0.22, SIZE))[None, :]
        picture = np.where((y > ridge)[:, :, None], land * (1.0 - 0.22 * layer), picture)
    return np.asarray(picture)


def _window(generator: np.random.Generator) -> Picture:
    y, x = _grid()
    picture = np.array([0.62, 0.76, 0.90]) * (1.1 - 0.35 * y[:, :, None]) * np.ones((SIZE, SIZE, 1))
    ridge = 0.68 + 0.08 * np.cumsum(generator.normal(0, 0.1, SIZE))[None, :]
    picture = np.where((y > ridge)[:, :, None], np.array([0.45, 0.52, 0.40]), picture)
    picture[(abs(x - 0.5) < 0.025) | (abs(y - 0.5) < 0.02)] = 0.93
    return np.asarray(picture)


def _grass(generator: np.random.Generator) -> Picture:
    base = np.array([0.46, 0.50, 0.32]) * generator.uniform(0.8, 1.15)
    return _paint(base, 0.20 * _noise(generator, 0.4), 0.14 * _noise(generator, 1.4))


def _earth(generator: np.random.Generator) -> Picture:
    base = np.array([0.56, 0.47, 0.36]) * generator.uniform(0.8, 1.2)
    return _paint(base, 0.16 * _noise(generator, 0.5), 0.12 * _noise(generator, 1.5))


def _asphalt(generator: np.random.Generator) -> Picture:
    return _paint(_colour(generator, 0.32, 0.5, 0.05), 0.18 * _noise(generator, 0.3), 0.08 * _noise(generator, 1.4))


def _paving(generator: np.random.Generator) -> Picture:
    shade, joint = _cells(generator, 6, 3, 0.5, 0.12)
    return _paint(_colour(generator, 0.5, 0.75, 0.08), shade, 0.08 * _noise(generator, 0.5), -0.4 * (joint < 0.012))


def _leaves(generator: np.random.Generator) -> Picture:
    return _paint(np.full(3, 0.85), 0.22 * np.sign(_noise(generator, 0.9)), 0.12 * _noise(generator, 0.4))


def _bark(generator: np.random.Generator) -> Picture:
    return _paint(np.full(3, 0.85), 0.20 * _noise(generator, 0.9, (1.0, 1.0)))


def _facade(generator: np.random.Generator) -> Picture:
    y, x = _grid()
    picture = _paint(np.full(3, 0.92), 0.03 * _noise(generator, 0.5))
    pane = (abs(x * 2 % 1 - 0.5) < 0.26) & (abs(y * 2 % 1 - 0.5) < 0.30)
    glass = (abs(x * 2 % 1 - 0.5) < 0.22) & (abs(y * 2 % 1 - 0.5) < 0.26)
    picture[pane] = 0.98
    picture[glass] = np.array([0.32, 0.38, 0.44]) + 0.1 * (1 - y[glass][:, None])
    return picture


def _clothes(generator: np.random.Generator) -> Picture:
    y, _ = _grid()
    return _paint(np.full(3, 0.85), 0.12 * _noise(generator, 0.6), -0.4 * (np.floor(y * 8) % 2))


FAMILIES: dict[str, tuple[Maker, ...]] = {
    "floor": (_planks, _planks, _tiles, _tiles, _carpet, _terrazzo),
    "wall": (_plaster, _plaster, _brick, _stripes, _panels, _concrete),
    "ceiling": (_ceiling, _ceiling, _concrete),
    "wood": (_wood,),
    "fabric": (_fabric,),
    "books": (_books,),
    "picture": (_art, _landscape),
    "window": (_window,),
    "concrete": (_concrete,),
    "brick": (_brick,),
    "ground": (_grass, _grass, _earth, _asphalt, _paving),
    "path": (_paving, _asphalt, _earth),
    "leaves": (_leaves,),
    "bark": (_bark,),
    "facade": (_facade,),
    "clothes": (_clothes,),
}
# A wall repeats no sooner than a ceiling is high: a painted border must not come twice.
SCALES = {
    "floor": 2.0, "wall": 3.0, "ceiling": 1.2, "wood": 0.8, "fabric": 0.5, "concrete": 1.5, "brick": 1.2, "ground": 3.0,
    "path": 2.0, "leaves": 0.8, "bark": 0.5, "facade": 4.0, "clothes": 0.5, "books": 0.0, "picture": 0.0, "window": 0.0,
}  # fmt: skip


def draw_sky(generator: np.random.Generator) -> UInt8[np.ndarray, "6S S 3"]:
    """A cube map [6 * S, S, 3] of clouds above hills; faces +x, -x, +y (zenith), -y (nadir), +z, -z of OpenGL."""
    top = np.array([0.36, 0.55, 0.86]) * generator.uniform(0.8, 1.15)
    rim = np.array([0.80, 0.86, 0.92]) * generator.uniform(0.85, 1.05)
    land = _colour(generator, 0.3, 0.5, 0.12)
    azimuth, rise, over_x, over_y = _sky_directions()
    share = np.maximum(rise, 0.0)[..., None] ** 0.6
    picture = rim * (1 - share) + top * share
    # Clouds lie on a plane above: sums of waves across it, which have no seams between faces.
    waves = [(*generator.normal(0.0, 1.5 + k, 2), generator.uniform(0, 2 * np.pi)) for k in range(5)]
    cloud = sum(np.sin(a * over_x + b * over_y + c) / (1 + 0.4 * k) for k, (a, b, c) in enumerate(waves))
    cover = np.clip(np.asarray(cloud) - generator.uniform(0.2, 1.2), 0, 1) * np.clip(5 * rise, 0, 1)
    picture += generator.uniform(0.1, 0.3) * cover[..., None]
    hills = [(k, generator.uniform(0.0, 0.025), generator.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 5, 8, 13)]
    ridge = 0.02 + sum(height * (1 + np.sin(k * azimuth + phase)) for k, height, phase in hills)
    picture[rise < ridge] = 0.6 * land + 0.4 * rim
    picture[rise < ridge * 0.4] = land
    return np.asarray(np.clip(picture * 255, 0, 255), dtype=np.uint8).reshape(6 * SKY_SIZE, SKY_SIZE, 3)


@functools.cache
def _sky_directions() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per texel [6, S, S]: azimuth, sine of the elevation, and x, y where its direction meets the plane of clouds."""
    v, u = 2 * (np.mgrid[0:SKY_SIZE, 0:SKY_SIZE] + 0.5) / SKY_SIZE - 1
    one = np.ones_like(u)
    faces = ((one, -v, -u), (-one, -v, u), (u, one, v), (u, -one, -v), (u, -v, one), (-u, -v, -one))
    x, y, z = np.stack([np.stack(face) for face in faces], axis=1)
    x, y, z = np.stack([x, y, z]) / np.sqrt(x * x + y * y + z * z)
    high = np.maximum(y, 0.0) + 0.25
    return np.arctan2(z, x), y, x / high, z / high
