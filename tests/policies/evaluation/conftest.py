"""A small real network as policy, and scripted stand-ins, shared by the tests of rollout, evaluation and report."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from kineflow.config import load_config
from kineflow.contracts import (
    ActionChunk,
    FeatureSpec,
    FeatureStatistics,
    GoldenPair,
    Horizons,
    Interface,
    PolicyContract,
    SamplerSpec,
    VectorSpec,
)
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.evaluation import evaluate


def statistics(size: int) -> FeatureStatistics:
    zeros, ones = (0.0,) * size, (1.0,) * size
    return FeatureStatistics(count=1, mean=zeros, std=ones, min=zeros, max=ones, q01=zeros, q99=ones)


def make_contract(interface: Interface, horizons: Horizons) -> PolicyContract:
    """Contract without cameras for any interface."""
    needed = Interface(features=interface.features, action=interface.action)
    sizes = {name: spec.vector.size for name, spec in interface.features.items()} | {"action": interface.action.vector.size}
    return PolicyContract(
        interface=needed,
        horizons=horizons,
        sampler=SamplerSpec("CondOT", "velocity", "euler", 10),
        statistics={name: statistics(size) for name, size in sizes.items()},
        dataset_hash="0123456789abcdef",
        versions={"kineflow": "0.1.0"},
        golden=GoldenPair((), 0, ()),
    )


class SmallPolicy:
    """A torch MLP whose narrow output makes its rounding depend on the row (15 of 32 rows change when moved)."""

    def __init__(self) -> None:
        horizons = Horizons(2, 16, 8)
        self.contract = make_contract(load_config(Interface, "interfaces/pusht"), horizons)
        generator = torch.Generator().manual_seed(0)
        size = horizons.prediction * 2
        widths = (5 * horizons.observation + size, 129, 77, 2)
        self.network = nn.Sequential()
        for wide, narrow in itertools.pairwise(widths):
            layer = nn.Linear(wide, narrow)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / wide**0.5)
            self.network.extend([layer, nn.GELU()])

    def predict(self, observation, request):
        horizons = self.contract.horizons
        noise = torch.stack(
            [torch.randn(horizons.prediction * 2, generator=torch.Generator().manual_seed(int(s))) for s in request.seeds]
        )
        state = torch.from_numpy(observation.state).flatten(1) / 256 - 1
        with torch.no_grad():
            raw = self.network(torch.cat([state, noise], dim=1)).numpy()[:, None]
        # Around the block, so that it is pushed and contact physics amplifies any difference in the last bit.
        sweep = np.linspace(1.0, -1.0, horizons.prediction, dtype=np.float32)[None, :, None]
        actions = observation.state[:, -1:, 2:4] + 240 * sweep * raw
        return ActionChunk(actions, 0.1, observation.stamp_s[:, -1])


class CountingEnv:
    """One-dimensional world: `x` counts steps, an episode of seed s lasts `lengths[s]` steps; keeps the actions it got."""

    def __init__(self, lengths: dict[int, int], vector: VectorSpec | None = None) -> None:
        spec = FeatureSpec(VectorSpec(("x",), ("m",), "world", (-1e6,), (1e6,)), 10.0)
        action = FeatureSpec(vector or VectorSpec(("u",), ("m",), "world", (-1e6,), (1e6,)), 10.0)
        self.interface = Interface(features={"state": spec}, action=action)
        self.lengths, self.actions = lengths, list[float]()

    def reset(self, *, seed=None):
        self.seed, self.steps = seed, 0
        return self._observation(), {"coverage": 0.0, "is_success": False}

    def step(self, action):
        self.steps += 1
        self.actions.append(float(action[0]))
        done = self.steps >= self.lengths[self.seed]
        return self._observation(), self.steps / 100, False, done, {"coverage": self.steps / 200, "is_success": done}

    def frame(self, size, plans=None, target=None):
        return np.zeros((size, size, 3), np.uint8)

    def _observation(self):
        return {"state": np.array([1000.0 * self.seed + self.steps], dtype=np.float32)}


class ScriptedPolicy:
    """Answers action k of a chunk with x + k / 100, and keeps what it saw."""

    def __init__(self, env: CountingEnv, horizons: Horizons) -> None:
        self.contract = make_contract(env.interface, horizons)
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def predict(self, observation, request):
        self.seen.append((observation.state.copy(), observation.stamp_s.copy(), request.seeds.copy()))
        steps = np.arange(self.contract.horizons.prediction) / 100
        return ActionChunk(observation.state[:, -1:, :] + steps[None, :, None], 0.1, observation.stamp_s[:, -1])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny networks run faster alone than with threads that wait for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_policy():
    return SmallPolicy()


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """(run folder, EvalConfig, EvalResult, policy) of a small complete evaluation with a training history."""
    run = tmp_path_factory.mktemp("runs") / "first <run> & more"
    run.mkdir()
    rows = [{"step": s, "loss": 1 / s, "lr": 1e-4, "time_s": 0.1 * s} for s in range(1, 601)]
    for row in rows[99::100]:
        row["validation_loss"] = 1.5 * row["loss"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text("steps: 600\nname: <script>alert(1)</script>\n")
    config = EvalConfig(name="small", episodes=5, num_envs=3, batch=8, video_size=128, fan_samples=10)
    policy = SmallPolicy()
    result = evaluate(policy, config, run / "eval" / config.name, run, Console(quiet=True))
    return run, config, result, policy


@pytest.fixture
def counting_env():
    return CountingEnv


@pytest.fixture
def scripted_policy():
    return ScriptedPolicy
