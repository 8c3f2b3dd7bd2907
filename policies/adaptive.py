"""Skips network calls where the velocity can be foretold: the idea of SADA (Jiang et al. 2025) on Adams-Bashforth's polynomial.

SADA extrapolates with the weights 5/8, 6/8, -3/8, which are of first order only. Here the polynomial through the last three
velocities that were asked for is integrated over every step, whether the step's own velocity was asked for or not: third order,
and exact for equal steps without skips (23, -16, 5) / 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.stepping import FlowClock, Grid, Noise, levels_of, like, quotient


@dataclass(frozen=True)
class AdaptiveSkipping:
    """A solver (stepping.Sampler) for many small steps: a call is skipped while its foretold error stays within `tolerance`.

    The error is relative to the velocity, from the third divided difference of the last four velocities asked for, so the first
    four steps are never skipped; nor is the last, whose answer is the denoised chunk itself, nor more than `max_skips` in a row.
    Every row decides for itself. A call serves the whole batch, so it is saved only when no row needs it; its answer is used
    only in those that do.
    """

    tolerance: float = 0.02
    max_skips: int = 2

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or self.max_skips < 0:
            raise KineflowError(f"tolerance and max_skips must be at least 0, got {self.tolerance:g} and {self.max_skips}")

    def __call__(self, field: Field, noise: Chunk, lambdas: Grid, condition: Tokens | None, fresh: Noise) -> Chunk:
        levels, lam = levels_of(lambdas, noise)
        clock = FlowClock.at(lam)
        rate, norm, shares, first = like(noise, quotient(1.0, clock.left), clock.norm, clock.shares, clock.steps[0] / 2)
        z = noise * norm[0]
        past = _Past.empty(z)
        skips = torch.zeros(len(z), dtype=torch.long, device=z.device)
        for k in range(len(levels) - 1):
            final = clock.final[k].expand_as(z)
            ahead = clock.left[k].expand_as(z)  # 1 - t
            ask = (skips >= self.max_skips) | final.flatten(1).any(dim=1) | ~past.foretells(ahead, self.tolerance)
            skips = torch.where(ask, 0, skips + 1)
            sample = z
            if bool(ask.any()):
                sample = field(z / norm[k], levels[k], condition)
                v = rate[k] * (sample - z)
                if k == 1:  # the first step was of first order: corrected now that the velocity at its end is known
                    z = torch.where(clock.final[0], z, z + first * (v - past.v[0]))
                past = past.with_velocity(v, ahead, ask)
            moved = z + past.integral(ahead, clock.left[k + 1].expand_as(z)).to(z)
            z = torch.where(final, torch.lerp(z, sample, shares[k]), moved)
        return z / norm[-1]


@dataclass(frozen=True)
class _Past:
    """Up to four velocities that were asked for, newest first, and where: 1 - t, NaN before there is one. All `[4, B, H, A]`.

    Times are float64 whatever the velocities are, and so is what is made of both: divided differences lose digits.
    """

    v: Tensor
    left: Tensor

    @classmethod
    def empty(cls, z: Chunk) -> _Past:
        return cls(z.new_zeros((4, *z.shape)), z.new_full((4, *z.shape), torch.nan, dtype=torch.float64))

    def with_velocity(self, v: Chunk, left: Chunk, rows: Tensor) -> _Past:
        here = rows[:, None, None]
        asked_v = torch.where(here, torch.cat([v[None], self.v[:3]]), self.v)
        return _Past(asked_v, torch.where(here, torch.cat([left[None], self.left[:3]]), self.left))

    def differences(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first, second and third divided differences of v over t; zero where there are too few velocities for them."""
        rows, found = self.v, []
        for n in (1, 2, 3):
            span = self.left[n:] - self.left[:-n]
            rows = torch.where(torch.isnan(span), 0, quotient(rows[:-1] - rows[1:], span))
            found.append(rows[0])
        return found[0], found[1], found[2]

    def integral(self, start: Chunk, end: Chunk) -> Chunk:
        """Of the polynomial through the last three velocities from 1 - t = `start` to `end`, in Newton's form."""
        first, second, _ = self.differences()
        a, b, h = self.left[0] - start, self.left[0] - end, torch.nan_to_num(self.left[1] - self.left[0])
        return (b - a) * self.v[0] + (b**2 - a**2) / 2 * first + ((b**3 - a**3) / 3 + h * (b**2 - a**2) / 2) * second

    def foretells(self, left: Chunk, tolerance: float) -> Tensor:
        """The rows `[B]` in which the next term of the polynomial is small beside the velocity at 1 - t = `left`."""
        s = self.left - left
        term = s[0] * s[1] * s[2] * self.differences()[2]
        small: Tensor = term.flatten(1).norm(dim=1) <= tolerance * self.v[0].flatten(1).norm(dim=1)
        known = ~torch.isnan(self.left[3]).flatten(1).any(dim=1)
        return known & small
