"""Inpainting: chunks with known entries (a fixed start, waypoints) from a policy that was never trained for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import over, variance_preserving
from kineflow.policies.samplers import Grid, Noise, Sampler


@dataclass(frozen=True)
class Inpaint:
    """A Sampler that overwrites the known entries by alpha a + sigma z before each step of `solver` (RePaint, Lugmayr 2022).

    Overwriting alone does not tell the free entries enough: they follow the known ones only through one denoised chunk per
    level. `cycles` > 1 repeats each step, with x = r x' + sqrt(sigma^2 - r^2 sigma'^2) z, r = alpha / alpha', going back in
    between; many cycles sample the conditional law. Calls: cycles times the solver's (the last step is taken once).

        objective, encoded = network.config.objective, network.encode(observation)
        inpaint = Inpaint(SOLVERS["ddim"], encoded.units.normalise(waypoints), is_known, cycles=10)
        chunk = inpaint(objective.field(network.head), noise.draw(), lambdas, encoded.condition, noise)
        actions = encoded.units.restore(chunk)
    """

    solver: Sampler  # of one step: solvers that remember earlier steps start anew in each
    known: Chunk
    is_known: Bool[Tensor, "#B H A"]
    cycles: int = 10

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise KineflowError(f"Inpaint.cycles is {self.cycles}; each step is taken at least once")

    def __call__(self, field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        alpha, sigma = variance_preserving(over(lambdas.to(noise), noise))
        x = noise
        for k in range(len(lambdas) - 1):
            cycles = 1 if bool((sigma[k + 1] == 0).all()) else self.cycles
            for cycle in range(cycles):
                if cycle > 0:
                    ratio = alpha[k] / alpha[k + 1]
                    x = ratio * x + torch.sqrt(sigma[k] ** 2 - (ratio * sigma[k + 1]) ** 2) * fresh.draw()
                x = torch.where(self.is_known, alpha[k] * self.known + sigma[k] * fresh.draw(), x)
                x = self.solver(field, x, lambdas[k : k + 2], condition, fresh)
        return torch.where(self.is_known, self.known, x)
