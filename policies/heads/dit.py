"""Diffusion transformer over the action tokens (Peebles & Xie 2023): adaLN-zero, RMSNorm, rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.embedding import TimeEmbedding, rotate


@dataclass(frozen=True)
class DiT:
    """`patch` neighbouring actions form one token; the horizon must be a multiple of it."""

    width: int = 256
    depth: int = 6
    attention_heads: int = 4
    mlp_ratio: float = 4.0
    patch: int = 1
    dropout: float = 0.0

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> DiTHead:
        """`condition_shape` is (tokens N, features D); with `two_times` the head also takes the time to jump to.

        Raises KineflowError for sizes that do not divide.
        """
        if horizon % self.patch:
            raise KineflowError(f"DiT.patch {self.patch} does not divide the prediction horizon {horizon}")
        if self.width % (2 * self.attention_heads):
            raise KineflowError(f"DiT.width {self.width} is not a multiple of 2 * attention_heads {self.attention_heads}")
        return DiTHead(self, action_dim, condition_shape, two_times)


class DiTHead(nn.Module):
    """`(x [B, H, A], t [B] or [B, H], condition [B, N, D]) -> [B, H, A]`; the output is zero at initialisation."""

    def __init__(self, config: DiT, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> None:
        super().__init__()
        self.patch, width = config.patch, config.width
        self.action_in = nn.Linear(config.patch * action_dim, width)
        self.time = TimeEmbedding(width, two_times=two_times)
        # A token whose actions have different times sees all of them.
        self.merge_times = nn.Linear(config.patch * width, width) if config.patch > 1 else nn.Identity()
        self.condition_in = nn.Linear(condition_shape[0] * condition_shape[1], width)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.action_out = nn.Linear(width, config.patch * action_dim)
        for layer in (self.final_modulation, self.action_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        condition: Float[Tensor, "B N D"],
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        batch, horizon, _ = x.shape
        tokens = self.action_in(x.reshape(batch, horizon // self.patch, -1))  # [B, H/P, W]
        signal = F.silu(self._time_tokens(t, end, horizon) + self.condition_in(condition.flatten(1))[:, None])  # [B, 1 or H/P, W]
        for block in self.blocks:
            tokens = block(tokens, signal)
        shift, scale = self.final_modulation(signal).chunk(2, dim=-1)
        return self.action_out(modulate(tokens, shift, scale)).reshape(x.shape)  # type: ignore[no-any-return]

    def _time_tokens(self, t: Tensor, end: Tensor | None, horizon: int) -> Tensor:
        embedded = self.time(t, end)  # [B, W] or [B, H, W]
        if t.ndim == 1:
            return self.merge_times(embedded[:, None].repeat(1, 1, self.patch))  # type: ignore[no-any-return]
        return self.merge_times(embedded.reshape(t.shape[0], horizon // self.patch, -1))  # type: ignore[no-any-return]


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the signal; gates start at zero, so a new block is the identity."""

    def __init__(self, config: DiT) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.attention_heads = config.attention_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(config.dropout), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "B T W"], signal: Float[Tensor, "B S W"]) -> Float[Tensor, "B T W"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(signal).chunk(6, dim=-1)
        x = x + gate_a * self._attend(modulate(x, shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))  # type: ignore[no-any-return]

    def _attend(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "B T W"]:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.attention_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # [B, heads, T, W/heads]
        out = F.scaled_dot_product_attention(rotate(query), rotate(key), value)
        return self.attention_out(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm without its own gain (adaLN supplies it), then scale and shift."""
    return F.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
