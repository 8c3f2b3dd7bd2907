"""T18: the same numbers as diffusers (DDPM, DDIM) and an adaptive integrator (torchdiffeq), side by side; extra `parity`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.field import HeadField
from kineflow.policies.guidance import Clip
from kineflow.policies.paths import CondOT, SquaredCos
from kineflow.policies.predictions import Prediction
from kineflow.policies.samplers import SOLVERS, RowNoise, SolverName, ancestral, ddim
from kineflow.policies.time_grids import TimeGrid

diffusers = pytest.importorskip("diffusers")
torchdiffeq = pytest.importorskip("torchdiffeq")

THEIR_NAME: dict[Prediction, str] = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}
Spacing = Literal["trailing", "leading", "linspace"]


@dataclass
class Shared:
    """Noise that both sides draw from generators of one seed; float32, as theirs."""

    generator: torch.Generator
    shape: tuple[int, ...] = (6, 4, 2)

    def draw(self) -> torch.Tensor:
        return torch.randn(self.shape, generator=self.generator)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def modes(dtype: torch.dtype = torch.float32) -> Mixture:
    means = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(5), dtype=dtype)
    return Mixture(torch.full((3,), 1 / 3, dtype=dtype), 0.5 * means, torch.full_like(means, 0.3))


def theirs(
    kind: str, head: MixtureHead, levels: int, steps: int, x: torch.Tensor, spacing: Spacing = "trailing", clip: bool = False
) -> torch.Tensor:
    """Their sampling loop, as diffusion policies write it; every setting that their defaults choose is spelled out."""
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": THEIR_NAME[head.prediction], "clip_sample": clip}
    options |= {"num_train_timesteps": levels, "timestep_spacing": spacing}
    if kind == "ddpm":
        scheduler = diffusers.DDPMScheduler(variance_type="fixed_small", **options)
        # Their float32 tables alone move the end by 2e-6 in a hundred steps; their own recipe in float64 shows the algebra.
        curve = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(curve)], dtype=torch.float64)
        torch.testing.assert_close(scheduler.betas, betas.float())
        scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, torch.cumprod(1 - betas, 0)
        extra: dict[str, object] = {"generator": seeded()}
    else:
        scheduler = diffusers.DDIMScheduler(set_alpha_to_one=True, **options)
        extra = {"eta": 0.0, "use_clipped_model_output": clip}
    scheduler.set_timesteps(steps)
    path = SquaredCos(levels)
    for index in scheduler.timesteps:
        t = path.index_to_time(index.to(x.dtype)).expand(len(x))
        x = scheduler.step(head(x, t, None), index, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_ddpm_of_all_levels(prediction: Prediction) -> None:
    path = SquaredCos(100)
    head = MixtureHead(modes(), path, prediction)
    start = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    ours = ancestral(HeadField(head, path, prediction), start, TimeGrid("trailing")(path, 100), None, Shared(seeded()))
    torch.testing.assert_close(ours, theirs("ddpm", head, 100, 100, start), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize(("levels", "steps"), [(100, 10), (100, 20), (1000, 8)])
def test_ddim_trailing(prediction: Prediction, levels: int, steps: int) -> None:
    """Where N divides T, so that their previous index is the true one."""
    path = SquaredCos(levels)
    head = MixtureHead(modes(), path, prediction)
    start = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    ours = ddim(HeadField(head, path, prediction), start, TimeGrid("trailing")(path, steps), None, Shared(seeded()))
    torch.testing.assert_close(ours, theirs("ddim", head, levels, steps, start), rtol=0, atol=1e-6)


def test_clipping_needs_their_clipped_model_output() -> None:
    """Ours clips the denoised chunk and derives the noise from it anew; theirs does so only with use_clipped_model_output."""
    path = SquaredCos(100)
    head = MixtureHead(modes(), path, "epsilon")
    wide = MixtureHead(Mixture(head.mixture.weights, 4 * head.mixture.means, head.mixture.stds), path, "epsilon")
    start = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    field = Clip(HeadField(wide, path, "epsilon"), -1.0, 1.0)
    ours = ddim(field, start, TimeGrid("trailing")(path, 10), None, Shared(seeded()))
    torch.testing.assert_close(ours, theirs("ddim", wide, 100, 10, start, clip=True), rtol=0, atol=1e-6)
    assert (ours - theirs("ddim", wide, 100, 10, start)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("spacing", "steps", "mean"),
    [("leading", 8, 0.461), ("linspace", 8, 0.466), ("trailing", 8, 0.4915), ("trailing", 10, 0.4999)],
)
def test_their_spacings_bias_the_mean(spacing: Spacing, steps: int, mean: float) -> None:
    """The known mismatch, T = 100, truth 0.5: their DDIM takes t - T // N for the previous level whatever the spacing (diffusers
    issues 11347 and 12633), and "leading" starts at alpha = 0.23. The true previous level, ours, gives 0.4999."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    head = MixtureHead(Mixture(one.flatten(), 0.5 * one, 0.4 * one), SquaredCos(100), "epsilon")
    assert theirs("ddim", head, 100, steps, 0 * one, spacing).item() == pytest.approx(mean, abs=5e-4)
    field = HeadField(head, SquaredCos(100), "epsilon")
    ours = ddim(field, 0 * one, TimeGrid("trailing")(SquaredCos(100), steps), None, RowNoise(np.arange(1), (1, 1)))
    assert ours.item() == pytest.approx(0.4999, abs=1e-4)


@pytest.mark.parametrize(
    ("solver", "steps", "error"),
    [("dpmpp2m", 400, 2e-4), ("heun", 400, 2e-5), ("midpoint", 400, 2e-5), ("ab3", 400, 5e-6), ("rk4", 100, 1e-6)],
)
def test_solvers_approach_an_adaptive_one(solver: SolverName, steps: int, error: float) -> None:
    """dopri5 on the CondOT velocity, many dimensions and modes: a reference that shares nothing with our solvers."""
    law = modes(torch.float64)
    head = MixtureHead(law, CondOT(), "velocity")
    times = torch.tensor([0.02, 0.98], dtype=torch.float64)
    start = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = torchdiffeq.odeint(lambda t, z: head(z, t.expand(6), None), start, times, method="dopri5", rtol=1e-9, atol=1e-10)[
        -1
    ]
    lambdas = CondOT().to_lambda(torch.linspace(0.02, 0.98, steps + 1, dtype=torch.float64))
    first, last = (torch.hypot(t, 1 - t) for t in times)
    ours = SOLVERS[solver](law, start / first, lambdas, None, RowNoise(np.arange(6), (4, 2))) * last
    assert (ours - reference).abs().max().item() < error
