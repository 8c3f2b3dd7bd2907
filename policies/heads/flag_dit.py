"""Flag-DiT over the actions (Lumina-T2X, Gao et al. 2024; block of Next-DiT): a transformer that stays calm when it grows.

What differs from `dit.py`: queries and keys are normalised, so attention logits are bounded; each sublayer is normalised
before and after (sandwich) and gated by tanh; SwiGLU; and every action looks at the condition tokens one by one, through a
cross-attention whose gate starts at zero. One token per action and rotary positions, so any horizon is legal at call time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.embedding import TimeEmbedding, rotate

Heads = Float[Tensor, "B K T E"]  # K attention heads of E = W / K features


@dataclass(frozen=True)
class FlagDiT:
    """`mlp_ratio` counts parameters like that of a two-matrix MLP: SwiGLU's three matrices share them."""

    width: int = 256
    depth: int = 6
    attention_heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> FlagDiTHead:
        """`condition_shape` is (tokens N, features D); with `two_times` the head also takes the time to jump to.

        `horizon` is that of training; others are legal later. Raises KineflowError for sizes that do not divide.
        """
        if self.width % (2 * self.attention_heads):
            raise KineflowError(f"FlagDiT.width {self.width} is not a multiple of 2 * attention_heads {self.attention_heads}")
        return FlagDiTHead(self, horizon, action_dim, condition_shape, two_times)


class FlagDiTHead(nn.Module):
    """`(x [B, H, A], t [B] or [B, H], condition [B, N, D]) -> [B, H, A]`; the output is zero at initialisation."""

    def __init__(
        self, config: FlagDiT, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False
    ) -> None:
        super().__init__()
        count, size = condition_shape
        self.action_in = nn.Linear(action_dim, config.width)
        self.time = TimeEmbedding(config.width, two_times=two_times)
        self.condition_in = nn.Linear(size, config.width)
        self.condition_norm = RMSNorm(config.width)
        self.token_identity = nn.Parameter(0.02 * torch.randn(count, config.width))  # which camera, which feature
        self.condition_signal = nn.Linear(config.width, config.width)
        self.blocks = nn.ModuleList(FlagDiTBlock(config, horizon) for _ in range(config.depth))
        self.final_modulation = nn.Linear(config.width, config.width)
        self.action_out = nn.Linear(config.width, action_dim)
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
        given = self.condition_norm(self.condition_in(condition)) + self.token_identity  # [B, N, W]
        time = self.time(t, end)  # [B, W] or [B, H, W]
        time = time[:, None] if t.ndim == 1 else time
        signal = F.silu(time + self.condition_signal(given.mean(dim=1, keepdim=True)))  # [B, 1 or H, W]
        tokens = self.action_in(x)
        for block in self.blocks:
            tokens = block(tokens, signal, given)
        tokens = F.rms_norm(tokens, tokens.shape[-1:]) * (1 + self.final_modulation(signal))
        return self.action_out(tokens)  # type: ignore[no-any-return]


class FlagDiTBlock(nn.Module):
    """Attention and SwiGLU between two norms each, scaled and gated by the signal; the identity at initialisation."""

    def __init__(self, config: FlagDiT, horizon: int) -> None:
        super().__init__()
        width, hidden = config.width, 8 * math.ceil(config.mlp_ratio * config.width / 12)
        self.attention = Attention(width, config.attention_heads, horizon)
        self.mlp_in = nn.Linear(width, 2 * hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        self.before_attention, self.after_attention = RMSNorm(width), RMSNorm(width)
        self.before_mlp, self.after_mlp = RMSNorm(width), RMSNorm(width)
        self.modulation = nn.Linear(width, 4 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "B T W"], signal: Float[Tensor, "B S W"], given: Float[Tensor, "B N W"]
    ) -> Float[Tensor, "B T W"]:
        scale_a, gate_a, scale_m, gate_m = self.modulation(signal).chunk(4, dim=-1)
        seen = self.attention(self.before_attention(x) * (1 + scale_a), given)
        x = x + gate_a.tanh() * self.after_attention(seen)
        gate, value = self.mlp_in(self.before_mlp(x) * (1 + scale_m)).chunk(2, dim=-1)
        hidden = self.mlp_out(self.dropout(F.silu(gate) * value))
        return x + gate_m.tanh() * self.after_mlp(hidden)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Among the actions, plus tanh(gate) times attention of the same queries to the condition tokens; one gate per head."""

    def __init__(self, width: int, heads: int, horizon: int) -> None:
        super().__init__()
        self.heads, self.horizon = heads, horizon
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.condition_kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.query_norm, self.key_norm, self.condition_key_norm = (RMSNorm(width // heads) for _ in range(3))
        self.gate = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Float[Tensor, "B T W"], given: Float[Tensor, "B N W"]) -> Float[Tensor, "B T W"]:
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self.query_norm(query), self.key_norm(key)
        among = F.scaled_dot_product_attention(rotate(query), rotate(key), value, scale=self.scale(x.shape[1]))
        key, value = (self._split(part) for part in self.condition_kv(given).chunk(2, dim=-1))
        # Condition tokens have no place along the horizon: this query is not rotated.
        across = F.scaled_dot_product_attention(query, self.condition_key_norm(key), value)
        seen = among + self.gate.tanh().to(among.dtype) * across
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def scale(self, length: int) -> float:
        """Of the logits: 1 / sqrt(E) at the horizon of training; beyond it sharper, so that attention keeps its entropy."""
        size = self.qkv.in_features // self.heads
        return math.sqrt(math.log(max(length, 2)) / math.log(max(self.horizon, 2)) / size)

    def _split(self, x: Float[Tensor, "B T W"]) -> Heads:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class RMSNorm(nn.Module):
    """x / rms(x) with a gain, in the dtype of x (torch's own changes it, or warns, when the gain has another)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*S W"]) -> Float[Tensor, "*S W"]:
        return F.rms_norm(x, x.shape[-1:]) * self.gain.to(x.dtype)
