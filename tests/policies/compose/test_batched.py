"""Heads of one architecture asked in one call: the same answers, and a clear word where it cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.config import load_config, save_config
from kineflow.contracts import Horizons, KineflowError, Observation
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.batch import stacks_of
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import FlowMatching
from tests.policies.compose.conftest import DIFFUSION, Make, ask

HEADS = {"mlp": MLP(width=32, depth=1), "dit": DiT(width=32, depth=1, attention_heads=2), "unet": UNet(channels=(16, 32))}


def combine(parents: Sequence[ChunkPolicy], batched: str, **options) -> ComposedPolicy:
    names = tuple("abc"[: len(parents)])
    weights = (0.3, 0.7) if len(parents) == 2 else (0.2, 0.3, 0.5)
    return compose(parents, names, Composition(names, **{"weights": weights, "steps": 4, "batched": batched, **options}))


def called(parents: Sequence[ChunkPolicy]) -> list[int]:
    """Counts how often each head is called by itself from now on."""
    counts = [0] * len(parents)

    def count(module: torch.nn.Module, *_: object) -> None:
        for index, parent in enumerate(parents):
            counts[index] += module is parent.network.head  # the hook is copied with the head

    for parent in parents:
        parent.network.head.register_forward_hook(count)
    return counts


def check_same(parents: Sequence[ChunkPolicy], observation: Observation, request=None, **options) -> None:
    """Batched and one by one agree to 1e-6 of the largest action, and no head was called by itself."""
    request = request or ask()
    apart, together = combine(parents, "never", **options), combine(parents, "always", **options)
    expected = apart.predict(observation, request).actions
    counts = called(parents)
    answer = together.predict(observation, request).actions
    assert counts == [0] * len(parents)
    assert np.abs(answer - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("head", HEADS)
def test_one_call_answers_the_same(make: Make, observation: Observation, head: str) -> None:
    """Other paths, predictions and units in each."""
    config = HEADS[head]
    check_same([make(0, head=config), make(1, head=config, objective=DIFFUSION, relative_to=("x", "y"))], observation)


@pytest.mark.parametrize(
    "options",
    [
        {"operator": "and", "weights": (), "solver": "ddpm"},
        {"noise": "independent"},
        {"solver": "heun"},
    ],
    ids=str,
)
def test_every_operator_asks_together(make: Make, observation: Observation, options: dict) -> None:
    check_same([make(0), make(1, objective=DIFFUSION), make(2)], observation, **options)


def test_guided_parents_are_asked_together(make: Make, observation: Observation) -> None:
    parents = [make(seed, objective=FlowMatching(steps=4, condition_dropout=0.1)) for seed in range(2)]
    check_same(parents, observation, ask(guidance_scale=2.0))


def test_where_only_one_is_guided_heads_are_asked_one_by_one(make: Make, observation: Observation) -> None:
    """Guidance doubles a head's rows; here at the noisy levels of one policy only. The others are still batched."""
    guided = FlowMatching(steps=4, condition_dropout=0.1, guidance_scale=2.0, guidance_interval=(-math.inf, 0.0))
    parents = [make(0, objective=guided), make(1)]
    parents[0].network.null_condition.data += 1
    expected = combine(parents, "never").predict(observation, ask()).actions
    together, counts = combine(parents, "always"), called(parents)
    answer = together.predict(observation, ask()).actions
    assert np.abs(answer - expected).max() <= 1e-6 * np.abs(expected).max()
    assert counts[0] == counts[1]
    assert 0 < counts[0] < 4


def test_on_a_cpu_auto_asks_one_by_one(make: Make, observation: Observation) -> None:
    parents = make(0), make(1)
    composed, counts = combine(parents, "auto"), called(parents)
    composed.predict(observation, ask())
    assert counts == [4, 4]


def test_on_an_accelerator_auto_takes_those_that_are_alike(make: Make) -> None:
    """The choice alone: heads of a device that computes nothing."""
    parents = [make(0), make(1, head=MLP(width=48, depth=1)), make(2), make(3, head=MLP(width=64, depth=1))]
    assert stacks_of(parents, "abcd", "auto") == ()
    for parent in parents:
        parent.network.to("meta")
    assert [stack.members for stack in stacks_of(parents, "abcd", "auto")] == [(0, 2)]
    assert stacks_of(parents, "abcd", "never") == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": MLP(width=48, depth=1)}, r"'a' and 'b' differ in head: MLP\(width=32.* and MLP\(width=48.*use auto"),
        ({"horizons": Horizons(2, 6, 3)}, "differ in horizon: 8 and 6"),
        ({"encoder": State(width=32, depth=1, token=24)}, r"differ in condition \[tokens, features\]"),
    ],
)
def test_always_refuses_heads_that_differ(make: Make, observation: Observation, change: dict, message: str) -> None:
    parents = make(0), make(1, **change)
    with pytest.raises(KineflowError, match=message):
        combine(parents, "always")
    assert np.isfinite(combine(parents, "auto").predict(observation, ask()).actions).all()


def test_batched_is_written_down(make: Make, tmp_path: Path) -> None:
    composition = combine((make(0), make(1)), "always").composition
    save_config(composition, tmp_path / "compose.yaml")
    assert load_config(Composition, tmp_path / "compose.yaml") == replace(composition, batched="always")


def test_gradients_pass(make: Make, observation: Observation) -> None:
    """Cost guidance and exact Real-Time Chunking differentiate the mixed field."""
    parents = make(0), make(1, objective=DIFFUSION)
    grads = []
    for batched in ("never", "always"):
        field = combine(parents, batched).question(observation, ask()).field
        x = torch.randn(5, 8, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
        (grad,) = torch.autograd.grad(field(x, torch.zeros(5), None).square().sum(), x)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
