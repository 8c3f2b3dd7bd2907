"""The table of navigation: real episodes of a policy that has hardly learned, driven cell by cell, stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kineflow.contracts import GoalSpec, Horizons, KineflowError
from kineflow.datasets.window_goals import GoalWindows
from kineflow.envs.navigation.stage import Picture
from kineflow.policies.collect import CollectConfig, collect
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.state import State
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.intervals import wilson_interval
from kineflow.policies.navigation_table import Cell, TableConfig, fill, run_cell
from kineflow.policies.navigation_trial import NavigationTrial
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.train import train
from kineflow.policies.train_config import TrainConfig

BODIES = ("wheeled", "drone", "humanoid")
POLICY = PolicyConfig(
    horizons=Horizons(1, 8, 8),
    head=FlowDiT(width=32, depth=1, embodiments=3),
    objective=FlowMatching(steps=1),
    encoder=GoalVision(
        frames=Colours(size=32, grid=2),
        embodiments=BODIES,
        token=32,
        queries=1,
        depth=1,
        goal_dropout=1.0,
        state=State(width=16, depth=1, token=32),
    ),
    features=("velocity", "embodiment"),
    cameras=("front",),
    goals={"video": GoalSpec("video", 32, 32, frames=3, rate_hz=5.0), "instruction": GoalSpec("instruction")},
    stop="stop",
    progress="video",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    collect(CollectConfig(worlds=1, trips_per_world=2, runs_per_trip=1, picture=Picture(32, 32)), folder / "data.eps")
    where = GoalWindows(cursor="cursor", rate_hz=5.0, slack=(4, 2))
    config = TrainConfig(POLICY, folder / "data.eps", goals=where, steps=5, batch_size=16, threads=1, validation_fraction=0.3)
    train(config, folder / "run")
    return folder / "run"


def small(run: Path, **changes: object) -> TableConfig:
    config = TableConfig(
        {"mine": str(run)},
        embodiments=("wheeled",),
        columns=("video closed", "image closed", "instruction closed"),
        episodes={"wheeled": 3},
        num_envs=2,
        trial=NavigationTrial(time_limit_s=1.6),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def test_a_stopped_table_goes_on_at_the_episode_where_it_was(run: Path, tmp_path: Path) -> None:
    config, cell = small(run), Cell("mine", str(run), "wheeled", "video closed")
    run_cell(cell, config, tmp_path)
    file = cell.folder(tmp_path) / "episodes.jsonl"
    whole = file.read_text().splitlines()
    assert len(whole) == 4
    assert {json.loads(line)["seed"] for line in whole[1:]} == {100_000, 100_001, 100_002}
    file.write_text("\n".join([*whole[:2], whole[2][: len(whole[2]) // 2]]) + "\n")  # killed while it wrote
    table = fill(config, tmp_path)
    again = [json.loads(line) for line in file.read_text().splitlines() if line in whole or line.endswith("}")]
    untimed = [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in again[1:]]
    expected = [{k: v for k, v in json.loads(line).items() if not k.endswith("_ms")} for line in whole[1:]]
    assert sorted(untimed, key=lambda row: row["seed"]) == sorted(expected, key=lambda row: row["seed"]), "not driven: the same"
    assert whole[1] in file.read_text(), "what was whole was not driven again"

    assert [(row["column"], row["success"]["n"]) for row in table] == [("video closed", 3), ("instruction closed", 3)], (
        "a policy that takes no image has no cell for it"
    )
    first = table[0]
    succeeded = sum(json.loads(line)["success"] for line in whole[1:])
    assert first["success"]["value"] == wilson_interval(succeeded, 3).value
    assert first["success"]["high"] == wilson_interval(succeeded, 3).high
    page = (tmp_path / "table.md").read_text()
    assert f"| mine | {100 * first['success']['value']:.1f} [" in page
    assert "### image closed, success within 1 m\n\n| policy | wheeled |\n|---|---|\n| mine | – |" in page
    assert json.loads((tmp_path / "table.json").read_text()) == table

    before = file.read_text()
    assert fill(config, tmp_path) == table
    assert file.read_text() == before, "nothing was left to drive"
    fill(replace(config, trial=NavigationTrial(time_limit_s=0.8)), tmp_path)
    assert all(json.loads(line)["steps"] <= 8 for line in file.read_text().splitlines()[1:]), "other settings begin anew"


def test_what_a_table_cannot_hold(run: Path) -> None:
    with pytest.raises(KineflowError, match="'sound' in column 'sound closed'"):
        small(run, columns=("sound closed",))
    with pytest.raises(KineflowError, match="loop is open with goal image"):
        small(run, columns=("image open",))
    with pytest.raises(KineflowError, match=r"nothing for \['drone'\]"):
        small(run, embodiments=("drone",))


def test_a_policy_that_is_not_there_is_named_before_anything_is_driven(run: Path, tmp_path: Path) -> None:
    config = small(run, policies={"mine": str(run), "NoMaD": str(tmp_path / "none")})
    with pytest.raises(KineflowError, match=r"policy 'NoMaD' cannot be loaded from .*none; train it first, or leave it out"):
        fill(config, tmp_path / "table")
    assert not list(tmp_path.glob("table/**/episodes.jsonl"))
