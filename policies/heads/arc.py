"""ArcFlow's output layer for any head: within one step the velocity may bend, and its integral is still closed form.

One call at time s answers K modes per action: velocities v_k, weights w_k = softmax, rates g_k (g_0 = 0), and then

    v(t) = sum_k w_k v_k exp(g_k (t - s))
    x_b - x_a = sum_k w_k v_k exp(g_k (a - s)) (b - a) phi(g_k (b - a)),     phi(z) = (exp(z) - 1) / z, phi(0) = 1

(ArcFlow; its diffusion time runs the other way, so its g has the other sign. Specification: section 6.4.) As a two-time
head it answers the mean velocity between t and `end`, what flow maps sample with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.paths import over

RATE_SPREAD = 4.0  # first rates lie in [-4, 4]: distinct, because equal modes would stay equal for ever
SERIES_BELOW = 1e-2  # of |z| in phi; the first term left out is z^5 / 720


@dataclass(frozen=True)
class Arc:
    """`modes` exponential modes per action on top of `head`, whose inputs and outputs are widened for them."""

    head: MLP | DiT | UNet | FlagDiT | FlowDiT
    modes: int = 4

    def __post_init__(self) -> None:
        if self.modes < 1:
            raise KineflowError(f"Arc.modes must be at least 1, got {self.modes}")

    def build(self, horizon: int, action_dim: int, condition_shape: tuple[int, int], two_times: bool = False) -> ArcHead:
        """`two_times` says nothing new: one call of an arc reaches every time of its step."""
        return ArcHead(self.head.build(horizon, self.modes * (action_dim + 2), condition_shape), self.modes)


@dataclass(frozen=True)
class ArcStep:
    """What one call at time s says of the motion after s."""

    velocities: Float[Tensor, "B H K A"]
    weights: Float[Tensor, "B H K"]
    rates: Float[Tensor, "B H K"]

    def velocity(self, elapsed: Float[Tensor, "B *per_action"]) -> Float[Tensor, "B H A"]:
        """v(s + elapsed)."""
        return self._sum(torch.exp(self.rates * over(elapsed, self.rates)))

    def displacement(self, start: Float[Tensor, "B *per_action"], end: Float[Tensor, "B *per_action"]) -> Float[Tensor, "B H A"]:
        """x(s + end) - x(s + start): the integral of `velocity`."""
        first, length = over(start, self.rates), over(end - start, self.rates)
        return self._sum(torch.exp(self.rates * first) * length * mean_growth(self.rates * length))

    def mean_velocity(self, elapsed: Float[Tensor, "B *per_action"]) -> Float[Tensor, "B H A"]:
        """(x(s + elapsed) - x(s)) / elapsed; the velocity itself where elapsed is zero."""
        return self._sum(mean_growth(self.rates * over(elapsed, self.rates)))

    def _sum(self, factor: Tensor) -> Tensor:
        return ((self.weights * factor)[..., None] * self.velocities).sum(dim=2)


class ArcHead(nn.Module):
    """`(x [B, H, A], t, condition, end) -> mean velocity [B, H, A]` from t to `end` (None: at t)."""

    rate_offset: Tensor

    def __init__(self, head: nn.Module, modes: int) -> None:
        super().__init__()
        self.head, self.modes = head, modes
        spread = torch.linspace(-RATE_SPREAD, RATE_SPREAD, modes - 1) if modes > 1 else torch.zeros(0)
        self.register_buffer("rate_offset", torch.cat([torch.zeros(1), spread]), persistent=False)

    def step(
        self, x: Float[Tensor, "B H A"], t: Float[Tensor, "B *per_action"], condition: Float[Tensor, "B N D"] | None
    ) -> ArcStep:
        """One call: the motion after t."""
        batch, horizon, dims = x.shape
        raw = self.head(F.pad(x, (0, self.modes * (dims + 2) - dims)), t, condition).to(x.dtype)
        velocities, logits, rates = raw.split([self.modes * dims, self.modes, self.modes], dim=-1)
        moving = torch.arange(self.modes, device=x.device) > 0  # g_0 = 0: one mode is a straight line
        return ArcStep(
            velocities.reshape(batch, horizon, self.modes, dims),
            torch.softmax(logits, dim=-1),
            (rates + self.rate_offset) * moving,
        )

    def forward(
        self,
        x: Float[Tensor, "B H A"],
        t: Float[Tensor, "B *per_action"],
        condition: Float[Tensor, "B N D"] | None,
        end: Float[Tensor, "B *per_action"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        return self.step(x, t, condition).mean_velocity(torch.zeros_like(t) if end is None else end - t)


def mean_growth(z: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """phi(z) = (exp(z) - 1) / z, smooth through 0 in value and gradient."""
    near = z.abs() < SERIES_BELOW
    safe = torch.where(near, torch.ones_like(z), z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return torch.where(near, series, torch.expm1(safe) / safe)
