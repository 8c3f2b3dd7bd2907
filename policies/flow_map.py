"""Flow maps: heads that jump. `head(x, t, condition, end)` is the average velocity from time t to `end`; N jumps make a chunk.

    z = noise at t = 0;   z <- z + (t' - t) head(z, t, condition, t') along 0 = t_0 < ... < t_N = 1

One head serves every N, N = 1 included (any-step sampling, as in AnyFlow), and its diagonal, `end` left out, is an ordinary
velocity: `FlowMap.field` is solved, guided and composed like that of any flow policy. The clock is CondOT, t = 0 noise.

Trained from scratch by `kineflow train` on its own velocity (self-distillation), or on that of a frozen `Teacher`.

A jump has no noise levels in between, so it cannot be guided while sampling. Guidance is baked in instead: give a teacher whose
Field is guided. A FlowMap therefore has no null condition; without a teacher, guidance is refused.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError, SamplerSpec
from kineflow.policies.field import DEFAULT_OPTIONS, Chunk, Field, Head, HeadField, Level, NullTokens, SampleOptions, Tokens
from kineflow.policies.flow_map_losses import (
    DERIVATIVES,
    RESIDUALS,
    AverageVelocity,
    DerivativeName,
    Jumps,
    Method,
    Residual,
    Times,
    jump,
    velocity_error,
)
from kineflow.policies.guidance import Clip
from kineflow.policies.losses import Losses, TimeDensity, Weight, draw_normal, draw_times, row_mean
from kineflow.policies.paths import CondOT, over
from kineflow.policies.samplers import RowNoise, SolverName, solver_of
from kineflow.policies.stepping import Noise
from kineflow.policies.time_grids import TimeGrid

ADAPTIVE_FLOOR = 0.01  # MeanFlow's


@runtime_checkable
class TwoTimeHead(Protocol):
    """A head that can jump; without `end` it is an ordinary velocity head on CondOT."""

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None, end: Level | None = None) -> Chunk:
        """Average velocity of the flow from `x` at `t` to `end`, the shape of `t`."""
        ...


@dataclass(frozen=True)
class Teacher:
    """A frozen Field, guided or not, with the tokens that its own encoder makes of the rows of this batch."""

    field: Field
    condition: Tokens | None

    @torch.no_grad()
    def velocity(self, jumps: Jumps) -> Chunk:
        """E[a - eps | x] where the jumps start (before t = 1), in the scaling of CondOT."""
        x, point = jumps.x, CondOT().at(jumps.start).over(jumps.x)
        canonical = x / torch.hypot(point.alpha, point.sigma)
        sample = self.field(canonical, CondOT().to_lambda(jumps.start), self.condition).to(x.dtype)
        return (sample - x) / point.sigma

    def rows(self, rows: slice) -> Teacher:
        return Teacher(self.field, _rows(self.condition, rows))


@dataclass(frozen=True)
class FlowMap:
    """A flow map on CondOT. `diagonal` of the rows train the velocity, the others jump from t to a later `end`.

    A share `jumps_to_data` of the jumps ends at t = 1 (AnyFlow: half); `balance` rescales the loss of the jumps to
    the mean of the diagonal's (AnyFlow). `adaptive` divides each row's loss by itself plus 0.01, without gradient, as
    MeanFlow does for images; in few dimensions that makes the velocity a robust mean, not the mean, so it is off.
    """

    method: Method = "psd"
    derivative: DerivativeName = "jvp"  # of every method but psd
    split: Literal["half", "uniform"] = "half"  # where psd puts the middle of a jump
    diagonal: float = 0.75  # MeanFlow and self-distillation: 0.75, improved MeanFlow: 0.5
    jumps_to_data: float = 0.0
    balance: bool = False
    adaptive: bool = False
    time_density: TimeDensity = "uniform"
    solver: SolverName | Literal["jump"] = "jump"
    steps: int = 1
    grid: TimeGrid = dataclasses.field(default_factory=TimeGrid)
    diffusion: float = 1.0  # k of the solver "sde"
    gamma: float = 0.0  # share of the noise that each jump renews: 0 none, 1 all of it
    clip: float = math.inf  # bound on the denoised chunk while a solver samples
    invertible: bool = False  # trained to run backwards too (BiFM), as a WarmStartPolicy needs
    condition_dropout: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        self.grid(CondOT(), self.steps)
        solver_of("euler" if self.solver == "jump" else self.solver, self.diffusion)
        if not 0 < self.diagonal < 1:
            raise KineflowError(f"FlowMap.diagonal is {self.diagonal:g}; velocity and jumps both need rows, so between 0 and 1")
        for name, share in (("jumps_to_data", self.jumps_to_data), ("gamma", self.gamma)):
            if not 0 <= share <= 1:
                raise KineflowError(f"FlowMap.{name} is {share:g}; it is a share, from 0 to 1")
        if self.gamma > 0 and self.solver != "jump":
            raise KineflowError(f"FlowMap.gamma is {self.gamma:g} but only jumps renew noise; use solver jump or gamma 0")
        if not self.clip > 0:
            raise KineflowError(f"FlowMap.clip is {self.clip:g}; it bounds |sample| and must be positive (inf: no bound)")

    def loss(
        self,
        head: Head,
        actions: Chunk,
        condition: Tokens | None,
        generator: torch.Generator,
        weight: Weight,
        teacher: Teacher | None = None,
    ) -> Losses:
        """The first rows train the diagonal. With a `teacher` its velocity replaces that of the pairs (actions, noise)."""
        jumps, diagonal = self._draw(actions, generator)
        needs_velocity = slice(None) if self.method in ("meanflow", "imf") else diagonal
        if teacher:
            jumps.velocity[needs_velocity] = teacher.rows(needs_velocity).velocity(jumps[needs_velocity])
        on = self._losses(velocity_error, jumps, diagonal, head, condition, weight)
        if diagonal.stop == len(actions):
            return on
        off = self._losses(RESIDUALS[self.method], jumps, slice(diagonal.stop, None), head, condition, weight)
        if self.balance:
            off = off * (on.mean() / off.mean().clamp(min=torch.finfo(off.dtype).tiny)).detach()
        return torch.cat([on, off])

    def field(self, head: Head, null_condition: NullTokens | None = None, guidance_scale: float | None = None) -> Field:
        """The diagonal of the map, an ordinary flow: for solvers, guidance and composition."""
        self._refuse_guidance(guidance_scale)
        denoise: Field = HeadField(head, CondOT(), "velocity")
        return denoise if math.isinf(self.clip) else Clip(denoise, -self.clip, self.clip)

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        self._refuse_guidance(options.guidance_scale)
        steps = self.steps if options.steps is None else options.steps
        if self.solver != "jump":
            denoise = self.field(head)
            denoise = options.guide(denoise) if options.guide else denoise
            lambdas = self.grid(CondOT(), steps)
            return solver_of(self.solver, self.diffusion)(denoise, noise.draw(), lambdas, condition, noise)
        if options.guide:
            raise KineflowError("a flow map's jumps have no noise levels to guide at; use solver euler (or another), not jump")
        return self.jumped(head, noise.draw(), steps, condition, noise)

    def jumped(self, head: Head, start: Chunk, steps: int, condition: Tokens | None, fresh: Noise) -> Chunk:
        """`start`, pure noise, to the chunk along the grid; only gamma > 0 draws from `fresh`."""
        times = torch.sigmoid(self.grid(CondOT(), steps))
        norm: list[float] = torch.hypot(times, 1 - times).tolist()
        z = jump_along(average_velocity(head, condition), start * norm[0], times, fresh, self.gamma)
        return z / norm[-1]  # canonical scaling, like any solver's; both norms are 1 from noise to data

    def sampler_spec(self) -> SamplerSpec:
        diffusion = self.diffusion if self.solver == "sde" else None
        return SamplerSpec(
            str(CondOT()), "velocity", self.solver, self.steps, grid=str(self.grid), clip=self.clip, diffusion=diffusion
        )

    def _draw(self, actions: Chunk, generator: torch.Generator) -> tuple[Jumps, slice]:
        """A jump for each row, and which rows stay where they are (end = start) to train the velocity."""
        count = len(actions)
        stay = max(1, min(count - 1, round(self.diagonal * count)))
        first, second = (draw_times(CondOT(), self.time_density, actions[:, 0, 0], generator) for _ in range(2))
        row = torch.arange(count, device=actions.device)
        to_data = row >= count - round(self.jumps_to_data * (count - stay))
        start = torch.where((row < stay) | to_data, first, torch.minimum(first, second))
        end = torch.where(row < stay, first, torch.where(to_data, 1.0, torch.maximum(first, second)))
        noise = draw_normal(actions, generator)
        x = over(start, actions) * actions + over(1 - start, actions) * noise
        split = torch.full_like(start, 0.5)
        if self.split == "uniform":
            split = torch.rand(count, generator=generator, device=generator.device).to(start)
        return Jumps(x, start, end, actions - noise, split), slice(0, stay)

    def _losses(
        self, residual: Residual, jumps: Jumps, rows: slice, head: Head, condition: Tokens | None, weight: Weight
    ) -> Tensor:
        """The losses of some rows."""
        u = average_velocity(head, _rows(condition, rows))
        loss = row_mean(residual(u, jumps[rows], DERIVATIVES[self.derivative]) ** 2, weight[rows])
        return loss / (loss.detach() + ADAPTIVE_FLOOR) if self.adaptive else loss

    def _refuse_guidance(self, scale: float | None) -> None:
        if scale not in (None, 1):
            raise KineflowError(
                f"guidance_scale is {scale:g} but a flow map has no null condition; sample with 1, "
                "or bake guidance in: distil it from a guided teacher"
            )


def jump_along(u: AverageVelocity, noise: Chunk, times: Float[Tensor, "N1"], fresh: Noise, gamma: float = 0.0) -> Chunk:
    """`noise` at times[0] to times[-1] by one jump per interval.

    With `gamma` > 0 a jump goes beyond its time, to sqrt(1 - gamma^2) of the noise-to-signal ratio wanted there, and fresh
    noise makes up for the rest: an exact map keeps its marginals (gamma-sampling of consistency trajectory models,
    arXiv 2310.02279; gamma = 1 is multistep sampling of consistency models).
    """
    if len(times) < 2 or bool((times[1:] <= times[:-1]).any()) or times[0] < 0 or times[-1] > 1:
        raise KineflowError(f"a flow map's times must ascend within [0, 1], at least two of them; got {times.tolist()}")
    keep, z = math.sqrt(1 - gamma**2), noise
    for start, end in pairwise(times.tolist()):
        target = end / (end + keep * (1 - end))
        z = jump(u, z, z.new_full(z.shape[:1], start), z.new_full(z.shape[:1], target))
        if gamma > 0 and end < 1:
            z = end / target * z + gamma * (1 - end) * fresh.draw()
    return z


def average_velocity(head: Head, condition: Tokens | None) -> AverageVelocity:
    """A two-time head with its condition. In training, all calls drop the same units: what learns and what it learns from."""
    call, dropout = cast(TwoTimeHead, head), _has_dropout(head)
    seed = int(torch.randint(2**62, ())) if dropout else 0

    def u(x: Chunk, start: Times, end: Times) -> Chunk:
        if dropout:
            torch.manual_seed(seed)
        # Under autocast the encoder answers in bfloat16, which a head outside autocast (derivatives) cannot mix with float32.
        given = None if condition is None else condition.to(x.dtype)
        return call(x, start, given, end).to(x.dtype)

    return u


def _rows(condition: Tokens | None, rows: slice) -> Tensor | None:
    return None if condition is None else condition[rows]


def _has_dropout(head: Head) -> bool:
    if not (isinstance(head, nn.Module) and head.training):
        return False
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in head.modules())
