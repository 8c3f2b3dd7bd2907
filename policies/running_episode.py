"""One episode under way in one environment: observation history, executed actions, and the result that stays of it.

Where the policy is told a goal (policies/told.py), its `declare_stop` ends the episode: the environment brings the robot to rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from kineflow.contracts import ActionChunk, ContractError, Interface, Observation, PolicyContract
from kineflow.policies.told import Told


@runtime_checkable
class Environment(Protocol):
    """gymnasium's API with named observations and an interface; `info` carries `coverage` and `is_success`."""

    interface: Interface

    def reset(self, *, seed: int | None = None) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Mapping[str, np.ndarray], float, bool, bool, Mapping[str, Any]]: ...

    def frame(self, size: int, plans: np.ndarray | None = None, target: np.ndarray | None = None) -> np.ndarray:
        """RGB picture for people, uint8 `[size, an even width, 3]`: action chunks `[N, H, A]` and the current action drawn in."""
        ...


@runtime_checkable
class GoalEnvironment(Environment, Protocol):
    """An environment that tells a goal, and that can be told that the policy has arrived (envs/navigation)."""

    clip_rate_hz: float

    def goal(self) -> Mapping[str, Any]: ...

    def declare_stop(self) -> None: ...

    def frame(
        self,
        size: int,
        plans: np.ndarray | None = None,
        target: np.ndarray | None = None,
        *,
        stop_probability: float | None = None,
        cursor: int | None = None,
        blind: bool = False,
    ) -> np.ndarray:
        """As `Environment.frame`, with what the policy said and believed: see `Trajectory`. `blind`: it sees the clip alone."""
        ...

    def metrics(self) -> Any:
        """Of the episode so far: `envs.navigation.metrics.TripMetrics`."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """What an episode did: with its seed, enough to replay it exactly (T executed steps, C policy calls).

    Chunk c was asked for at step `c * horizons.execution`. Where there is a goal: `distance` to it in m; at each call the
    `cursor`, the frame with which the video of the goal began, and the `stop_probability`; `stopped_at`, the step before which
    the policy said stop (None: never). Actions from there on are zeros and of no chunk.
    """

    actions: Float[np.ndarray, "T A"]
    coverage: Float[np.ndarray, "T+1"]
    chunks: Float[np.ndarray, "C H A"]
    distance: Float[np.ndarray, "T+1"] | None = None
    cursor: Int64[np.ndarray, "C"] | None = None
    stop_probability: Float[np.ndarray, "C"] | None = None
    stopped_at: int | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode. Coverage and success are the environment's; reward is in 0..1 per step for PushT.

    `outcome` in words: success, time out, crash, fall, or stopped elsewhere. `metrics`: `TripMetrics` of a navigation episode.
    """

    seed: int
    success: bool
    max_reward: float
    max_coverage: float
    final_coverage: float
    episode_return: float
    steps: int
    clipped_actions: int  # executed actions that had to be clipped to the interface's limits
    call_s: tuple[float, ...] = field(compare=False)  # wall time of each policy call that served it
    step_s: tuple[float, ...] = field(compare=False)  # wall time of each environment step
    trajectory: Trajectory = field(compare=False, repr=False)
    outcome: str = "time out"
    metrics: Any = None


