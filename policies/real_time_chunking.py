"""Real-Time Chunking (Black et al. 2025): a new chunk that continues the one being executed, without averaging the two.

While a policy of horizon H thinks, d actions are executed (`delay`); it thinks again every s actions (`execution`). The rest of
the old chunk is known, and the new one is sampled under its influence, action i with the weight W_i of `soft_mask`:

    old chunk   ... x x x|c c c c o o o o o o      c: executed before the new chunk arrives (W = 1)
    new chunk            |c c c c n n n n n n n n n   o: planned, may change (1 > W > 0); n: free where the old one ends (W = 0)

Three ways: `RealTimeChunking` guides any trained policy, Jacobian-free or exact; `CommittedStart` is the hard prefix of
training-time RTC (Black et al., arXiv 2512.05964), exact for heads trained with one noise level per action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import CommittedPrefix, ContractError, KineflowError
from kineflow.policies.field import Chunk, Field, Guide, Level, Tokens
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.paths import over
from kineflow.policies.prefix import MaskShape as MaskShape, committed_prefix as committed_prefix, soft_mask as soft_mask
from kineflow.policies.samplers import Grid, Noise, Sampler

DEFAULT_BETA = 5.0


@dataclass(frozen=True)
class RealTimeChunking:
    """Guided RTC as a Field: a_hat' = a_hat + gain J^T W (previous - a_hat).

    The publication adds w g to the velocity of the CondOT state z = tau a + (1 - tau) eps, with g = (d a_hat / dz)^T W e,
    w = min(beta, (1 - tau) / (tau r^2)) and r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2). The velocity is (a_hat - z) / (1 - tau),
    so the same step on any path is the a_hat above with tau = sigmoid(lambda) and

        gain = (1 - tau) w = min(beta (1 - tau), (tau^2 + (1 - tau)^2) / tau)

    and diffusion heads need nothing of their own. `jacobian` "none" takes J = 1 as deployed implementations do: no gradient
    through the network, exportable. "exact" costs about three calls, and pulls nothing where a clip holds the sample (J = 0).
    An Euler step of 1 / steps moves the chunk by up to beta / steps of the gap, which diverges above 1: beta <= steps is
    enforced.
    """

    field: Field
    previous: Chunk  # normalised, right-padded; values of weight zero are never read
    mask: Float[Tensor, "#B H"]
    steps: int
    beta: float = DEFAULT_BETA
    jacobian: Literal["none", "exact"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= self.steps:
            raise KineflowError(
                f"real-time chunking is unstable with beta above the number of steps: beta is {self.beta:g}, steps {self.steps}; "
                f"use beta <= {self.steps} or more steps"
            )

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        tau, left = torch.sigmoid(over(lam, x)), torch.sigmoid(-over(lam, x))
        power = tau**2 + left**2
        gain = torch.minimum(self.beta * left, power / tau)
        if self.jacobian == "none":
            sample = self.field(x, lam, condition)
            return sample + gain * self._pull(sample)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            sample = self.field(x, lam, condition)
            (pull,) = torch.autograd.grad(sample, x, self._pull(sample.detach()))
        # z = norm x with norm = sqrt(power), hence d / dz = (d / dx) / norm.
        return sample.detach() + gain * pull / torch.sqrt(power)

    def _pull(self, sample: Chunk) -> Chunk:
        weight = self.mask[..., None]
        return torch.where(weight > 0, weight * (self.previous - sample), 0)


def continue_prefix(prefix: CommittedPrefix, shape: tuple[int, ...], units: ActionUnits, steps: int) -> Guide:
    """The Guide that `SamplingRequest.prefix` asks for in chunks of `shape`; beta is 5, or `steps` where that is less."""
    if prefix.method == "start":
        raise ContractError("this policy cannot begin with given actions; ask for a prefix of method guided or exact")
    previous, weight = _normalised(prefix, shape, units)
    jacobian: Literal["none", "exact"] = "exact" if prefix.method == "exact" else "none"
    return lambda field: RealTimeChunking(field, previous, weight, steps, min(DEFAULT_BETA, float(steps)), jacobian)


def committed_start(prefix: CommittedPrefix, shape: tuple[int, ...], units: ActionUnits) -> tuple[Chunk, Tensor]:
    """What `SampleOptions.committed` takes, for a prefix of method "start"."""
    previous, _ = _normalised(prefix, shape, units)
    if not 0 <= prefix.delay < shape[1]:
        raise ContractError(f"the prefix commits {prefix.delay} actions of a chunk of {shape[1]}; some must be left to choose")
    return previous, torch.full((shape[0],), prefix.delay, device=previous.device)


def _normalised(prefix: CommittedPrefix, shape: tuple[int, ...], units: ActionUnits) -> tuple[Chunk, Float[Tensor, "B H"]]:
    """Actions and weights, checked."""
    actions, mask = prefix.actions, prefix.soft_mask
    if actions.shape != shape or mask.shape != shape[:2]:
        raise ContractError(
            f"the prefix has actions {actions.shape} and mask {mask.shape}; the policy's chunks are {shape}: "
            "pad the end of the previous chunk and give it weight 0, as committed_prefix() does"
        )
    if not ((mask >= 0) & (mask <= 1)).all() or not np.isfinite(actions[mask > 0]).all():
        raise ContractError("a prefix needs weights from 0 to 1 and finite actions where they are above 0; drop this prefix")
    return units.normalise(torch.from_numpy(actions).to(units.scale)), torch.from_numpy(mask).to(units.scale)


@dataclass(frozen=True)
class CommittedStart:
    """A Sampler whose chunks begin with `delay` committed actions: those are at lambda = +inf from the first step on.

    For heads trained with a noise level per action and clean starts. On such a head this samples the exact conditional law
    of the rest given the start; on others the start is kept but hardly listened to.

        objective, encoded = network.config.objective, network.encode(observation)
        start = CommittedStart(SOLVERS["euler"], encoded.units.normalise(previous), torch.tensor([2]))
        chunk = start(objective.field(network.head), noise.draw(), lambdas, encoded.condition, noise)
    """

    solver: Sampler
    committed: Chunk  # normalised; only the first `delay` actions of each row are read
    delay: Tensor  # integer, [B] or [1]

    def __call__(self, field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        position = torch.arange(noise.shape[1], device=noise.device)
        clean = (position < self.delay[:, None]).expand(noise.shape[:2])
        grid = torch.where(clean, torch.inf, over(lambdas, noise))
        start = torch.where(clean[..., None], self.committed, noise)
        return self.solver(field, start, grid, condition, fresh)
