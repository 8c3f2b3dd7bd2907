"""Weights of a composition: constant, or changing with the noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class WeightKnot:
    """The weights at time `t` of the common clock, sigmoid(lambda): 0 noise, 1 data."""

    t: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Weights:
    """Weights linear in t between the knots and constant beyond them; each knot sums to one, so every level does."""

    knots: tuple[WeightKnot, ...]

    def __post_init__(self) -> None:
        if not self.knots:
            raise KineflowError("a composition needs weights, e.g. --weights 0.5,0.5")
        for knot in self.knots:
            check_weights(knot.weights)
        times, sizes = [knot.t for knot in self.knots], {len(knot.weights) for knot in self.knots}
        if sorted(set(times)) != times or times[0] < 0 or times[-1] > 1:
            raise KineflowError(f"a weight schedule needs ascending times between 0 (noise) and 1 (data), got {times}")
        if len(sizes) > 1:
            raise KineflowError(f"every knot of a weight schedule names all policies; got {sorted(sizes)} weights")

    @classmethod
    def constant(cls, weights: Sequence[float]) -> Weights:
        return cls((WeightKnot(0.0, tuple(float(w) for w in weights)),))

    @property
    def size(self) -> int:
        return len(self.knots[0].weights)

    @property
    def largest(self) -> tuple[float, ...]:
        """Each policy's largest weight at any level; zero: it never counts."""
        return tuple(max(column) for column in zip(*(knot.weights for knot in self.knots)))

    def of(self, columns: Sequence[int]) -> Weights:
        """The weights of some of the policies; the others must never count."""
        return (
            self
            if len(columns) == self.size
            else Weights(tuple(WeightKnot(knot.t, tuple(knot.weights[i] for i in columns)) for knot in self.knots))
        )

    def at(self, lam: Float[Tensor, "*level"]) -> Float[Tensor, "*level P"]:
        """The weights at each level."""
        table = lam.new_tensor([knot.weights for knot in self.knots])
        if len(self.knots) == 1:
            return table[0].expand(*lam.shape, -1)
        times = lam.new_tensor([knot.t for knot in self.knots])
        t = torch.sigmoid(lam).clamp(times[0], times[-1])
        k = (torch.searchsorted(times, t.contiguous(), right=True) - 1).clamp(0, len(times) - 2)
        share = ((t - times[k]) / (times[k + 1] - times[k]))[..., None]
        return torch.lerp(table[k], table[k + 1], share)


def check_weights(weights: Sequence[float]) -> None:
    """Raises KineflowError unless the weights are convex: not negative, and one in sum."""
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise KineflowError(f"weights {_text(weights)}: each must be a number that is not negative")
    total = math.fsum(weights)
    if abs(total - 1) > SUM_TOLERANCE:
        remedy = f"; divided by their sum they are {_text([w / total for w in weights])}" if total > 0 else ""
        raise KineflowError(
            f"weights {_text(weights)} sum to {total:g}, not to 1: the noise would be counted {total:g} times and the result "
            f"would depend on whether samples or noises are mixed{remedy}"
        )


def _text(weights: Sequence[float]) -> str:
    return ",".join(f"{w:.6g}" for w in weights)
