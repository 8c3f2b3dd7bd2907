"""What a request asks of a composed policy beyond the plain answer: guidance of every parent, and a committed prefix."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kineflow.contracts import ActionChunk, CommittedPrefix, ContractError, Horizons, KineflowError, Observation
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.question import question
from kineflow.policies.real_time_chunking import committed_prefix
from kineflow.policies.samplers import RowNoise, ddim
from tests.policies.compose.conftest import DIFFUSION, Make, ask, look

WEIGHTS = (0.3, 0.7)
Answer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def combine(*parents: ChunkPolicy, **options) -> ComposedPolicy:
    names = tuple("abc"[: len(parents)])
    return compose(parents, names, Composition(names, **{"weights": WEIGHTS, "steps": 4, **options}))


def solved(composed: ComposedPolicy, answer: Answer, rows: int = 5) -> np.ndarray:
    """Physical actions that DDIM makes of a denoised chunk given by hand, in the common units, from the request's noise."""
    noise = RowNoise(ask(rows).seeds, composed.plan.noise_shape(composed.composition))
    lambdas = composed.plan.grid(composed.composition.steps, composed.composition.grid)
    with torch.no_grad():
        chunk = ddim(lambda x, lam, condition: answer(x, lam), noise.draw(), lambdas, None, noise)
    return composed.plan.reference.units([question(composed.parents[0], look(2, rows), ask(rows)).units]).restore(chunk).numpy()


@pytest.fixture
def guidable(make: Make) -> tuple[ChunkPolicy, ChunkPolicy]:
    """Trained with dropped conditions, so that each knows what "no condition" looks like."""
    parents = (
        make(0, objective=FlowMatching(steps=4, condition_dropout=0.1)),
        make(1, objective=Diffusion(steps=4, condition_dropout=0.1, clip=math.inf)),
    )
    for seed, parent in enumerate(parents):
        null = parent.network.null_condition
        assert null is not None
        null.data = 2 * torch.randn(null.shape, generator=torch.Generator().manual_seed(seed))
    return parents


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_scale_guides_every_parent_before_they_are_mixed(
    guidable: tuple[ChunkPolicy, ChunkPolicy], observation: Observation, scale: float
) -> None:
    composed = combine(*guidable)
    own = [question(parent, observation, ask(guidance_scale=1.0)) for parent in guidable]
    nulls = [parent.network.null_condition.expand(5, -1, -1) for parent in guidable]

    def by_hand(x: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for one, null, weight in zip(own, nulls, WEIGHTS):
            blind = one.field(x, lam, null)
            total = total + weight * (blind + scale * (one.field(x, lam, one.condition) - blind))
        return total

    guided = composed.predict(observation, ask(guidance_scale=scale)).actions
    np.testing.assert_allclose(guided, solved(composed, by_hand), rtol=2e-4, atol=2e-5)
    plain = composed.predict(observation, ask()).actions
    assert (np.abs(guided - plain).max() > 1e-2) == (scale != 1)


def test_guidance_of_a_parent_without_a_null_condition_is_refused(make: Make, observation: Observation) -> None:
    with pytest.raises(KineflowError, match="condition_dropout"):
        combine(make(0), make(1)).predict(observation, ask(guidance_scale=2.0))


def previous(composed: ComposedPolicy, rows: int = 5) -> ActionChunk:
    """A chunk to continue: another answer than the one that the request's seeds give, moved away from it."""
    horizons = composed.contract.horizons
    chunk = composed.predict(look(horizons.observation, rows, seed=9), ask(rows))
    return ActionChunk(chunk.actions + 0.3, chunk.step_s, chunk.stamp_s)


def test_a_prefix_pulls_the_mixed_chunk_and_not_the_parents(make: Make, observation: Observation) -> None:
    """The published guidance (gain with beta = 4, the number of steps) around the weighed answer, in the common units."""
    parents = make(0), make(1, objective=DIFFUSION, relative_to=("x", "y"))
    composed = combine(*parents)
    prefix = committed_prefix(previous(composed), consumed=2, delay=2, execution=2)
    asked = composed.question(observation, ask())
    target = asked.units.normalise(torch.from_numpy(prefix.actions))
    mask = torch.from_numpy(prefix.soft_mask)[..., None]

    def by_hand(x: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        sample, tau = asked.field(x, lam, None), torch.sigmoid(lam)[:, None, None]
        gain = torch.minimum(4 * (1 - tau), (tau**2 + (1 - tau) ** 2) / tau)
        return sample + gain * mask * (target - sample)

    answer = composed.predict(observation, ask(prefix=prefix)).actions
    np.testing.assert_allclose(answer, solved(composed, by_hand), rtol=2e-4, atol=2e-5)


def test_committed_actions_are_kept_and_free_ones_are_not(make: Make, observation: Observation) -> None:
    composed = combine(make(0), make(1, objective=DIFFUSION), steps=10)
    prefix = committed_prefix(previous(composed), consumed=2, delay=2, execution=2)
    bound = composed.predict(observation, ask(prefix=prefix)).actions
    free = composed.predict(observation, ask()).actions
    gap, without = (np.abs(actions - prefix.actions)[:, :2].mean() for actions in (bound, free))
    assert gap < 0.2 * without
    nothing = CommittedPrefix(np.full_like(prefix.actions, np.nan), np.zeros_like(prefix.soft_mask), 0)
    np.testing.assert_allclose(composed.predict(observation, ask(prefix=nothing)).actions, free, rtol=1e-6, atol=1e-6)


def test_a_prefix_is_as_long_as_the_chunks_that_come_out(make: Make) -> None:
    """10 Hz with 6 actions and 5 Hz with 5: chunks of 7 actions, though inside a step more is solved (tick 8)."""
    composed = combine(make(0, horizons=Horizons(2, 6, 4)), make(1, rate_hz=5.0, horizons=Horizons(2, 5, 4)))
    assert (composed.contract.horizons.prediction, composed.plan.timeline.size) == (7, 8)
    chunk = previous(composed)
    prefix = committed_prefix(chunk, consumed=2, delay=1, execution=2)
    bound = composed.predict(look(3), ask(prefix=prefix)).actions
    free = composed.predict(look(3), ask()).actions
    assert np.abs(bound - prefix.actions)[:, 0].mean() < 0.5 * np.abs(free - prefix.actions)[:, 0].mean()
    longer = CommittedPrefix(np.zeros((5, 8, 2), np.float32), np.zeros((5, 8), np.float32), 0)
    with pytest.raises(ContractError, match=r"the policy's chunks are \(5, 7, 2\)"):
        composed.predict(look(3), ask(prefix=longer))


@pytest.mark.parametrize("options", [{"operator": "and", "weights": (), "solver": "ddpm"}, {"noise": "independent"}])
def test_a_prefix_without_a_single_field_to_guide_is_refused(make: Make, observation: Observation, options: dict) -> None:
    composed = combine(make(0), make(1), **options)
    prefix = CommittedPrefix(np.zeros((5, 8, 2), np.float32), np.ones((5, 8), np.float32), 0)
    with pytest.raises(ContractError, match="take no prefix"):
        composed.predict(observation, ask(prefix=prefix))
