"""Every head, encoder and solver that is exported answers as its policy does, whatever it is traced into; no runtime yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kineflow.cli import main
from kineflow.contracts import (
    CameraSpec,
    FeatureSpec,
    GoalSpec,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.export.folder import ExportConfig, _plan
from kineflow.deploy.export.gate import Asked, parity
from kineflow.deploy.export.graphs import Graph, act_graph, frozen_copy, look_graph, looks
from kineflow.deploy.export.random_policies import random_policy
from kineflow.deploy.export.resampling import averaged, resized
from kineflow.deploy.export.tracing import traced
from kineflow.deploy.exported import ExportedPolicy
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.flow_net import FlowNet
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.small_vit import SmallViT
from kineflow.policies.encoders.state import PlanarBody, State
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.encoders.vision import Vision
from kineflow.policies.flow_map import FlowMap
from kineflow.policies.heads.arc import Arc
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import MIP, Diffusion, FlowMatching, Regression
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.telling import backbone_of

POSE = VectorSpec(("x", "y", "angle"), ("m", "m", "rad"), "odom", (-9.0, -9.0, 0.0), (9.0, 9.0, 6.2832))
GOAL = VectorSpec(("goal_x", "goal_y"), ("m", "m"), "odom", (-9.0, -9.0), (9.0, 9.0))
INTERFACE = Interface({"state": FeatureSpec(POSE, 10.0)}, FeatureSpec(GOAL, 10.0), {"top": CameraSpec(24, 20, 10.0)})
STATE = State(width=32, depth=1, token=16, bodies=(PlanarBody("x", "y", "angle", ((1.0, 0.0), (0.0, 0.5))),))
PLAIN = PolicyConfig(Horizons(2, 8, 4), MLP(width=32, depth=1), FlowMatching(steps=3), STATE, relative_to=("x", "y"))
VISION = Vision(channels=(8, 8), token=16, depth=1, state=STATE)
GOALS = {
    "video": GoalSpec("video", 24, 20, 3, 2.0),
    "image": GoalSpec("image", 24, 20),
    "instruction": GoalSpec("instruction"),
}
TOLD = GoalVision(
    frames=Colours(16, 3),
    text=HashedWords(16),
    flow=FlowNet(),
    token=32,
    queries=2,
    attention_heads=2,
    depth=1,
    state=State(width=16, depth=1, token=32),
)
SEEING = replace(PLAIN, cameras=("top",))
POLICIES: Mapping[str, PolicyConfig] = {
    "mlp": PLAIN,
    "unet": replace(PLAIN, head=UNet(channels=(8, 16), groups=4, signal_width=16)),
    "dit, guided": replace(
        PLAIN, head=DiT(32, 1, 2), objective=FlowMatching(condition_dropout=0.1, guidance_scale=2.0, steps=2, solver="heun")
    ),
    "flag dit": replace(PLAIN, head=FlagDiT(32, 1, 2), objective=FlowMatching(steps=2, solver="ab2")),
    "flow dit": replace(PLAIN, head=FlowDiT(32, 2, 2, patch=2)),
    "arc, flow map": replace(PLAIN, head=Arc(MLP(32, 1), modes=2), objective=FlowMap()),
    "diffusion": replace(PLAIN, objective=Diffusion(steps=4), action_scaling="range"),
    "sde": replace(PLAIN, objective=FlowMatching(steps=3, solver="sde")),
    "regression": replace(PLAIN, objective=Regression()),
    "mip": replace(PLAIN, objective=MIP()),
    "vision": replace(SEEING, encoder=VISION),
    "goals": replace(SEEING, encoder=TOLD, goals=GOALS, head=FlowDiT(32, 1, 2), relative_to=()),
    "goals, vit": replace(SEEING, encoder=replace(TOLD, frames=SmallViT(32, 2, 64, 1, 2), flow=None, view=1), goals=GOALS),
}


class InMemory:
    """A graph as the model of a runtime."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = self._graph({name: torch.from_numpy(np.array(inputs[name])) for name in self._graph.example})
        return {name: value.numpy() for name, value in answer.items()}


