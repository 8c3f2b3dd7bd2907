"""Where in its goal video a robot is: a head that reads it off the condition tokens. clip_follower.py follows the clip by it.

    clip, 5 Hz     c0  c1  c2  c3  c4  c5  c6  c7  c8 ..
    video shown            [c2     c4     c6]            begins where the robot is believed to be
    answer                     ^ 0.2 s ahead of c2       the belief moves there, and on by what is executed of the chunk

In training the video begins a little before or behind the robot (`GoalWindows.slack`), so the answer is known there; nobody needs
to know poses where the policy drives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.flag_dit import RMSNorm
from kineflow.policies.losses import Losses

Tokens = Float[Tensor, "B N D"]


@dataclass(frozen=True)
class Progress:
    """How the head learns: `weight` of its loss beside that of the actions; errors beyond `scale_s` count linearly."""

    weight: float = 0.1
    width: int = 128
    scale_s: float = 0.5

    def __post_init__(self) -> None:
        if not (self.weight > 0 and self.scale_s > 0) or self.width < 1:
            raise KineflowError(
                f"Progress.weight {self.weight:g}, scale_s {self.scale_s:g} and width {self.width} must be positive; for no such "
                "head leave policy.progress empty"
            )


class ProgressHead(nn.Module):
    """Condition tokens `[B, N, D]` to how far ahead of its video's first frame the robot is: `[B]`, seconds of the clip."""

    def __init__(self, config: Progress, token_shape: tuple[int, int]) -> None:
        super().__init__()
        (count, size), width = token_shape, config.width
        self.config = config
        self.read = nn.Linear(size, width)
        self.token_identity = nn.Parameter(0.02 * torch.randn(count, width))
        self.attention = nn.Linear(width, 1)
        self.norm = RMSNorm(width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, condition: Tokens) -> Float[Tensor, "B"]:
        hidden = self.norm(self.read(condition) + self.token_identity)
        share = torch.softmax(self.attention(hidden), dim=1)
        seen = torch.cat([(share * hidden).sum(dim=1), hidden.mean(dim=1)], dim=-1)
        answer: Tensor = self.out(seen)[:, 0]
        return self.config.scale_s * answer

    def loss(self, condition: Tokens, ahead_s: Float[Tensor, "B"], told: Bool[Tensor, "B"]) -> Losses:
        """Each row's Huber loss in units of `scale_s`, times the configured weight; 0 where no video was `told`."""
        scale = self.config.scale_s
        error = F.huber_loss(self(condition).float() / scale, ahead_s.float() / scale, reduction="none")
        return self.config.weight * error * told
