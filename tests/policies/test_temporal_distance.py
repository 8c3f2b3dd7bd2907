"""Distances to pictures: the questions that training asks, against a plain loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kineflow.contracts import GoalSpec, KineflowError
from kineflow.policies.observed import Observed
from kineflow.policies.policy import TrainingBatch
from kineflow.policies.temporal_distance import DistanceHead, TemporalDistance

G, VIDEO_HZ, ACTION_HZ = 6, 2.5, 10.0
GOALS = {"image": GoalSpec("image", 4, 4), "video": GoalSpec("video", 4, 4, G, VIDEO_HZ)}


def head(**settings: Any) -> DistanceHead:
    config = replace(TemporalDistance(furthest=20, final=0.0, negatives=0.0), **settings)
    return config.build((2, 32), GOALS, ACTION_HZ)


def batch(rows: int, left_s: torch.Tensor | None = None) -> TrainingBatch:
    """Picture k of row b holds the number 10 b + k, its image 10 b + 9."""
    numbers = 10.0 * torch.arange(rows)
    video = (numbers[:, None] + torch.arange(G))[..., None, None].expand(-1, -1, 4, 3)
    image = (numbers + 9)[:, None, None].expand(-1, 4, 3)
    given = {name: torch.ones(rows, dtype=torch.bool) for name in GOALS}
    seen = Observed(torch.zeros(rows, 2, 3), {}, {"image": image, "video": video}, given)
    left = torch.full((rows,), 100.0) if left_s is None else left_s
    return TrainingBatch(seen, torch.zeros(rows, 8, 4), torch.ones(rows, 8), left_s=left)


def asked(head: DistanceHead, windows: TrainingBatch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, TrainingBatch]:
    """Row and number of the picture that each row is asked about."""
    questions = head.questions(windows, torch.Generator().manual_seed(seed))
    number = questions.observed.goals["image"][:, 0, 0]
    assert set(questions.observed.goals) == set(questions.observed.given) == {"image"}
    assert questions.distance is not None
    return number.div(10, rounding_mode="floor"), number.remainder(10), questions


def test_a_label_is_the_time_of_the_clip_to_the_picture() -> None:
    """k / 2.5 Hz at 10 steps a second, but no more than what is left of the clip, nor than `furthest`."""
    left = torch.rand(500) * 3
    row, picture, questions = asked(head(), batch(500, left))
    assert torch.equal(row, torch.arange(500.0))
    assert set(picture.tolist()) == set(range(G))
    expected = [min(ACTION_HZ * min(k / VIDEO_HZ, s), 20) for k, s in zip(picture.tolist(), left.tolist())]
    torch.testing.assert_close(questions.distance, torch.tensor(expected))
    assert torch.equal(questions.weight, torch.ones(500, 8))
    assert questions.observed.given["image"].all()


def test_a_video_that_begins_beside_the_robot() -> None:
    """Known from `ahead_s`: where the picture is behind, it is as many steps away."""
    windows = replace(batch(200), ahead_s=torch.full((200,), 0.6))
    _, picture, questions = asked(head(), windows)
    torch.testing.assert_close(questions.distance, (ACTION_HZ * (picture / VIDEO_HZ - 0.6)).abs().clamp(max=20))


def test_the_end_of_the_clip_is_asked_about_too() -> None:
    left = torch.rand(1000) * 4
    _, picture, questions = asked(head(final=0.3), batch(1000, left))
    final = picture == 9
    assert final.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert questions.distance is not None
    torch.testing.assert_close(questions.distance[final], (10 * left[final]).clamp(max=20))


def test_pictures_of_other_windows_are_far_and_teach_no_actions() -> None:
    row, _, questions = asked(head(negatives=0.2), batch(1000))
    other = row != torch.arange(1000)
    assert other.float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert questions.distance is not None
    assert (questions.distance[other] == 20).all()
    assert torch.equal(questions.weight[:, 0], (~other).float())


def test_masked_rows_are_told_nothing_and_asked_no_distance() -> None:
    _, _, questions = asked(head(masking=0.5, negatives=0.2), batch(1000))
    masked = ~questions.observed.given["image"]
    assert masked.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert questions.distance is not None
    assert torch.equal(questions.distance.isnan(), masked)
    assert (questions.weight[masked] == 1).all(), "who is told nothing still learns to drive"
    assert head(masking=0.5).explores
    assert not head().explores


def test_questions_follow_from_the_generator() -> None:
    first, second, other = (asked(head(final=0.3), batch(50), seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_loss_is_a_squared_error_of_the_rows_that_were_asked() -> None:
    torch.manual_seed(0)
    answers, tokens = head(weight=0.25), torch.randn(3, 2, 32)
    steps = torch.tensor([4.0, math.nan, 20.0])
    error = answers.loss(tokens, steps)
    expected = 0.25 * ((answers(tokens) - steps.nan_to_num()) / 20) ** 2
    torch.testing.assert_close(error[[0, 2]], expected[[0, 2]])
    assert error[1] == 0
    error.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in answers.parameters() if p.grad is not None)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(KineflowError, match="takes an image, and learns from a video"):
        TemporalDistance().build((2, 32), {"image": GOALS["image"]}, ACTION_HZ)
    with pytest.raises(KineflowError, match="the same height and width"):
        TemporalDistance().build((2, 32), {**GOALS, "image": GoalSpec("image", 8, 8)}, ACTION_HZ)
    with pytest.raises(KineflowError, match="probabilities below 1"):
        TemporalDistance(masking=1.0)
    with pytest.raises(KineflowError, match="must be positive"):
        TemporalDistance(furthest=0)
    with pytest.raises(KineflowError, match="windows without left_s"):
        head().questions(replace(batch(2), left_s=None), torch.Generator())
