"""Which noise is paired with which chunk in a batch.

Independent pairs are the rule. Optimal transport inside the batch (Tong et al. 2023, OT-CFM) re-pairs them so that the sum
of squared distances is least: both laws stay what they are, paths cross less, and few steps go further.

It is exact for unconditional heads alone. With a condition per row, the noise that a row trains on depends on its condition
(chunks of "left" attract noise on the left), while sampling draws it independent of the condition: a train-test mismatch
that grows with the batch. That is why a batch with different conditions is refused.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Tokens
from kineflow.policies.losses import Weight

Coupling = Literal["independent", "optimal_transport"]


def coupled(coupling: Coupling, noise: Chunk, actions: Chunk, condition: Tokens | None, weight: Weight) -> Chunk:
    """The rows of `noise` in the order in which `actions` are to meet them. Actions without `weight` (padding) cost nothing.

    Raises KineflowError for optimal transport under different conditions.
    """
    if coupling == "independent":
        return noise
    if condition is not None and (condition != condition[:1]).any():
        raise KineflowError(
            "coupling optimal_transport was given rows with different conditions; it would tie each row's noise to its "
            "condition, but sampling draws noise independent of it. Train with coupling: independent, or without condition"
        )
    return noise[optimal_assignment(noise, actions, weight)]


@torch.no_grad()
def optimal_assignment(noise: Chunk, actions: Chunk, weight: Weight) -> Int[Tensor, "B"]:
    """For each chunk the row of `noise` that it meets: the exact assignment of least weighted squared distance."""
    # Imported here: the rest of the core needs nothing but torch.
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(transport_costs(noise, actions, weight).cpu().numpy())
    return torch.from_numpy(columns).to(noise.device)


def transport_costs(noise: Chunk, actions: Chunk, weight: Weight) -> Float[Tensor, "B B"]:
    """Entry (i, j): sum over the actions of weight_i |actions_i - noise_j|^2, float64."""
    noise, actions = noise.double(), actions.double()
    weighted = actions * weight.double()[..., None]
    noise_power = torch.einsum("ih,jha->ij", weight.double(), noise**2)
    return (weighted * actions).sum(dim=(1, 2))[:, None] + noise_power - 2 * torch.einsum("iha,jha->ij", weighted, noise)
