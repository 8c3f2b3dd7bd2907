"""One Gaussian teacher whose ODE, straight student and two-time map are known in closed form.

N(MEAN, STD^2): the flow from noise eps ends at MEAN + STD eps on every path. What reflow makes of it is the straight coupling
x = alpha (MEAN + STD eps) + sigma eps, so eps = (x - alpha MEAN) / (alpha STD + sigma). The exact map of the original flow on
CondOT is X_{s,t}(x) = t MEAN + sqrt(V_t / V_s) (x - s MEAN), V_t = (t STD)^2 + (1 - t)^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kineflow.policies.analytic import Mixture
from kineflow.policies.distillation.teaching import Lesson
from kineflow.policies.field import Field
from kineflow.policies.flow_map import Teacher
from kineflow.policies.paths import CondOT, NoisePath, over
from kineflow.policies.predictions import Denoised, Prediction, from_denoised, network_input

DOUBLE = torch.float64
MEAN, STD = 0.5, 0.3
SHAPE = (3, 2)
GAUSSIAN = Mixture(
    torch.ones(1, dtype=DOUBLE), torch.full((1, *SHAPE), MEAN, dtype=DOUBLE), torch.full((1, *SHAPE), STD, dtype=DOUBLE)
)


def gaussian_ode(noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    return MEAN + STD * noise


@dataclass(frozen=True)
class StraightHead:
    """The perfect head of the reflowed Gaussian."""

    path: NoisePath
    prediction: Prediction

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        point = self.path.at(t).over(x)
        x = x / network_input(self.prediction, torch.ones_like(x), point)
        noise = (x - point.alpha * MEAN) / (point.alpha * STD + point.sigma)
        return from_denoised(self.prediction, Denoised(MEAN + STD * noise, noise), point)


def exact_map(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Average velocity of the Gaussian's flow; its velocity where start = end."""

    def variance(t: torch.Tensor) -> torch.Tensor:
        return over((t * STD) ** 2 + (1 - t) ** 2, x)

    s, t = over(start, x), over(end, x)
    there = t * MEAN + torch.sqrt(variance(end) / variance(start)) * (x - s * MEAN)
    velocity = GAUSSIAN.velocity(x, CondOT().at(start).over(x))
    return torch.where(s == t, velocity, (there - x) / torch.where(s == t, 1, t - s))


def lesson(
    count: int = 256, *, field: Field = GAUSSIAN, solve: object = gaussian_ode, progress: float = 1.0, seed: int = 0
) -> Lesson:
    generator = torch.Generator().manual_seed(seed)
    chunk = MEAN + STD * torch.randn(count, *SHAPE, generator=generator, dtype=DOUBLE)
    weight = torch.ones(count, SHAPE[0], dtype=DOUBLE)
    return Lesson(Teacher(field, None), solve, chunk, None, weight, generator, progress)  # type: ignore[arg-type]
