"""Flow features: how each part of a picture moved since an earlier one, beside what it looks like.

A flow encoder takes two pictures and gives `dim` numbers for each of the P parts that the frame encoder has, in units in which
they are about 1. They follow the frame's features along the last axis: `[P, D + dim]`, so one array caches both.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.frame_encoder import pooled


class FlowEncoder(nn.Module, ABC):
    """`(before, after)` to the motion of the P parts of `after`: `[N, P, dim]`."""

    dim: int
    config: Any  # the dataclass that it was built from

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, under which features are kept: 64 hexadecimal digits."""
        digest = hashlib.sha256(f"{type(self).__name__} {sorted(asdict(self.config).items())}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def forward(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P dim"]: ...


class FlowEncoderConfig(Protocol):
    """What `kind:` of flow features in a configuration file stands for."""

    def build(self, grid: int) -> FlowEncoder: ...


class DenseFlow(FlowEncoder):
    """A flow of every pixel, as `[N, P, 4]`: mean and standard deviation of the motion in each part; see `motion_of_parts`."""

    dim = 4

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    @abstractmethod
    def dense(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 2 H W"]:
        """How far to the right and down, in pixels, each pixel of `before` has gone in `after`."""

    def forward(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P 4"]:
        moved = -self.dense(after, before)  # from what is seen now to where it was: of the parts of `after`
        return motion_of_parts(moved / moved.new_tensor([moved.shape[3], moved.shape[2]])[:, None, None], self.grid)


UNITS = 12.0  # in which a motion by the whole width, or height, is so much


def motion_of_parts(moved: Float[Tensor, "N 2 H W"], grid: int) -> Float[Tensor, "N P 4"]:
    """Means right and down, standard deviations right and down over each of `grid` x `grid` parts (0: over all).

    `moved` is in widths and heights of the picture; 1 in the result is a twelfth of them, 8 px of 96.
    """
    moved = moved * UNITS
    mean, square = pooled(moved, grid), pooled(moved.square(), grid)
    return torch.cat([mean, (square - mean.square()).clamp(min=1e-8).sqrt()], dim=-1)


@dataclass(frozen=True)
class LucasKanade:
    """Configuration of the flow without weights: least squares on brightness constancy in each part (Lucas & Kanade 1981).

    Right for motions below a pixel of the picture reduced to `size` px, and the right direction a little beyond.
    """

    size: int = 48
    damping: float = 1e-3  # of the least squares, in (grey levels of [0, 1] per px)^2: parts without texture do not move

    def build(self, grid: int) -> LucasKanadeFlow:
        """`grid`: that of the frame encoder. Raises KineflowError when its parts would be smaller than 2 px."""
        if self.size < 2 * max(grid, 1) or self.damping <= 0:
            raise KineflowError(
                f"LucasKanade: size {self.size} must be 2 px for each of {grid} parts, damping {self.damping:g} positive"
            )
        return LucasKanadeFlow(self, grid)


class LucasKanadeFlow(FlowEncoder):
    """`[N, P, 2]`: motion to the right and down, px of the reduced picture."""

    config: LucasKanade

    def __init__(self, config: LucasKanade, grid: int) -> None:
        super().__init__()
        self.config, self.grid, self.dim = config, grid, 2

    def forward(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P dim"]:
        first, second = self._grey(before), self._grey(after)
        middle = F.pad((first + second) / 2, (1, 1, 1, 1), mode="replicate")
        right, down = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2, (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
        change = second - first
        products = torch.cat([right * right, right * down, down * down, right * change, down * change], dim=1)
        xx, xy, yy, xt, yt = pooled(products, self.grid).unbind(-1)
        xx, yy = xx + self.config.damping, yy + self.config.damping
        determinant = xx * yy - xy * xy
        return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=-1) / determinant[..., None]

    def _grey(self, frames: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 1 S S"]:
        grey = frames.float().mean(dim=-1)[:, None] / 255
        return F.interpolate(grey, size=(self.config.size,) * 2, mode="bilinear", antialias=True)
