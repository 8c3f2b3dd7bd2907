"""What makes a two-time head the solution operator of its own flow: residuals that are zero on the exact flow map.

    X_{s,t}(x) = x + (t - s) u_{s,t}(x)        u: average velocity over [s, t], the head; its diagonal u_{t,t} = v_t is the flow

Three equations each say that X follows v, and each gives a loss (Boffi et al., "How to build a consistency model",
arXiv 2505.18825; specification: generative core, section 6). sg: no gradient.

    Lagrangian  d_t X = v_t(X)                 lsd: |d_t X_{s,t}(x) - sg u_{t,t}(X)|
    semigroup   X_{m,t} o X_{s,m} = X_{s,t}    psd: |u_{s,t}(x) - sg [(1-g) u_{s,m}(x) + g u_{m,t}(X_{s,m}(x))]|
                                               with m = g s + (1-g) t
    Eulerian    d_s X + grad X v_s = 0         esd: |d_s X + grad X sg u_{s,s}(x)|; and, solved for u, with D = d_s + v_s grad:
                                               meanflow: |u - sg (v + (t - s) D u)|  (arXiv 2505.13447, there in noise time)
                                               imf: |u - (t - s) sg D u - v|, D along u_{s,s}  (arXiv 2512.02012)

psd needs no derivative. esd is kept for comparison: its authors report it unstable, and it is the one whose gradient runs
through the derivative in x. meanflow and imf regress the velocity `v` of single pairs (a - eps), so their residuals vanish
in the mean only; with the velocity of a teacher they vanish everywhere.

Derivatives are taken in the dtype of `x`, outside autocast: bfloat16 would drown them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kineflow.policies.field import Chunk
from kineflow.policies.paths import over

Method = Literal["lsd", "psd", "meanflow", "imf", "esd"]
DerivativeName = Literal["jvp", "central_difference"]
Times = Float[Tensor, "B"]
AverageVelocity: TypeAlias = Callable[[Chunk, Times, Times], Chunk]  # u_{s,t}(x) of (x, s, t)
DIFFERENCE_STEP = 5e-3  # AnyFlow's; the error is its square times a third derivative


@dataclass(frozen=True)
class Jumps:
    """Training jumps, one a row: from `x` at `start` to `end` >= `start`, with the velocity at (`x`, `start`)."""

    x: Chunk
    start: Times
    end: Times
    velocity: Chunk
    split: Times  # g of psd, in [0, 1]

    def __getitem__(self, rows: slice) -> Jumps:
        return Jumps(self.x[rows], self.start[rows], self.end[rows], self.velocity[rows], self.split[rows])


Function: TypeAlias = Callable[..., Tensor]
# Value of a function at a point and its derivative along a direction, both with gradients for the weights inside it.
Derivative: TypeAlias = Callable[[Function, tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, Tensor]]


def jvp(f: Function, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Exact, by forward-mode differentiation; attention switches to the one kernel that has it."""
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(at[0].device.type, enabled=False):
        result: tuple[Tensor, ...] = torch.func.jvp(f, at, along)
    return result[0], result[1]


def central_difference(f: Function, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(f(at + h along) - f(at - h along)) / 2h: two more calls of any head, with any attention kernel.

    Times may leave [0, 1] by h.
    """
    h = DIFFERENCE_STEP
    with torch.autocast(at[0].device.type, enabled=False):
        ahead = f(*(a + h * d for a, d in zip(at, along, strict=True)))
        behind = f(*(a - h * d for a, d in zip(at, along, strict=True)))
        return f(*at), (ahead - behind) / (2 * h)


DERIVATIVES: Mapping[DerivativeName, Derivative] = {"jvp": jvp, "central_difference": central_difference}


def lsd(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """Lagrangian self-distillation: the end of the jump moves with the velocity found there."""

    def position(end: Times) -> Chunk:
        return jump(u, jumps.x, jumps.start, end)

    reached, moved = derivative(position, (jumps.end,), (torch.ones_like(jumps.end),))
    with torch.no_grad():
        velocity = u(reached, jumps.end, jumps.end)
    return moved - velocity


def psd(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """Progressive self-distillation: one jump is two jumps. The weights are each part's share of the time."""
    first, g = 1 - jumps.split, over(jumps.split, jumps.x)
    middle = jumps.start + first * (jumps.end - jumps.start)
    with torch.no_grad():
        before = u(jumps.x, jumps.start, middle)
        halfway = jumps.x + over(middle - jumps.start, jumps.x) * before
        target = (1 - g) * before + g * u(halfway, middle, jumps.end)
    return u(jumps.x, jumps.start, jumps.end) - target


def esd(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """Eulerian self-distillation: where a jump ends does not change when its start moves along the flow."""
    with torch.no_grad():
        velocity = u(jumps.x, jumps.start, jumps.start)

    def position(x: Chunk, start: Times) -> Chunk:
        return jump(u, x, start, jumps.end)

    return derivative(position, (jumps.x, jumps.start), (velocity, torch.ones_like(jumps.start)))[1]


def meanflow(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """MeanFlow: the Eulerian equation as a regression target for u."""
    average, drift = _along_the_flow(u, jumps, jumps.velocity, derivative)
    return average - (jumps.velocity + drift)


def imf(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """Improved MeanFlow: differentiates along the head's own velocity, whose noise is not that of the target.

    The diagonal of the head stands in for the auxiliary velocity head of the paper.
    """
    with torch.no_grad():
        velocity = u(jumps.x, jumps.start, jumps.start)
    average, drift = _along_the_flow(u, jumps, velocity, derivative)
    return average - drift - jumps.velocity


def velocity_error(u: AverageVelocity, jumps: Jumps, derivative: Derivative) -> Chunk:
    """The diagonal: flow matching."""
    return u(jumps.x, jumps.start, jumps.start) - jumps.velocity


Residual: TypeAlias = Callable[[AverageVelocity, Jumps, Derivative], Chunk]
RESIDUALS: Mapping[Method, Residual] = {
    "lsd": lsd,
    "psd": psd,
    "meanflow": meanflow,
    "imf": imf,
    "esd": esd,
}


def jump(u: AverageVelocity, x: Chunk, start: Times, end: Times) -> Chunk:
    """X_{start,end}(x)."""
    return x + over(end - start, x) * u(x, start, end)


def _along_the_flow(u: AverageVelocity, jumps: Jumps, velocity: Chunk, derivative: Derivative) -> tuple[Chunk, Chunk]:
    """u and sg (t - s) (d_s + velocity grad) u, with `end` held: a head that is fed the gap sees it shrink."""

    def average(x: Chunk, start: Times) -> Chunk:
        return u(x, start, jumps.end)

    value, along = derivative(average, (jumps.x, jumps.start), (velocity, torch.ones_like(jumps.start)))
    return value, (over(jumps.end - jumps.start, jumps.x) * along).detach()
