"""A trained policy as what answers an executor's questions: loads it, looks at every picture once, and makes what it is told.

Needs torch, except for exported policies (`deploy/loading.py`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, KineflowError, Observation, Policy, PolicyContract
from kineflow.deploy.asking import Question
from kineflow.deploy.loading import load_policy
from kineflow.policies.deadline import LatencyTable, measure
from kineflow.policies.told import Look, Told

_REMEMBERED = 64  # frames of each camera whose features are kept


class Model:
    """A policy with its contract; `look` turns pictures into features of its frozen backbone, None where there is none."""

    def __init__(self, policy: Policy, look: Look | None = None) -> None:
        self.policy, self._look = policy, look
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", threads: int = 1) -> Model:
        """A run, checkpoint, composed or exported folder, a shipped or hub name.

        Raises:
            KineflowError: nothing usable there, or another golden answer than its contract says.
        """
        policy = load_policy(source, device)
        if hasattr(policy, "network"):
            import torch

            from kineflow.policies.telling import backbone_of

            torch.set_num_threads(threads)
            return cls(policy, backbone_of(policy))
        return cls(policy, getattr(policy, "look_at", None))

    @property
    def contract(self) -> PolicyContract:
        return self.policy.contract

    def ask(self, question: Question) -> ActionChunk:
        """The chunk or chunks; each camera frame goes through the backbone once."""
        return self.policy.predict(self._looked_at(question.observation), question.request)

    def tell(self, goal: Mapping[str, Any], clip_rate_hz: float = 0.0, stop: tuple[float, int] = (0.5, 3)) -> Told:
        """What an executor's `set_goal` takes: `goal` by name as in the contract, uint8 frames, a pose, a point or words.

        Takes a pass of the backbone over a clip: call it beside the control loop, not within.

        Raises:
            ContractError: the policy takes none of these goals.
        """
        return Told(goal, clip_rate_hz, self.contract, self._look, stop)

    def measured(self, question: Question, steps: Sequence[int], calls: int = 30) -> LatencyTable:
        """What `ExecutorConfig.latency_table` names, for questions like this one; measure under the load of the robot."""
        rows = len(question.request.seeds)
        return measure(self.policy, _one_row(self._looked_at(question.observation)), steps, [rows], calls)

    def _looked_at(self, observation: Observation) -> Observation:
        """Pictures as features of a backbone that looks at single frames; where it also sees motion, the pictures themselves."""
        look = self._look
        if look is None or getattr(look, "flow", None) is not None or not observation.images:
            return observation
        seen = {}
        for name, frames in observation.images.items():
            if frames.ndim != 5:
                return observation
            rows, first = len(frames), frames[0]
            # Rows of one question show the same window.
            if rows > 1 and not (frames == first).all():
                return observation
            seen[name] = np.repeat(np.stack([self._features(look, frame) for frame in first])[None], rows, axis=0)
        return replace(observation, images=seen)

    def _features(self, look: Look, frame: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = look(frame[None])[0]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _one_row(observation: Observation) -> Observation:
    if len(observation.state) < 1:
        raise KineflowError("latency is measured on a question with at least one row")
    return replace(
        observation,
        state=observation.state[:1],
        stamp_s=observation.stamp_s[:1],
        images={name: frames[:1] for name, frames in observation.images.items()},
        goal={name: value[:1] for name, value in observation.goal.items()},
        instruction=observation.instruction[:1],
    )
