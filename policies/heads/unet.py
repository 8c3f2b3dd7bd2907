"""Conditional 1-D temporal U-Net (Janner et al. 2022; Chi et al. 2023): convolutions along the horizon, FiLM conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.embedding import TimeEmbedding


@dataclass(frozen=True)
class UNet:
    """One level per entry of `channels`; each level below the first halves the horizon."""

    channels: tuple[int, ...] = (128, 256, 512)
    kernel: int = 5
    groups: int = 8
    signal_width: int = 256

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> UNetHead:
        """`condition_shape` is (tokens N, features D); with `two_times` the head also takes the time to jump to.

        Raises KineflowError for sizes that do not divide.
        """
        factor = 2 ** (len(self.channels) - 1)
        if horizon % factor:
            raise KineflowError(
                f"UNet with {len(self.channels)} levels needs a prediction horizon that {factor} divides, got {horizon}"
            )
        if bad := [c for c in self.channels if c % self.groups]:
            raise KineflowError(f"UNet.channels {bad} are not multiples of groups {self.groups}")
        return UNetHead(self, action_dim, condition_shape, two_times)


class UNetHead(nn.Module):
    """`(x [B, H, A], t [B] or [B, H], condition [B, N, D]) -> [B, H, A]`."""

    def __init__(self, config: UNet, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> None:
        super().__init__()
        widths = (action_dim, *config.channels)
        self.time = TimeEmbedding(config.signal_width, two_times=two_times)
        self.condition_in = nn.Linear(condition_shape[0] * condition_shape[1], config.signal_width)
        self.down = nn.ModuleList(_Level(a, b, config) for a, b in pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in config.channels[:-1])
        self.middle = _Level(widths[-1], widths[-1], config)
        ups = config.channels[::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, b, 4, stride=2, padding=1) for a, b in pairwise(ups))
        self.up = nn.ModuleList(_Level(2 * c, c, config) for c in ups[1:])
        self.out = nn.Sequential(_ConvBlock(ups[-1], ups[-1], config), nn.Conv1d(ups[-1], action_dim, 1))

    def forward(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        condition: Float[Tensor, "B N D"],
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        signals = self._signals(t, end, condition)
        hidden, skips = x.transpose(1, 2), []
        for level, block in enumerate(self.down):
            hidden = block(hidden, signals[level])
            if level < len(self.shrink):
                skips.append(hidden)
                hidden = self.shrink[level](hidden)
        hidden = self.middle(hidden, signals[-1])
        for level, (grow, block) in enumerate(zip(self.grow, self.up)):
            depth = len(skips) - 1 - level
            hidden = block(torch.cat([grow(hidden), skips[depth]], dim=1), signals[depth])
        return self.out(hidden).transpose(1, 2)  # type: ignore[no-any-return]

    def _signals(self, t: Tensor, end: Tensor | None, condition: Tensor) -> list[Tensor]:
        """One signal per level, `[B, W, 1]` or, with one time per action, `[B, W, H / 2^level]` by averaging neighbours."""
        embedded = self.time(t, end)
        time = embedded[:, None] if t.ndim == 1 else embedded
        signal = (time + self.condition_in(condition.flatten(1))[:, None]).transpose(1, 2)
        signals = [signal]
        for _ in self.shrink:
            signals.append(signals[-1] if t.ndim == 1 else F.avg_pool1d(signals[-1], 2))
        return signals


class _ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, config: UNet) -> None:
        conv = nn.Conv1d(inputs, outputs, config.kernel, padding=config.kernel // 2)
        super().__init__(conv, nn.GroupNorm(config.groups, outputs), nn.Mish())


class _Level(nn.Module):
    """Two residual convolution blocks; FiLM (scale and shift from the signal) after the first convolution of each."""

    def __init__(self, inputs: int, outputs: int, config: UNet) -> None:
        super().__init__()
        self.first = _Residual(inputs, outputs, config)
        self.second = _Residual(outputs, outputs, config)

    def forward(self, x: Float[Tensor, "B C T"], signal: Float[Tensor, "B W S"]) -> Float[Tensor, "B D T"]:
        return self.second(self.first(x, signal), signal)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: UNet) -> None:
        super().__init__()
        self.first = _ConvBlock(inputs, outputs, config)
        self.second = _ConvBlock(outputs, outputs, config)
        self.film = nn.Linear(config.signal_width, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        scale, shift = self.film(F.mish(signal).transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
        hidden = self.first(x) * (1 + scale) + shift
        return self.second(hidden) + self.skip(x)  # type: ignore[no-any-return]
