"""Physical units to network units and back, from the statistics that travel in the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import FeatureStatistics

Scaling = Literal["gaussian", "range", "quantile", "isotropic"]


@dataclass(frozen=True)
class Normaliser:
    """`y = (x - offset) / scale`, one offset and scale per dimension."""

    offset: Float[Tensor, "A"]
    scale: Float[Tensor, "A"]

    @classmethod
    def from_statistics(cls, statistics: FeatureStatistics, scaling: Scaling, device: torch.device | str = "cpu") -> Normaliser:
        """ "gaussian": zero mean, unit std. "range" / "quantile": [min, max] / [q01, q99] to [-1, 1].

        "isotropic": zero mean and one scale for all dimensions (the root mean square of their stds; they must share a unit).
        Policies of one action space that are scaled so differ by a scalar, which composition needs to be exact.

        A dimension that never varies keeps its unit (scale 1), so that it maps to exactly 0.
        """
        table = {
            name: torch.tensor(getattr(statistics, name), dtype=torch.float32)
            for name in ("mean", "std", "min", "max", "q01", "q99")
        }
        if scaling == "gaussian":
            offset, scale = table["mean"], table["std"]
        elif scaling == "isotropic":
            offset, scale = table["mean"], table["std"].square().mean().sqrt().expand_as(table["std"])
        else:
            low, high = (table["min"], table["max"]) if scaling == "range" else (table["q01"], table["q99"])
            offset, scale = (low + high) / 2, (high - low) / 2
        return cls(offset.to(device), torch.where(scale > 0, scale, torch.ones_like(scale)).to(device))

    def normalise(self, x: Float[Tensor, "*S A"]) -> Float[Tensor, "*S A"]:
        return (x - self.offset) / self.scale

    def restore(self, y: Float[Tensor, "*S A"]) -> Float[Tensor, "*S A"]:
        return y * self.scale + self.offset


@dataclass(frozen=True)
class ActionUnits:
    """physical = chunk * scale + offset, for the rows of one batch: relative actions have an offset of their own per row."""

    scale: Float[Tensor, "H A"]
    offset: Float[Tensor, "#B H A"]

    def restore(self, chunk: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        """The head's units to physical ones."""
        return chunk * self.scale + self.offset

    def normalise(self, actions: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        """Physical units to the head's."""
        return (actions - self.offset) / self.scale
