"""Images of one size from images of another: bilinear, and averaging over what it leaves out where it shrinks."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8


def resized(frames: UInt8[np.ndarray, "N H W C"], height: int, width: int) -> UInt8[np.ndarray, "N h w C"]:
    """`frames` at `height` x `width`, the whole picture; the proportions change where those of the sizes differ."""
    rows, columns = _weights(frames.shape[1], height), _weights(frames.shape[2], width)
    mixed = np.einsum(
        "hH,nHwc->nhwc", rows, np.einsum("wW,nHWc->nHwc", columns, frames.astype(np.float32), optimize=True), optimize=True
    )
    image: np.ndarray = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return image


@cache
def _weights(size: int, wanted: int) -> Float32[np.ndarray, "wanted size"]:
    """How much each pixel counts for each new one: a triangle around its centre, as wide as the coarser of both grids."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - np.clip(centres, 0, size - 1)[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distance)
    normalised: np.ndarray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised
