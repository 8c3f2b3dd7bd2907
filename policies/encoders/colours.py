"""What each part of a picture looks like on average: no weights, no meaning; the floor for pretrained encoders, and for tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.encoders.frame_encoder import FrameEncoder, check_grid, check_size, pooled
from kineflow.policies.encoders.preprocessing import SYMMETRIC, Preprocessing

_FEATURES = 7


@dataclass(frozen=True)
class Colours:
    """Configuration: `grid` x `grid` parts (0: one) of a picture of `size` px."""

    size: int = 32
    grid: int = 4

    def build(self) -> ColoursEncoder:
        """Raises KineflowError for a size or grid that is not positive, or a grid finer than the pixels."""
        check_size(self.size, 1, "Colours")
        check_grid(self.grid, self.size, "Colours")
        return ColoursEncoder(self)


class ColoursEncoder(FrameEncoder):
    """Frames to `[N, P, 7]`: mean and standard deviation of red, green and blue in [-1, 1], and a 1."""

    def __init__(self, config: Colours) -> None:
        mean, std = SYMMETRIC
        super().__init__(_FEATURES, config.grid, True, Preprocessing(config.size, mean, std, "stretch", "bilinear"), {})
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        mean, square = pooled(pixels, self.grid), pooled(pixels.square(), self.grid)
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, spread, torch.ones_like(mean[..., :1])], dim=-1)  # the 1 keeps brightness through a norm
