"""Clips told by topic: collected picture by picture, followed without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kineflow.contracts import ActionChunk, GoalSpec, PolicyContract
from kineflow.deploy.ros2.goals import LONGEST_CLIP, GoalInbox
from kineflow.deploy.ros2.images import PictureError
from kineflow.deploy.ros2.toy_policies import toy_contract

TORCHLESS = """
import sys
for name in ("torch", "zarr", "numcodecs", "google_crc32c", "msgpack"):
    sys.modules[name] = None  # none of it is on a robot
import kineflow.deploy.models
from tests.deploy.test_goals import inbox, tell
told = tell(inbox(), 6)
assert told is not None and told.goal()["video"].shape == (3, 4, 6, 3)
"""


def clip_contract() -> PolicyContract:
    """Three frames of 4 x 6 at 2.5 Hz are shown."""
    contract = toy_contract()
    return replace(contract, interface=replace(contract.interface, goals={"video": GoalSpec("video", 4, 6, 3, 2.5)}))


def inbox() -> GoalInbox:
    return GoalInbox(clip_contract(), 5.0)


def picture(number: int) -> np.ndarray:
    return np.full((4, 6, 3), number, np.uint8)


def tell(goals: GoalInbox, count: int) -> object:
    return [goals.clip_picture(picture(i), f"{i}/{count}") for i in range(count)][-1]


def test_a_clip_is_followed_without_torch() -> None:
    """On a robot with an exported policy or a policy server; before, clips were refused there."""
    done = subprocess.run([sys.executable, "-c", TORCHLESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_window_moves_with_what_the_policy_answers() -> None:
    goals = inbox()
    assert [goals.clip_picture(picture(i), f"{i}/20") for i in (3, 1, *range(4, 20), 2)] == [None] * 19
    told = goals.clip_picture(picture(0), "0/20")  # complete, in any order
    assert told is not None
    assert told.goal()["video"][:, 0, 0, 0].tolist() == [0, 2, 4]  # a clip of 5 Hz shown at 2.5 Hz
    seen = np.zeros((1, 2, 4), np.float32)
    for _ in range(5):
        told.answered(ActionChunk(seen, 0.1, np.zeros(1), ahead_s=np.array([1.0])), 0)
    assert told.goal()["video"][0, 0, 0, 0] > 8
    for _ in range(3):
        assert not told.has_arrived
        told.answered(ActionChunk(seen, 0.1, np.zeros(1), stop_probability=np.array([0.9])), 0)
    assert told.has_arrived


def test_pictures_of_another_clip_do_not_mix() -> None:
    """A clip that was broken off, then a shorter one; and one of the same length after a loss."""
    goals = inbox()
    for i in (0, 1, 2, 20, 21, 22, 23):
        assert goals.clip_picture(picture(100 + i), f"{i}/24") is None
    told = tell(goals, 6)
    assert told is not None
    assert told.goal()["video"].max() < 100  # type: ignore[attr-defined]
    for i in (0, 1, 2):
        goals.clip_picture(picture(100 + i), f"{i}/6")
    assert tell(goals, 6).goal()["video"].max() < 100  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["", "3", "6/6", "-1/6", "²/6", "1/٣", "a/b", f"0/{LONGEST_CLIP + 1}", "0/6/7"])
def test_numbers_that_are_none(place: str) -> None:
    with pytest.raises(PictureError, match="frame_id"):
        inbox().clip_picture(picture(0), place)
