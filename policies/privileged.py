"""Privileged supervision: features that are recorded but absent when the policy acts teach its encoder what to look for.

The diffusion loss alone takes very long to teach a camera encoder where things are: its gradient is mostly noise. Where the
recording also knows the state, a linear probe must read its geometry off the condition tokens, and the encoder learns that in
minutes. The probe is not used when the policy acts, and the policy's contract does not ask for these features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import FeatureStatistics
from kineflow.policies.field import Tokens
from kineflow.policies.losses import Losses
from kineflow.policies.normaliser import Normaliser


class Probe(nn.Module):
    """Condition tokens `[B, N, D]` to the standardised geometry features `[B, F]` of the privileged state."""

    mean: Tensor
    std: Tensor

    def __init__(self, token_shape: tuple[int, int], statistics: FeatureStatistics) -> None:
        super().__init__()
        normaliser = Normaliser.from_statistics(statistics, "gaussian")
        self.register_buffer("mean", normaliser.offset, persistent=False)
        self.register_buffer("std", normaliser.scale, persistent=False)
        self.read = nn.Linear(token_shape[0] * token_shape[1], len(statistics.mean))

    def forward(self, condition: Tokens, truth: Float[Tensor, "B F"]) -> Losses:
        """Each row's mean squared error; `truth` in the units of the features."""
        error = self.read(condition.flatten(1)) - (truth - self.mean) / self.std
        return torch.mean(error**2, dim=1)
