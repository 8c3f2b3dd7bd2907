"""`kineflow train` on a store whose streams have clocks of their own: by the rule in the YAML, said aloud, and resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kineflow.cli import main
from kineflow.config import load_config, save_config
from kineflow.contracts import Episode, FeatureSpec, Interface, Stream
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.policies.checkpoint import find_checkpoint, read_contract
from kineflow.policies.train import TrainConfig, Trainer
from tests.policies.conftest import ACTION, STATE

MS = 1_000_000
RULE = {"state": {"rule": "hold", "max_gap_s": 0.05}}
GAP = range(60, 90)  # samples of the state that are missing in episode 1: 0.6 s


@pytest.fixture
def multi_rate(tmp_path: Path, config: TrainConfig) -> Path:
    """The YAML of a small training: state at 50 Hz with a gap, actions at 10 Hz."""
    interface = Interface({"state": FeatureSpec(STATE, 50.0)}, FeatureSpec(ACTION, 10.0))
    store = EpisodeStore.create(tmp_path / "s.eps", interface)
    with store.writer() as writer:
        for number in range(4):
            angle = number + 0.02 * np.arange(150)
            state = np.stack([np.cos(angle), np.sin(angle), angle % (2 * np.pi)], 1).astype(np.float32)
            kept = [row for row in range(150) if number != 1 or row not in GAP]
            streams = {
                "state": Stream(state[kept], 3 * MS + 20 * MS * np.array(kept, np.int64)),
                "action": Stream(state[2::5, :2], 10 * MS + 100 * MS * np.arange(30, dtype=np.int64)),
            }
            writer.add(Episode(streams))
    small = replace(config, store=store.path, steps=20, validation_fraction=0.25)
    save_config(small, tmp_path / "train.yaml")
    plain = yaml.safe_load((tmp_path / "train.yaml").read_text())
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**plain, "resample": RULE}))
    return tmp_path / "train.yaml"


def test_windows_follow_the_rule_of_the_yaml(multi_rate: Path, tmp_path: Path) -> None:
    data = Trainer(load_config(TrainConfig, multi_rate), tmp_path / "run").data
    store, expected, left_out = EpisodeStore.open(tmp_path / "s.eps"), [], 0
    for number in range(4):
        state, action = (store.episode(number).streams[name] for name in ("state", "action"))
        for step in range(30):
            held = []
            for seen in action.stamp_ns[[max(step - 1, 0), step]]:
                row = np.flatnonzero(state.stamp_ns <= seen)[-1]
                held += [state.values[row]] if seen - state.stamp_ns[row] <= 50 * MS else []
            expected += [np.array(held)] if len(held) == 2 else []
            left_out += len(held) < 2
    found = [part.read(np.arange(len(part))).state for part in (data.training, data.validation)]
    assert sorted(w.tobytes() for part in found for w in part) == sorted(w.tobytes() for w in expected)
    assert data.left_out == {"state": left_out}
    assert left_out > 0


def test_a_run_says_what_it_left_out_states_the_rate_it_saw_and_resumes(
    multi_rate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", str(multi_rate), "--run", str(whole)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "6 of 120 windows are left out: they would observe a gap (state 6)" in said
    interface = read_contract(find_checkpoint(whole)).interface
    assert interface.features["state"].rate_hz == interface.action.rate_hz == 10.0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "00000020")
    assert main(["train", "--resume", str(broken)]) == 0
    ours, theirs = (load_file(run / "checkpoints" / "00000020" / "ema.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_rule_training_is_refused(multi_rate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = yaml.safe_load(multi_rate.read_text())
    multi_rate.write_text(yaml.safe_dump({**plain, "resample": {}}))
    assert main(["train", str(multi_rate), "--run", str(tmp_path / "run")]) == 2
    assert "'state' has a clock of its own; say how it is read" in " ".join(capsys.readouterr().err.split())