def in_memory(policy: ChunkPolicy) -> ExportedPolicy:
    network = frozen_copy(policy.network)
    plan = _plan(policy, network, "test", ExportConfig())
    has_steps = hasattr(network.config.objective, "steps")
    act = {plan.default_steps: InMemory(act_graph(network, plan.default_steps if has_steps else None))}
    look = {"24x20": (InMemory(look_graph(network, 24, 20)), network.encoder.flow is not None)} if looks(network) else {}
    return ExportedPolicy(plan, policy.contract, act, look)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_as_it_did(name: str) -> None:
    """With the noise of its seeds, a previous chunk in every second question, each way to tell a goal in turn."""
    policy = random_policy(POLICIES[name], INTERFACE)
    exported = in_memory(policy)
    steps = exported.manifest.default_steps
    asked = Asked.of(policy, steps, 8, prefixes=exported.manifest.takes_prefix)
    result = parity(asked, exported, steps, "traced")
    assert result.error < 2e-5
    assert np.std([chunk.actions for chunk in asked.answers]) > 0.01, "an answer of zeros hides faults"


def test_features_in_place_of_frames() -> None:
    """As a rollout tells goals: the clip is looked at once, and what is chosen of it is answered as the original answers."""
    policy = random_policy(POLICIES["goals"], INTERFACE)
    exported, look = in_memory(policy), backbone_of(policy)
    assert look is not None
    assert backbone_of(exported) is not None
    rng = np.random.default_rng(0)
    clip = np.repeat(rng.integers(0, 256, (5, 3, 4, 3), np.uint8), 8, axis=1).repeat(5, axis=2)
    live = rng.integers(0, 256, (1, 2, 24, 20, 3), np.uint8)
    chunks = []
    for which in (policy, exported):
        see = backbone_of(which)
        assert see is not None
        goal = {"video": see(clip)[None, [1, 3, 4]]}
        seen = Observation(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2)), {"top": live}, goal)
        chunks.append(which.predict(seen, SamplingRequest(np.zeros(1, np.int64))).actions)
    np.testing.assert_allclose(chunks[1], chunks[0], atol=2e-3 * np.abs(chunks[0]).max())


def test_noise_that_is_not_the_seeds_is_seen() -> None:
    policy = random_policy(PLAIN, INTERFACE)
    exported = in_memory(policy)
    asked = Asked.of(policy, 3, 8, prefixes=True)
    questions = [(observation, replace(request, seeds=request.seeds + 1)) for observation, request in asked.questions]
    assert not parity(replace(asked, questions=questions), exported, 3, "traced").holds


def test_what_does_not_depend_on_inputs_is_a_number() -> None:
    """A loop over a schedule computed by tensors becomes one multiplication a step; a decision by an input is refused."""

    def scheduled(x: torch.Tensor) -> dict[str, torch.Tensor]:
        times = torch.arange(4, dtype=torch.float64) / 4
        for t in times:
            if t > 0.3:  # Python decides by a tensor: a constant one
                x = x * t.float()
        return {"y": x}

    graph = traced(scheduled, {"x": torch.ones(2)}, ("y",))
    assert [node.op for node in graph.graph.nodes].count("call_method") == 2
    assert graph(torch.full((2,), 2.0))[0].tolist() == [0.75, 0.75]

    def deciding(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + 1 if x.sum() > 0 else x}

    with pytest.raises(KineflowError, match="Python decides"):
        traced(deciding, {"x": torch.ones(2)}, ("y",))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resized_as_torch_resizes(mode: str) -> None:
    """Grey levels to the last one."""
    generator = torch.Generator().manual_seed(0)
    for height, width, size in ((24, 30, 16), (24, 30, 56), (33, 24, 24)):
        frames = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
        expected = F.interpolate(frames, size=(size, size), mode=mode, antialias=True)
        assert torch.equal(resized(frames, (size, size), mode=mode, antialias=True), expected)
        smooth = F.interpolate(frames.float(), size=(size, size), mode=mode, antialias=True)
        torch.testing.assert_close(resized(frames.float(), (size, size), mode=mode, antialias=True), smooth, atol=5e-3, rtol=0)
    cells = torch.randn(1, 4, 12, 12, generator=generator)
    torch.testing.assert_close(averaged(cells, 5), F.adaptive_avg_pool2d(cells, 5))


def test_options_of_the_other_kind_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written: --name writes into the package."""
    for words in (["--check"], ["--steps", "2"], ["--precision", "bf16"], ["--instruction", "go"]):
        assert main(["export", "no/such/policy", "--name", "mine", *words]) == 2
        assert "belong to --format" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "no/such/policy", "--format", "onnx", "--steps", "a"])
    assert "whole numbers such as 4,2, got a" in capsys.readouterr().err
