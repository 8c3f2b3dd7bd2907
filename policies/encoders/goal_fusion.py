"""Past frames and one goal picture to tokens, as ViNT and NoMaD do it (Shah et al. 2023, Sridhar et al. 2023).

    camera [T frames] --backbone--> parts --look--> T tokens  \\
    state                                          1 token    |--self-attention--> "all" tokens (ViNT) or their "mean" (NoMaD)
    last frame, goal  --backbone--> parts --fuse--> 1 token   /

Early fusion: features of the last frame and of the goal are stacked part by part before convolutions look at both. Where a row is
told no goal, the attention and the mean leave the goal's token out (NoMaD's goal mask), so nothing of it is seen.

Unlike theirs, the backbone is frozen and shared (they train two EfficientNet-B0, one of six channels), and there is a token of
the state: one policy drives bodies of different speed, whose commands are not normalised. Of the two frames, a network of six
channels learns from its first layer on where things went. Frozen features of each frame alone tell that to two convolutions no
more, so where the backbone knows it (`SceneNetEncoder.moved`) it is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kineflow.contracts import CameraSpec, GoalSpec, KineflowError, VectorSpec
from kineflow.policies.encoders.goal import FrameConfig
from kineflow.policies.encoders.goal_tokens import Correspondence, Moved
from kineflow.policies.encoders.scene_net import SceneNetEncoder
from kineflow.policies.encoders.small_vit import SmallViT
from kineflow.policies.encoders.state import State, StateEncoder, StateFeatures
from kineflow.policies.observed import Observed


@dataclass(frozen=True)
class GoalFusion:
    """Encoder configuration: `depth` transformer layers of width `token`, after `channels` features of each part of a frame.

    A policy that is shown a video and no image takes the frame `subgoal_s` ahead in it for its goal.
    """

    frames: FrameConfig = field(default_factory=lambda: SmallViT(grid=3))
    token: int = 256
    depth: int = 4
    attention_heads: int = 4
    expansion: int = 4  # of the layers' MLP
    channels: int = 64
    readout: Literal["all", "mean"] = "all"
    subgoal_s: float = 2.0
    state: State = field(default_factory=lambda: State(width=128, depth=2, token=256))
    flow: ClassVar[None] = None  # no motion between frames

    def __post_init__(self) -> None:
        if self.token % self.attention_heads:
            raise KineflowError(f"GoalFusion.token {self.token} must be a multiple of attention_heads {self.attention_heads}")

    def geometry(self, spec: VectorSpec, observation_horizon: int) -> StateFeatures | None:
        """Features of the state, if the policy has any."""
        return self.state.geometry(spec, observation_horizon) if spec.size else None

    def build(
        self,
        spec: VectorSpec,
        observation_horizon: int,
        cameras: Mapping[str, CameraSpec],
        goals: Mapping[str, GoalSpec] | None = None,
    ) -> GoalFusionEncoder:
        """Raises KineflowError for goals, cameras or widths that do not fit."""
        kinds = sorted(spec.kind for spec in (goals or {}).values())
        if len(cameras) != 1 or kinds not in (["image"], ["image", "video"]):
            raise KineflowError(
                f"GoalFusion takes one camera and one goal image, and a video to draw it from; policy.cameras are "
                f"{sorted(cameras)}, policy.goals of kinds {kinds}"
            )
        if spec.size and self.state.token != self.token:
            raise KineflowError(
                f"GoalFusion.token {self.token} and its state.token {self.state.token} differ; give them one width"
            )
        return GoalFusionEncoder(self, spec, observation_horizon, next(iter(cameras)), goals or {})


class GoalFusionEncoder(nn.Module):
    """`Observed` to tokens: `[B, T + 1 (+ 1), D]`, or `[B, 1, D]` for the mean."""

    def __init__(
        self, config: GoalFusion, spec: VectorSpec, observation_horizon: int, camera: str, goals: Mapping[str, GoalSpec]
    ) -> None:
        super().__init__()
        self.config, self.camera, self.goals = config, camera, dict(goals)
        self.frames = config.frames.build()
        dim, cells, width = self.frames.look_dim, self.frames.tokens, config.token
        moved = self.frames.moved if isinstance(self.frames, SceneNetEncoder) else None
        self.look = _Look(dim, cells, config.channels, width)
        self.fuse = _Fusion(dim, max(self.frames.grid, 1), config.channels, width, moved)
        geometry = config.geometry(spec, observation_horizon)
        self.state = StateEncoder(config.state, geometry) if geometry else None
        count = observation_horizon + (self.state is not None) + 1
        self.place = nn.Parameter(0.02 * torch.randn(count, width))
        self.layers = nn.ModuleList(_Layer(width, config.attention_heads, config.expansion) for _ in range(config.depth))
        self.token_shape = (count if config.readout == "all" else 1, width)

    def standardise(self, mean: Float[Tensor, "F"], std: Float[Tensor, "F"]) -> None:
        """Take the statistics of the state's geometry features; pictures need none."""
        if self.state is not None:
            self.state.standardise(mean, std)

    def forward(self, observed: Observed) -> Float[Tensor, "B N D"]:
        seen = self.features(observed.images[self.camera])
        goal, told = self._goal(observed, seen)
        parts = [self.look(seen)]
        if self.state is not None:
            parts.append(self.state(observed))
        parts.append(self.fuse(seen[:, -1], goal)[:, None])
        tokens = torch.cat(parts, dim=1) + self.place
        visible = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        visible[:, -1] = told
        for layer in self.layers:
            tokens = layer(tokens, visible)
        tokens = F.rms_norm(tokens, tokens.shape[-1:]) * visible[..., None]
        return tokens if self.config.readout == "all" else tokens.sum(dim=1, keepdim=True) / visible.sum(dim=1)[:, None, None]

    def features(self, frames: Tensor) -> Float[Tensor, "B L P F"]:
        """Of uint8 frames `[B, L, H, W, 3]`; float `[B, L, P, F]` are features already. Raises KineflowError for other ones."""
        if frames.dtype == torch.uint8:
            return self.frames(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # type: ignore[no-any-return]
        if frames.shape[2:] != (self.frames.tokens, self.frames.dim):
            raise KineflowError(
                f"features of shape {tuple(frames.shape[2:])}, this encoder makes ({self.frames.tokens}, {self.frames.dim}); "
                "compute them again with its configuration"
            )
        return frames.to(self.place.dtype)

    def _goal(self, observed: Observed, seen: Float[Tensor, "B T P F"]) -> tuple[Float[Tensor, "B P F"], Bool[Tensor, "B"]]:
        """The picture that each row is to reach, and which rows are told one."""
        picture, told = torch.zeros_like(seen[:, -1]), torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
        for name, spec in sorted(self.goals.items(), key=lambda goal: goal[1].kind, reverse=True):  # an image outdoes a video
            if name not in observed.goals or not bool(observed.given[name].any()):
                continue
            shown, given = observed.goals[name], observed.given[name]
            if spec.kind == "video":
                shown = shown[:, min(round(self.config.subgoal_s * spec.rate_hz), spec.frames - 1)]
            picture = torch.where(given[:, None, None], self.features(shown[:, None])[:, 0], picture)
            told = told | given
        return picture, told


class _Look(nn.Module):
    """Parts of frames `[B, L, P, F]` to one token for each frame `[B, L, W]`."""

    def __init__(self, dim: int, cells: int, channels: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.parts, self.token = nn.Linear(dim, channels), nn.Linear(cells * channels, width)

    def forward(self, seen: Float[Tensor, "B L P F"]) -> Float[Tensor, "B L W"]:
        looks = F.rms_norm(seen[..., : self.dim], (self.dim,))
        return self.token(F.silu(self.parts(looks)).flatten(2))  # type: ignore[no-any-return]


class _Fusion(nn.Module):
    """Parts of two frames `[B, P, F]`, side by side from the first layer on, to one token `[B, W]`.

    The first `dim` of the features say what a part looks like; `moved`, if the backbone knows it, where it is in the other frame.
    """

    def __init__(self, dim: int, side: int, channels: int, width: int, moved: Moved | None = None) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        self.inputs = nn.Conv2d(2 * dim, channels, kernel_size=1)
        self.mix = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
        self.token = nn.Linear(channels * side * side, width)
        self.moved = Correspondence(moved, side * side, 0, width) if moved else None

    def forward(self, here: Float[Tensor, "B P F"], there: Float[Tensor, "B P F"]) -> Float[Tensor, "B W"]:
        both = torch.cat([F.rms_norm(parts[..., : self.dim], (self.dim,)) for parts in (here, there)], dim=-1)
        hidden = self.inputs(both.transpose(1, 2).reshape(len(both), -1, self.side, self.side))
        for layer in self.mix:
            hidden = hidden + layer(F.silu(hidden))
        token: Tensor = self.token(F.silu(hidden).flatten(1))
        return token if self.moved is None else token + self.moved(here, there[:, None], here.new_zeros(1))[:, 0]


class _Layer(nn.Module):
    """Pre-norm self-attention among the visible tokens and an MLP; the identity at initialisation."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU("tanh"), nn.Linear(expansion * width, width))
        for last in (self.out, self.mlp[2]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "B N W"], visible: Bool[Tensor, "B N"]) -> Float[Tensor, "B N W"]:
        query, key, value = self.qkv(F.rms_norm(x, x.shape[-1:])).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).masked_fill(~visible[:, None, None], -torch.inf)
        seen = torch.softmax(scores, dim=-1).to(value) @ value  # for so few tokens quicker than a fused kernel
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(F.rms_norm(x, x.shape[-1:]))  # type: ignore[no-any-return]
