"""Optimiser settings that every head shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """AdamW with warm-up and cosine decay; `ema_decay` of the averaged weights that are evaluated."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    gradient_clip: float = 1.0
    ema_decay: float = 0.999

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at `step`: linear warm-up, then a cosine to zero at `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; decay on matrices only: decaying biases and gains shifts outputs without regularising anything."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
