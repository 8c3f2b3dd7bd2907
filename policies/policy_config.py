"""What defines a policy's network and its sampling; the unions here are the registries of `kind:` in configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from kineflow.contracts import FeatureStatistics, GoalSpec, Horizons, Interface, KineflowError
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.goal_fusion import GoalFusion
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.vision import Vision
from kineflow.policies.heads.arc import Arc
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.guessing import Guessing
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.mix_flow import MixFlow
from kineflow.policies.normaliser import Scaling
from kineflow.policies.objectives import MIP, Diffusion, FlowMap, FlowMatching, Regression
from kineflow.policies.policy_statistics import origin_dimensions, state_spec, training_statistics
from kineflow.policies.progress import Progress
from kineflow.policies.stop import Stop
from kineflow.policies.temporal_distance import TemporalDistance

HeadConfig: TypeAlias = MLP | DiT | UNet | FlagDiT | FlowDiT | Arc | Guessing
EncoderConfig: TypeAlias = State | Vision | GoalVision | GoalFusion


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that defines the network and its sampling; saved as config.yaml beside the weights."""

    horizons: Horizons
    head: HeadConfig
    objective: FlowMatching | Diffusion | FlowMap | MixFlow | Regression | MIP
    encoder: EncoderConfig
    features: tuple[str, ...] = ("state",)
    cameras: tuple[str, ...] = ()
    goals: Mapping[str, GoalSpec] = field(default_factory=dict)  # ways to say what to reach, for an encoder of goals
    stop: str = ""  # feature [1] that supervises a stop head: 1 where the task is done
    stop_head: Stop = field(default_factory=Stop)  # used where `stop` names a feature
    progress: str = ""  # goal video in which a progress head finds its place: see policies/progress.py and goals.slack
    progress_head: Progress = field(default_factory=Progress)  # used where `progress` names a goal
    distance: TemporalDistance | None = None  # a head that says how many steps it is to a goal image
    privileged: tuple[str, ...] = ()  # features that supervise a Vision encoder in training, absent when it acts
    # Names of the state dimensions that the action dimensions are measured from, at the last observed step; empty: absolute.
    relative_to: tuple[str, ...] = ()
    action_scaling: Scaling = "gaussian"

    def __post_init__(self) -> None:
        if isinstance(self.head, Guessing) != isinstance(self.objective, MixFlow):
            raise KineflowError(
                f"head {type(self.head).__name__} with objective {type(self.objective).__name__}: a Guessing head and MixFlow "
                "need each other; take both (`kineflow distill RUN --method mixflow`) or neither"
            )
        if self.progress and (self.progress not in self.goals or self.goals[self.progress].kind != "video"):
            raise KineflowError(f"policy.progress is '{self.progress}', policy.goals {sorted(self.goals)}; name a video of them")
        bodies = len(self.encoder.embodiments) if isinstance(self.encoder, GoalVision) else 0
        inner = self.head.head if isinstance(self.head, Arc | Guessing) else self.head
        if isinstance(inner, FlowDiT) and inner.embodiments not in (1, bodies):
            raise KineflowError(
                f"FlowDiT.embodiments is {inner.embodiments}, but the encoder tells {bodies} apart (GoalVision.embodiments); "
                "give both the same, or 1"
            )
        if self.goals and isinstance(self.encoder, State | Vision):
            raise KineflowError(
                f"policy.goals names {sorted(self.goals)}, which a {type(self.encoder).__name__} encoder does not see; take an "
                "encoder of goals, or leave the goals out"
            )

    def statistics(
        self,
        interface: Interface,
        raw: Mapping[str, FeatureStatistics],
        state: Float[np.ndarray, "N T S"],
        action: Float[np.ndarray, "N H A"],
    ) -> dict[str, FeatureStatistics]:
        """What a network of this configuration needs, from all training windows and the store's `raw` statistics."""
        spec = state_spec(interface, self.features)
        geometry = self.encoder.geometry(spec, self.horizons.observation)
        return training_statistics(geometry, origin_dimensions(self.relative_to, interface, spec), raw, state, action)
