"""How many steps it is to a picture: a head beside the actions, and the questions by which it learns (ViNT, NoMaD).

    clip of a window    c[cursor]  ....  c[cursor + k]  ....  c[last]
                        the robot        a subgoal, drawn     the goal image
                        |--- distance -->|

A policy with this head is asked, while it trains, about pictures drawn from the video that lies ahead of each window. Label: the
time of the clip from where the robot is (the recorded cursor) to that picture, or to the end of the clip if that is nearer, in
steps of the action, at most `furthest`. For the goal image, the last frame, that is all that is left of the clip. The cursor and
the length of the clip give the label and nothing else: the network sees the camera and one picture, in training as when it acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import GoalSpec, KineflowError
from kineflow.policies.losses import Losses
from kineflow.policies.observed import TrainingBatch

Tokens = Float[Tensor, "B N D"]


@dataclass(frozen=True)
class TemporalDistance:
    """How the head learns. Shares of the training windows that are asked about the clip's end in place of a nearer picture
    (`final`), about a picture of another window (`negatives`: `furthest` away, and no actions are learned), about nothing
    (`masking`, the goal masking of NoMaD: such a policy explores where it is told no goal).

    `weight` is that of the squared error of distance / `furthest` beside the loss of the actions.
    """

    weight: float = 0.5
    furthest: int = 50  # steps: the papers' 20 of 0.25 s
    final: float = 0.3
    negatives: float = 0.05  # theirs: 1 of 21 offsets
    masking: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.furthest < 1:
            raise KineflowError(f"TemporalDistance.weight {self.weight:g} and furthest {self.furthest} must be positive")
        if min(self.final, self.negatives, self.masking) < 0 or max(self.final, self.negatives, self.masking) >= 1:
            raise KineflowError(f"{self}: final, negatives and masking are probabilities below 1")

    def build(self, token_shape: tuple[int, int], goals: Mapping[str, GoalSpec], rate_hz: float) -> DistanceHead:
        """`rate_hz`: of the actions. Raises KineflowError unless `goals` are one image and one video of equal frames."""
        named = {spec.kind: name for name, spec in goals.items()}
        if len(goals) != 2 or set(named) != {"image", "video"}:
            raise KineflowError(
                f"policy.goals are {sorted(goals)}; a policy with a temporal distance takes an image, and learns from a video: "
                "name one of each"
            )
        image, video = goals[named["image"]], goals[named["video"]]
        if (image.height, image.width) != (video.height, video.width):
            raise KineflowError(f"policy.goals: the image is {image}, the video {video}; give both the same height and width")
        return DistanceHead(self, token_shape, (named["image"], named["video"]), video.rate_hz, rate_hz)


class DistanceHead(nn.Module):
    """Condition tokens `[B, N, D]` to steps `[B]`. `names`: of the goal image and the goal video; rates in Hz."""

    def __init__(
        self,
        config: TemporalDistance,
        token_shape: tuple[int, int],
        names: tuple[str, str],
        video_hz: float,
        action_hz: float,
    ) -> None:
        super().__init__()
        self.config, self.names, self.video_hz, self.action_hz = config, names, video_hz, action_hz
        count, size = token_shape
        inner, narrow = max(size // 4, 1), max(size // 16, 1)
        layers = (nn.Linear(count * size, inner), nn.SiLU(), nn.Linear(inner, narrow), nn.SiLU(), nn.Linear(narrow, 1))
        self.layers = nn.Sequential(*layers)

    @property
    def explores(self) -> bool:
        """May the policy be asked without a goal?"""
        return self.config.masking > 0

    def forward(self, condition: Tokens) -> Float[Tensor, "B"]:
        """Predicted steps; of a row without a goal they mean nothing."""
        share: Tensor = self.layers(condition.flatten(1))[:, 0]
        return self.config.furthest * share

    def loss(self, condition: Tokens, steps: Float[Tensor, "B"]) -> Losses:
        """Each row's weighted squared error; zero where `steps` is NaN: asked about nothing."""
        asked = torch.isfinite(steps)
        error = (self(condition).float() - torch.where(asked, steps, 0.0)) / self.config.furthest
        loss: Losses = self.config.weight * asked * error**2
        return loss

    def questions(self, batch: TrainingBatch, generator: torch.Generator) -> TrainingBatch:
        """`batch`, each row asked about one picture or about none, as `TemporalDistance` says, with the `distance` to it.

        Raises:
            KineflowError: windows that do not say how much of their clip is left.
        """
        config, (image, video), seen = self.config, self.names, batch.observed
        if batch.left_s is None:
            raise KineflowError("windows without left_s teach no distance; read them with goals (datasets/window_goals.py)")
        frames, rows = seen.goals[video], torch.arange(len(seen.state), device=seen.state.device)
        drawn, final, other, masked = torch.rand(4, len(rows), generator=generator, device=generator.device).to(rows.device)
        frame = (drawn * frames.shape[1]).long()
        is_final, is_masked = final < config.final, masked < config.masking
        is_other = (other < config.negatives) & ~is_masked
        picture = _chosen(is_final, seen.goals[image], frames[rows, frame])
        ahead_s = frame / self.video_hz - (0.0 if batch.ahead_s is None else batch.ahead_s)
        ahead_s = torch.where(is_final, batch.left_s, torch.minimum(ahead_s, batch.left_s))
        steps = (self.action_hz * ahead_s.abs()).clamp(max=config.furthest)
        steps = torch.where(is_other, float(config.furthest), steps)
        picture = _chosen(is_other, picture.roll(1, 0), picture)
        return replace(
            batch,
            observed=replace(seen, goals={image: picture}, given={image: ~is_masked}),
            weight=batch.weight * ~is_other[:, None],
            distance=torch.where(is_masked, torch.nan, steps),
        )


def _chosen(which: Tensor, some: Tensor, others: Tensor) -> Tensor:
    """Rows of `some` where `which` holds, else of `others`."""
    return torch.where(which.view(-1, *(1,) * (some.ndim - 1)), some, others)
