"""The demo and the comparison, whole, with tiny budgets; and how a time budget becomes steps."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.policies import budget
from kineflow.policies.checkpoint import checkpoint_steps
from kineflow.policies.compare import compare
from kineflow.policies.demo import run_demo
from kineflow.policies.train import TrainConfig


def test_budget_becomes_steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "measure", lambda config, seconds=6.0: (0.05, 0.3))
    fitted = budget.fit_to_minutes(config, 2.0)
    assert fitted.steps * 0.05 + 20 * 0.3 == pytest.approx(120, rel=0.02)
    assert fitted.steps // fitted.validate_every == 20
    assert replace(fitted, steps=60, validate_every=20, checkpoint_every=10) == config


def test_threads_are_chosen_by_measuring(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(budget, "measure", lambda config, seconds=6.0: ({1: 0.02, 8: 0.5}[config.threads], 0.0))
    assert budget.choose_threads(replace(config, threads=0)).threads == 1
    monkeypatch.setattr(budget, "measure", lambda config, seconds=6.0: ({1: 0.02, 8: 0.005}[config.threads], 0.0))
    assert budget.choose_threads(replace(config, threads=0)).threads == 8
    assert budget.choose_threads(replace(config, threads=3)).threads == 3


def test_measure_times_real_steps(config: TrainConfig) -> None:
    step_s, validation_s = budget.measure(config, seconds=0.2)
    assert 1e-4 < step_s < 10
    assert 1e-4 < validation_s < 60


@pytest.mark.slow
def test_demo_runs_resumes_and_keeps_what_was_there(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    result = run_demo(run, minutes=0.2, episodes=3)
    assert result.mean_max_reward.n == 3
    report = result.report.read_text()
    assert result.report == run / "eval" / "demo" / "report.html"
    assert report.count("<video") == 3
    # Interrupted: the last checkpoint is gone, so the run is unfinished and the same budget continues it.
    steps = checkpoint_steps(run)
    shutil.rmtree(run / "checkpoints" / f"{steps[-1]:08d}")
    again = run_demo(run, minutes=0.2, episodes=3)
    assert checkpoint_steps(run) == steps
    assert [e.max_reward for e in again.episodes] == [e.max_reward for e in result.episodes]
    # Another budget starts anew and moves the old run aside.
    run_demo(run, minutes=0.15, episodes=1)
    assert checkpoint_steps(tmp_path / "demo.1") == steps


@pytest.mark.slow
def test_compare_trains_evaluates_and_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the shipped configurations keep their store below runs/
    names = ["train/pusht_flow", "train/pusht_diffusion", "train/pusht_mip", "train/pusht_regression"]
    table = compare(names, minutes=0.05, episodes=2, out=Path("runs/compare"))
    assert [e.name for e in table.entries] == ["pusht_flow", "pusht_diffusion", "pusht_mip", "pusht_regression"]
    assert table.entries[0].difference is None
    for entry in table.entries[1:]:
        assert entry.difference is not None
        expected = entry.mean_max_reward.value - table.entries[0].mean_max_reward.value
        assert entry.difference.value == pytest.approx(expected, abs=1e-9)
    assert json.loads((tmp_path / "runs" / "compare" / "comparison.json").read_text())[1]["name"] == "pusht_diffusion"
    # A second call trains nothing and gives the same numbers.
    stamps = {p: p.stat().st_mtime for p in tmp_path.rglob("ema.safetensors")}
    again = compare(names[:2], minutes=0.05, episodes=2, out=Path("runs/compare"))
    assert again.entries[1].mean_max_reward == table.entries[1].mean_max_reward
    assert {p: p.stat().st_mtime for p in tmp_path.rglob("ema.safetensors")} == stamps
    changed = tmp_path / "pusht_flow.yaml"
    flow = load_config(TrainConfig, "train/pusht_flow")
    changed.write_text(
        (Path(budget.__file__).parents[1] / "configs/train/pusht_flow.yaml").read_text().replace("width: 384", "width: 32")
    )
    assert load_config(TrainConfig, changed).policy != flow.policy
    with pytest.raises(KineflowError, match="trained with another configuration"):
        compare([str(changed)], minutes=0.05, episodes=2, out=Path("runs/compare"))
