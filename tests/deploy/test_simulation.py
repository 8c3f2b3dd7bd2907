"""Real policies and environments through the executor: what evaluation does is what the executor does without latency."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import ContractError, SamplingRequest
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.models import Model
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.simulate import drive
from kineflow.deploy.simulation import Simulation
from kineflow.deploy.together import asks_together, drive_together
from kineflow.envs.pusht import PushT
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.rollout import Rollout
from tests.policies.evaluation.conftest import SmallPolicy

STEPS = 30


@pytest.fixture
def small_policy() -> SmallPolicy:
    return SmallPolicy()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kineflow.policies.evaluation.PushT", lambda cameras=(): PushT(cameras=cameras, max_steps=STEPS))


def test_without_latency_it_is_the_evaluation_action_by_action(small_policy: SmallPolicy) -> None:
    """The same policy, seeds and environment: receding horizon in virtual time gives the very actions of `Rollout`."""
    (expected,) = Rollout(small_policy, lambda: PushT(max_steps=STEPS), 1, 1).run([7])
    simulation = Simulation(small_policy, EvalConfig(), ExecutorConfig(mode="receding"))
    episode, robot = simulation.episode(simulation.environment(), 7, lambda question: 0.0)
    drive(episode, Model(small_policy).ask)
    np.testing.assert_array_equal(np.stack(robot.actions), expected.trajectory.actions)
    other, elsewhere = simulation.episode(simulation.environment(), 8, lambda question: 0.0)
    drive(other, Model(small_policy).ask)
    assert not np.array_equal(np.stack(elsewhere.actions), expected.trajectory.actions)


@pytest.mark.parametrize("mode", ["rtc", "bid"])
def test_together_is_as_alone(small_policy: SmallPolicy, mode: str) -> None:
    config = ExecutorConfig(mode=mode, candidates=3)  # type: ignore[arg-type]
    simulation = Simulation(small_policy, EvalConfig(), config)
    runs = [simulation.episode(simulation.environment(), seed, lambda question: 0.2) for seed in (3, 4)]
    drive_together([episode for episode, _ in runs], asks_together(small_policy))
    alone, robot = simulation.episode(simulation.environment(), 4, lambda question: 0.2)
    drive(alone, Model(small_policy).ask)
    np.testing.assert_allclose(np.stack(robot.actions), np.stack(runs[1][1].actions), atol=1e-2)


def test_a_profile_of_another_robot_is_refused(small_policy: SmallPolicy) -> None:
    with pytest.raises(ContractError, match="take the profile of the robot that it was trained for"):
        Simulation(small_policy, EvalConfig(), ExecutorConfig(), load_config(RobotProfile, "robots/wheeled"))


def test_latency_is_measured_on_a_question_and_used(small_policy: SmallPolicy, tmp_path) -> None:  # type: ignore[no-untyped-def]
    simulation = Simulation(small_policy, EvalConfig(), ExecutorConfig())
    episode, _ = simulation.episode(simulation.environment(), 0, lambda question: 0.0)
    question = next(episode)
    table = Model(small_policy).measured(question, (1, 2), calls=3)
    assert {row.steps for row in table.rows} == {1, 2}
    table.save(tmp_path / "latency.json")
    config = ExecutorConfig(latency_table=str(tmp_path / "latency.json"))
    done = Simulation(small_policy, EvalConfig(), config).run([0])
    assert done[0].steps == STEPS
    chunk = Model(small_policy).ask(replace(question, request=SamplingRequest(question.request.seeds, 1)))
    assert chunk.actions.shape[0] == 1


def test_the_command(small_policy: SmallPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kineflow.deploy.loading.load_policy", lambda source: small_policy)
    words = ["deploy", "simulate", "runs/mine", "--episodes", "1", "--latency-ms", "120", "--json"]
    assert main([*words, "--mode", "async"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["delay_actions"] == 2
    assert table["results"][0]["steps"] == STEPS
    assert main([*words, "--mode", "trained_rtc"]) == 2
    assert "clean_start is 0" in capsys.readouterr().err
