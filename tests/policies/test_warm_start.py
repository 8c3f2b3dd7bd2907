"""WarmStartPolicy: the previous chunk, shifted and in the units of now, is where the next one starts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kineflow.contracts import ContractError, KineflowError, Observation, SamplingRequest
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.distillation.distill import distill, student_config
from kineflow.policies.heads.guessing import GuessingHead
from kineflow.policies.losses import draw_normal
from kineflow.policies.mix_flow import Guess
from kineflow.policies.rollout import Rollout
from kineflow.policies.train import Trainer
from kineflow.policies.warm_start import WarmStartPolicy

ROWS, H = 5, 8


@pytest.fixture(scope="module", params=["bifm", "mixflow"])
def student(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ChunkPolicy:
    """A barely trained student of `kineflow distill`, loaded as users do."""
    run = distill(trained, request.param, steps=2, run=tmp_path_factory.mktemp("warm") / request.param, training_steps=2)
    return load_policy(run)


def seen(step: int) -> Observation:
    """Robots on circles, at a tick of 0.1 s."""
    angle = np.arange(ROWS) + 0.1 * (step + np.arange(2))[:, None]
    state = np.stack([np.cos(angle), np.sin(angle), angle % (2 * np.pi)], -1).swapaxes(0, 1)
    return Observation(state.astype(np.float32), np.tile(0.1 * (step + np.arange(2.0)), (ROWS, 1)))


def asked(seed: int) -> SamplingRequest:
    return SamplingRequest(np.arange(ROWS) + seed)


class Still(torch.nn.Module):
    """A map and a flow that do not move: noise is the chunk, and the chunk behind a chunk is itself."""

    def forward(self, x: Any, t: Any, condition: Any, end: Any = None) -> torch.Tensor:
        return torch.zeros_like(x)

    def guess(self, previous: torch.Tensor, condition: torch.Tensor) -> Guess:
        return Guess(previous, torch.full_like(previous, 1e-6))


def standing(policy: ChunkPolicy, monkeypatch: pytest.MonkeyPatch) -> ChunkPolicy:
    network = copy.deepcopy(policy.network)
    network.head = Still()
    monkeypatch.setattr("kineflow.policies.warm_start.GuessingHead", Still)
    return ChunkPolicy(network, policy.contract)


def test_without_renewal_a_map_that_stands_still_repeats_the_rest_of_the_plan(
    student: ChunkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In physical units, although actions count from where the robot is now (relative_to)."""
    policy = WarmStartPolicy(standing(student, monkeypatch), renewal=0.0)
    plan = policy.predict(seen(0), asked(0)).actions
    rest = policy.predict(seen(3), asked(9))
    np.testing.assert_allclose(rest.actions[:, :5], plan[:, 3:], rtol=0, atol=1e-4)
    np.testing.assert_allclose(rest.actions[:, 5:], np.repeat(plan[:, -1:], 3, axis=1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(rest.stamp_s, seen(3).stamp_s[:, -1])
    again = policy.predict(seen(4), asked(5)).actions  # one more step is gone, counted from the chunk before
    np.testing.assert_allclose(again[:, :4], plan[:, 4:], rtol=0, atol=2e-4)


def test_the_first_call_and_full_renewal_are_the_policys_own_answers(student: ChunkPolicy) -> None:
    policy = WarmStartPolicy(student, renewal=1.0)
    for step in (0, 4):
        own = student.predict(seen(step), asked(step)).actions
        np.testing.assert_allclose(policy.predict(seen(step), asked(step)).actions, own, rtol=0, atol=1e-5 if step else 0)


def test_the_less_is_renewed_the_nearer_the_next_chunk_is_to_the_plan(
    student: ChunkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = []
    for renewal in (0.0, 0.3, 1.0):
        policy = WarmStartPolicy(standing(student, monkeypatch), renewal)
        plan = policy.predict(seen(0), asked(0)).actions
        distances.append(float(np.abs(policy.predict(seen(3), asked(9)).actions[:, :5] - plan[:, 3:]).mean()))
    assert distances[0] < 1e-3 < distances[1] < 0.8 * distances[2]


def test_each_row_decides_for_itself_and_a_used_up_plan_is_forgotten(student: ChunkPolicy) -> None:
    warm, mixed = WarmStartPolicy(student, 0.2), WarmStartPolicy(student, 0.2)
    for policy in (warm, mixed):
        policy.predict(seen(0), asked(0))
    late = seen(3)
    late.stamp_s[2] += 0.1 * H
    late.stamp_s[4] -= 1.0
    continued, found = warm.predict(seen(3), asked(9)).actions, mixed.predict(late, asked(9)).actions
    own = student.predict(seen(3), asked(9)).actions
    np.testing.assert_array_equal(found[[0, 1, 3]], continued[[0, 1, 3]])
    np.testing.assert_array_equal(found[[2, 4]], own[[2, 4]])
    assert np.abs(continued - own).max() > 1e-4


def test_reset_forgets_and_other_rows_are_refused(student: ChunkPolicy) -> None:
    policy = WarmStartPolicy(student)
    policy.predict(seen(0), asked(0))
    one = Observation(seen(3).state[:1], seen(3).stamp_s[:1])
    with pytest.raises(ContractError, match="memory is of 5 robots, got 1 rows"):
        policy.predict(one, SamplingRequest(np.array([9])))
    policy.reset()
    np.testing.assert_array_equal(policy.predict(seen(3), asked(9)).actions, student.predict(seen(3), asked(9)).actions)
    with pytest.raises(ContractError, match="no other number of steps"):
        policy.predict(seen(4), replace(asked(9), steps=3))


def test_what_cannot_start_warm_is_refused(student: ChunkPolicy, trained: Path) -> None:
    with pytest.raises(KineflowError, match=r"FlowMatching policy cannot start from a previous chunk.*--method bifm"):
        WarmStartPolicy(load_policy(trained))
    with pytest.raises(KineflowError, match=r"renewal is 1\.5"):
        WarmStartPolicy(student, 1.5)
    with pytest.raises(KineflowError, match="remembers what it was asked before"):
        Rollout(WarmStartPolicy(student), lambda: None, 1)  # type: ignore[arg-type, return-value]


def test_mixflow_learns_from_what_the_teacher_said_before(trained: Path, tmp_path: Path) -> None:
    """One execution horizon earlier (4), or at the episode's first step; shifted, and relative to where the robot is now."""
    trainer = Trainer(student_config(trained, "mixflow", None, 1), tmp_path / "r")
    assert trainer.teacher is not None
    assert isinstance(trainer.network.head, GuessingHead)
    its, mine = trainer.teacher.network, trainer.network.head.head.state_dict()
    assert all(torch.equal(mine[key], value) for key, value in its.head.state_dict().items()), "the velocity starts as its"
    now, then, gone = [2, 7, 30, 33], [0, 3, 30, 30], [2, 4, 0, 3]  # episodes of 30 steps
    reader = trainer.data.training
    batch = trainer._batch(np.array(now), reader)
    assert batch.earlier is not None
    assert batch.earlier.executed.tolist() == gone
    lesson = trainer.teacher.lesson(trainer.network, batch, torch.Generator().manual_seed(3), 1.0)
    assert lesson.previous is not None
    noise = draw_normal(lesson.chunk, torch.Generator().manual_seed(3))
    before = reader.read(np.array(then)).state
    encoded = its.encode(Observation(before, np.zeros(before.shape[:2])))
    said = encoded.units.restore(lesson.solve(noise, encoded.condition))
    expected = torch.stack([torch.cat([row[k:], row[-1:].expand(k, 2)]) for row, k in zip(said, gone, strict=True)])
    torch.testing.assert_close(its.units(batch.observed).restore(lesson.previous), expected, rtol=1e-5, atol=1e-5)
    again = lesson.repeated(3).previous
    assert again is not None
    torch.testing.assert_close(again, lesson.previous.repeat(3, 1, 1), rtol=0, atol=0)


def test_mixflow_without_a_teacher_says_how(trained: Path, tmp_path: Path) -> None:
    config = replace(student_config(trained, "mixflow", None, 1), distillation=None)
    with pytest.raises(KineflowError, match="kineflow distill RUN --method mixflow"):
        next(Trainer(config, tmp_path / "r").steps())
    with pytest.raises(KineflowError, match="a Guessing head and MixFlow need each other"):
        student_config(trained, "psd", "Guessing", 1)
    with pytest.raises(KineflowError, match="take --student MLP"):
        student_config(trained, "mixflow", "{kind: Arc, head: {kind: MLP}}", 1)
