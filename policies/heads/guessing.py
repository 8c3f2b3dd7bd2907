"""A head with the source of its noise: MixFlow's network, which knows the previous chunk (policies/mix_flow.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.mix_flow import Guess, GuessFromChunk


@dataclass(frozen=True)
class Guessing:
    """`head` beside a small MLP of `source_width` that makes a guess of the previous chunk."""

    head: MLP | DiT | UNet | FlagDiT | FlowDiT = field(default_factory=MLP)
    source_width: int = 128

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int]) -> GuessingHead:
        """For the objective MixFlow alone: no other one asks for a guess."""
        source = GuessFromChunk(horizon, action_dim, condition_shape, self.source_width)
        return GuessingHead(self.head.build(horizon, action_dim, condition_shape), source)


class GuessingHead(nn.Module):
    """`(x [B, H, A], t, condition) -> velocity [B, H, A]`, as the head inside."""

    def __init__(self, head: nn.Module, source: GuessFromChunk) -> None:
        super().__init__()
        self.head, self.source = head, source

    def forward(
        self, x: Float[Tensor, "B H A"], t: Float[Tensor, "B *per_action"], condition: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B H A"]:
        return self.head(x, t, condition)  # type: ignore[no-any-return]

    def guess(self, previous: Float[Tensor, "B H A"], condition: Float[Tensor, "B N D"]) -> Guess:
        """Where to start, of the chunk of the last call as seen from now (`mix_flow.shifted`)."""
        answer: Guess = self.source(previous, condition)
        return answer
