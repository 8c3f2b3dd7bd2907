"""`kineflow deploy simulate`: a policy drives an environment through the executor, with latencies as stated or measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, ContractError, KineflowError, Policy
from kineflow.deploy.asking import Question
from kineflow.deploy.control import Control, Governs, Ungoverned
from kineflow.deploy.environment_robot import EnvironmentRobot
from kineflow.deploy.executor import Executor
from kineflow.deploy.executor_config import ExecutorConfig
from kineflow.deploy.governor import Governor
from kineflow.deploy.live.feed import Commanded, Feed, Show
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.simulate import Episode, Trace, drive, simulated
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.evaluation import environment_factory
from kineflow.policies.running_episode import Environment, GoalEnvironment
from kineflow.policies.telling import teller

_PAINTED = 256  # pixels of the picture of the world, for who watches
_LIMIT_S = 120.0  # environments end by themselves before


@dataclass(frozen=True)
class SimulatedEpisode:
    """One episode in numbers; jumps are the 99th percentiles of the change of action where a new chunk took over."""

    seed: int
    success: bool
    steps: int
    questions: int
    starved: int  # times that the plan was used up
    stops: int
    delay_actions: int  # as last forecast
    latency_p50_ms: float
    latency_p95_ms: float
    raw_jump: float
    limited_jump: float
    last_reason: str


class Simulation:
    """Episodes of one policy in one environment; `profile` puts the governor of a robot between executor and world."""

    def __init__(self, policy: Policy, config: EvalConfig, executor: ExecutorConfig, profile: RobotProfile | None = None) -> None:
        """Raises ContractError for a policy that does not fit the environment, the executor or the profile's command."""
        self.policy, self.config, self.executor, self.profile = policy, config, executor, profile
        action = policy.contract.interface.action
        if profile is not None and profile.command.names != action.vector.names:
            raise ContractError(
                f"robot '{profile.name}' is commanded by {profile.command.names}, the policy acts by {action.vector.names}; take "
                "the profile of the robot that it was trained for"
            )
        self.rate_hz = profile.rate_hz if profile else action.rate_hz
        trial = config.navigation
        self._tell = teller(policy, trial.loop, (trial.stop_threshold, trial.stop_consecutive))
        self._make = environment_factory(config, policy.contract)

    def environment(self) -> Environment:
        env = self._make()
        self.policy.contract.require(env.interface, f"environment {type(env).__name__}")
        return env

    def episode(
        self, env: Environment, seed: int, latency: Callable[[Question], float], show: Show | None = None
    ) -> tuple[Episode, EnvironmentRobot]:
        """One that can be driven, alone or with others (`deploy/simulate.py`, `deploy/together.py`), and its robot."""
        robot = EnvironmentRobot(env, seed, self.policy.contract)
        executor = Executor(self.policy.contract, replace(self.executor, seed=seed))
        if self.policy.contract.interface.goals and isinstance(env, GoalEnvironment):
            executor.set_goal(self._tell(env), 0.0)
        control = Control(executor, self._governor(robot))
        watch = self._watched(show, control, robot) if show else None
        return simulated(control, robot, latency, self.rate_hz, _LIMIT_S, watch=watch), robot

    def run(self, seeds: Sequence[int], latency_s: float | None = None, show: Show | None = None) -> list[SimulatedEpisode]:
        """`latency_s`: of every answer; None: the time that the policy takes here. `show`: who watches; stays open."""
        env, took = self.environment(), [0.0]

        def ask(question: Question) -> ActionChunk:
            started = time.perf_counter()
            chunk = self.policy.predict(question.observation, question.request)
            took[0] = time.perf_counter() - started
            return chunk

        done = []
        for seed in seeds:
            episode, robot = self.episode(env, seed, lambda question: took[0] if latency_s is None else latency_s, show)
            done.append(summary(seed, robot, drive(episode, ask)))
        return done

    def _watched(self, show: Show, control: Control, robot: EnvironmentRobot) -> Feed:
        """With a picture of the world, the plan drawn in."""
        vector = self.policy.contract.interface.action.vector
        bounds = self.profile.limits if self.profile else vector
        command = Commanded(vector.names, bounds.low, bounds.high)

        def paint(plan: np.ndarray) -> np.ndarray:
            target = robot.actions[-1] if robot.actions and vector.frame != "base" else None
            return robot.env.frame(_PAINTED, plan[None] if len(plan) else None, target)

        return show.episode(control, self.profile.name if self.profile else type(robot.env).__name__, command, paint)

    def _governor(self, robot: EnvironmentRobot) -> Governs:
        if self.profile is None:
            return Ungoverned(robot.rest)
        # A simulated world has no e-stop button and no supervisor.
        watchdogs = replace(self.profile.watchdogs, estop=False, supervisor_s=float("inf"))
        governor = Governor(replace(self.profile, watchdogs=watchdogs, geofence=None, keep_out=None))
        governor.activate(0.0)
        return governor


def summary(seed: int, robot: EnvironmentRobot, trace: Trace) -> SimulatedEpisode:
    said = trace.diagnostics

    def late(jumps: Sequence[float]) -> float:
        return float(np.percentile(np.array(jumps), 99)) if len(jumps) else 0.0

    return SimulatedEpisode(
        seed,
        robot.success,
        len(robot.actions),
        said.get("questions", 0),
        said.get("starved", 0),
        said.get("stops", 0),
        said["delay_actions"],
        1e3 * said["latency_p50_s"],
        1e3 * said["latency_p95_s"],
        late(trace.jumps),
        late(trace.limited_jumps),
        said["why"],
    )


def table_of(episodes: Sequence[SimulatedEpisode]) -> dict[str, Any]:
    """All of them in one object, means and totals first."""
    if not episodes:
        raise KineflowError("no episodes were simulated; ask for at least one")
    return {
        "episodes": len(episodes),
        "success_rate": sum(e.success for e in episodes) / len(episodes),
        "starved": sum(e.starved for e in episodes),
        "stops": sum(e.stops for e in episodes),
        "delay_actions": max(e.delay_actions for e in episodes),
        "latency_p50_ms": float(np.median([e.latency_p50_ms for e in episodes])),
        "latency_p95_ms": max(e.latency_p95_ms for e in episodes),
        "raw_jump_p99": max(e.raw_jump for e in episodes),
        "limited_jump_p99": max(e.limited_jump for e in episodes),
        "results": [asdict(e) for e in episodes],
    }
