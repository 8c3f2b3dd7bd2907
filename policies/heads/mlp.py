"""Residual MLP over the flattened chunk: the cheapest head per parameter on a CPU, for short chunks of few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.policies.heads.embedding import TimeEmbedding, time_per_action


@dataclass(frozen=True)
class MLP:
    """`depth` residual blocks of `width`, each shifted and scaled by a small signal of time and condition (adaLN)."""

    width: int = 256
    depth: int = 3
    expansion: float = 2.0
    signal_width: int = 64
    dropout: float = 0.0

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> MLPHead:
        """`condition_shape` is (tokens N, features D); with `two_times` the head also takes the time to jump to."""
        return MLPHead(self, horizon, action_dim, condition_shape, two_times)


class MLPHead(nn.Module):
    """`(x [B, H, A], t [B] or [B, H], condition [B, N, D]) -> [B, H, A]`; the output is zero at initialisation."""

    def __init__(
        self, config: MLP, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False
    ) -> None:
        super().__init__()
        condition_dim = condition_shape[0] * condition_shape[1]
        self.action_in = nn.Linear(horizon * action_dim, config.width)
        self.condition_in = nn.Linear(condition_dim, config.width)
        self.time = TimeEmbedding(config.signal_width, two_times=two_times)
        self.merge_times = nn.Linear(horizon * config.signal_width, config.signal_width)
        self.condition_signal = nn.Linear(condition_dim, config.signal_width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.outputs = nn.Linear(config.width, horizon * action_dim)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def forward(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        condition: Float[Tensor, "B N D"],
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        given = condition.flatten(1)
        times = time_per_action(self.time(t, end), x.shape[1])  # [B, H, S]
        signal = F.silu(self.merge_times(times.flatten(1)) + self.condition_signal(given))
        hidden = self.action_in(x.flatten(1)) + self.condition_in(given)
        for block in self.blocks:
            hidden = block(hidden, signal)
        return self.outputs(F.rms_norm(hidden, hidden.shape[-1:])).view(x.shape)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm residual block, modulated by the signal; the identity at initialisation."""

    def __init__(self, config: MLP) -> None:
        super().__init__()
        hidden = int(config.width * config.expansion)
        self.modulation = nn.Linear(config.signal_width, 2 * config.width)
        self.inner = nn.Linear(config.width, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.outer = nn.Linear(hidden, config.width)
        for layer in (self.modulation, self.outer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "B W"], signal: Float[Tensor, "B S"]) -> Float[Tensor, "B W"]:
        scale, shift = self.modulation(signal).chunk(2, dim=-1)
        hidden = F.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
        return x + self.outer(self.dropout(F.silu(self.inner(hidden))))  # type: ignore[no-any-return]
