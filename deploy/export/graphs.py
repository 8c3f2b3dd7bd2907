"""What of a policy is exported: one graph from an observation to a chunk, and one that looks at pictures where goals have many.

    look   frame, frame before                       uint8 [1, H, W, 3]   -> features [1, P, F]     (encoders of goals only)
    act    state, frames or features, goals, noise   batch 1              -> actions in physical units, and what side heads say

The whole pipeline is in them: units, encoder, all steps of the solver, guidance. Noise is an input, `[1, N, H, A]` for the N
draws of the solver, so a runtime answers a seed as `Policy.predict` does. Real-Time Chunking is in the graph of every policy that
has noise levels: the previous chunk in physical units and its soft mask, zero where there is none (Jacobian-free form).

Rows are asked one by one. That costs nothing on a robot, and a row's answer cannot depend on its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from kineflow.contracts import GoalSpec, KineflowError
from kineflow.deploy.export.tracing import traced
from kineflow.policies.encoders.flow_net import FlowNetFlow
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.field import Field, Guide, SampleOptions
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.heads.flow_dit import FlowDiTHead
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.observed import Observed
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.real_time_chunking import DEFAULT_BETA, RealTimeChunking
from kineflow.policies.samplers import RowNoise


@dataclass(frozen=True)
class Graph:
    """A traced computation with an example of each input, all of batch 1, and the names of its outputs."""

    module: fx.GraphModule
    example: Mapping[str, Tensor]
    outputs: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answer = self.module(*(inputs[name] for name in self.example))
        return dict(zip(self.outputs, answer))


class GivenNoise(RowNoise):
    """Draws `[B, N, H, A]` that are there already, in place of those of seeds; where there are fewer, the last one again."""

    def __init__(self, draws: Tensor) -> None:
        super().__init__(np.zeros(len(draws), np.int64), (draws.shape[2], draws.shape[3]))
        object.__setattr__(self, "_draws", draws)
        object.__setattr__(self, "count", 0)

    _draws: Tensor
    count: int  # of draws so far

    def draw(self) -> Tensor:
        object.__setattr__(self, "count", self.count + 1)
        return self._draws[:, min(self.count, self._draws.shape[1]) - 1]


def frozen_copy(network: PolicyNetwork) -> PolicyNetwork:
    """A copy to trace: on the processor, in evaluation mode, without gradients."""
    own = copy.deepcopy(network).cpu().eval()
    own.requires_grad_(False)
    return own


def looks(network: PolicyNetwork) -> bool:
    """Has it an encoder whose pictures are looked at once, by a graph of their own?"""
    return isinstance(network.encoder, GoalVisionEncoder)


def look_graph(network: PolicyNetwork, height: int, width: int) -> Graph:
    """Features of a frame of that size; motion is that from the frame before."""
    encoder = network.encoder
    assert isinstance(encoder, GoalVisionEncoder)
    frames, flow = encoder.frames, encoder.flow

    def look(frame: Tensor, before: Tensor | None = None) -> dict[str, Tensor]:
        seen = frames.features(frames.preprocessing(frame))
        if flow is None or before is None:
            return {"features": seen}
        moved = flow.together(before, frame) if isinstance(flow, FlowNetFlow) else flow(before, frame)
        return {"features": torch.cat([seen, moved.to(seen)], dim=-1)}

    picture = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    example = {"frame": picture} if flow is None else {"frame": picture, "before": picture.roll(2, 2)}
    return Graph(traced(look, example, ("features",)), example, ("features",))


def act_graph(network: PolicyNetwork, steps: int | None) -> Graph:
    """From an observation to a chunk in `steps` steps (None: as configured).

    Raises:
        KineflowError: an encoder or solver that cannot be exported.
    """
    example = _example(network, steps)
    sides = (("stop_probability", network.stop), ("ahead_s", network.progress), ("distance", network.distance))
    outputs = ("actions", *(name for name, head in sides if head is not None))

    def act(**inputs: Tensor) -> dict[str, Tensor]:
        return _answer(network, inputs, steps)

    taken = [name for name in example if name.startswith("told_")]
    return Graph(traced(act, example, outputs, taken), example, outputs)


def takes_prefix(network: PolicyNetwork) -> bool:
    """Can Real-Time Chunking guide it?"""
    objective = network.config.objective
    return isinstance(objective, FlowMatching | Diffusion) or (isinstance(objective, FlowMap) and objective.solver != "jump")


def draws_of(network: PolicyNetwork, steps: int | None) -> int:
    """Chunks of noise that an answer takes."""
    shape, tokens = (1, 1, *network.action_scale.shape), torch.zeros(1, *network.encoder.token_shape)
    noise = GivenNoise(torch.zeros(shape))
    with torch.no_grad():
        network.config.objective.sample(network.head, noise, tokens, SampleOptions(network.null_condition, steps))
    return noise.count


def _answer(network: PolicyNetwork, inputs: Mapping[str, Tensor], steps: int | None) -> dict[str, Tensor]:
    seen = _observed(network, inputs)
    condition, units, objective = network.encoder(seen), network.units(seen), network.config.objective
    head = network.head.fixed(condition) if isinstance(network.head, FlowDiTHead) else network.head
    guide = None
    if "prefix" in inputs:
        count: int = steps or objective.sampler_spec().steps
        guide = _continued(units, inputs["prefix"], inputs["prefix_mask"], count)
    noise = GivenNoise(inputs["noise"]) if "noise" in inputs else GivenNoise(torch.zeros(1, 1, *network.action_scale.shape))
    options = SampleOptions(network.null_condition, steps, None, guide)
    chunk = objective.sample(head, noise, condition, options)
    answer = {"actions": units.restore(chunk)}
    if network.stop is not None:
        answer["stop_probability"] = torch.sigmoid(network.stop(condition))
    if network.progress is not None:
        answer["ahead_s"] = network.progress(condition)
    if network.distance is not None:
        answer["distance"] = network.distance(condition)
    return answer


def _continued(units: ActionUnits, prefix: Tensor, mask: Tensor, steps: int) -> Guide:
    previous = units.normalise(prefix)

    def guide(field: Field) -> Field:
        return RealTimeChunking(field, previous, mask, steps, beta=min(DEFAULT_BETA, float(steps)))

    return guide


def _observed(network: PolicyNetwork, inputs: Mapping[str, Tensor]) -> Observed:
    encoder, goals = network.encoder, network.interface.goals
    images = {name: inputs[f"camera_{name}"] for name in network.interface.cameras}
    if not goals:
        return Observed(inputs["state"], images)
    words = [name for name, spec in goals.items() if spec.kind == "instruction"]
    shown = {name: inputs[f"goal_{name}"] for name in goals if name not in words}
    if isinstance(encoder, GoalVisionEncoder):
        # Features of one picture are those of a video of one frame; see GoalVisionEncoder._shown.
        shown = {name: value if goals[name].kind == "video" else value[:, 0] for name, value in shown.items()}
        if words:
            encoder._words = lambda observed, rows: inputs[f"goal_{words[0]}"]  # type: ignore[method-assign]
    return Observed(inputs["state"], images, shown, {name: inputs[f"told_{name}"] for name in goals})


def _example(network: PolicyNetwork, steps: int | None) -> dict[str, Tensor]:
    interface, horizons, rng = network.interface, network.config.horizons, torch.Generator().manual_seed(0)
    size = sum(spec.vector.size for spec in interface.features.values())
    example = {"state": torch.randn(1, horizons.observation, size, generator=rng)}
    for name, camera in interface.cameras.items():
        example[f"camera_{name}"] = _pictures(network, (horizons.observation, camera.height, camera.width, 3), rng)
    for name, spec in interface.goals.items():
        example[f"goal_{name}"] = _goal(network, spec, rng)
        example[f"told_{name}"] = torch.ones(1, dtype=torch.bool)
    shape = tuple(network.action_scale.shape)
    if draws := draws_of(network, steps):
        example["noise"] = torch.randn(1, draws, *shape, generator=rng)
    if takes_prefix(network):
        example["prefix"] = torch.zeros(1, *shape)
        example["prefix_mask"] = torch.zeros(1, shape[0])
    return example


def _pictures(network: PolicyNetwork, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Frames, or where they are looked at before, features of as many."""
    encoder = network.encoder
    if not isinstance(encoder, GoalVisionEncoder):
        return torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=rng)
    width = encoder.frames.dim + (encoder.flow.dim if encoder.flow else 0)
    return torch.randn(1, shape[0], encoder.frames.tokens, width, generator=rng)


def _goal(network: PolicyNetwork, spec: GoalSpec, rng: torch.Generator) -> Tensor:
    encoder = network.encoder
    if spec.kind in ("pose", "point"):
        return torch.randn(1, *spec.shape, generator=rng)
    if spec.kind == "instruction":
        if not isinstance(encoder, GoalVisionEncoder):
            raise KineflowError(f"a {type(encoder).__name__} encoder that is told words cannot be exported; use GoalVision")
        return torch.randn(1, encoder.text.dim, generator=rng)
    frames: tuple[Any, ...] = (max(spec.frames, 1), spec.height, spec.width, 3)
    pictures = _pictures(network, frames, rng)
    return pictures if spec.kind == "video" or isinstance(encoder, GoalVisionEncoder) else pictures[:, 0]
