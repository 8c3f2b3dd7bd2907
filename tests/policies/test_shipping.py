"""Policies that ship: rounded to float16 within a stated tolerance, found by name everywhere, refused in one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kineflow.cli import main
from kineflow.contracts import Observation, SamplingRequest
from kineflow.policies import checkpoint_folder, compare, shipping
from kineflow.policies.checkpoint import CheckpointError, find_checkpoint
from kineflow.policies.checkpoint_folder import shipped_names
from kineflow.policies.compose.folder import load_parents
from kineflow.policies.eval_result import EvalResult
from kineflow.policies.load import load_policy
from kineflow.policies.shipping import ROUNDING, export_policy

REQUEST = SamplingRequest(np.arange(3))


@pytest.fixture
def shipped(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder, with a policy `circles` in it."""
    folder = tmp_path / "package"
    monkeypatch.setattr(checkpoint_folder, "SHIPPED", folder)
    made = export_policy(trained, "circles", folder)
    assert made.folder == folder / "circles"
    return folder


def test_a_rounded_policy_answers_nearly_the_same(trained: Path, shipped: Path) -> None:
    tensors = load_file(shipped / "circles" / "ema.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    policy, original = load_policy("kineflow://circles"), load_policy(trained)
    assert {tensor.dtype for tensor in policy.network.state_dict().values()} == {torch.float32}
    size = len(original.contract.golden.state[0])
    seen = Observation(np.random.default_rng(0).uniform(-1, 1, (3, 2, size)).astype(np.float32), np.zeros((3, 2)))
    rounded, exact = (p.predict(seen, REQUEST).actions for p in (policy, original))
    assert 0 < np.abs(rounded - exact).max() < ROUNDING * np.abs(exact).max()
    assert policy.contract.golden != original.contract.golden
    assert policy.contract.statistics == original.contract.statistics


def test_found_by_name_wherever_a_policy_is_named(shipped: Path, trained: Path) -> None:
    assert shipped_names() == ["kineflow://circles"]
    for name in ("kineflow://circles", Path("kineflow://circles")):
        assert find_checkpoint(name) == shipped / "circles"
    assert load_parents(["kineflow://circles", trained])[1] == ["circles", "circles-1"]
    assert compare._trained("kineflow://circles", 1.0, Path("unused")) == shipped / "circles"


def test_evaluating_writes_nothing_into_the_package(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, places = sorted(shipped.rglob("*")), []

    class Stop(Exception):
        pass

    def evaluate(policy: object, config: object, out: Path, *_: object) -> EvalResult:
        places.append(out)
        raise Stop

    monkeypatch.setattr("kineflow.policies.evaluation.evaluate", evaluate)
    monkeypatch.setattr(compare, "evaluate", evaluate)
    with pytest.raises(Stop):
        main(["eval", "kineflow://circles"])
    with pytest.raises(Stop):
        compare.compare(["kineflow://circles"], minutes=1, episodes=1, out=tmp_path / "table")
    assert places == [Path("runs/circles/eval/pusht"), tmp_path / "table" / "circles" / "eval" / "compare"]
    assert sorted(shipped.rglob("*")) == before


def test_unknown_names_are_listed(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("kineflow://circle", "kineflow://", "kineflow://../package/circles"):
        with pytest.raises(CheckpointError, match=r"there are \['kineflow://circles'\]"):
            load_policy(name)
    with pytest.raises(CheckpointError, match=r"one of \['kineflow://circles'\]"):
        load_policy("runs/no_such_run/anywhere")
    assert main(["eval", "kineflow://circle"]) == 2
    assert "no such policy ships with this version" in capsys.readouterr().err


def test_what_cannot_ship_is_refused(trained: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is there already"):
        export_policy(trained, "circles", shipped)
    with pytest.raises(CheckpointError, match="small letters"):
        export_policy(trained, "../circles", shipped)
    monkeypatch.setattr(shipping, "LARGEST_MB", 1e-3)
    with pytest.raises(CheckpointError, match="MB in float16, more than"):
        export_policy(trained, "large", shipped)
    monkeypatch.setattr(shipping, "LARGEST_MB", 12.0)
    monkeypatch.setattr(shipping, "ROUNDING", 1e-9)
    with pytest.raises(CheckpointError, match="another golden answer"):
        export_policy(trained, "rounded", shipped)
    monkeypatch.setattr(shipping, "ROUNDING", ROUNDING)
    assert sorted(path.name for path in shipped.iterdir()) == ["circles"], "nothing half written"
    policy = load_policy(trained)
    with torch.no_grad():
        next(policy.network.head.parameters()).view(-1)[0] = 1e6
    with pytest.raises(CheckpointError, match=r"not finite in float16 \(largest 1e\+06\)"):
        shipping._rounded(policy, trained)


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--name", "mine", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["megabytes"] < 0.2
    assert 0 <= said["golden_error"] < ROUNDING
    load_policy(said["folder"])


def test_all_that_ship_load() -> None:
    assert "navigation_flow_small" in "".join(shipped_names())  # README, configs/table and this package's users name it
    for name in shipped_names():
        assert load_policy(name).contract.horizons.execution >= 1
