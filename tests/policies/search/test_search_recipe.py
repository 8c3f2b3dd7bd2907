"""The recipe for search on the page "From paper to code" runs as it is written, on a policy for PushT that was hardly trained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.config import load_config
from kineflow.contracts import Episode, Horizons, Interface, KineflowError, Stream
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.envs.pusht import PushT
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.encoders.state import State
from kineflow.policies.rollout import Rollout
from kineflow.policies.similarity_filter import SimilarityFilter
from kineflow.policies.streaming import StreamPolicy
from kineflow.policies.train import TrainConfig, train
from tests.policies.conftest import POLICY

PAGE = Path(__file__).parents[3] / "policies" / "from_paper_to_code.md"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """`runs/mine` of the recipe: a tiny flow policy on the interface of PushT."""
    offered = load_config(Interface, "interfaces/pusht")
    interface = Interface({"state": offered.features["state"]}, offered.action)
    store = EpisodeStore.create(tmp_path / "data.eps", interface, clock="nominal_10hz")
    rng, stamps = np.random.default_rng(0), np.arange(12, dtype=np.int64) * 100_000_000
    with store.writer() as writer:
        for _ in range(4):
            state = rng.uniform(100, 400, (12, 5)).astype(np.float32)
            state[:, 4] /= 100
            streams = {"state": Stream(state, stamps), "action": Stream(state[:, :2], stamps)}
            writer.add(Episode(streams, clock="nominal_10hz"))
    policy = replace(POLICY, horizons=Horizons(2, 8, 8), encoder=State(width=16, depth=1, token=16), relative_to=())
    train(TrainConfig(policy, store=tmp_path / "data.eps", steps=1, batch_size=8, threads=1), tmp_path / "runs" / "mine")
    return tmp_path / "runs" / "mine"


def test_the_recipe_for_search_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text().split("## Search and streaming")[1].split("\n## ")[0]
    recipe, *_ = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    short = recipe.replace("episodes=50", "episodes=1, num_envs=1, batch=1, videos=0, fan_samples=1").replace("320", "20")
    assert short.count("batch=1") == short.count("budget=20") == 1
    monkeypatch.chdir(run.parents[1])
    exec(compile(short, str(PAGE), "exec"), {})
    manifest = json.loads((run / "eval" / "best_of_32" / "manifest.json").read_text())
    assert manifest["sampler"]["solver"] == "BestOfN of 20 calls"
    assert (run / "eval" / "best_of_32" / "report.html").is_file()


def test_policies_that_remember_are_not_rolled_out(run: Path) -> None:
    policy = load_policy(run)
    for remembering in (StreamPolicy(policy, 4), SimilarityFilter(policy)):
        with pytest.raises(KineflowError, match="remembers what it was asked before"):
            Rollout(remembering, PushT, 1, 1)
