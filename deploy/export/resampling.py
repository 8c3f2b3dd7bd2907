"""Resizing and averaging of pictures as matrix products: rows from the left, columns from the right.

Runtimes disagree on antialiasing and on the edges of uneven parts; a product they all know. Of uint8 the matrices hold the
fixed-point weights with which PyTorch's own integer code computes on x86 (16 bit, each pass rounded to whole grey levels), so the
pixels are the same ones.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError


def resized(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """As `F.interpolate` of `[N, C, H, W]` to a `size`. Raises KineflowError for modes that no encoder here uses."""
    if x.ndim != 4 or size is None or mode not in ("bilinear", "bicubic") or align_corners:
        raise KineflowError(
            f"F.interpolate of {x.ndim} axes in mode {mode}: only bilinear and bicubic maps to a size are exported"
        )
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    whole = x.dtype == torch.uint8
    pixels = x.float()
    if width != x.shape[3]:
        pixels = pixels @ _matrix(x.shape[3], width, mode, antialias, whole).T
        pixels = _rounded(pixels) if whole else pixels
    if height != x.shape[2]:
        pixels = _matrix(x.shape[2], height, mode, antialias, whole) @ pixels
        pixels = _rounded(pixels) if whole else pixels
    return pixels.to(torch.uint8) if whole else pixels


def averaged(x: Tensor, output_size: Any) -> Tensor:
    """As `F.adaptive_avg_pool2d`."""
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    return _parts(x.shape[2], int(height)) @ x @ _parts(x.shape[3], int(width)).T


def _rounded(pixels: Tensor) -> Tensor:
    return torch.floor(pixels + 0.5).clamp(0, 255)


@functools.cache
def _matrix(few: int, many: int, mode: str, antialias: bool, whole: bool) -> Float[Tensor, "many few"]:
    rows = torch.eye(few, dtype=torch.float64 if whole else torch.float32)[None, None]  # each input pixel alone
    weights: Tensor = F.interpolate(rows, size=(many, few), mode=mode, antialias=antialias, align_corners=False)[0, 0]
    return (_in_fixed_point(weights) if whole else weights).float()


def _in_fixed_point(weights: Tensor) -> Tensor:
    """Rounded to as many bits as the largest weight leaves in a 16-bit number (ATen's UpSample kernels for uint8)."""
    largest, bits = float(weights.max()), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    scale = float(2**bits)
    return torch.where(weights < 0, torch.ceil(weights * scale - 0.5), torch.floor(weights * scale + 0.5)) / scale


@functools.cache
def _parts(cells: int, parts: int) -> Float[Tensor, "parts cells"]:
    return F.adaptive_avg_pool1d(torch.eye(cells)[None], parts)[0].T.contiguous()
