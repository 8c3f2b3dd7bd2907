"""The noise of a seed without torch: the same numbers as `kineflow.policies.samplers.RowNoise`, for exported policies.

torch draws normals from a Mersenne twister: uniforms of 53 bits, Box-Muller in blocks of 16, eight cosines before eight sines;
fewer than 16 numbers one after the other, the sine kept for the next draw. Functions are Python's own (libm, as in torch);
NumPy's vectorised ones differ in the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float32

_MASK = (1 << 64) - 1
_BLOCK = 16


class SeedNoise:
    """Standard normal chunks of one seed, drawn in float64; all 64 bits of the seed count."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(_mixed(seed) & 0xFFFFFFFF)  # as torch seeds it: Matsumoto's and Nishimura's init_genrand
        self._kept: float | None = None

    def draw(self, draws: int, shape: tuple[int, ...]) -> Float32[np.ndarray, "N *shape"]:
        """The next `draws` chunks of `shape`."""
        size = math.prod(shape)
        rows = [self._one_by_one(size) if size < _BLOCK else self._in_blocks(size) for _ in range(draws)]
        return np.array(rows, np.float64).reshape(draws, *shape).astype(np.float32)

    def _uniforms(self, count: int) -> list[float]:
        words = self._bits.random_raw(2 * count).astype(np.uint64).reshape(count, 2)
        both = (words[:, 0] << np.uint64(32)) | words[:, 1]
        return [float(v) for v in (both & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53]

    def _in_blocks(self, size: int) -> list[float]:
        values = self._uniforms(size)
        for start in range(0, size - _BLOCK + 1, _BLOCK):
            values[start : start + _BLOCK] = _block(values[start : start + _BLOCK])
        if size % _BLOCK:  # the last 16 once more, from fresh uniforms
            values[-_BLOCK:] = _block(self._uniforms(_BLOCK))
        return values

    def _one_by_one(self, size: int) -> list[float]:
        values = []
        for _ in range(size):
            if self._kept is not None:
                values.append(self._kept)
                self._kept = None
                continue
            first, second = self._uniforms(2)
            radius, angle = math.sqrt(-2.0 * math.log1p(-second)), 2.0 * math.pi * first
            self._kept = radius * math.sin(angle)
            values.append(radius * math.cos(angle))
        return values


def _block(uniforms: list[float]) -> list[float]:
    half = _BLOCK // 2
    radius = [math.sqrt(-2.0 * math.log(1.0 - u)) for u in uniforms[:half]]
    angle = [2.0 * math.pi * u for u in uniforms[half:]]
    return [r * math.cos(a) for r, a in zip(radius, angle)] + [r * math.sin(a) for r, a in zip(radius, angle)]


def _mixed(seed: int) -> int:
    """SplitMix64, as RowNoise: torch seeds with the low 32 bits, so all 64 must reach them."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