class RunningEpisode:
    """Memory around a pure policy: observation history before a call, chunk execution after it, a log of both."""

    def __init__(
        self, env: Environment, seed: int, contract: PolicyContract, tell: Callable[[GoalEnvironment], Told] | None = None
    ) -> None:
        """`tell` makes what the policy is told of the goal; for a policy without goals it is not called."""
        self.env, self.seed, self.contract = env, seed, contract
        observation, info = env.reset(seed=seed)
        self.told = tell(env) if tell and contract.interface.goals and isinstance(env, GoalEnvironment) else None
        missing = sorted({*contract.interface.features, *contract.interface.cameras} - set(observation))
        if missing:
            raise ContractError(
                f"the policy needs {missing}, observations of {type(env).__name__} hold {sorted(observation)}; "
                "make the environment with them, e.g. PushT(cameras=('top',))"
            )
        # Before the first step there is no past: the first observation stands for it, as in training windows.
        self.history = deque([(observation, 0.0)] * contract.horizons.observation, maxlen=contract.horizons.observation)
        self.coverage = [float(info["coverage"])]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.chunks: list[np.ndarray] = []
        self.call_s: list[float] = []
        self.step_s: list[float] = []
        self.cursors: list[int] = []
        self.stop_probabilities: list[float] = []
        self.distances = [float(info["distance"])] if "distance" in info else []
        self.clipped, self.success, self.done, self.info = 0, False, False, info
        self.stopped_at: int | None = None  # the step before which the policy said stop

    def observation(self) -> Observation:
        """History `[T, ...]`, oldest first, in the order of the contract's features."""
        state = np.stack([self._state(o) for o, _ in self.history])
        images = {name: np.stack([o[name] for o, _ in self.history]) for name in self.contract.interface.cameras}
        goal, words = (self.told.goal(), self.told.instruction) if self.told else ({}, "")
        stamps = np.array([stamp for _, stamp in self.history])
        return Observation(state=state, stamp_s=stamps, images=images, goal=goal, instruction=(words,) if words else ())

    def hear(self, answer: ActionChunk, row: int) -> None:
        """What the policy answered beside the actions: where it is in its clip, and whether it has arrived."""
        if answer.stop_probability is not None:
            self.stop_probabilities.append(float(answer.stop_probability[row]))
        if self.told:
            self.cursors.append(self.told.cursor)
            self.told.answered(answer, row)
            if self.told.has_arrived and self.stopped_at is None:
                self.stopped_at = len(self.actions)

    def execute(self, chunk: Float[np.ndarray, "H A"], call_s: float) -> None:
        """Execute the first `horizons.execution` actions, or fewer if the episode ends; none where the policy said stop."""
        self.chunks.append(chunk)
        self.call_s.append(call_s)
        if self.stopped_at is not None and isinstance(self.env, GoalEnvironment):
            self.env.declare_stop()
            while not self.done:
                self._step(np.zeros(chunk.shape[1], np.float32))
            return
        vector = self.contract.interface.action.vector
        for wanted in chunk[: self.contract.horizons.execution]:
            action = np.clip(wanted, vector.low, vector.high).astype(np.float32)
            self.clipped += int((action != wanted.astype(np.float32)).any())
            self._step(action)
            if self.done:
                return

    def _step(self, action: Float[np.ndarray, "A"]) -> None:
        started = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.step_s.append(time.perf_counter() - started)
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.coverage.append(float(info["coverage"]))
        if "distance" in info:
            self.distances.append(float(info["distance"]))
        if self.told:
            self.told.executed()
            observation = self.told.sees(observation, action)
        self.history.append((observation, len(self.actions) / self.contract.interface.action.rate_hz))
        self.success, self.done, self.info = bool(info["is_success"]), bool(terminated or truncated), info

    def result(self) -> EpisodeResult:
        trajectory = Trajectory(
            np.stack(self.actions),
            np.array(self.coverage),
            np.stack(self.chunks),
            np.array(self.distances) if self.distances else None,
            np.array(self.cursors) if self.cursors else None,
            np.array(self.stop_probabilities) if self.stop_probabilities else None,
            self.stopped_at,
        )
        return EpisodeResult(
            seed=self.seed,
            success=self.success,
            max_reward=max(self.rewards),
            max_coverage=max(self.coverage[1:]),
            final_coverage=self.coverage[-1],
            episode_return=sum(self.rewards),
            steps=len(self.actions),
            clipped_actions=self.clipped,
            call_s=tuple(self.call_s),
            step_s=tuple(self.step_s),
            trajectory=trajectory,
            outcome=self._outcome(),
            metrics=self.env.metrics() if isinstance(self.env, GoalEnvironment) else None,
        )

    def _outcome(self) -> str:
        if self.success:
            return "success"
        broken = next((word for name, word in (("crashed", "crash"), ("fallen", "fall")) if self.info.get(name)), None)
        return broken or ("time out" if self.stopped_at is None else "stopped elsewhere")

    def _state(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, "S"]:
        seen = [observation[name] for name in self.contract.interface.features]
        return np.concatenate([np.zeros(0), *seen]).astype(np.float32)  # of no features for a policy of images alone
