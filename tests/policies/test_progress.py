"""Finding one's place in a goal video: the head learns it, the follower keeps it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.contracts import GoalSpec, KineflowError
from kineflow.policies.clip_follower import ClipFollower
from kineflow.policies.progress import Progress, ProgressHead


def test_head_learns_where_a_pattern_is() -> None:
    """Token 1 is one of 9 frames of a clip, tokens 2 to 4 the video: the answer is where among them it is."""
    torch.manual_seed(0)
    clip = torch.randn(9, 16)
    head = ProgressHead(Progress(weight=1.0, width=64), (4, 17))
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)

    def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin, ahead = torch.randint(2, 6, (rows,)), torch.randint(-2, 4, (rows,))
        tokens = torch.stack([clip[begin + ahead], clip[begin], clip[begin + 1], clip[begin + 2]], dim=1)
        return torch.cat([tokens, torch.ones(rows, 4, 1)], dim=2), ahead * 0.2

    told = torch.ones(256, dtype=torch.bool)
    for _ in range(400):
        tokens, ahead_s = batch(256)
        optimiser.zero_grad()
        head.loss(tokens, ahead_s, told).mean().backward()
        optimiser.step()
    tokens, ahead_s = batch(500)
    assert (head(tokens) - ahead_s).abs().mean() < 0.06  # 0.24 s for the best constant
    assert not head.loss(tokens[:256], ahead_s[:256], ~told).any(), "who was told no video is not asked"


def test_follower_reaches_the_end_with_a_driver_who_is_slower_and_an_answer_that_errs() -> None:
    """True place: 70 % of the clip's pace; answers are off by up to 0.3 s."""
    rng = np.random.default_rng(0)
    clip, place = ClipFollower(length=100, rate_hz=5.0), 0.0
    errors = []
    for _ in range(200):
        clip.answered((place - clip.frame) / 5.0 + rng.uniform(-0.3, 0.3))
        errors.append(clip.frame - place)
        clip.passed(0.4)
        place = min(place + 0.4 * 0.7 * 5.0, 99.0)
    assert max(abs(np.array(errors))) < 3
    assert clip.at_end
    lost = ClipFollower(length=100, rate_hz=5.0, gain=0.0)
    for _ in range(40):
        lost.answered(-1.0)
        lost.passed(0.4)
    assert lost.frame == 80, "who believes no answer goes at the clip's pace"


@given(st.integers(1, 40), st.lists(st.floats(-9, 9) | st.just(math.nan), max_size=30))
@settings(max_examples=50, deadline=None)
def test_follower_stays_within_its_clip(length: int, answers: list[float]) -> None:
    clip = ClipFollower(length, 5.0)
    for answer in answers:
        before = clip.frame
        clip.answered(answer)
        assert abs(clip.frame - before) <= 7, "one answer moves it by 1.2 s at most"
        clip.passed(0.2)
        assert 0 <= clip.frame < length
        assert clip.at_end == (clip.frame == length - 1)


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"length": 0}, {"rate_hz": 0.0}, {"gain": 1.5}, {"reach_s": (-1.0, 1.0)}):
        with pytest.raises(KineflowError, match="a clip of"):
            ClipFollower(**{"length": 5, "rate_hz": 5.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(KineflowError, match="leave policy"):
        Progress(weight=0.0)


def test_progress_names_a_video() -> None:
    from kineflow.config import load_config
    from kineflow.policies.train_config import TrainConfig

    policy = load_config(TrainConfig, "train/navigation_flow").policy
    with pytest.raises(KineflowError, match=r"policy.progress is 'image', .* name a video"):
        replace(policy, progress="image")
    with pytest.raises(KineflowError, match=r"is .clip., policy"):
        replace(policy, progress="clip", goals={"video": GoalSpec("video", 96, 96, 4, 5.0)})
