"""ResNet-18 with GroupNorm, trained with the policy (Chi et al. 2023); narrower by default."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.frame_encoder import FrameEncoder, check_grid, check_size, pooled
from kineflow.policies.encoders.preprocessing import SYMMETRIC, Fit, Preprocessing

_GROUP = 8  # channels per GroupNorm group
_STRIDE = 32


@dataclass(frozen=True)
class ResNetGN:
    """Configuration: four stages of two basic blocks, of `width`, 2, 4 and 8 times `width` channels (64: ResNet-18)."""

    size: int = 96
    grid: int = 0
    width: int = 32
    fit: Fit = "stretch"

    def build(self) -> ResNetGNEncoder:
        """Raises KineflowError for a size that is no multiple of 32, a grid finer than the map, or a width not in groups."""
        check_size(self.size, _STRIDE, "ResNetGN")
        check_grid(self.grid, self.size // _STRIDE, "ResNetGN")
        if self.width < _GROUP or self.width % _GROUP:
            raise KineflowError(f"ResNetGN: width {self.width} is not a multiple of {_GROUP} (channels per group)")
        return ResNetGNEncoder(self)


class ResNetGNEncoder(FrameEncoder):
    """Frames to `[N, P, 8 width]`."""

    def __init__(self, config: ResNetGN) -> None:
        mean, std = SYMMETRIC
        preprocessing = Preprocessing(config.size, mean, std, config.fit, "bilinear")
        super().__init__(8 * config.width, config.grid, False, preprocessing, {"width": config.width})
        self.stem = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.norm = _norm(config.width)
        widths = [config.width * scale for scale in (1, 1, 2, 4, 8)]
        blocks: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            blocks += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
        self.blocks = nn.Sequential(*blocks)
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        x = F.relu(self.norm(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return pooled(self.blocks(F.max_pool2d(x, 3, stride=2, padding=1)), self.grid)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = _norm(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = _norm(after)
        is_same = stride == 1 and before == after
        self.skip = None if is_same else nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), _norm(after))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        hidden = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(hidden + (x if self.skip is None else self.skip(x)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)
