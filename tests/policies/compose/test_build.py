"""From what was typed to a folder that loads like any policy; what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from kineflow.contracts import Horizons, KineflowError, Observation, Policy
from kineflow.policies import checkpoint
from kineflow.policies.checkpoint import CheckpointError
from kineflow.policies.compose.build import build, parse_schedule, parse_weights
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.policy import ComposedPolicy, compose
from kineflow.policies.compose.weights import WeightKnot
from kineflow.policies.load import load_policy
from tests.contracts.policy_suite import PolicySuite
from tests.policies.compose.conftest import DIFFUSION, Make, ask


@pytest.fixture(scope="module")
def parents(make: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A flow on absolute actions and a diffusion on relative ones, saved as checkpoints."""
    folder = tmp_path_factory.mktemp("parents")
    policies = {"flow": make(0), "diffusion": make(1, objective=DIFFUSION, relative_to=("x", "y"), horizons=Horizons(1, 6, 3))}
    return [str(policy.save_pretrained(folder / name)) for name, policy in policies.items()]


HALVES = {"weights": (0.5, 0.5)}


@pytest.mark.parametrize("link", [False, True])
def test_folder_loads_and_answers_the_same(parents: list[str], tmp_path: Path, observation: Observation, link: bool) -> None:
    built = build(parents, tmp_path / "out", {"weights": (0.25, 0.75)}, link=link)
    loaded = load_policy(tmp_path / "out")
    assert isinstance(loaded, ComposedPolicy)
    assert isinstance(loaded, Policy)
    assert loaded.contract == built.policy.contract
    assert loaded.composition == built.policy.composition
    assert (tmp_path / "out" / loaded.composition.parents[0]).resolve() == (
        Path(parents[0]).resolve() if link else (tmp_path / "out" / "parents" / "0_flow").resolve()
    )
    ours, theirs = (policy.predict(observation, ask()).actions for policy in (built.policy, loaded))
    assert np.array_equal(ours, theirs)
    assert loaded.contract.horizons == Horizons(2, 8, 3)
    assert json.loads((tmp_path / "out" / "contract.json").read_text())["horizons"]["prediction"] == 8


def test_copied_folder_moves_whole_and_a_linked_one_misses_its_parents(parents: list[str], tmp_path: Path) -> None:
    build(parents, tmp_path / "whole", HALVES)
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere" / "whole")
    assert isinstance(load_policy(tmp_path / "elsewhere" / "whole"), ComposedPolicy)
    build(parents, tmp_path / "linked", HALVES, link=True)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.move(tmp_path / "linked", tmp_path / "deep" / "er" / "linked")
    with pytest.raises(CheckpointError, match="linked parents must stay where they were"):
        load_policy(tmp_path / "deep" / "er" / "linked")


def test_a_changed_composition_is_noticed(parents: list[str], tmp_path: Path) -> None:
    build(parents, tmp_path / "out", HALVES)
    file = tmp_path / "out" / "compose.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"weights": [0.1, 0.9]}))
    with pytest.raises(CheckpointError, match="does not reproduce the golden output"):
        load_policy(tmp_path / "out")


def test_the_plain_loader_says_where_to_go(parents: list[str], tmp_path: Path) -> None:
    build(parents, tmp_path / "out", HALVES)
    with pytest.raises(CheckpointError, match=r"composed policy.*kineflow\.policies\.load"):
        checkpoint.load_policy(tmp_path / "out")


def test_a_trained_policy_loads_through_the_same_door(parents: list[str]) -> None:
    assert isinstance(load_policy(parents[0]), checkpoint.ChunkPolicy)


def test_defaults_come_from_the_parents(parents: list[str], tmp_path: Path, make: Make) -> None:
    long = make(0, objective=replace(DIFFUSION, steps=7)).save_pretrained(tmp_path / "long")
    composition = build([*parents[:1], str(long)], tmp_path / "out", HALVES).policy.composition
    assert (composition.solver, composition.steps) == ("ddim", 7)  # euler and ddim: the same rule, under its common name
    both = build([parents[0], parents[0]], tmp_path / "same", HALVES).policy
    assert both.composition.solver == "euler"
    assert both.names == ("flow", "flow-1")


def test_a_yaml_file_composes_too(parents: list[str], tmp_path: Path, observation: Observation) -> None:
    for source in parents:
        shutil.copytree(source, tmp_path / Path(source).name)
    file = tmp_path / "mine.yaml"
    schedule = [{"t": 0.0, "weights": [1.0, 0.0]}, {"t": 1.0, "weights": [0.3, 0.7]}]
    file.write_text(yaml.safe_dump({"parents": ["flow", "diffusion"], "weights": [], "schedule": schedule, "steps": 5}))
    written = build([str(file)], tmp_path / "out", {}).policy
    assert written.composition.steps == 5
    typed = build(
        parents, tmp_path / "out2", {"schedule": parse_schedule("0:1,0;1:0.3,0.7"), "steps": 5, "solver": "ddim"}
    ).policy
    assert np.array_equal(written.predict(observation, ask()).actions, typed.predict(observation, ask()).actions)


def test_what_is_typed_wrong_is_refused(parents: list[str], tmp_path: Path) -> None:
    assert parse_schedule("0:1,0;0.5:0.3,0.7") == (WeightKnot(0.0, (1.0, 0.0)), WeightKnot(0.5, (0.3, 0.7)))
    for wrong in ("0.3,0.7", "0:a,b", ""):
        with pytest.raises(KineflowError, match="schedule"):
            parse_schedule(wrong)
    with pytest.raises(KineflowError, match="write numbers with commas"):
        parse_weights("0.3;0.7")
    with pytest.raises(KineflowError, match="name the weights"):
        build(parents, tmp_path / "out", {})
    with pytest.raises(KineflowError, match=r"0.5,0.6 sum to 1.1"):
        build(parents, tmp_path / "out", {"weights": (0.5, 0.6)})
    with pytest.raises(KineflowError, match="two policies or more"):
        build(parents[:1], tmp_path / "out", {"weights": (1.0,)})
    assert not (tmp_path / "out").exists()
    build(parents, tmp_path / "out", HALVES)
    with pytest.raises(KineflowError, match="is not empty"):
        build(parents, tmp_path / "out", HALVES)
    with pytest.raises(KineflowError, match="is a composed policy itself"):
        build([str(tmp_path / "out"), parents[0]], tmp_path / "nested", HALVES)


class TestComposedPolicy(PolicySuite):
    """A composed policy keeps every promise of contracts.Policy."""

    @pytest.fixture
    def policy(self, make: Make) -> Policy:
        parents = make(0), make(1, objective=DIFFUSION, relative_to=("x", "y"))
        return compose(parents, ("a", "b"), Composition(("a", "b"), (0.3, 0.7), solver="sde", steps=4))
