"""Heads beside that of the actions, which read the same tokens: each adds a loss in training, most an answer later.

probe      privileged state, in training alone     privileged.py
stop       is the task done?                       stop.py
progress   where in the goal video?                progress.py
distance   how many steps to the goal image?       temporal_distance.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import FeatureStatistics, Interface
from kineflow.policies.field import Tokens
from kineflow.policies.observed import TrainingBatch
from kineflow.policies.policy_config import PolicyConfig
from kineflow.policies.policy_statistics import required
from kineflow.policies.privileged import Probe
from kineflow.policies.progress import ProgressHead
from kineflow.policies.stop import StopHead


class SideHeads(nn.Module):
    """What a policy network has of these heads; None: not that one. `similarity`: see `StopHead`."""

    def add_side_heads(
        self,
        config: PolicyConfig,
        interface: Interface,
        statistics: Mapping[str, FeatureStatistics],
        token_shape: tuple[int, int],
        similarity: tuple[int, int] | None,
    ) -> None:
        """Raises ContractError for statistics that one needs and that are missing, KineflowError for goals that do not fit."""
        seen = statistics.get("privileged_state")
        self.probe = Probe(token_shape, seen) if config.privileged and seen else None
        done_share = required(statistics, config.stop).mean[0] if config.stop else 0.0
        self.stop = StopHead(config.stop_head, token_shape, done_share, similarity) if config.stop else None
        self.progress_in = config.progress
        self.progress = ProgressHead(config.progress_head, token_shape) if config.progress else None
        rate_hz = interface.action.rate_hz
        self.distance = config.distance.build(token_shape, config.goals, rate_hz) if config.distance else None

    def side_loss(self, encoded: Tokens, batch: TrainingBatch) -> Float[Tensor, ""] | float:
        """Of all of them, weighted; zero without any."""
        loss: Tensor | float = 0.0
        if self.probe is not None and batch.privileged is not None:
            loss = loss + self.probe(encoded, batch.privileged).mean()
        if self.stop is not None and batch.done is not None:
            loss = loss + self.stop.loss(encoded, batch.done).mean()
        if self.distance is not None and batch.distance is not None:
            loss = loss + self.distance.loss(encoded, batch.distance).mean()
        if self.progress is not None and batch.ahead_s is not None:
            loss = loss + self.progress.loss(encoded, batch.ahead_s, batch.observed.given[self.progress_in]).mean()
        return loss

    def side_answers(self, condition: Tokens, told: Sequence[str]) -> dict[str, Float[np.ndarray, "B"]]:
        """Fields of an ActionChunk; `told` names the goals that were given, without which some have nothing to say."""
        answers: dict[str, Tensor] = {}
        if self.stop is not None:
            answers["stop_probability"] = torch.sigmoid(self.stop(condition))
        if self.progress is not None and self.progress_in in told:
            answers["ahead_s"] = self.progress(condition)
        if self.distance is not None and told:
            answers["distance"] = self.distance(condition)
        return {name: answer.float().cpu().numpy() for name, answer in answers.items()}
