"""Policies with torch behind the server: it answers as they do here, alone or together, and whole episodes are the same."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import (
    CameraSpec,
    FeatureSpec,
    GoalSpec,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    Policy,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.asking import blank_prefix
from kineflow.deploy.bench.serve import _round_trip
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.export.random_policies import random_policy
from kineflow.deploy.models import Model
from kineflow.deploy.remote import TOKEN_FILE, RemotePolicy
from kineflow.deploy.server.session import Served
from kineflow.deploy.simulate import drive
from kineflow.deploy.simulation import Simulation
from kineflow.envs.pusht import PushT
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.telling import backbone_of
from kineflow.policies.told import Told
from tests.deploy.serving import ROOT, TOKEN, Running, running
from tests.policies.evaluation.conftest import SmallPolicy

VELOCITY = VectorSpec(("vx", "yaw_rate"), ("m/s", "rad/s"), "base", (-1.0, -1.0), (1.0, 1.0))
GOALS = {"video": GoalSpec("video", 24, 20, 3, 2.0)}
INTERFACE = Interface(
    {"velocity": FeatureSpec(VELOCITY, 10.0)}, FeatureSpec(VELOCITY, 10.0), {"front": CameraSpec(24, 20, 10.0)}, GOALS
)
RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (9, 24, 20, 3), np.uint8)
CLIENTS = 5
SHARED = 2e-5  # of the largest action: other numbers of rows are summed in another order


@pytest.fixture(scope="module")
def policy() -> ChunkPolicy:
    frames, own = Colours(16, 3), State(width=16, depth=1, token=32)
    encoder = GoalVision(frames, HashedWords(16), token=32, queries=2, attention_heads=2, depth=1, state=own)
    config = PolicyConfig(Horizons(2, 8, 4), FlowDiT(32, 2, 2), FlowMatching(steps=3), encoder, ("velocity",), ("front",), GOALS)
    return random_policy(replace(config, progress="video"), INTERFACE)


def window(k: int) -> Observation:
    rng = np.random.default_rng(k)
    state = rng.uniform(-1, 1, (1, 2, 2)).astype(np.float32)
    frames = rng.integers(0, 256, (1, 2, 24, 20, 3), np.uint8)
    return Observation(state, np.array([[k - 0.1, k]]), {"front": frames}, {"video": CLIP[None, :3]})


@contextlib.contextmanager
def remote(policy: Policy, **config: Any) -> Iterator[tuple[Running, list[RemotePolicy]]]:
    model = Model(policy, backbone_of(policy))
    with (
        running(load=lambda: Served(model.contract, model.policy.predict, model.tell), **config) as server,
        contextlib.ExitStack() as kept,
    ):
        many = [RemotePolicy.connect(server.url, TOKEN, timeout_s=60, within_s=60) for _ in range(CLIENTS)]
        for one in many:
            kept.callback(one.close)
        yield server, many


def together(many: list[RemotePolicy], questions: list[tuple[Observation, SamplingRequest]]) -> list[np.ndarray]:
    said: list[Any] = [None] * len(many)

    def ask(k: int) -> None:
        said[k] = many[k].predict(*questions[k]).actions[0]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_answers_do_not_depend_on_who_shares_the_call(policy: ChunkPolicy) -> None:
    """Alone: bit-equal to the policy here. Together: to 2e-5 of the largest action."""
    prefix = blank_prefix(policy.contract, ExecutorConfig("rtc"), 4, 2)
    assert prefix is not None
    prefix = replace(prefix, actions=RNG.uniform(-1, 1, prefix.actions.shape).astype(np.float32))
    questions = [(window(k), SamplingRequest(np.array([100 + k]), 3, prefix=prefix)) for k in range(CLIENTS)]
    here = [policy.predict(*question).actions[0] for question in questions]
    with remote(policy, max_wait_s=0.3, max_batch=8) as (server, many):
        alone = [one.predict(*question).actions[0] for one, question in zip(many, questions)]
        for round in range(2, 22):
            shared = together(many, questions)
            status = server.server.status()
            if status["calls"] < round * CLIENTS:  # some were shared; a busy machine may let none meet
                break
    np.testing.assert_array_equal(alone, here)
    assert status["rows"] == round * CLIENTS
    assert status["calls"] < round * CLIENTS
    scale = max(np.abs(actions).max() for actions in here)
    np.testing.assert_allclose(shared, here, rtol=0, atol=SHARED * scale)
    assert np.abs(here[0] - here[1]).max() > 100 * SHARED * scale


def test_a_goal_kept_by_the_server_is_followed_as_here(policy: ChunkPolicy) -> None:
    """The same answers, places in the clip and number of frames ahead as `Told` beside the policy."""
    told = Told({"video": CLIP}, 5.0, policy.contract, backbone_of(policy))
    with remote(policy) as (_, many):
        there = many[0].told({"video": CLIP}, 5.0)
        for k in range(5):
            asked = replace(window(k), goal={})
            request = SamplingRequest(np.array([k], np.int64))
            expected = policy.predict(replace(asked, goal={name: value[None] for name, value in told.goal().items()}), request)
            said = many[0].predict(asked, request)
            np.testing.assert_array_equal(said.actions, expected.actions)
            np.testing.assert_array_equal(said.ahead_s, expected.ahead_s)
            for follower in (told, there):
                follower.answered(expected, 0)
                for _ in range(3):
                    follower.executed()
        assert told.cursor > 0
        with pytest.raises(KineflowError, match="one row at a time"):
            many[0].predict(Observation(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2))), SamplingRequest(np.arange(2)))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kineflow.policies.evaluation.PushT", lambda cameras=(): PushT(cameras=cameras, max_steps=30))


@pytest.mark.parametrize("mode", ["rtc", "bid"])
def test_an_episode_through_the_server_is_the_episode_here(mode: str) -> None:
    """Guided chunks with their prefixes, and several candidates: command by command the same."""
    interface = load_config(Interface, "interfaces/pusht")
    small = random_policy(
        PolicyConfig(Horizons(2, 16, 8), MLP(32, 1), FlowMatching(steps=3), State(width=32, depth=1)), interface
    )
    config = ExecutorConfig(mode=mode, candidates=3)  # type: ignore[arg-type]

    def commands(policy: Any) -> np.ndarray:
        simulation = Simulation(policy, EvalConfig(), config)
        episode, robot = simulation.episode(simulation.environment(), 7, lambda question: 0.2)
        drive(episode, lambda question: policy.predict(question.observation, question.request))
        return np.stack(robot.actions)

    with remote(small) as (_, many):
        np.testing.assert_array_equal(commands(many[0]), commands(small))


def test_deploy_simulate_by_a_server(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    with remote(SmallPolicy()) as (server, _):
        assert main(["deploy", "simulate", server.url, "--episodes", "1", "--latency-ms", "200", "--json"]) == 0
        there = json.loads(capsys.readouterr().out)
        calls = server.server.status()["calls"]
    assert there["episodes"] == 1
    assert calls == there["results"][0]["questions"]


def test_deploy_serve_as_a_process(policy: ChunkPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command: loads a checkpoint, answers as it does here, and SIGTERM ends it with 0."""
    token = tmp_path / "token"
    token.write_text(TOKEN.replace(" ", "-"))
    token.chmod(0o600)
    policy.save_pretrained(tmp_path / "policy")
    serve = ["deploy", "serve", str(tmp_path / "policy"), "--token-file", str(token), "--port", "0"]
    main_of = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kineflow.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", main_of, *serve], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        # Loading is waited for: a server that is not ready is one that will be.
        there = RemotePolicy.connect(url, TOKEN.replace(" ", "-"), timeout_s=60, within_s=120)
        asked = (window(1), SamplingRequest(np.array([3], np.int64)))
        np.testing.assert_allclose(there.predict(*asked).actions, policy.predict(*asked).actions, rtol=0, atol=1e-6)
        there.close()
        process.terminate()
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "ready\nstopped\n")
    finally:
        process.kill()
        process.communicate()
    assert main(["deploy", "serve", str(tmp_path / "nothing"), "--token-file", str(tmp_path / "no token")]) == 2
    assert "openssl rand" in capsys.readouterr().err


def test_bench_of_the_round_trip() -> None:
    rows = list(_round_trip(20))
    assert [row.name for row in rows] == ["serve.round_trip_p50", "serve.round_trip_p99"]
    assert all(row.value > 0 and row.reference is not None and row.reference > 0 for row in rows)


def test_a_server_that_is_lost_is_no_chunk_in_the_episode() -> None:
    """The world goes on to its end; the executor gives up after so many failures, and says why."""
    with remote(SmallPolicy()) as (server, many):
        lost = RemotePolicy.connect(server.url, TOKEN, timeout_s=0.1, within_s=60)
        simulation = Simulation(lost, EvalConfig(), ExecutorConfig("async", max_failures=3))
        episode, robot = simulation.episode(simulation.environment(), 7, lambda question: 0.1)
        asked = []

        def ask(question: Any) -> Any:
            asked.append(question)
            if len(asked) == 2:
                many[0].close()
                server.stop()
            return lost.predict(question.observation, question.request)

        trace = drive(episode, ask)
        lost.close()
    assert robot.is_done
    assert trace.diagnostics["failed answers"] == 3
    assert "fault: the policy failed 3 times in a row (NoAnswer" in trace.diagnostics["why"]
