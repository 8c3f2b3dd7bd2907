"""FlowDiT: a diffusion transformer over the actions that looks at every condition token, for robots of several bodies.

Each block is self-attention among the actions (rotary positions), cross-attention to the tokens, and an MLP, each shifted,
scaled and gated by the signal: time plus a summary of the tokens, each through weights of its own (their mean instead trains
many times slower: what differs between tokens must then come through attention, which at first looks at all alike).

Four things differ from `dit.py`.

* One linear layer modulates all blocks, each of which adds an offset of its own (adaLN-single, PixArt-alpha, Chen et al. 2023):
  at width 512 this saves 17 M parameters, and a batch of one on a CPU takes as long as it takes to read the weights.
* Keys and values of the tokens do not depend on the actions: `fixed` computes them once for all steps of a solver.
* Each action token begins with a draft, a small MLP of the summary and of the token's place: what the tokens say of an action
  reaches it without having to be found by attention first. Motion that a linear probe reads off the tokens with R2 0.97 came out
  of the head without it with 0.7 after as many steps.
* With `embodiments` the layers in and out have a correction for each body, zero at first, chosen by the first channels of
  token 0. A body without data answers as those with data do, and learns its corrections from its own windows alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.dit import modulate
from kineflow.policies.heads.embedding import TimeEmbedding, rotated, rotation

Tokens = Float[Tensor, "B N D"]
SUMMARY = 32  # features of each token in the signal
PERIODS = 6  # in which a token of the draft knows its place: 2 tokens to 64


@dataclass(frozen=True)
class FlowDiT:
    """Head configuration. `embodiments` above 1: token 0 of the condition begins with the one-hot of that many bodies.

    `patch` neighbouring actions form one token: training costs that much less, and the horizon must be a multiple of it.
    `shared_keys`: all blocks look at the same keys and values of the condition, with queries and outputs of their own; with
    dozens of tokens beside a few of actions those cost as much as the blocks.
    """

    width: int = 192
    depth: int = 6
    attention_heads: int = 4
    mlp_ratio: float = 4.0
    patch: int = 1
    shared_keys: bool = False
    dropout: float = 0.0
    embodiments: int = 1

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> FlowDiTHead:
        """`condition_shape` is (tokens N, features D); with `two_times` the head also takes the time to jump to.

        Any horizon that is a multiple of `patch` is legal at call time. Raises KineflowError for sizes that do not divide, or
        tokens too narrow for a one-hot.
        """
        if self.patch < 1 or horizon % self.patch:
            raise KineflowError(f"FlowDiT.patch {self.patch} does not divide the prediction horizon {horizon}")
        if self.width % (2 * self.attention_heads):
            raise KineflowError(f"FlowDiT.width {self.width} is not a multiple of 2 * attention_heads {self.attention_heads}")
        if not 1 <= self.embodiments <= condition_shape[1]:
            raise KineflowError(
                f"FlowDiT.embodiments is {self.embodiments}, the tokens have {condition_shape[1]} channels; 1: one body"
            )
        return FlowDiTHead(self, action_dim, condition_shape, two_times)


@dataclass(frozen=True)
class Prepared:
    """A condition as the blocks use it; nothing here depends on the noisy actions or on time."""

    key_value: tuple[tuple[Float[Tensor, "B K N E"], Float[Tensor, "B K N E"]], ...]  # of each block
    signal: Float[Tensor, "B 1 W"]
    draft: Float[Tensor, "B 1 W"]
    body: Float[Tensor, "B bodies"] | None


class FlowDiTHead(nn.Module):
    """`(x [B, H, A], t [B] or [B, H], condition [B, N, D]) -> [B, H, A]`; the output is zero at initialisation."""

    def __init__(self, config: FlowDiT, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> None:
        super().__init__()
        (count, size), width = condition_shape, config.width
        self.config = config
        self.action_in = BodyLinear(config.patch * action_dim, width, config.embodiments)
        self.time = TimeEmbedding(width, two_times=two_times)
        # A token whose actions have different times sees all of them.
        self.merge_times = nn.Linear(config.patch * width, width) if config.patch > 1 else None
        self.condition_in = nn.Linear(size, width)
        self.token_identity = nn.Parameter(0.02 * torch.randn(count, width))  # which goal, which cell, which robot
        self.condition_summary = nn.Linear(width, SUMMARY)
        self.condition_signal = nn.Linear(count * SUMMARY, width)
        self.draft_in = nn.Linear(count * SUMMARY, width)
        self.draft_place, self.draft_out = nn.Linear(2 * PERIODS, width, bias=False), nn.Linear(width, width)
        self.condition_kv = nn.Linear(width, (1 if config.shared_keys else config.depth) * 2 * width)  # of all blocks at once
        self.modulation = nn.Linear(width, 9 * width)
        self.block_modulation = nn.Parameter(torch.zeros(config.depth, 9 * width))
        self.blocks = nn.ModuleList(FlowDiTBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.action_out = BodyLinear(width, config.patch * action_dim, config.embodiments)
        for layer in (self.modulation, self.final_modulation, self.action_out.shared):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        condition: Tokens,
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        return self.answer(x, t, self.prepare(condition), end)

    def fixed(self, condition: Tokens, repeated: Float[Tensor, "R N D"] | None = None) -> FixedCondition:
        """This head for a solver that asks about one condition many times.

        With `repeated`, which is `condition` several times behind itself, for a loss that looks at each row under several
        noises: keys and values are computed, and differentiated, once for all of them.
        """
        return FixedCondition(self, condition if repeated is None else repeated, self.prepare(condition))

    def prepare(self, condition: Tokens) -> Prepared:
        """All that can be computed before the first noisy chunk is seen."""
        config = self.config
        # Not normalised: encoders do that, and the length of a token that holds plain numbers is what it says.
        given = self.condition_in(condition) + self.token_identity  # [B, N, W]
        parts = [_heads(part, config.attention_heads) for part in self.condition_kv(given).split(config.width, dim=-1)]
        key_value = tuple(zip(parts[::2], parts[1::2]))
        summary = self.condition_summary(given).flatten(1)
        signal = self.condition_signal(summary)[:, None]
        body = condition[:, 0, : config.embodiments] if config.embodiments > 1 else None
        draft = self.draft_in(summary)[:, None]
        return Prepared(key_value * config.depth if config.shared_keys else key_value, signal, draft, body)

    def answer(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        prepared: Prepared,
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        """`forward` under a condition that is already prepared, of as many rows or of so many behind each other."""
        times = len(x) // len(prepared.signal)
        known = prepared.signal.repeat(times, 1, 1)
        body = None if prepared.body is None else prepared.body.repeat(times, 1)
        signal = F.silu(self._time_tokens(t, end) + known)  # [B, 1 or H/P, W]
        shared = self.modulation(signal)
        tokens = self.action_in(x.reshape(len(x), x.shape[1] // self.config.patch, -1), body)  # [B, H/P, W]
        draft = self.draft_out(F.silu(prepared.draft + self.draft_place(_places(tokens.shape[1], tokens))))
        tokens = tokens + draft.repeat(times, 1, 1)
        turn = rotation(tokens.shape[1], self.config.width // self.config.attention_heads, tokens)
        for block, own, key_value in zip(self.blocks, self.block_modulation, prepared.key_value):
            tokens = block(tokens, shared + own, key_value, turn)
        shift, scale = self.final_modulation(signal).chunk(2, dim=-1)
        answer: Tensor = self.action_out(modulate(tokens, shift, scale), body)
        return answer.reshape(x.shape)

    def _time_tokens(self, t: Tensor, end: Tensor | None) -> Float[Tensor, "B S W"]:
        time: Tensor = self.time(t, end)  # [B, W] or [B, H, W]
        patch = self.config.patch
        if t.ndim == 1:
            time = time[:, None]
            return time if self.merge_times is None else self.merge_times(time.repeat(1, 1, patch))
        if self.merge_times is None:
            return time
        return self.merge_times(time.reshape(len(t), t.shape[1] // patch, -1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FixedCondition:
    """A head with the keys and values of one condition at hand; any other condition (guidance doubles it) is answered as well."""

    head: FlowDiTHead
    condition: Tokens
    prepared: Prepared

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None, end: Tensor | None = None) -> Tensor:
        if condition is self.condition:
            return self.head.answer(x, t, self.prepared, end)
        assert condition is not None
        answer: Tensor = self.head(x, t, condition, end)
        return answer


class FlowDiTBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each shifted, scaled and gated; the identity while the modulation is zero."""

    def __init__(self, config: FlowDiT) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.attention_heads = config.attention_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.among_out = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.across_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(config.dropout), nn.Linear(hidden, width))

    def forward(
        self,
        x: Float[Tensor, "B T W"],
        modulation: Float[Tensor, "B S W9"],
        key_value: tuple[Float[Tensor, "R K N E"], Float[Tensor, "R K N E"]],  # B is a multiple of R
        turn: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "B T W"]:
        shift_a, scale_a, gate_a, shift_c, scale_c, gate_c, shift_m, scale_m, gate_m = modulation.chunk(9, dim=-1)
        x = x + gate_a * self._among(modulate(x, shift_a, scale_a), turn)
        x = x + gate_c * self._across(modulate(x, shift_c, scale_c), key_value)
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))  # type: ignore[no-any-return]

    def _among(self, x: Float[Tensor, "B T W"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "B T W"]:
        heads = self.attention_heads
        turned, value = torch.split(_heads(self.qkv(x), 3 * heads), [2 * heads, heads], dim=1)
        query, key = rotated(turned, *turn).chunk(2, dim=1)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.among_out(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _across(self, x: Float[Tensor, "B T W"], key_value: tuple[Tensor, Tensor]) -> Float[Tensor, "B T W"]:
        # The tokens have no place along the horizon: neither side is rotated. Queries of all rows under one condition are one
        # sequence: they do not see each other.
        rows, (_, heads, _, size) = len(x), key_value[0].shape
        query = self.query(x).reshape(-1, len(key_value[0]), x.shape[1], heads, size).permute(1, 3, 0, 2, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(query, *key_value).reshape(-1, heads, rows // len(key_value[0]), x.shape[1], size)
        return self.across_out(out.permute(2, 0, 3, 1, 4).reshape(rows, x.shape[1], -1))  # type: ignore[no-any-return]


def _places(count: int, like: Tensor) -> Float[Tensor, "T waves"]:
    periods = 2.0 ** torch.arange(1, PERIODS + 1, device=like.device)
    angles = 2 * math.pi * torch.arange(count, device=like.device)[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def _heads(x: Float[Tensor, "B T W"], heads: int) -> Float[Tensor, "B K T E"]:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


class BodyLinear(nn.Module):
    """A linear layer with a correction of weight and bias for each body, zero at initialisation."""

    def __init__(self, inputs: int, outputs: int, bodies: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, outputs)
        # As one matrix: a row per body, so that a one-hot picks a correction without an index.
        self.corrections = nn.Parameter(torch.zeros(bodies, (inputs + 1) * outputs)) if bodies > 1 else None

    def forward(self, x: Float[Tensor, "B T inputs"], body: Float[Tensor, "B bodies"] | None) -> Float[Tensor, "B T outputs"]:
        answer: Tensor = self.shared(x)
        if self.corrections is None or body is None:
            return answer
        rows = (body.to(x.dtype) @ self.corrections.to(x.dtype)).reshape(len(x), -1, answer.shape[-1])  # [B, inputs + 1, outputs]
        return answer + x @ rows[:, :-1] + rows[:, -1:]
