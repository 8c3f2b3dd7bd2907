"""Exponential moving average of the weights: the copy that is evaluated and deployed."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Decay grows as (1 + n) / (10 + n) up to `decay`, so that early weights are forgotten (Tensorflow's EMA rule)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # Names pair them once; buffers are constants here and need no averaging.
        self._pairs = list(zip(self.network.parameters(), network.parameters()))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after optimiser step number `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged = [a for a, _ in self._pairs]
        torch._foreach_lerp_(averaged, [p.detach() for _, p in self._pairs], weight)
