"""Goals to condition tokens: a video, a picture, words, or several of them, beside what the cameras see and which robot it is.

    goal video [G frames] --backbone, flow--> features --temporal attention pooling--> queries tokens
                                                 `--compared with the live frame-----> G tokens
    goal image: a video of one frame           words --text encoder--> 1 token, compared with the live frame: 1 token
    cameras [T frames]: each part of the last frame, one token for each earlier one; state: 1 token; embodiment: token 0

A goal that a row was not given is replaced by learned tokens: nothing that its arrays hold is seen. Frames come as uint8, or as
float16 features of the frozen backbone that were computed before (`GoalVisionEncoder.features` says which).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kineflow.contracts import CameraSpec, GoalSpec, KineflowError, VectorSpec
from kineflow.policies.encoders.clip import CLIPImage, CLIPText
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.efficientnet_lite import EfficientNetLite
from kineflow.policies.encoders.flow_features import LucasKanade
from kineflow.policies.encoders.flow_net import FlowNet
from kineflow.policies.encoders.flow_peers import DIS, RAFT
from kineflow.policies.encoders.frame_encoder import check_grid, pooled_tokens
from kineflow.policies.encoders.goal_tokens import (
    Comparison,
    Correspondence,
    FrameTokens,
    Mixing,
    Similarity,
    TemporalPooling,
)
from kineflow.policies.encoders.resnet_gn import ResNetGN
from kineflow.policies.encoders.scene_net import SceneNet, SceneNetEncoder
from kineflow.policies.encoders.scene_words import SceneWords
from kineflow.policies.encoders.small_vit import SmallViT
from kineflow.policies.encoders.state import State, StateEncoder, StateFeatures
from kineflow.policies.encoders.static_words import HashedWords, StaticWords
from kineflow.policies.observed import Observed

# The registries of `kind:` in configs.
FrameConfig: TypeAlias = DINOv2 | CLIPImage | SmallViT | ResNetGN | EfficientNetLite | SceneNet | Colours
TextConfig: TypeAlias = CLIPText | StaticWords | HashedWords | SceneWords
FlowConfig: TypeAlias = FlowNet | LucasKanade | DIS | RAFT
MOST_CELLS = 64  # of a frame that is compared part by part: the comparison grows with the square


@dataclass(frozen=True)
class GoalVision:
    """Encoder configuration. `embodiments` names the dimensions of the state that are the one-hot of the robot's body.

    `camera` is whose frames the goals are compared with (empty: the only one). Without any camera a goal video is all there is to
    see, and its frames are compared with its first one (visual odometry). All tokens have the width `token`, also `state`.
    """

    frames: FrameConfig = field(default_factory=lambda: SmallViT(grid=3))
    text: TextConfig = field(default_factory=HashedWords)
    flow: FlowConfig | None = None  # None: no motion between frames
    camera: str = ""
    embodiments: tuple[str, ...] = ()
    token: int = 192
    queries: int = 4  # tokens that each goal is pooled to
    attention_heads: int = 4
    comparison: bool = True  # a token for each goal frame that compares it with the live one
    view: int = 0  # the live frame becomes view x view tokens; 0: one for each of its parts
    matching: int = 32  # features in which parts are compared
    depth: int = 2  # of self-attention among the tokens
    mlp_ratio: float = 4.0  # of the layers there: hidden units per channel
    goal_dropout: float = 0.0  # share of a row's goals hidden in training, where it has several; one is always left (1: only one)
    goal_odds: Mapping[str, float] = field(default_factory=dict)  # of a goal to be the one left, against 1 of those not named
    state: State = field(default_factory=lambda: State(width=128, depth=2, token=192))
    state_dropout: float = 0.0  # share of training rows that are told a state of zeros (but the body): who rests is not done

    def __post_init__(self) -> None:
        for name in ("goal_dropout", "state_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise KineflowError(f"GoalVision.{name} is {getattr(self, name):g}; it is a probability")
        if wrong := [name for name, odds in self.goal_odds.items() if not odds > 0]:
            raise KineflowError(f"GoalVision.goal_odds of '{wrong[0]}' are {self.goal_odds[wrong[0]]:g}; they must be positive")
        if self.token % self.attention_heads or self.token <= len(self.embodiments) + 8:
            raise KineflowError(
                f"GoalVision.token {self.token} must be a multiple of attention_heads {self.attention_heads}, "
                "and wider than the one-hot of the embodiments by more than 8"
            )

    def geometry(self, spec: VectorSpec, observation_horizon: int) -> StateFeatures | None:
        """Features of the state without the embodiment, if the policy has any state. Raises KineflowError for unknown names."""
        if not spec.size:
            return None
        return OtherFeatures(self.state, spec, observation_horizon, _body(self.embodiments, spec))

    def build(
        self,
        spec: VectorSpec,
        observation_horizon: int,
        cameras: Mapping[str, CameraSpec],
        goals: Mapping[str, GoalSpec] | None = None,
    ) -> GoalVisionEncoder:
        """Raises KineflowError for names, widths or kinds of goals that do not fit."""
        goals = goals or {}
        blind = not cameras and not self.camera and [goal.kind for goal in goals.values()] == ["video"]
        if self.camera not in cameras and (self.camera or len(cameras) != 1) and not blind:
            raise KineflowError(
                f"GoalVision.camera is '{self.camera}', policy.cameras names {sorted(cameras)}; name the one that sees what the "
                "goals show, or none where a video is the only goal"
            )
        if strange := sorted(name for name, goal in goals.items() if goal.kind not in ("image", "video", "instruction")):
            raise KineflowError(
                f"policy.goals names '{strange[0]}', a {goals[strange[0]].kind}; GoalVision sees pictures and words"
            )
        if unknown := sorted(set(self.goal_odds) - set(goals)):
            raise KineflowError(f"GoalVision.goal_odds names '{unknown[0]}', policy.goals has {sorted(goals)}")
        if sum(goal.kind == "instruction" for goal in goals.values()) > 1:
            raise KineflowError("policy.goals has several instructions; a robot is told one")
        if spec.size > len(self.embodiments) and self.state.token != self.token:
            raise KineflowError(
                f"GoalVision.token {self.token} and GoalVision.state.token {self.state.token} differ; give them one width"
            )
        return GoalVisionEncoder(self, spec, observation_horizon, cameras, goals)


def _body(embodiments: tuple[str, ...], spec: VectorSpec) -> list[int]:
    if unknown := [name for name in embodiments if name not in spec.names]:
        raise KineflowError(f"GoalVision.embodiments names {unknown}, but the state has {spec.names}; add the feature")
    return [spec.names.index(name) for name in embodiments]


class OtherFeatures(StateFeatures):
    """Geometry features of the state without the dimensions `left_out`."""

    def __init__(self, config: State, spec: VectorSpec, observation_horizon: int, left_out: list[int]) -> None:
        kept = [i for i in range(spec.size) if i not in left_out]
        names, units = (tuple(words[i] for i in kept) for words in (spec.names, spec.units))
        low, high, max_rate = (tuple(bounds[i] for i in kept) for bounds in (spec.low, spec.high, spec.max_rate))
        self.kept = list(range(len(kept)))  # the base class asks for its size, of the narrowed state
        super().__init__(config, VectorSpec(names, units, spec.frame, low, high, max_rate), observation_horizon)
        self.kept = kept

    def __call__(self, state: Float[Tensor, "B T S"]) -> Float[Tensor, "B F"]:
        return super().__call__(state[..., self.kept])


class GoalVisionEncoder(nn.Module):
    """`Observed` to tokens `[B, N, D]`; `layout` says which tokens are what.

    With embodiments the first channels of token 0 are the robot's one-hot. Classifier-free guidance hides the goal, not the
    robot: `kept_tokens` tokens at the front, which hold nothing else, are to stay when a condition is hidden. `similarity` is
    (token, channels): where a stop head finds the cosines of live picture and words.
    """

    def __init__(
        self,
        config: GoalVision,
        spec: VectorSpec,
        observation_horizon: int,
        cameras: Mapping[str, CameraSpec],
        goals: Mapping[str, GoalSpec],
    ) -> None:
        super().__init__()
        width, heads = config.token, config.attention_heads
        self.config, self.goals, self.rates = config, dict(goals), {name: cameras[name].rate_hz for name in sorted(cameras)}
        self.camera = config.camera or next(iter(cameras), None)
        self.body = _body(config.embodiments, spec)
        self.words_of = next((name for name, goal in sorted(goals.items()) if goal.kind == "instruction"), None)
        self.frames = config.frames.build()
        self.flow = config.flow.build(self.frames.grid) if config.flow else None
        dim, cells, flow = self.frames.look_dim, self.frames.tokens, self.flow.dim if self.flow else 0
        check_grid(config.view, self.frames.grid, "GoalVision.view")
        if config.comparison and cells > MOST_CELLS:
            raise KineflowError(f"GoalVision compares frames of at most {MOST_CELLS} parts, these have {cells}; set frames.grid")
        self.tokens = FrameTokens(dim, flow, cells, width)
        self.pooling = TemporalPooling(width, heads, config.queries) if self._pictures() else None
        self.comparison: Comparison | Correspondence | None = None
        if self._pictures() and config.comparison:
            self.comparison = (
                Correspondence(self.frames.moved, cells, flow, width)
                if isinstance(self.frames, SceneNetEncoder)
                else Comparison(dim, cells, config.matching, width)
            )
        if self.words_of:
            self.text = config.text.build()
            self.words = nn.Linear(self.text.dim, width)
            called = self.frames.called if isinstance(self.frames, SceneNetEncoder) and config.text == SceneWords() else None
            self.resemblance = Similarity(dim, self.text.dim, cells, config.matching, width, _share_a_space(config), called)
        self.embodiment = nn.Linear(len(self.body), width - len(self.body)) if self.body else None
        geometry = config.geometry(spec, observation_horizon)
        self.state = StateEncoder(config.state, geometry) if geometry and geometry.size else None
        self.layout = self._layout(config.view**2 or cells, observation_horizon)
        self.kept_tokens = int(bool(self.body))
        self.similarity = (self.kept_tokens, self.resemblance.channels) if self.words_of else None
        self.plain = self.kept_tokens + bool(self.words_of)  # tokens with channels that mean something as they are
        self.mixing = nn.ModuleList(Mixing(width, heads, self.plain, config.mlp_ratio) for _ in range(config.depth))
        roles = {part: nn.Parameter(0.02 * torch.randn(width)) for part in self.layout}
        self.roles = nn.ParameterDict({part: role for part, role in roles.items() if self.layout[part].start >= self.plain})
        self.null = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(_length(self.layout[f"goal_{name}"]), width)) for name in sorted(goals)}
        )
        self.token_shape = (max(part.stop for part in self.layout.values()), width)
        self._known: dict[str, Tensor] = {}  # of a frozen text encoder: instructions repeat

    def standardise(self, mean: Float[Tensor, "F"], std: Float[Tensor, "F"]) -> None:
        """Take the statistics of the state's geometry features; pictures and words need none."""
        if self.state is not None:
            self.state.standardise(mean, std)

    def forward(self, observed: Observed) -> Float[Tensor, "B N D"]:
        rows, told = len(observed.state), self._told(observed)
        seen = {name: self.features(observed.images[name]) for name in self.rates}
        live, parts = seen[self.camera][:, -1] if self.camera else None, {}
        if self.embodiment is not None:
            body = observed.state[:, -1, self.body]
            parts["embodiment"] = torch.cat([body, self.embodiment(body)], dim=-1)[:, None]
        if self.words_of:
            words, hears = self._words(observed, rows), told[self.words_of]
            assert live is not None  # words need a camera
            parts["similarity"] = self.resemblance(live, words, hears.to(live.dtype))
            parts[f"goal_{self.words_of}"] = self.words(F.rms_norm(words, words.shape[-1:], eps=1e-6))[:, None]
        if self.state is not None:
            parts["state"] = self.state(self._at_rest(observed))
        for name, rate_hz in self.rates.items():
            parts[f"camera_{name}"] = self._view(seen[name], rate_hz)
        for name, goal in self._pictures().items():
            if bool(told[name].any()):
                parts[f"goal_{name}"] = self._shown(observed.goals[name], goal, live)
        tokens = torch.cat([self._part(part, parts.get(part), told, rows) for part in self.layout], dim=1)
        for block in self.mixing:
            tokens = block(tokens)
        plain, rest = torch.split(tokens, [self.plain, tokens.shape[1] - self.plain], dim=1)
        return torch.cat([plain, F.rms_norm(rest, rest.shape[-1:])], dim=1)

    def features(self, frames: Tensor) -> Float[Tensor, "B L P F"]:
        """Of consecutive frames: uint8 `[B, L, H, W, 3]`, or float `[B, L, P, F]` that are features already.

        The P parts are those of the frame encoder. Of their F numbers the first `frames.dim` are its features; those of the
        flow from the frame before follow, if there is a flow encoder; they are zero for the first of the frames.
        """
        if frames.dtype == torch.uint8:
            look = self.frames(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            return look if self.flow is None else torch.cat([look, self._motion(frames).to(look)], dim=-1)
        dim, flow = self.frames.dim, self.flow.dim if self.flow else 0
        if frames.shape[2:] != (self.frames.tokens, dim + flow):
            raise KineflowError(
                f"features of shape {tuple(frames.shape[2:])}, this encoder makes ({self.frames.tokens}, {dim} + {flow}); "
                "compute them again with its configuration"
            )
        features = frames.to(self.tokens.look.weight.dtype)
        if not flow:
            return features
        first = F.pad(features[:, :1, :, :dim], (0, flow))  # what came before the first is not part of the window
        return torch.cat([first, features[:, 1:]], dim=1)

    def _motion(self, frames: Tensor) -> Float[Tensor, "B L P C"]:
        assert self.flow is not None
        rows, length = frames.shape[:2]
        nothing = torch.zeros(rows, 1, self.frames.tokens, self.flow.dim, device=frames.device)
        if length == 1:
            return nothing
        moved = self.flow(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        return torch.cat([nothing, moved.reshape(rows, length - 1, *moved.shape[1:])], dim=1)

    def _view(self, features: Float[Tensor, "B T P F"], rate_hz: float) -> Float[Tensor, "B N D"]:
        """Each part of the last frame, or `view` x `view` of them, and one token for each frame before."""
        steps = torch.arange(features.shape[1], device=features.device, dtype=torch.float32)
        tokens = self.tokens(features, (steps - steps[-1]) / rate_hz)
        last = tokens[:, -1]
        if self.config.view:
            last = pooled_tokens(last, self.frames.grid, self.config.view)
        return torch.cat([tokens[:, :-1].mean(dim=2), last], dim=1)

    def _shown(self, frames: Tensor, goal: GoalSpec, live: Float[Tensor, "B P F"] | None) -> Float[Tensor, "B N D"]:
        assert self.pooling is not None
        features = self.features(frames if goal.kind == "video" else frames[:, None])
        live = features[:, 0] if live is None else live
        steps = torch.arange(features.shape[1], device=features.device, dtype=torch.float32)
        offsets_s = steps / goal.rate_hz if goal.kind == "video" else steps
        parts, places = self.tokens.parts(features).flatten(1, 2), self.tokens.offsets(offsets_s).flatten(0, 1)
        pooled = self.pooling(parts, self.tokens.matrix(), places)
        return pooled if self.comparison is None else torch.cat([pooled, self.comparison(live, features, offsets_s)], dim=1)

    def _part(self, name: str, tokens: Tensor | None, told: Mapping[str, Tensor], rows: int) -> Float[Tensor, "B N D"]:
        """`tokens` with their role; learned ones in the rows that were not told the goal that they are of."""
        goal = name.removeprefix("goal_")
        if goal != name:
            null = self.null[goal].expand(rows, -1, -1)
            tokens = null if tokens is None else torch.where(told[goal][:, None, None], tokens, null.to(tokens.dtype))
        assert tokens is not None
        return tokens + self.roles[name] if name in self.roles else tokens

    def _told(self, observed: Observed) -> dict[str, Bool[Tensor, "B"]]:
        """Which rows see which goal; while training some of several are hidden."""
        nobody = torch.zeros(len(observed.state), dtype=torch.bool, device=observed.state.device)
        given = {name: observed.given.get(name, nobody) for name in sorted(self.goals)}
        if not (self.training and self.config.goal_dropout > 0 and len(given) > 1):
            return given
        each = torch.stack(list(given.values()), dim=1)  # [B, goals]
        odds = each.new_tensor([self.config.goal_odds.get(name, 1.0) for name in given], dtype=torch.float32)
        drawn = torch.rand(each.shape, device=each.device) * each
        last = F.one_hot((drawn ** (1 / odds)).argmax(dim=1), each.shape[1]).bool() & each  # the largest has these odds
        kept = each & ((drawn >= self.config.goal_dropout) | last)
        return dict(zip(given, kept.unbind(dim=1)))

    def _at_rest(self, observed: Observed) -> Observed:
        """While training, some rows with a state of zeros.

        In data a body at rest has nearly always arrived; one that stands at the start must not learn from that to stay.
        """
        if not (self.training and self.config.state_dropout > 0):
            return observed
        moves = torch.rand(len(observed.state), 1, 1, device=observed.state.device) >= self.config.state_dropout
        kept = observed.state.new_zeros(observed.state.shape[-1])
        kept[self.body] = 1.0
        return replace(observed, state=observed.state * torch.where(moves, 1.0, kept))

    def _words(self, observed: Observed, rows: int) -> Float[Tensor, "B V"]:
        texts = observed.instruction or ("",) * rows
        if not self.text.frozen:
            return self.text(texts)  # type: ignore[no-any-return]
        if new := sorted(set(texts) - set(self._known)):
            if len(self._known) + len(new) > MOST_TEXTS:
                self._known.clear()
                new = sorted(set(texts))
            self._known.update(zip(new, self.text(new).detach().float().cpu()))
        return torch.stack([self._known[text] for text in texts]).to(observed.state.device)

    def _pictures(self) -> dict[str, GoalSpec]:
        return {name: goal for name, goal in sorted(self.goals.items()) if goal.kind != "instruction"}

    def _layout(self, cells: int, observation_horizon: int) -> dict[str, slice]:
        counts = {
            "embodiment": int(bool(self.body)),
            "similarity": int(bool(self.words_of)),
            "state": int(self.state is not None),
        }
        counts |= {f"camera_{name}": cells + observation_horizon - 1 for name in self.rates}
        for name, goal in self._pictures().items():
            counts[f"goal_{name}"] = self.config.queries + max(goal.frames, 1) * (self.comparison is not None)
        if self.words_of:
            counts[f"goal_{self.words_of}"] = 1
        layout, start = {}, 0
        for part, count in counts.items():
            if count:
                layout[part] = slice(start, start + count)
                start += count
        return layout


MOST_TEXTS = 4096  # instructions whose vectors are remembered


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _share_a_space(config: GoalVision) -> bool:
    """Are pictures and words embedded by two halves of one CLIP?"""
    frames, text = config.frames, config.text
    if not isinstance(frames, CLIPImage) or not isinstance(text, CLIPText) or frames.grid:
        return False
    return (frames.model, frames.weights) == (text.model, text.weights)
