"""Camera frames to condition tokens: a small ResNet with GroupNorm, trained with the policy.

GroupNorm and not BatchNorm: running statistics and averaged weights (EMA) do not go together (Chi et al. 2023). The frames of
the observation horizon are stacked along the channels. Pooling is a spatial softmax (Levine et al. 2016): where in the picture
each channel is active, which is what a manipulation policy asks; "grid" keeps one token per cell for heads with
cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kineflow.contracts import CameraSpec, KineflowError, VectorSpec
from kineflow.policies.encoders.state import ResidualBlock, State, StateFeatures
from kineflow.policies.observed import Observed


@dataclass(frozen=True)
class Vision:
    """Encoder configuration: `channels` of the stages, each half the resolution of the one before; `state` encodes features.

    `shift` is the random shift (px, edges repeated) that augments training images (Yarats et al. 2021). All tokens share the
    width `token`, which must be that of `state` when the policy has features.
    """

    channels: tuple[int, ...] = (24, 48)
    token: int = 256
    depth: int = 2
    shift: int = 4
    pool: Literal["keypoints", "grid"] = "keypoints"
    state: State = field(default_factory=State)

    def geometry(self, spec: VectorSpec, observation_horizon: int) -> StateFeatures | None:
        """Features of the low-dimensional state, if the policy has any."""
        return self.state.geometry(spec, observation_horizon) if spec.size else None

    def build(self, spec: VectorSpec, observation_horizon: int, cameras: Mapping[str, CameraSpec]) -> VisionEncoder:
        """Raises KineflowError without cameras, for channels that GroupNorm cannot split, or tokens of two widths."""
        if not cameras:
            raise KineflowError("a Vision encoder needs at least one camera in policy.cameras; without images use kind: State")
        if not self.channels or any(c % GROUP for c in self.channels):
            raise KineflowError(f"Vision.channels must be multiples of {GROUP} (one GroupNorm group), got {self.channels}")
        if spec.size and self.state.token != self.token:
            raise KineflowError(
                f"Vision.token {self.token} and Vision.state.token {self.state.token} differ; give them one width"
            )
        return VisionEncoder(self, spec, observation_horizon, cameras)


GROUP = 8  # channels per GroupNorm group


class VisionEncoder(nn.Module):
    """`Observed` to tokens `[B, N, D]`: those of each camera in the order of their names, then the state's."""

    def __init__(self, config: Vision, spec: VectorSpec, observation_horizon: int, cameras: Mapping[str, CameraSpec]) -> None:
        super().__init__()
        self.shift = config.shift
        encoders = {name: CameraEncoder(config, observation_horizon, cameras[name]) for name in sorted(cameras)}
        self.cameras = nn.ModuleDict(encoders)
        self.state = config.state.build(spec, observation_horizon, {}) if spec.size else None
        tokens = sum(encoder.tokens for encoder in encoders.values()) + (self.state is not None)
        self.token_shape = (tokens, config.token)

    def standardise(self, mean: Float[Tensor, "F"], std: Float[Tensor, "F"]) -> None:
        """Take the statistics of the state's geometry features; images need none."""
        assert self.state is not None
        self.state.standardise(mean, std)

    def forward(self, observed: Observed) -> Float[Tensor, "B N D"]:
        tokens = []
        for name, encoder in self.cameras.items():
            frames = as_channels(observed.images[name])
            tokens.append(encoder(random_shift(frames, self.shift) if self.training and self.shift else frames))
        if self.state is not None:
            tokens.append(self.state(observed))
        return torch.cat(tokens, dim=1)


class CameraEncoder(nn.Module):
    """One camera's stacked frames `[B, 3 T, H, W]` to tokens `[B, N, D]`."""

    def __init__(self, config: Vision, observation_horizon: int, camera: CameraSpec) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.stem = nn.Conv2d(3 * observation_horizon, first, kernel_size=5, stride=2, padding=2)
        pairs = zip((first, *config.channels), config.channels)
        self.stages = nn.Sequential(*(_Stage(before, after) for before, after in pairs))
        halvings = 1 + len(config.channels)
        height, width = -(-camera.height // 2**halvings), -(-camera.width // 2**halvings)
        self.pool = SpatialSoftmax(height, width) if config.pool == "keypoints" else None
        self.tokens = 1 if self.pool else height * width
        self.token = nn.Linear(2 * last if self.pool else last, config.token)
        self.position = None if self.pool else nn.Parameter(0.02 * torch.randn(1, height * width, config.token))
        self.blocks = nn.ModuleList(ResidualBlock(config.token, 0.0) for _ in range(config.depth))

    def forward(self, frames: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        pixels = frames.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1  # in [-1, 1]
        cells = self.stages(self.stem(pixels))
        tokens: Tensor = self.token(self.pool(cells)[:, None] if self.pool else cells.flatten(2).transpose(1, 2))
        tokens = tokens if self.position is None else tokens + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return F.rms_norm(tokens, tokens.shape[-1:])


class SpatialSoftmax(nn.Module):
    """Expected image coordinates in [-1, 1] of each channel: `[B, C, H, W]` to `[B, 2 C]`, all x before all y."""

    x: Tensor
    y: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("x", x.flatten(), persistent=False)
        self.register_buffer("y", y.flatten(), persistent=False)

    def forward(self, cells: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2"]:
        share = torch.softmax(cells.flatten(2), dim=-1)
        return torch.cat([share @ self.x, share @ self.y], dim=-1)


class _Stage(nn.Module):
    """Residual block at half the resolution, pre-activation, GroupNorm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(before // GROUP, before)
        self.down = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
        self.norm_out = nn.GroupNorm(after // GROUP, after)
        self.mix = nn.Conv2d(after, after, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(before, after, kernel_size=1, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        hidden = self.down(F.silu(self.norm_in(x)))
        return self.skip(x) + self.mix(F.silu(self.norm_out(hidden)))  # type: ignore[no-any-return]


def as_channels(frames: UInt8[Tensor, "B T H W 3"]) -> UInt8[Tensor, "B C H W"]:
    """Frames over time to channels."""
    return frames.permute(0, 1, 4, 2, 3).flatten(1, 2)


def random_shift(frames: UInt8[Tensor, "B C H W"], pixels: int) -> UInt8[Tensor, "B C H W"]:
    """Each row moved by up to `pixels` in x and y, edges repeated; from torch's global generator (seeded per step)."""
    height, width = frames.shape[2:]
    # Slices, not one gather: forty times quicker on a CPU.
    starts = torch.randint(0, 2 * pixels + 1, (len(frames), 2)).tolist()
    rows, columns = (torch.arange(-pixels, size + pixels, device=frames.device).clamp(0, size - 1) for size in (height, width))
    padded = frames[:, :, rows][:, :, :, columns]
    return torch.stack([row[:, y : y + height, x : x + width] for row, (y, x) in zip(padded, starts)])
