"""One noisy chunk seen by policies with different normalisers (specification: generative core, section 5).

Policy P models y = (a - b_P) / S_P of the physical chunk a. Two policies see the same noisy chunk when the noise on `a` is
the same. With the scalar q = S_R / S_P between the reference R and P that is possible exactly:

    lambda_P = lambda_R - log q        x_P = alpha_P (S_R x_R / alpha_R + b_R - b_P) / S_P

Offsets may differ in every entry, even per row (actions relative to the observed state). If q differs per entry, noise
that is isotropic for R is not for P, and no single lambda describes it: refused, unless the caller accepts an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.compose.memo import Remembered
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.normaliser import ActionUnits
from kineflow.policies.paths import over, variance_preserving

SAME_RATIO = 1e-5  # relative: statistics are float32, so equal ones differ by a few 1e-7


@dataclass(frozen=True)
class UnitChange:
    """From the reference's normalised units to policy P's: q, S_R / S_P and (b_R - b_P) / S_P."""

    ratio: float
    scale: Float[Tensor, "#H #A"]
    shift: Float[Tensor, "#B #H #A"]

    def from_answer(self, sample: Chunk) -> Chunk:
        """A denoised chunk in P's units, in the reference's."""
        return (sample - self.shift) / self.scale


@dataclass(frozen=True)
class SeenLevel:
    """One level that all rows share, from both sides: the reference's alpha, alpha_P / alpha_R, and lambda_P."""

    alpha: float
    stretch: float
    lam: Level

    @classmethod
    def of(cls, lam: Level, ratio: float) -> SeenLevel:
        alpha, stretch = _alpha_and_stretch(lam[:1].double(), ratio)
        return cls(alpha.item(), stretch.item(), lam - math.log(ratio))


@dataclass(frozen=True)
class InUnits:
    """A policy's field, asked and answering in the reference's units. `levels` may remember `SeenLevel.of`."""

    field: Field
    change: UnitChange
    levels: Remembered[SeenLevel] | None = None

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        level = self.levels(lam) if self.levels else None
        if level is None:
            seen, _ = self.seen(x, lam)
            return self.change.from_answer(self.field(seen, lam - math.log(self.change.ratio), condition))
        seen = (x * (level.stretch * self.change.scale)).add(self.change.shift, alpha=level.stretch * level.alpha)
        return self.change.from_answer(self.field(seen, level.lam, condition))

    def seen(self, x: Chunk, lam: Level) -> tuple[Chunk, Float[Tensor, "..."]]:
        """The noisy chunk as the policy sees it, and alpha_P / alpha_R."""
        alpha, stretch = _alpha_and_stretch(over(lam, x), self.change.ratio)
        return stretch * (self.change.scale * x + alpha * self.change.shift), stretch


def _alpha_and_stretch(lam: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = variance_preserving(lam)
    return alpha, 1 / torch.hypot(alpha, ratio * sigma)  # regular at both ends: 1 / q at pure noise, 1 at the data


def scale_ratio(reference: Float[Tensor, "H A"], scale: Float[Tensor, "H A"], name: str, *, approximate: bool = False) -> float:
    """q of policy `name` with normaliser scale `scale`: one number, or KineflowError.

    `approximate` takes the geometric mean of ratios that differ: each entry is then asked at a noise level that is off by
    the factor ratio / q.
    """
    ratios = (reference / scale).double()
    low, high = ratios.min().item(), ratios.max().item()
    if high / low - 1 > SAME_RATIO and not approximate:
        (h0, a0), (h1, a1) = _place(ratios == low), _place(ratios == high)
        raise KineflowError(
            f"{name}: its normaliser and the first policy's differ by factors from {low:.4g} (step {h0}, dimension {a0}) to "
            f"{high:.4g} (step {h1}, dimension {a1}), so no noise level of one is a noise level of the other; train both with "
            "`action_scaling: isotropic` (one factor), or pass --approximate to use the geometric mean of the factors"
        )
    return math.exp(ratios.log().mean().item())


@dataclass(frozen=True)
class Reference:
    """Units of the common noisy chunk `[N, A]`: the first policy's where it acts, elsewhere those of the first that does.

    Each policy's ratio is fixed on the steps that it shares with those before it, so its own steps keep its ratio.
    """

    scale: Float[Tensor, "N A"]
    ratios: tuple[float, ...]
    owners: tuple[tuple[int, int], ...]  # of each step: the policy whose offset counts, and the step in its own chunk

    @classmethod
    def of(
        cls, scales: Sequence[Float[Tensor, "..."]], steps: Sequence[Sequence[int]], names: Sequence[str], *, approximate: bool
    ) -> Reference:
        """`scales[i]` `[H_i, A]` is policy i's normaliser, `steps[i]` the places of its actions in the common chunk."""
        size = 1 + max(max(places) for places in steps)
        common = scales[0].new_zeros(size, scales[0].shape[-1])
        owners: dict[int, tuple[int, int]] = {}
        ratios = []
        for index, (scale, places, name) in enumerate(zip(scales, steps, names)):
            shared = [k for k, place in enumerate(places) if place in owners]
            theirs = common[[places[k] for k in shared]]
            ratio = scale_ratio(theirs, scale[shared], name, approximate=approximate) if shared else 1.0
            for k, place in enumerate(places):
                if place not in owners:
                    owners[place], common[place] = (index, k), ratio * scale[k]
            ratios.append(ratio)
        return cls(common, tuple(ratios), tuple(owners[place] for place in range(size)))

    def units(self, units: Sequence[ActionUnits]) -> ActionUnits:
        """The common chunk's units for one batch, from each policy's own."""
        if all(owner == 0 for owner, _ in self.owners):
            return units[0]
        rows = max(len(one.offset) for one in units)
        offsets = [units[owner].offset[:, k].expand(rows, -1) for owner, k in self.owners]
        return ActionUnits(self.scale, torch.stack(offsets, dim=1))

    def change(self, index: int, common: ActionUnits, own: ActionUnits, steps: Sequence[int]) -> UnitChange | None:
        """From the common units to policy `index`'s; None where they are the same."""
        if own is common:
            return None
        places = list(steps)
        shift = (common.offset[:, places] - own.offset) / own.scale
        scale = common.scale[places] / own.scale
        if self.ratios[index] == 1 and not shift.any() and bool((scale == 1).all()):
            return None
        return UnitChange(self.ratios[index], scale, shift)


def _place(where: Tensor) -> tuple[int, int]:
    step, dimension = where.nonzero()[0].tolist()
    return step, dimension
