"""One episode under way in one environment: observation history, executed actions, and the result that stays of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from kineflow.contracts import ContractError, Interface, Observation, PolicyContract


@runtime_checkable
class Environment(Protocol):
    """gymnasium's API with named observations and an interface; `info` carries `coverage` and `is_success`."""

    interface: Interface

    def reset(self, *, seed: int | None = None) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Mapping[str, np.ndarray], float, bool, bool, Mapping[str, Any]]: ...

    def frame(self, size: int, plans: np.ndarray | None = None, target: np.ndarray | None = None) -> np.ndarray:
        """RGB picture for people, uint8 `[size, size, 3]`: action chunks `[N, H, A]` and the current action drawn in."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """What an episode did: with its seed, enough to replay it exactly (T executed steps, C policy calls).

    Chunk c was asked for at step `c * horizons.execution`.
    """

    actions: Float[np.ndarray, "T A"]
    coverage: Float[np.ndarray, "T+1"]
    chunks: Float[np.ndarray, "C H A"]


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode. Coverage and success are the environment's; reward is in 0..1 per step for PushT."""

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


class RunningEpisode:
    """Memory around a pure policy: observation history before a call, chunk execution after it, a log of both."""

    def __init__(self, env: Environment, seed: int, contract: PolicyContract) -> None:
        self.env, self.seed, self.contract = env, seed, contract
        observation, info = env.reset(seed=seed)
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
        self.clipped, self.success, self.done = 0, False, False

    def observation(self) -> Observation:
        """History `[T, ...]`, oldest first, in the order of the contract's features."""
        state = np.stack([self._state(o) for o, _ in self.history])
        images = {name: np.stack([o[name] for o, _ in self.history]) for name in self.contract.interface.cameras}
        return Observation(state=state, stamp_s=np.array([stamp for _, stamp in self.history]), images=images)

    def execute(self, chunk: Float[np.ndarray, "H A"], call_s: float) -> None:
        """Execute the first `horizons.execution` actions, or fewer if the episode ends."""
        self.chunks.append(chunk)
        self.call_s.append(call_s)
        vector = self.contract.interface.action.vector
        for wanted in chunk[: self.contract.horizons.execution]:
            action = np.clip(wanted, vector.low, vector.high).astype(np.float32)
            self.clipped += int((action != wanted.astype(np.float32)).any())
            started = time.perf_counter()
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.step_s.append(time.perf_counter() - started)
            self.actions.append(action)
            self.rewards.append(float(reward))
            self.coverage.append(float(info["coverage"]))
            self.history.append((observation, len(self.actions) / self.contract.interface.action.rate_hz))
            self.success, self.done = bool(info["is_success"]), bool(terminated or truncated)
            if self.done:
                return

    def result(self) -> EpisodeResult:
        trajectory = Trajectory(np.stack(self.actions), np.array(self.coverage), np.stack(self.chunks))
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
        )

    def _state(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, "S"]:
        seen = [observation[name] for name in self.contract.interface.features]
        return np.concatenate([np.zeros(0), *seen]).astype(np.float32)  # of no features for a policy of images alone
