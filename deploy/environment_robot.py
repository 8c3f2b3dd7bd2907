"""An environment of this project as the robot of `deploy/simulate.py`: it is stepped at its own rate by what was commanded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kineflow.contracts import PolicyContract
from kineflow.policies.running_episode import Environment, GoalEnvironment

_SAME_S = 1e-9


class EnvironmentRobot:
    """Each step of the environment takes the mean of the commands during it: those of a governor come several to a step."""

    def __init__(self, env: Environment, seed: int, contract: PolicyContract, start_s: float = 0.0) -> None:
        self.env, self.actions = env, list[np.ndarray]()
        self._streams = [*contract.interface.features, *contract.interface.cameras]
        self._vector, self._step_s = contract.interface.action.vector, 1 / env.interface.action.rate_hz
        self._start_s, self._given = start_s, list[np.ndarray]()
        self.observation, self.info = env.reset(seed=seed)
        self._is_new, self._ended = True, False

    @property
    def is_done(self) -> bool:
        return self._ended

    @property
    def now_s(self) -> float:
        return self._start_s + len(self.actions) * self._step_s

    def rest(self) -> np.ndarray:
        """The action that keeps it where it is: no velocity, or for PushT the agent's own place."""
        if self._vector.frame == "base":
            return np.zeros(self._vector.size, np.float32)
        return np.asarray(self.observation["state"][: self._vector.size], np.float32)

    def advance(self, now_s: float) -> None:
        while not self._ended and self.now_s + self._step_s <= now_s + _SAME_S:
            wanted = np.mean(self._given, axis=0) if len(self._given) > 1 else self._given[0] if self._given else self.rest()
            action = np.clip(wanted, self._vector.low, self._vector.high).astype(np.float32)
            self.observation, _, terminated, truncated, self.info = self.env.step(action)
            self.actions.append(action)
            self._given, self._is_new, self._ended = [], True, bool(terminated or truncated)

    def sense(self) -> Iterator[tuple[str, np.ndarray, float]]:
        if self._is_new:
            self._is_new = False
            for name in self._streams:
                yield name, np.asarray(self.observation[name]), self.now_s

    def command(self, values: np.ndarray, now_s: float) -> None:
        self._given.append(values)

    def arrived(self) -> None:
        if isinstance(self.env, GoalEnvironment):
            self.env.declare_stop()

    @property
    def success(self) -> bool:
        return bool(self.info["is_success"])

    def outcome(self) -> Mapping[str, Any]:
        return {"success": self.success, "steps": len(self.actions)}
