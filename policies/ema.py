"""Exponential moving average of the weights: the copy that is evaluated and deployed."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from kineflow.policies.frozen_weights import frozen_encoders

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage(Generic[Network]):
    """Decay grows as (1 + n) / (10 + n) up to `decay`, so that early weights are forgotten (Tensorflow's EMA rule)."""

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        frozen = {id(encoder): encoder for encoder in frozen_encoders(network).values()}
        self.network: Network = copy.deepcopy(network, dict(frozen))  # which are the average of themselves: one for both
        self.network.eval().requires_grad_(False)
        # Paired once; buffers are constants here and need no averaging.
        pairs = [(a.detach(), p.detach()) for a, p in zip(self.network.parameters(), network.parameters()) if a is not p]
        self._averaged: list[Tensor] = [averaged for averaged, _ in pairs]
        self._live: list[Tensor] = [live for _, live in pairs]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after optimiser step number `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._live, weight)
