"""Goals and instructions on their way into a policy: what is declared is checked, what is not is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import (
    ContractError,
    FeatureSpec,
    GoalSpec,
    Interface,
    Observation,
    VectorSpec,
    interface_differences,
)
from kineflow.policies.observed import Observed, observed_goals, with_goals

SPECS = {
    "video": GoalSpec("video", height=6, width=8, frames=4, rate_hz=5.0),
    "image": GoalSpec("image", height=6, width=8),
    "point": GoalSpec("point"),
    "instruction": GoalSpec("instruction"),
}
SEEN = Observation(np.zeros((2, 1, 3), np.float32), np.zeros((2, 1)))


def test_what_is_given_arrives_and_the_rest_is_marked() -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 8, 3), np.uint8)
    batch = observed_goals(replace(SEEN, goal={"video": video}, instruction=("go", "stop")), SPECS)
    assert batch is not None
    assert batch.instruction == ("go", "stop")
    assert {name: rows.tolist() for name, rows in batch.given.items()} == {
        "video": [True, True],
        "image": [False, False],
        "point": [False, False],
        "instruction": [True, True],
    }
    np.testing.assert_array_equal(batch.values["video"], video)
    assert not batch.values["image"].any()
    seen = with_goals(Observed(torch.zeros(2, 1, 3), {}), batch, torch.device("cpu"))
    assert seen.goals["video"].shape == (2, 4, 6, 8, 3)
    assert seen.given["instruction"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs a goal, one of .*image.*and was given none"),
        ({"goal": {"pose": np.zeros((2, 7), np.float32)}}, r"takes no goal 'pose', but was given one; it takes \['image'"),
        ({"instruction": ("go",)}, "has 1 texts for 2 rows"),
        ({"goal": {"image": np.zeros((2, 6, 8, 3), np.float32)}}, r"goal\['image'\] is float32 .* needs uint8 \(2, 6, 8, 3\)"),
        (
            {"goal": {"video": np.zeros((2, 3, 6, 8, 3), np.uint8)}},
            r"uint8 \(2, 3, 6, 8, 3\), the policy needs .*\(2, 4, 6, 8, 3\)",
        ),
        ({"goal": {"point": np.full((2, 3), np.nan, np.float32)}}, r"goal\['point'\] is not finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        observed_goals(replace(SEEN, **changes), SPECS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "image", "height": 6}, "kind image: width is 0; it must be positive"),
        ({"kind": "video", "height": 6, "width": 6, "frames": 4}, "kind video: rate_hz is 0; it must be positive"),
        ({"kind": "point", "height": 6}, "kind point: height is 6; leave it out"),
    ],
)
def test_a_spec_says_what_its_kind_needs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(GoalSpec, fields, "goals.g")


def test_contracts_compare_goals() -> None:
    action = FeatureSpec(VectorSpec(("v",), ("m/s",), "body", (-1.0,), (1.0,)), 10.0)
    needed = Interface({}, action, goals={name: SPECS[name] for name in ("video", "image")})
    assert list(interface_differences(needed, replace(needed, goals={"image": SPECS["image"]}))) == []  # one way is enough
    (none_shared,) = interface_differences(needed, replace(needed, goals={"point": SPECS["point"]}))
    assert "takes one of ['image', 'video'], offered are ['point']" in none_shared
    (other_size,) = interface_differences(needed, replace(needed, goals={"image": GoalSpec("image", 9, 9)}))
    assert "goal 'image': the policy takes GoalSpec(kind='image', height=6" in other_size
    assert list(interface_differences(replace(needed, goals={}), needed)) == []  # who takes no goal may be offered one
