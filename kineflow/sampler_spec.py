"""How a policy is sampled, as its contract says it; standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

CLOCK = "t=0 noise, t=1 data"


@dataclass(frozen=True)
class SamplerSpec:
    """How the head was trained and is sampled, in words a reader understands; config.yaml has every setting."""

    path: str
    prediction: str
    solver: str
    steps: int
    guidance_scale: float = 1.0
    clock: str = CLOCK
    grid: str = "uniform"  # which noise levels, in the form of `kineflow eval --grid`
    guidance_interval: tuple[float, float] = (-math.inf, math.inf)  # of lambda: where guidance_scale holds
    clip: float | None = None  # bound on the denoised chunk, inf: none; None: contracts of version 1 that do not say
    diffusion: float | None = None  # k of the solver "sde"; None: not that solver
    clean_start: int = 0  # committed actions that it learned to begin a chunk with (training-time RTC)
    temperature: float = 1.0  # scale of the noise that a chunk begins with
