"""MixFlow: a flow that does not start from white noise but from a guess, here from the previous chunk.

    x_0 ~ N(w mu(k), w Sigma(k) + (1 - w) I),   w ~ U[0, 1] in training,   x_t = t a + (1 - t) x_0,   velocity a - x_0

with KL(N(mu, Sigma) || N(0, I)) at a small weight, so that the guess stays a spread. w = 0 is an ordinary flow from standard
normal noise and w = 1 starts at the guess; one network does both, so w can be chosen for each request. (In MixFlow's image
code k is the image itself, hence w = 0 at inference. A robot knows its previous chunk, so w > 0 is usable.)

What k may be in training: something a robot has at that time and that does not hold the answer. NOT the demonstration's
chunk from E steps ago: its later part is the very chunk to be predicted, so the network would learn to copy it, and at run
time it would copy its own errors. Good choices are the actions already executed, or the chunk that a trained policy (a
teacher) predicts from the observation E steps ago. `shifted` moves a chunk of E steps ago to now.

The source is not standard normal, so such a head knows no score, hence no Field: Euler only, no guidance, no composition
(generative core, 6.4).

Trained by `kineflow distill RUN --method mixflow`, whose teacher says the chunks of E steps ago (distillation/mix_flow.py).
Sampled from white noise by `predict`, and from the previous chunk by a WarmStartPolicy (warm_start.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kineflow.contracts import KineflowError, SamplerSpec
from kineflow.policies.field import DEFAULT_OPTIONS, Chunk, Head, SampleOptions, Tokens
from kineflow.policies.losses import Losses, Weight, draw_normal, row_mean
from kineflow.policies.paths import CondOT, over
from kineflow.policies.samplers import RowNoise

Share = Float[Tensor, "B"]  # w of each row


@dataclass(frozen=True)
class Guess:
    """N(mean, std^2) of each number of a chunk."""

    mean: Chunk
    std: Chunk

    def mixed(self, share: Share) -> Guess:
        """N(w mu, w Sigma + (1 - w) I)."""
        w = over(share, self.mean)
        return Guess(w * self.mean, torch.sqrt(w * self.std**2 + (1 - w)))

    def draw(self, noise: Chunk) -> Chunk:
        """A sample, differentiable in mean and std."""
        return self.mean + self.std * noise

    def divergence(self) -> Losses:
        """KL(N(mean, std^2) || N(0, 1)) of each row, averaged over its numbers."""
        nats = (self.mean**2 + self.std**2 - 1) / 2 - torch.log(self.std)
        return nats.mean(dim=(1, 2))


class GuessFromChunk(nn.Module):
    """mu and Sigma of the previous chunk `[B, H, A]`: standard normal at initialisation.

    One small MLP over the flattened chunk; the condition tells how the world has changed since.
    """

    def __init__(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], width: int = 128) -> None:
        super().__init__()
        size = horizon * action_dim
        self.inputs = nn.Linear(size + condition_shape[0] * condition_shape[1], width)
        self.outputs = nn.Linear(width, 2 * size)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def forward(self, previous: Chunk, condition: Tokens) -> Guess:
        given = torch.cat([previous.flatten(1), condition.flatten(1)], dim=1)
        mean, log_std = self.outputs(nn.functional.silu(self.inputs(given))).view(len(previous), 2, *previous.shape[1:]).unbind(1)
        return Guess(mean, torch.exp(log_std))


@dataclass(frozen=True)
class MixFlow:
    """The objective: a CondOT velocity head and its source, trained together; the head is of kind Guessing."""

    condition_dropout: ClassVar[float] = 0.0
    divergence_weight: float = 2e-5  # 1e-5 .. 5e-5 in MixFlow's code
    steps: int = 4

    def __post_init__(self) -> None:
        if not self.divergence_weight >= 0 or self.steps < 1:
            raise KineflowError(
                f"MixFlow needs divergence_weight >= 0 and steps >= 1, got {self.divergence_weight:g} and {self.steps}"
            )

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        """Demonstrations alone do not say what a policy predicted E steps ago."""
        raise KineflowError(
            "MixFlow learns from the previous chunks of a trained policy; train one with another objective first, then "
            "`kineflow distill RUN --method mixflow`"
        )

    def loss_from(
        self,
        head: Head,
        guess: Guess,
        actions: Chunk,
        condition: Tokens | None,
        generator: torch.Generator,
        weight: Weight,
    ) -> Losses:
        """Each row's squared velocity error and the divergence of its guess. The gradient reaches the source too."""
        uniform = torch.rand(2, len(actions), generator=generator, device=generator.device, dtype=torch.float64)
        t, share = uniform.to(actions)
        start = guess.mixed(share).draw(draw_normal(actions, generator))
        x = torch.lerp(start, actions, over(t, actions))
        velocity = head(x, t, condition).to(x.dtype)
        return row_mean((velocity - (actions - start)) ** 2, weight) + self.divergence_weight * guess.divergence()

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        """From white noise, w = 0: no previous chunk is needed."""
        if options.guide or options.guidance_scale not in (None, 1):
            raise KineflowError("a MixFlow policy has no noise levels to guide at; leave guidance and prefix out")
        return self._solved(head, noise.draw(), condition, self.steps if options.steps is None else options.steps)

    @torch.no_grad()
    def sample_from(self, head: Head, guess: Guess, noise: Chunk, condition: Tokens | None, share: float) -> Chunk:
        """Euler from the mixed guess; `share` w = 0 needs no previous chunk, 1 trusts it entirely."""
        if not 0 <= share <= 1:
            raise KineflowError(f"share is {share:g}; it mixes the guess with white noise and lies in [0, 1]")
        return self._solved(head, guess.mixed(noise.new_full((len(noise),), share)).draw(noise), condition, self.steps)

    def sampler_spec(self) -> SamplerSpec:
        return SamplerSpec(str(CondOT()), "velocity", "euler", self.steps)

    def _solved(self, head: Head, x: Chunk, condition: Tokens | None, steps: int) -> Chunk:
        if steps < 1:
            raise KineflowError(f"steps is {steps}; it is the number of network calls, at least 1")
        for k in range(steps):
            t = x.new_full((len(x),), k / steps)
            x = x + head(x, t, condition).to(x.dtype) / steps
        return x


def shifted(previous: Chunk, executed: int | Int64[Tensor, "B"]) -> Chunk:
    """The chunk of `executed` steps ago (of each row) as seen from now: its remaining actions first, the last one repeated."""
    horizon, gone = previous.shape[1], torch.as_tensor(executed, device=previous.device).expand(len(previous))
    for wrong in gone[(gone < 0) | (gone > horizon)][:1].tolist():
        raise KineflowError(f"{wrong} actions executed of a chunk of {horizon}; it must lie in 0 .. {horizon}")
    index = (gone[:, None] + torch.arange(horizon, device=previous.device)).clamp(max=horizon - 1)
    return torch.take_along_dim(previous, index[..., None], dim=1)
