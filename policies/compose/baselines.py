"""What a composition must beat: the parents' finished chunks averaged, or one parent chosen at random for each chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from kineflow.contracts import ActionChunk, Observation, PolicyContract, SamplingRequest
from kineflow.policies.compose.policy import ComposedPolicy


@dataclass(frozen=True)
class FinalActions:
    """Every parent samples its own chunk with its own solver; then the actions are combined on the common time axis.

    `mean` weighs them as the composition does; `switch` takes one parent with that probability, a new draw for each chunk.
    With shared noise all parents get a row's seed, with independent noise each its own. Steps on which a chosen parent does
    not act belong to the others, as in the composition.
    """

    composed: ComposedPolicy
    weights: tuple[float, ...]
    how: Literal["mean", "switch"] = "mean"
    noise: Literal["shared", "independent"] = "shared"

    @property
    def contract(self) -> PolicyContract:
        return self.composed.contract

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        composed, timeline = self.composed, self.composed.plan.timeline
        rows, size = len(request.seeds), timeline.size
        actions = np.zeros((len(composed.parents), rows, size, self.contract.interface.action.vector.size))
        cover = np.zeros((len(composed.parents), 1, size, 1))
        for index, parent in enumerate(composed.parents):
            seeds = request.seeds if self.noise == "shared" else seeds_of(request.seeds, index)
            seen, steps = composed.plan.views[index].of(observation), list(timeline.tracks[index].steps)
            actions[index, :, steps] = parent.predict(seen, replace(request, seeds=seeds)).actions.swapaxes(0, 1)
            cover[index, :, steps] = 1
        weights = np.tile(np.asarray(self.weights)[:, None], (1, rows))
        weights = chosen_one(self.weights, request.seeds) if self.how == "switch" else weights
        shares = weights[:, :, None, None] * cover
        total = shares.sum(axis=0)
        shares = np.where(total > 0, shares / np.where(total > 0, total, 1), cover / cover.sum(axis=0))
        mixed = (shares * actions).sum(axis=0)[:, : self.contract.horizons.prediction]
        stamp = np.asarray(observation.stamp_s)[..., -1]
        return ActionChunk(mixed.astype(np.float32), 1 / self.contract.interface.action.rate_hz, stamp)


def seeds_of(seeds: np.ndarray, index: int) -> np.ndarray:
    """Seeds of one parent: a function of the row's seed and its place, 63 bits."""
    drawn = [np.random.SeedSequence((int(seed), index)).generate_state(1, np.uint64)[0] >> np.uint64(1) for seed in seeds]
    return np.array(drawn, dtype=np.int64)


def chosen_one(weights: Sequence[float], seeds: np.ndarray) -> Float[np.ndarray, "P B"]:
    """One-hot columns: for each row a parent, drawn with probability `weights` from the row's seed."""
    picks = [np.random.default_rng((int(seed), 1)).choice(len(weights), p=np.asarray(weights) / sum(weights)) for seed in seeds]
    one_hot: np.ndarray = np.eye(len(weights))[picks].T
    return one_hot
