"""A small vision transformer, trained with the policy: for machines without pretrained weights, and as a baseline for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.frame_encoder import FrameEncoder, check_grid, check_size, pooled_tokens
from kineflow.policies.encoders.preprocessing import SYMMETRIC, Fit, Preprocessing

_STEM = 16  # px a patch spans


@dataclass(frozen=True)
class SmallViT:
    """Configuration: `depth` blocks of `width` on patches of 16 px. `grid` 0 gives the mean of the patches.

    Patches are made by four convolutions of stride 2 instead of one of stride 16: trained from nothing on few pictures, that is
    the difference between learning and not (Xiao et al. 2021).
    """

    size: int = 96
    grid: int = 0
    width: int = 192
    depth: int = 4
    heads: int = 3
    fit: Fit = "stretch"

    def build(self) -> SmallViTEncoder:
        """Raises KineflowError for a size that is no multiple of 16, a grid finer than the patches, or an uneven width."""
        check_size(self.size, _STEM, "SmallViT")
        check_grid(self.grid, self.size // _STEM, "SmallViT")
        if self.width % (8 * self.heads) or self.width < 64:
            raise KineflowError(
                f"SmallViT: width {self.width} must be at least 64 and a multiple of 8 x heads ({8 * self.heads})"
            )
        return SmallViTEncoder(self)


class SmallViTEncoder(FrameEncoder):
    """Frames to `[N, P, width]`, each token of unit mean square."""

    def __init__(self, config: SmallViT) -> None:
        mean, std = SYMMETRIC
        preprocessing = Preprocessing(config.size, mean, std, config.fit, "bilinear")
        identity = {"width": config.width, "depth": config.depth, "heads": config.heads}
        super().__init__(config.width, config.grid, False, preprocessing, identity)
        widths = (3, *(config.width // part for part in (8, 4, 2)), config.width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.SiLU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(config.width, config.width, 1))
        side = config.size // _STEM
        self.position = nn.Parameter(0.02 * torch.randn(1, side * side, config.width))
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads) for _ in range(config.depth)))
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        cells = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        tokens = self.blocks(cells.flatten(2).transpose(1, 2) + self.position)
        tokens = pooled_tokens(tokens, cells.shape[2], self.grid)
        return F.rms_norm(tokens, tokens.shape[-1:])


class _Block(nn.Module):
    """Pre-norm attention and MLP; both begin as nothing, so that the block begins as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for last in (self.out, self.mlp[2]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "N L D"]) -> Float[Tensor, "N L D"]:
        heads = self.mix(F.rms_norm(x, x.shape[-1:])).unflatten(2, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(F.rms_norm(x, x.shape[-1:]))  # type: ignore[no-any-return]
