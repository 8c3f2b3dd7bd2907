"""Stream batch: a chunk at every tick for one batched call, after StreamDiffusion (Kodaira et al. 2023).

          level 0   level 1   level 2   level 3
    tick  noise ->  x      -> x      -> x      -> chunk           each arrow one DDIM step, all in one call of the field
    tick     noise ->  x      -> x      -> x      -> chunk

Images may be as old as the pipeline is long; plans may not. So at every tick all levels are asked under the newest observation,
and a chunk that began N ticks ago has met every observation since. While the observation stands still, it is the N-step sample;
when the scene jumps, latents that are nearly clean follow only in part, and after N ticks the answer is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kineflow.contracts import ActionChunk, ContractError, KineflowError, Observation, Policy, PolicyContract, SamplingRequest
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import CondOT
from kineflow.policies.question import question
from kineflow.policies.samplers import RowNoise, ddim
from kineflow.policies.stepping import Grid, Noise
from kineflow.policies.time_grids import uniform_time_grid


@dataclass
class StreamBatch:
    """The latents of B streams, one at each level of `lambdas` (which ends at +inf) but the last; rows keep their places."""

    lambdas: Grid
    latents: Tensor | None = None  # [N, B, H, A]: latents[i] is at lambdas[i]
    calls: int = 0  # of the field so far; each has N B rows, the first N - 1 fewer

    def tick(self, field: Field, noise: Noise, condition: Tokens | None) -> Chunk:
        """Shift in a fresh noise, step every latent under `condition`, shift out the cleanest.

        The first tick fills the pipeline: N - 1 calls more, of fewer rows, and N draws of noise instead of one.
        """
        depth = len(self.lambdas) - 1
        if self.latents is None:
            filled = noise.draw()[None]
            for _ in range(depth - 1):
                filled = torch.cat([noise.draw()[None], self._stepped(field, filled, condition)])
            self.latents = filled
        else:
            self.latents = torch.cat([noise.draw()[None], self.latents])
        moved = self._stepped(field, self.latents, condition)
        self.latents = moved[:-1]
        return moved[-1]

    def _stepped(self, field: Field, latents: Tensor, condition: Tokens | None) -> Tensor:
        """Each latent to the next level, in one call."""
        count, rows = latents.shape[:2]
        levels = self.lambdas.to(latents)
        pair = torch.stack([levels[:count], levels[1 : count + 1]]).repeat_interleave(rows, dim=1)  # [2, N B]
        repeated = None if condition is None else condition.repeat(count, *(1,) * (condition.ndim - 1))
        self.calls += 1
        return ddim(field, latents.flatten(0, 1), pair, repeated, _Unused()).reshape(latents.shape)


class _Unused:
    def draw(self) -> Chunk:
        raise KineflowError("DDIM draws no noise; this is a bug")


@dataclass
class StreamPolicy:
    """A Policy with a memory: row b of every call is the same robot; `reset` before an episode and between robots.

    Each call costs one batched network call of `steps` times its rows, and answers the newest observation. Relative actions are
    restored from the newest state. A seed is the noise of the chunk that begins now and comes out `steps` - 1 calls later.
    """

    policy: Policy  # a ChunkPolicy, or one with question()
    steps: int
    _stream: StreamBatch | None = field(default=None, repr=False)
    _rows: int = 0

    @property
    def contract(self) -> PolicyContract:
        return self.policy.contract

    def reset(self) -> None:
        """Forget all streams; the next call fills the pipeline anew."""
        self._stream = None

    @torch.no_grad()
    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        if request.prefix is not None or request.steps not in (None, self.steps):
            raise ContractError(f"a stream of {self.steps} steps takes no prefix and no other number of steps; build another")
        asked = question(self.policy, observation, request)
        if self._stream is None:
            self._stream, self._rows = StreamBatch(uniform_time_grid(CondOT(), self.steps)), len(request.seeds)
        if len(request.seeds) != self._rows:
            raise ContractError(f"the pipeline follows {self._rows} streams, got {len(request.seeds)} rows; reset() between")
        interface = self.contract.interface.action
        noise = RowNoise(request.seeds, (self.contract.horizons.prediction, interface.vector.size), device=asked.device)
        chunk = self._stream.tick(asked.field, noise, asked.condition)
        actions = asked.units.restore(chunk).float().cpu().numpy()
        return ActionChunk(actions, 1 / interface.rate_hz, np.asarray(observation.stamp_s)[..., -1])
