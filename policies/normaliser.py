"""Physical units to network units and back, from the statistics that travel in the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import FeatureStatistics

Scaling = Literal["gaussian", "range", "quantile"]


@dataclass(frozen=True)
class Normaliser:
    """`y = (x - offset) / scale`, one offset and scale per dimension."""

    offset: Float[Tensor, "A"]
    scale: Float[Tensor, "A"]

    @classmethod
    def from_statistics(cls, statistics: FeatureStatistics, scaling: Scaling, device: torch.device | str = "cpu") -> Normaliser:
        """ "gaussian": zero mean, unit std. "range" / "quantile": [min, max] / [q01, q99] to [-1, 1].

        A dimension that never varies keeps its unit (scale 1), so that it maps to exactly 0.
        """
        table = {
            name: torch.tensor(getattr(statistics, name), dtype=torch.float32)
            for name in ("mean", "std", "min", "max", "q01", "q99")
        }
        if scaling == "gaussian":
            offset, scale = table["mean"], table["std"]
        else:
            low, high = (table["min"], table["max"]) if scaling == "range" else (table["q01"], table["q99"])
            offset, scale = (low + high) / 2, (high - low) / 2
        return cls(offset.to(device), torch.where(scale > 0, scale, torch.ones_like(scale)).to(device))

    def normalise(self, x: Float[Tensor, "*S A"]) -> Float[Tensor, "*S A"]:
        return (x - self.offset) / self.scale

    def restore(self, y: Float[Tensor, "*S A"]) -> Float[Tensor, "*S A"]:
        return y * self.scale + self.offset
