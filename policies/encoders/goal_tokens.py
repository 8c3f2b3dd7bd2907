"""The parts of a GoalVision encoder: features to tokens, pooling over time, comparison of pictures, of picture and words."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Cells = Float[Tensor, "B L P F"]  # features of P parts of each of L frames


class FrameTokens(nn.Module):
    """Features `[B, L, P, D + C]`, the flow's C after the frame's D, to tokens `[B, L, P, W]` that know their place and time.

    The frame's features are normalised, whatever backbone they are of; the flow's are not: there size is the message.
    """

    def __init__(self, dim: int, flow: int, cells: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.look = nn.Linear(dim, width)
        self.motion = nn.Linear(flow, width, bias=False) if flow else None
        self.place = nn.Parameter(0.02 * torch.randn(cells, width))
        self.time = nn.Linear(2 * WAVES, width, bias=False)

    def forward(self, features: Cells, offsets_s: Float[Tensor, "L"]) -> Float[Tensor, "B L P W"]:
        return F.linear(self.parts(features), self.matrix()) + self.offsets(offsets_s)

    def parts(self, features: Cells) -> Float[Tensor, "B L P inputs"]:
        """What a token is linear in: `parts @ matrix.T + offsets`."""
        look = F.rms_norm(features[..., : self.dim], (self.dim,))
        if self.motion is None:
            return look
        return torch.cat([look, features[..., features.shape[-1] - self.motion.in_features :]], dim=-1)

    def matrix(self) -> Float[Tensor, "W F"]:
        return self.look.weight if self.motion is None else torch.cat([self.look.weight, self.motion.weight], dim=1)

    def offsets(self, offsets_s: Float[Tensor, "L"]) -> Float[Tensor, "L P W"]:
        """What place and time add."""
        return self.look.bias + self.place + self.time(as_waves(offsets_s))[:, None]  # type: ignore[no-any-return]


WAVES = 8


def as_waves(offsets_s: Float[Tensor, "L"]) -> Float[Tensor, "L waves"]:
    """Times relative to now as sines and cosines with periods from 0.5 s to 64 s."""
    periods = 0.5 * 2.0 ** torch.arange(WAVES, device=offsets_s.device)
    angles = 2 * math.pi * offsets_s[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TemporalPooling(nn.Module):
    """Attention of learned queries over all parts of all frames: `[B, M, W]` to `[B, queries, W]`."""

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, parts: Float[Tensor, "B M F"], matrix: Float[Tensor, "W F"], offsets: Float[Tensor, "M W"]
    ) -> Float[Tensor, "B Q W"]:
        """As attention to the tokens `parts @ matrix.T + offsets`, of which there are so many that they are not written down.

        The queries are the same for all rows, so they meet the inputs of the keys, and values are taken of the averages. A bias
        of the keys would change nothing: it has no gradient.
        """
        key, value = self.key_value.weight.reshape(2, self.heads, -1, len(matrix))  # [K, E, W]
        query = self.queries.reshape(len(self.queries), self.heads, -1) * key.shape[1] ** -0.5
        asked = torch.einsum("qke,kew->kqw", query, key).flatten(0, 1)
        share = torch.softmax(F.linear(parts, asked @ matrix) + F.linear(offsets, asked), dim=1).transpose(1, 2)  # [B, K Q, M]
        average = F.linear(share @ parts, matrix) + share @ offsets
        seen = torch.einsum("bkqw,kew->bqke", average.reshape(len(parts), self.heads, -1, len(matrix)), value)
        return self.out(seen.flatten(2) + self.key_value.bias.chunk(2)[1])  # type: ignore[no-any-return]


class Comparison(nn.Module):
    """What a visual servo needs: each goal frame beside the live one, one token per goal frame `[B, G, W]`.

    The cosine of each part of one with each part of the other says where things went, whatever they are; what both look like
    says what they are.
    """

    def __init__(self, dim: int, cells: int, matching: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.look = nn.Linear(dim, matching)
        self.inputs = nn.Linear(cells * cells + 2 * cells * matching, width)
        self.outputs = nn.Linear(width, width)
        self.time = nn.Linear(2 * WAVES, width, bias=False)

    def forward(self, live: Float[Tensor, "B P F"], goal: Cells, offsets_s: Float[Tensor, "G"]) -> Float[Tensor, "B G W"]:
        here, there = (F.normalize(self.look(F.rms_norm(x[..., : self.dim], (self.dim,))), dim=-1) for x in (live, goal))
        cosines = torch.einsum("bpc,bgqc->bgpq", here, there)
        # The layer's inputs are the cosines, then what both look like: unit vectors of c numbers, each about 1 / sqrt(c), brought
        # to the size of the cosines. The live frame is the same beside all goal frames.
        size = math.sqrt(here.shape[-1])
        of_cosines, of_here, of_there = torch.split(self.inputs.weight, [cosines[0, 0].numel(), *2 * (here[0].numel(),)], dim=1)
        live_part = F.linear(size * here.flatten(1), of_here, self.inputs.bias)[:, None]
        hidden = F.linear(cosines.flatten(2), of_cosines) + F.linear(size * there.flatten(2), of_there) + live_part
        return self.outputs(F.silu(hidden + self.time(as_waves(offsets_s))))  # type: ignore[no-any-return]


Moved = Callable[[Tensor, Tensor], Tensor]  # parts [*B, P, F] of two frames -> [*B, P, 3]: right, down, how surely


class Correspondence(nn.Module):
    """As `Comparison`, for features that know where the places of one picture are in another (`SceneNetEncoder.moved`).

    A token sees how each part of the live picture must move to become the goal's, and how the goal's camera moved since the frame
    before (the flow features): nothing of what a place looks like, so it holds in places never seen.
    """

    def __init__(self, moved: Moved, cells: int, flow: int, width: int) -> None:
        super().__init__()
        self._moved, self.flow = moved, flow  # a function, not a part: it is not trained here
        self.inputs = nn.Linear(cells * (3 + flow), width)
        self.outputs = nn.Linear(width, width)
        self.time = nn.Linear(2 * WAVES, width, bias=False)

    def forward(self, live: Float[Tensor, "B P F"], goal: Cells, offsets_s: Float[Tensor, "G"]) -> Float[Tensor, "B G W"]:
        looks = live.shape[-1] - self.flow
        went = self._moved(live[:, None, :, :looks].expand(-1, goal.shape[1], -1, -1), goal[..., :looks])
        seen = torch.cat([went.to(goal.dtype), goal[..., looks:]], dim=-1).flatten(2)
        return self.outputs(F.silu(self.inputs(seen) + self.time(as_waves(offsets_s))))  # type: ignore[no-any-return]


Called = Callable[[Tensor, Tensor], Tensor]  # parts [B, P, D], words [B, V] -> [B, P, 2]: how probably each shows what they name


class Similarity(nn.Module):
    """How the live picture resembles the words, one token `[B, 1, W]`: its first `channels` are plain cosines.

    Those of the best and of the average part, in a space that is learned; with `joint`, whose encoders share a space (CLIP),
    that of the whole picture there; with `called`, which knows what words stand for (`SceneNetEncoder.called`), how surely the
    thing is in the picture. The other channels say where in the picture.
    """

    def __init__(
        self, dim: int, words: int, cells: int, matching: int, width: int, joint: bool = False, called: Called | None = None
    ) -> None:
        super().__init__()
        self.dim, self.joint, self.channels = dim, joint, 2 + joint + (called is not None)
        self._called = called  # a function, not a part: it is not trained here
        self.look = nn.Linear(dim, matching)
        self.words = nn.Linear(words, matching)
        self.where = nn.Linear(cells * (3 if called else 1), width - self.channels)

    def forward(
        self, live: Float[Tensor, "B P F"], words: Float[Tensor, "B V"], told: Float[Tensor, "B"]
    ) -> Float[Tensor, "B 1 W"]:
        """`told`: 1 where a row has words, else 0: then the token does not depend on them."""
        look = live[..., : self.dim]
        here = F.normalize(self.look(F.rms_norm(look, (self.dim,))), dim=-1)
        cosines = told[:, None] * torch.einsum("bpc,bc->bp", here, F.normalize(self.words(_unit(words)), dim=-1))  # [B, P]
        plain = [cosines.amax(dim=1), cosines.mean(dim=1)]
        if self.joint:
            plain.append(told * F.cosine_similarity(look.mean(dim=1), words, dim=-1))
        maps = [cosines]
        if self._called is not None:
            shown = told[:, None, None] * self._called(look, words)  # [B, P, 2]
            plain.append(shown[..., 1].amax(dim=1))
            maps.extend(shown.unbind(dim=-1))
        where = self.where(math.sqrt(cosines.shape[1]) * torch.cat(maps, dim=1))
        return torch.cat([torch.stack(plain, dim=-1), where], dim=-1)[:, None]


class Mixing(nn.Module):
    """Self-attention and MLP among the tokens, once per observation; the first `kept` are read but stay as they are.

    The identity at initialisation.
    """

    def __init__(self, width: int, heads: int, kept: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads, self.kept, hidden = heads, kept, int(mlp_ratio * width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
        for last in (self.out, self.mlp[2]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        kept, x = torch.split(tokens, [self.kept, tokens.shape[1] - self.kept], dim=1)  # a slice costs a whole gradient of zeros
        normed = F.rms_norm(tokens, tokens.shape[-1:])
        key, value = (_split(part, self.heads) for part in self.key_value(normed).chunk(2, dim=-1))
        seen = F.scaled_dot_product_attention(_split(self.query(normed[:, self.kept :]), self.heads), key, value)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return torch.cat([kept, x + self.mlp(F.rms_norm(x, x.shape[-1:]))], dim=1)


def _unit(words: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Of unit mean square; no words (all zeros) stay zeros."""
    return F.rms_norm(words, words.shape[-1:], eps=1e-6)


def _split(x: Float[Tensor, "B M W"], heads: int) -> Float[Tensor, "B K M E"]:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
