"""Camera frames to what a pretrained network was trained on: resize, crop, scale; as timm and open_clip do it, on whole batches.

Those libraries resize with Pillow: antialiased, each of the two passes rounded to whole grey levels. PyTorch's resize of uint8
does the same with coarser fixed-point weights: pixels differ from Pillow's by at most two grey levels, in under one pixel of a
hundred (tests/policies/encoders/test_preprocessing.py). It exists on CPUs only; on other devices the resize is computed in
float32 and rounded once, which differs by one grey level on pictures (four on white noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from kineflow.contracts import KineflowError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
EFFICIENTNET_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # of the networks' own code: (pixel - 127) / 128
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [-1, 1]

Fit = Literal["crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """To `size` x `size` pixels, then `(pixel / 255 - mean) / std`.

    "crop" is what the libraries do: the shorter side is resized to `size / share`, the middle is kept, and what a wide camera
    sees at its edges is lost. "stretch" keeps the whole picture and gives up its aspect ratio.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "stretch"
    interpolation: Interpolation = "bicubic"
    share: float = 1.0  # of the shorter side that "crop" keeps

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.share <= 1:
            raise KineflowError(f"preprocessing: size {self.size} must be at least 1, and share {self.share} in (0, 1]")

    def __call__(self, frames: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 S S"]:
        pixels = self.fitted(frames.permute(0, 3, 1, 2)).float()
        # One multiplication and one addition a pixel, not (p / 255 - mean) / std.
        scale = torch.tensor(self.std, device=frames.device).mul(255).reciprocal()
        offset = torch.tensor(self.mean, device=frames.device) / torch.tensor(self.std, device=frames.device)
        return pixels.mul_(scale[:, None, None]).sub_(offset[:, None, None])

    def fitted(self, pixels: UInt8[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 S S"]:
        """Resized and cropped, still grey levels."""
        height, width = pixels.shape[2:]
        if self.fit == "stretch":
            return resized(pixels, self.size, self.size, self.interpolation)
        short = math.floor(self.size / self.share)
        # As torchvision rounds: the longer side is cut off, the first row and column of the crop are rounded to even.
        long = int(short * max(height, width) / min(height, width))
        height, width = (short, long) if height <= width else (long, short)
        whole = resized(pixels, height, width, self.interpolation)
        top, left = round((height - self.size) / 2.0), round((width - self.size) / 2.0)
        return whole[:, :, top : top + self.size, left : left + self.size]


def resized(
    pixels: UInt8[Tensor, "N 3 H W"], height: int, width: int, interpolation: Interpolation, *, in_floats: bool = False
) -> UInt8[Tensor, "N 3 H2 W2"]:
    """As Pillow resizes, antialiased; `in_floats` is how it is done on other devices than the CPU in any case."""
    if pixels.shape[2:] == (height, width):
        return pixels
    if pixels.device.type == "cpu" and not in_floats:
        return F.interpolate(pixels, size=(height, width), mode=interpolation, antialias=True)
    exact = F.interpolate(pixels.float(), size=(height, width), mode=interpolation, antialias=True)
    return exact.round_().clamp_(0, 255).to(torch.uint8)
