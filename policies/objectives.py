"""What is trained and how it is sampled: flow matching, diffusion, and two baselines without noise levels.

Flow matching and diffusion are one thing with different defaults: draw a time t and noise eps, mix them with the chunk a,

    x_t = alpha_t a + sigma_t eps            CondOT: x_t = t a + (1 - t) eps,  velocity a - eps

and regress what the head predicts. Changing the path, the density of t, the weight or the prediction type changes training,
never the minimiser (specification: generative core, section 2), so heads trained differently remain composable.

Actions are normalised. `condition` is the encoder's tokens; for guidance the policy has already replaced a share
`condition_dropout` of its rows by the null condition when it calls `loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

import torch

from kineflow.contracts import KineflowError, SamplerSpec
from kineflow.policies.couplings import Coupling, coupled
from kineflow.policies.field import DEFAULT_OPTIONS, Chunk, Field, Head, HeadField, Level, NullTokens, SampleOptions, Tokens
from kineflow.policies.flow_map import FlowMap as FlowMap
from kineflow.policies.guidance import ClassifierFreeGuidance, Clip
from kineflow.policies.losses import (
    Losses,
    TimeDensity,
    Weight,
    draw_normal,
    draw_times,
    exchange_rate,
    row_mean,
    with_clean_start,
)
from kineflow.policies.paths import CondOT, Path, SquaredCos
from kineflow.policies.predictions import Denoised, Prediction, from_denoised, network_input
from kineflow.policies.real_time_chunking import CommittedStart
from kineflow.policies.regression import MIP as MIP, Regression as Regression
from kineflow.policies.samplers import RENEWING, RowNoise, SolverName, solver_of
from kineflow.policies.time_densities import TimeLaw
from kineflow.policies.time_grids import TimeGrid


@runtime_checkable
class Objective(Protocol):
    """A way to train a head and to sample chunks from it."""

    @property
    def condition_dropout(self) -> float: ...

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        """Each row's squared error, averaged over its actions with `weight`. `generator` draws t and eps."""
        ...

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        """A chunk for each row of `noise`, in normalised units; `options` override the configured values."""
        ...

    def sampler_spec(self) -> SamplerSpec:
        """How this is sampled, for the policy contract."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching (Lipman et al. 2023) on any path. `loss_space` may differ from `prediction`: RiT predicts the sample and
    regresses its velocity."""

    path: Path = field(default_factory=CondOT)
    prediction: Prediction = "velocity"
    loss_space: Prediction = "velocity"
    t_eps: float = 0.05  # where the spaces differ: the least 1 - t that the loss of a sample head divides by
    time_density: TimeDensity = "uniform"
    time_parameters: tuple[float, float] | None = None  # beta: a, b; logit_normal: mean, std; None: those of pi0 and MeanFlow
    time_shift: float = 1.0  # above 1: more noise, see TimeLaw
    per_action_time: bool = False  # a time for each action [B, H] instead of one for the row [B]
    clean_start: int = 0  # training-time RTC: chunks begin with up to so many committed actions, see losses.py; 0: none
    coupling: Coupling = "independent"
    condition_dropout: float = 0.0
    solver: SolverName = "euler"
    steps: int = 10
    grid: TimeGrid = field(default_factory=TimeGrid)
    diffusion: float = 1.0  # k of the solver "sde": 0 no noise, 1 that of DDPM
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (-math.inf, math.inf)  # in lambda
    clip: float = math.inf  # bound on the denoised chunk while sampling
    temperature: float = 1.0  # scale of the noise that sampling begins with; small: chunks near the likeliest, 0: one chunk

    def __post_init__(self) -> None:
        self.grid(self.path, self.steps)  # refuses impossible grids here, not after hours of training
        solver_of(self.solver, self.diffusion)
        _ = self.times  # for its checks
        if not 0 <= self.t_eps < 1:
            raise KineflowError(f"t_eps is {self.t_eps:g}; it is a time, at least 0 (no bound) and below 1")
        if self.clean_start < 0:
            raise KineflowError(f"clean_start is {self.clean_start}; it counts committed actions, 0 for none")
        if not 0 <= self.condition_dropout < 1:
            raise KineflowError(f"condition_dropout is {self.condition_dropout:g}; it is a probability below 1")
        if self.guidance_scale != 1 and self.condition_dropout == 0:
            raise KineflowError(_no_null_condition(self.guidance_scale, self.condition_dropout))
        if not self.clip > 0:
            raise KineflowError(f"clip is {self.clip:g}; it bounds |sample| and must be positive (inf: no bound)")
        if not 0 <= self.temperature < math.inf or (self.temperature != 1 and self.solver in RENEWING):
            raise KineflowError(
                f"temperature is {self.temperature:g} with solver {self.solver}; it scales the noise that a chunk begins with: "
                f"at least 0, and 1 for solvers that renew noise ({', '.join(RENEWING)})"
            )

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        timed = actions[:, :, 0] if self.per_action_time else actions[:, 0, 0]
        t = draw_times(self.path, self.times, timed, generator)
        noise = coupled(self.coupling, draw_normal(actions, generator), actions, condition, weight)
        if self.clean_start:
            t, weight = with_clean_start(t, weight, self.clean_start, generator)
        return self.regress(head, Denoised(actions, noise), t, condition, weight)

    def regress(self, head: Head, truth: Denoised, t: Level, condition: Tokens | None, weight: Weight) -> Losses:
        """The loss at times `t` of given pairs of chunk and noise: `loss` draws them, a teacher's ODE may tie them (reflow)."""
        point = self.path.at(t).over(truth.sample)
        x = point.alpha * truth.sample + point.sigma * truth.noise
        answer = head(network_input(self.prediction, x, point), t, condition).to(x.dtype)
        error = answer - from_denoised(self.prediction, truth, point)
        if self.loss_space != self.prediction:
            error = error * exchange_rate(self.prediction, self.loss_space, point, self.t_eps)
        return row_mean(error**2, weight)

    @property
    def times(self) -> TimeLaw:
        return TimeLaw(self.time_density, self.time_parameters, self.time_shift)

    def field(self, head: Head, null_condition: NullTokens | None = None, guidance_scale: float | None = None) -> Field:
        """The trained head as a Field, guided and clipped: what solvers integrate and composition mixes."""
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        denoise: Field = HeadField(head, self.path, self.prediction)
        if scale != 1:
            if null_condition is None:
                raise KineflowError(_no_null_condition(scale, self.condition_dropout))
            denoise = ClassifierFreeGuidance(denoise, null_condition, scale, self.guidance_interval)
        return denoise if math.isinf(self.clip) else Clip(denoise, -self.clip, self.clip)

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        lambdas = self.grid(self.path, self.steps if options.steps is None else options.steps)
        denoise = self.field(head, options.null_condition, options.guidance_scale)
        denoise = options.guide(denoise) if options.guide else denoise
        solver = solver_of(self.solver, self.diffusion)
        if options.committed:
            solver = CommittedStart(solver, *options.committed)
        return solver(denoise, self.temperature * noise.draw(), lambdas, condition, noise)

    def sampler_spec(self) -> SamplerSpec:
        return SamplerSpec(
            str(self.path),
            self.prediction,
            self.solver,
            self.steps,
            self.guidance_scale,
            grid=str(self.grid),
            guidance_interval=self.guidance_interval,
            clip=self.clip,
            diffusion=self.diffusion if self.solver == "sde" else None,
            clean_start=self.clean_start,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion (Ho et al. 2020) with the defaults of diffusion policies: 100 levels, epsilon, 10 DDIM steps.

    `clip` 1 fits actions normalised to [-1, 1]. An epsilon head needs it: its sample is (x - sigma eps) / alpha, and alpha
    is 5e-4 at the first level.
    """

    path: Path = field(default_factory=SquaredCos)
    prediction: Prediction = "epsilon"
    condition_dropout: float = 0.0
    solver: SolverName = "ddim"
    steps: int = 10
    grid: TimeGrid = field(default_factory=TimeGrid)
    diffusion: float = 1.0
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (-math.inf, math.inf)
    clip: float = 1.0
    temperature: float = 1.0  # see FlowMatching

    def __post_init__(self) -> None:
        _ = self.general  # for its checks

    @property
    def general(self) -> FlowMatching:
        """The same training and sampling, spelled out."""
        return FlowMatching(**{f.name: getattr(self, f.name) for f in fields(self)}, loss_space=self.prediction)

    def loss(self, head: Head, actions: Chunk, condition: Tokens | None, generator: torch.Generator, weight: Weight) -> Losses:
        return self.general.loss(head, actions, condition, generator, weight)

    def field(self, head: Head, null_condition: NullTokens | None = None, guidance_scale: float | None = None) -> Field:
        return self.general.field(head, null_condition, guidance_scale)

    def sample(self, head: Head, noise: RowNoise, condition: Tokens | None, options: SampleOptions = DEFAULT_OPTIONS) -> Chunk:
        return self.general.sample(head, noise, condition, options)

    def sampler_spec(self) -> SamplerSpec:
        return self.general.sampler_spec()


ObjectiveConfig = FlowMatching | Diffusion | FlowMap | Regression | MIP  # the registry of `kind:` in configs


def _no_null_condition(scale: float, dropout: float) -> str:
    return (
        f"guidance_scale is {scale:g} but the policy has no null condition (condition_dropout is {dropout:g}); "
        "train with condition_dropout > 0 or sample with guidance_scale 1"
    )
