"""Stream batch: equal to the N-step solver while the condition stands still, and every slot under the newest condition."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.contracts import ContractError, Observation, SamplingRequest
from kineflow.policies.analytic import Mixture
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.paths import CondOT
from kineflow.policies.samplers import RowNoise, ddim
from kineflow.policies.streaming import StreamBatch, StreamPolicy
from kineflow.policies.time_grids import uniform_time_grid

DOUBLE = torch.float64
GRID = uniform_time_grid(CondOT(), 4)


def modes() -> Mixture:
    generator = torch.Generator().manual_seed(5)
    means = torch.randn(3, 4, 2, generator=generator, dtype=DOUBLE)
    return Mixture(torch.full((3,), 1 / 3, dtype=DOUBLE), means, torch.full_like(means, 0.3))


@dataclass
class Follows:
    """The mixture, moved to where the row's token says; remembers what it was asked."""

    calls: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        assert condition is not None
        self.calls.append((lam, condition))
        alpha = torch.sqrt(torch.sigmoid(2 * lam))[:, None, None]
        return condition + modes()(x - alpha * condition, lam, None)


class Stale(StreamBatch):
    """The trap: each latent keeps the condition under which it began."""

    def tick(self, field: Follows, noise: RowNoise, condition: torch.Tensor) -> torch.Tensor:
        ages = self.__dict__.setdefault("ages", [condition] * (len(self.lambdas) - 1))
        ages.insert(0, condition)
        del ages[len(self.lambdas) - 1 :]
        tokens = torch.cat(ages)

        def old(x: torch.Tensor, lam: torch.Tensor, newest: torch.Tensor | None) -> torch.Tensor:
            return field(x, lam, tokens[: len(x)])

        return super().tick(old, noise, condition)


def token(value: float, rows: int = 3) -> torch.Tensor:
    return torch.full((rows, 1, 1), value, dtype=DOUBLE) + torch.arange(rows, dtype=DOUBLE)[:, None, None]


class Recorded:
    """Noise of three rows, and every draw of it."""

    def __init__(self) -> None:
        self.noise, self.draws = RowNoise(np.arange(3), (4, 2), DOUBLE), list[torch.Tensor]()

    def draw(self) -> torch.Tensor:
        self.draws.append(self.noise.draw())
        return self.draws[-1]


def test_with_a_constant_condition_it_is_the_n_step_sampler() -> None:
    stream, noise, field, condition = StreamBatch(GRID), Recorded(), Follows(), token(0.5)
    emitted = [stream.tick(field, noise, condition) for _ in range(6)]
    for chunk, start in zip(emitted, noise.draws):
        expected = ddim(Follows(), start, GRID, condition, noise.noise)
        torch.testing.assert_close(chunk, expected, rtol=1e-12, atol=1e-12)


def test_one_call_a_tick_with_every_level_under_the_newest_condition() -> None:
    stream, noise, field = StreamBatch(GRID), Recorded(), Follows()
    stream.tick(field, noise, token(0.0))
    assert [len(lam) for lam, _ in field.calls] == [3, 6, 9, 12]
    for value in (1.0, 2.0, 3.0):
        field.calls.clear()
        stream.tick(field, noise, token(value))
        [(lam, condition)] = field.calls
        assert torch.equal(lam, GRID[:-1].repeat_interleave(3))
        assert torch.equal(condition, token(value).repeat(4, 1, 1))
    assert stream.calls == 4 + 3


def test_a_jump_of_the_scene_is_answered_at_once_but_by_stale_slots_not() -> None:
    """The goal jumps by 5. Measured: 2.4, 3.6, then all of it; a slot that keeps its condition gives the old plan three times."""
    distance = {}
    for kind in (StreamBatch, Stale):
        stream, noise, field = kind(GRID), Recorded(), Follows()
        for _ in range(5):
            before = stream.tick(field, noise, token(0.0))
        after = [stream.tick(field, noise, token(5.0)) for _ in range(4)]
        distance[kind] = [(chunk - before).mean().item() for chunk in after]
    assert distance[StreamBatch][0] > 2
    assert distance[StreamBatch][1] > 3
    assert distance[StreamBatch][2:] == pytest.approx([5, 5], abs=1)
    assert distance[Stale] == pytest.approx([0, 0, 0, 5], abs=1)


def asked(rows: int = 2, seed: int = 0, angle: float = 0.3) -> tuple[Observation, SamplingRequest]:
    state = np.array([np.cos(angle), np.sin(angle), angle], np.float32)
    return (
        Observation(np.broadcast_to(state, (rows, 2, 3)).copy(), np.tile([0.0, 0.1], (rows, 1))),
        SamplingRequest(np.arange(rows, dtype=np.int64) + seed),
    )


def test_policy_streams_what_it_would_sample(trained: Path) -> None:
    """While nothing moves, the chunk of seed s comes out steps - 1 calls later, as the plain policy gives it."""
    plain = load_policy(trained)
    stream = StreamPolicy(plain, steps=4)
    chunks = [stream.predict(*asked(seed=10 * k)) for k in range(6)]
    for k in (1, 2):  # the first call also filled the pipeline, from its own seeds
        expected = plain.predict(*asked(seed=10 * k))
        np.testing.assert_allclose(chunks[k + 3].actions, expected.actions, rtol=1e-4, atol=1e-4)
    assert chunks[0].stamp_s.tolist() == [0.1, 0.1]
    first = plain.predict(*asked())
    np.testing.assert_allclose(chunks[0].actions, first.actions, rtol=1e-4, atol=1e-4)


def test_policy_refuses_other_rows_and_steps(trained: Path) -> None:
    stream = StreamPolicy(load_policy(trained), steps=3)
    first = stream.predict(*asked())
    with pytest.raises(ContractError, match=r"2 streams, got 3 rows; reset\(\)"):
        stream.predict(*asked(3))
    observation, request = asked()
    with pytest.raises(ContractError, match="no other number of steps"):
        stream.predict(observation, replace(request, steps=5))
    stream.reset()
    assert np.array_equal(stream.predict(*asked()).actions, first.actions)
