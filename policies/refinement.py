"""Refining a chunk under a cost with a frozen policy as the prior: RED-diff (Mardani et al., arXiv 2305.04391)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.cost_guidance import Cost
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import over, variance_preserving
from kineflow.policies.samplers import Noise


def red_diff(
    field: Field,
    start: Chunk,
    cost: Cost,
    lambdas: Float[Tensor, "N"],
    condition: Tokens | None,
    fresh: Noise,
    weight: float = 1.0,
    learning_rate: float = 0.05,
) -> Chunk:
    """Minimise cost(mu) + weight (sigma / alpha) (eps_hat(alpha mu + sigma eps) - eps) mu over the chunk mu, one Adam step for
    each of `lambdas` (finite, ascending from noise). The bracket is a constant: no gradient runs through the network.

    For a Gaussian policy N(m, s^2) the prior's mean pull is weight sigma^2 (mu - m) / (alpha^2 s^2 + sigma^2).

        encoded = network.encode(observation)
        cost = lambda chunk: 50 * ((encoded.units.restore(chunk)[:, 8] - waypoint) ** 2).sum(-1)
        refined = red_diff(objective.field(network.head), chunk, cost, torch.linspace(-2, 3, 100), encoded.condition, noise)
    """
    alpha, sigma = variance_preserving(over(lambdas.to(start), start))
    mu = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([mu], lr=learning_rate)
    for k, lam in enumerate(lambdas.to(start)):
        noise = fresh.draw()
        with torch.no_grad():
            x = alpha[k] * mu + sigma[k] * noise
            guess = (x - alpha[k] * field(x, lam.expand(len(x)), condition)) / sigma[k]
            pull = weight * sigma[k] / alpha[k] * (guess - noise)
        with torch.enable_grad():
            loss = cost(mu).sum() + (pull * mu).sum()
        (mu.grad,) = torch.autograd.grad(loss, mu)
        optimiser.step()
    return mu.detach()
