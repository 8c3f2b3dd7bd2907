"""What a weight search has played so far, on disk: a search that was stopped goes on where it was.

<out>/search/arms/<phase>-<hash>.json     one for each arm, written when its last episode has ended

The hash covers what the episodes depend on: parents (weights, contract, configuration), composition, evaluation, the arm and
its seeds. What was played with anything else is never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kineflow.config import to_plain_config
from kineflow.contracts import to_json
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.compose.policy import ComposedPolicy
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.running_episode import EpisodeResult, Trajectory

SCALARS = tuple(f.name for f in dataclasses.fields(EpisodeResult) if f.compare)
NOT_KEPT = Trajectory(np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0, 0)))


@dataclass(frozen=True)
class PlayedArms:
    """Episodes by arm, without their trajectories and times. `identity` is of everything that all arms have in common."""

    folder: Path
    identity: str

    @classmethod
    def of(cls, folder: Path, policy: ComposedPolicy, evaluation: EvalConfig) -> PlayedArms:
        """Weights belong to the arms, and where the parents lie does not count."""
        names = policy.names
        rest = replace(policy.composition, parents=names, weights=(1 / len(names),) * len(names), schedule=())
        played_in = (evaluation.env, evaluation.batch, evaluation.threads)  # batching beyond that leaves results as they are
        common = json.dumps([*played_in, to_plain_config(rest), *(_hash(parent) for parent in policy.parents)])
        return cls(folder, hashlib.sha256(common.encode()).hexdigest())

    def find(self, phase: str, name: str, weights: Sequence[float], seeds: Sequence[int]) -> tuple[EpisodeResult, ...] | None:
        """The arm's episodes in the order of their seeds; None where it has not been played to its end."""
        file = self._file(phase, name, weights, seeds)
        if not file.is_file():
            return None
        rows = json.loads(file.read_text())["episodes"]
        return tuple(EpisodeResult(**row, call_s=(), step_s=(), trajectory=NOT_KEPT) for row in rows)

    def keep(
        self, phase: str, name: str, weights: Sequence[float], seeds: Sequence[int], episodes: Sequence[EpisodeResult]
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [{scalar: getattr(episode, scalar) for scalar in SCALARS} for episode in episodes]
        file = self._file(phase, name, weights, seeds)
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps({"phase": phase, "arm": name, "weights": list(weights), "episodes": rows}) + "\n")
        os.replace(temporary, file)  # whole or not at all

    def _file(self, phase: str, name: str, weights: Sequence[float], seeds: Sequence[int]) -> Path:
        arm = json.dumps([self.identity, phase, name, list(weights), list(seeds)])
        return self.folder / f"{phase}-{hashlib.sha256(arm.encode()).hexdigest()[:16]}.json"


def _hash(parent: ChunkPolicy) -> str:
    digest = hashlib.sha256((to_json(parent.contract) + json.dumps(to_plain_config(parent.network.config))).encode())
    for name, tensor in sorted(parent.network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
