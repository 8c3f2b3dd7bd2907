"""When to stop: a head that reads "the goal is reached" off the condition tokens. What makes a halt of answers: clip_follower.py.

Where the encoder compares the camera's picture with the instruction, the cosine similarity enters the logit directly, with a
learned scale and threshold: alone it is the rule "stop where the picture looks like the words". Windows in which the task is
done are few; they weigh as much as all others together. So `stop_probability` is for a world in which half of the windows are
done: at 0.5 both mistakes are equally bad.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.flag_dit import RMSNorm
from kineflow.policies.losses import Losses

Tokens = Float[Tensor, "B N D"]
FEWEST = 1e-3  # share of either kind of window below which its weight no longer grows


@dataclass(frozen=True)
class Stop:
    """How the stop head learns: `weight` of its loss beside that of the actions, and whether it may shape the encoder."""

    weight: float = 0.1
    width: int = 128
    shapes_encoder: bool = True  # False: the head only reads; the encoder learns from the actions alone

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.width < 1:
            raise KineflowError(
                f"Stop.weight {self.weight:g} and width {self.width} must be positive; for no stop head leave policy.stop empty"
            )


class StopHead(nn.Module):
    """Condition tokens `[B, N, D]` to the logit of "done". `done_share`: of the training windows, for the balance.

    `similarity` is (token, channels): where the tokens say in plain numbers how the picture resembles the instruction.
    """

    def __init__(
        self, config: Stop, token_shape: tuple[int, int], done_share: float, similarity: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        (count, size), width, share = token_shape, config.width, min(max(done_share, FEWEST), 1 - FEWEST)
        self.config, self.similarity = config, similarity
        self.weight_done, self.weight_not = 0.5 / share, 0.5 / (1 - share)
        self.read = nn.Linear(size, width)
        self.token_identity = nn.Parameter(0.02 * torch.randn(count, width))
        self.attention = nn.Linear(width, 1)  # which tokens matter
        self.norm = RMSNorm(width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        self.scale = nn.Parameter(torch.full((similarity[1],), 5.0)) if similarity else None
        self.threshold = nn.Parameter(torch.full((similarity[1],), 0.5)) if similarity else None

    def forward(self, condition: Tokens) -> Float[Tensor, "B"]:
        """Logits."""
        hidden = self.norm(self.read(condition) + self.token_identity)
        share = torch.softmax(self.attention(hidden), dim=1)  # [B, N, 1]
        seen = torch.cat([(share * hidden).sum(dim=1), hidden.mean(dim=1)], dim=-1)
        logit: Tensor = self.out(seen)[:, 0]
        if self.scale is None or self.threshold is None or self.similarity is None:
            return logit
        token, channels = self.similarity
        cosines = condition[:, token, :channels]
        return logit + (self.scale * (cosines - self.threshold)).sum(dim=-1)

    def loss(self, condition: Tokens, done: Float[Tensor, "B"]) -> Losses:
        """Each row's cross-entropy, balanced, times the configured weight; `done` is 0 or 1."""
        logit = self(condition if self.config.shapes_encoder else condition.detach()).float()
        balance = torch.where(done > 0.5, self.weight_done, self.weight_not)
        return self.config.weight * balance * F.binary_cross_entropy_with_logits(logit, done.to(logit), reduction="none")
