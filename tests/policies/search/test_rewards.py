"""Rewards against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kineflow.contracts import CommittedPrefix, ContractError, KineflowError, Observation, SamplingRequest
from kineflow.policies.search.rewards import (
    BackwardCoherence,
    Clearance,
    GoalDistance,
    PathProgress,
    Reward,
    Situation,
    Smoothness,
    WeightedSum,
)


def situation(rows: int = 1, goal: dict[str, np.ndarray] | None = None, prefix: CommittedPrefix | None = None) -> Situation:
    observation = Observation(np.zeros((rows, 1, 1), np.float32), np.zeros((rows, 1)), goal=goal or {})
    return Situation(observation, SamplingRequest(np.arange(rows), prefix=prefix), step_s=0.1)


def line(*points: tuple[float, ...]) -> torch.Tensor:
    """One candidate of one row."""
    return torch.tensor(points, dtype=torch.float64)[None, None]


def test_smoothness_is_the_derivative_in_physical_time() -> None:
    t = 0.1 * torch.arange(8, dtype=torch.float64)
    chunks = torch.stack([2 * t, 3 * t**2, 0.5 * t**3])[None, :, :, None]
    acceleration, jerk = Smoothness(2)(chunks, situation()), Smoothness()(chunks, situation())
    torch.testing.assert_close(jerk[0], torch.tensor([0.0, 0.0, -3.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(acceleration[0, :2], torch.tensor([0.0, -6.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    with pytest.raises(KineflowError, match="more than 3 actions"):
        Smoothness()(chunks[:, :, :3], situation())


def test_goal_distance() -> None:
    chunk = line((0, 0, 9), (3, 4, 9), (6, 8, 9))
    assert GoalDistance((3.0, 4.0))(chunk, situation()).item() == pytest.approx(-5)
    assert GoalDistance((3.0, 4.0), at="nearest")(chunk, situation()).item() == 0
    assert GoalDistance((0.6, 1.0), velocity=True)(chunk, situation()).item() == pytest.approx(-math.hypot(0.3, 0.2))
    given = situation(goal={"pose": np.array([[6.0, 0.0]])})
    assert GoalDistance()(chunk, given).item() == pytest.approx(-8)


def test_heading_turns_the_short_way() -> None:
    chunk = line((0, 0, math.pi - 0.1))
    reward = GoalDistance((0.0, 0.0, -math.pi + 0.1), heading_dim=2, radius=0.5)
    assert reward(chunk, situation()).item() == pytest.approx(-0.1)


def test_goals_belong_to_rows() -> None:
    chunks = torch.zeros(2, 3, 4, 2)
    goals = situation(2, {"point": np.array([[3.0, 4.0], [0.0, 1.0]])})
    assert GoalDistance()(chunks, goals).tolist() == [[-5] * 3, [-1] * 3]
    for goal in ({}, {"point": np.zeros((2, 3))}):
        with pytest.raises(ContractError, match="must have 2 numbers"):
            GoalDistance()(chunks, situation(2, goal))


def test_path_progress_around_a_corner() -> None:
    reward = PathProgress(((0.0, 0.0), (2.0, 0.0), (2.0, 3.0)), lateral_weight=0.5)
    chunk = line((0.5, 1), (1.5, 0), (3, 2))
    along, aside = reward.project(chunk)
    assert along[0, 0].tolist() == pytest.approx([0.5, 1.5, 4.0])
    assert aside[0, 0].tolist() == pytest.approx([1, 0, 1])
    assert reward(chunk, situation()).item() == pytest.approx(3.5 - 0.5 * 2 / 3)
    back = reward(chunk.flip(2), situation()).item()
    assert back == pytest.approx(-3.5 - 0.5 * 2 / 3)
    for path in (((0.0, 0.0),), ((0.0, 0.0), (0.0, 0.0))):
        with pytest.raises(KineflowError, match="two points"):
            PathProgress(path)


def test_clearance_is_signed_distance() -> None:
    reward = Clearance(discs=((0.0, 0.0, 1.0),), boxes=((2.0, -1.0, 4.0, 1.0),), margin=0.5)
    gap = reward.distance(line((0, 0), (1.25, 0), (3, 0.8), (5, 2)))[0, 0]
    expected = [[-1, 2], [0.25, 0.75], [math.hypot(3, 0.8) - 1, -0.2], [math.hypot(5, 2) - 1, math.sqrt(2)]]
    torch.testing.assert_close(gap, torch.tensor(expected, dtype=torch.float64))
    chunk = line((0, 0), (1.25, 0), (3, 0.8), (5, 2))
    assert reward(chunk, situation()).item() == pytest.approx(-(1.5 + 0.25 + 0.7))
    assert Clearance()(chunk, situation()).item() == 0


def test_backward_coherence_follows_the_mask() -> None:
    chunks = torch.zeros(2, 3, 4, 2, dtype=torch.float64)
    chunks[:, 1] = 1
    actions = np.zeros((2, 4, 2), np.float32)
    actions[0, :2], actions[:, 2:] = 1, 99
    mask = np.array([[1, 0.5, 0, 0], [1, 1, 0, 0]], np.float32)
    reward = BackwardCoherence()
    value = reward(chunks, situation(2, prefix=CommittedPrefix(actions, mask, 1)))
    assert value.tolist() == [[-1, 0, -1], [0, -1, 0]]
    assert reward(chunks, situation(2)).tolist() == [[0] * 3] * 2
    assert reward.reads == ("prefix",)
    with pytest.raises(ContractError, match="pad the rest"):
        reward(chunks, situation(2, prefix=CommittedPrefix(actions[:, :3], mask, 1)))


def test_weighted_sum_adds_and_reads_what_its_terms_read() -> None:
    chunk = line((0, 0), (3, 4))
    reward = WeightedSum(
        ((2.0, GoalDistance((0.0, 0.0))), (1.0, Clearance(discs=((0.0, 0.0, 1.0),))), (1.0, BackwardCoherence()))
    )
    assert reward(chunk, situation()).item() == pytest.approx(-2 * 5 - 1)
    assert set(reward.reads) == {"prefix"}
    assert isinstance(reward, Reward)


def test_wrong_dimensions_are_named() -> None:
    with pytest.raises(KineflowError, match=r"\(0, 2\)"):
        Clearance(discs=((0.0, 0.0, 1.0),), dims=(0, 2))(line((0, 0)), situation())
