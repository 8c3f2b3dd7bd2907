"""Pairs of pictures with their true flow, as tensors; and how far a flow is from it, averaged over pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64, UInt8
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.flow_pairs import ORDERED, STRIDE, UNITS, UNKNOWN, read_bursts

FIRST, SECOND = (torch.tensor([pair[side] for pair in ORDERED]) for side in (0, 1))
LEAST_PIXELS = 50  # with a known flow, of those that are kept, for a pair to count
NEAR_STEPS = 4  # control steps of 0.1 s: pairs that the goals of flow are about

SeeFlow = Callable[[UInt8[Tensor, "N H W 3"], UInt8[Tensor, "N H W 3"]], Float[Tensor, "N 2 H W"]]


@dataclass(frozen=True, eq=False)
class FlowPairs:
    """B bursts of three frames; pair p is of the frames `FIRST[p]` and `SECOND[p]`. See envs/navigation/flow_pairs.Bursts."""

    frames: UInt8[Tensor, "B 3 H W 3"]
    units: Int16[Tensor, "B 6 H2 W2 2"]
    gap: Int64[Tensor, "B 6"]

    @classmethod
    def read(cls, files: Sequence[Path]) -> FlowPairs:
        """What `film_worlds` wrote. Raises KineflowError for no files, or other ones."""
        if not files:
            raise KineflowError("no flow pairs: no drive could be drawn in any of the worlds; take more worlds")
        bursts = [read_bursts(file) for file in files]
        frames, flow, gap = (np.concatenate([getattr(one, name) for one in bursts]) for name in ("frames", "flow", "gap"))
        return cls(torch.from_numpy(frames), torch.from_numpy(flow), torch.from_numpy(gap))

    def __len__(self) -> int:
        return len(self.frames)

    def flow(self, bursts: Int64[Tensor, "N"]) -> tuple[Float[Tensor, "N 6 2 H2 W2"], Bool[Tensor, "N 6 H2 W2"]]:
        """In pixels, at every second pixel; and where it is known."""
        units = self.units[bursts]
        return (units.float() / UNITS).permute(0, 1, 4, 2, 3), units[..., 0] != UNKNOWN


@dataclass(frozen=True)
class EndPointError:
    """Mean distance in pixels from the true flow: `near` over all known pixels of pairs up to 0.4 s apart, `wide` over those of
    wider ones (nan: none), `by_step[g]` over those of pairs g control steps apart; `pairs` that `near` is of."""

    near: float
    wide: float
    by_step: dict[int, float]
    pairs: int

    def text(self) -> str:
        steps = ", ".join(f"{0.1 * step:.1f} s {error:.2f}" for step, error in self.by_step.items() if step <= NEAR_STEPS)
        return f"{self.near:.3f} px ({steps}; wider {self.wide:.2f})"


@torch.no_grad()
def end_point_error(see: SeeFlow, pairs: FlowPairs, bursts_at_once: int = 4) -> EndPointError:
    """Of `see`, over all pairs."""
    sums, counts, counted = dict[int, float](), dict[int, int](), dict[int, int]()
    for start in range(0, len(pairs), bursts_at_once):
        chosen = torch.arange(start, min(start + bursts_at_once, len(pairs)))
        frames, (flow, known) = pairs.frames[chosen], pairs.flow(chosen)
        seen = see(frames[:, FIRST].flatten(0, 1), frames[:, SECOND].flatten(0, 1))[:, :, ::STRIDE, ::STRIDE]
        errors = (seen - flow.flatten(0, 1)).norm(dim=1)
        for error, mask, gap in zip(errors, known.flatten(0, 1), pairs.gap[chosen].flatten().tolist()):
            if (pixels := int(mask.sum())) >= LEAST_PIXELS:
                sums[gap] = sums.get(gap, 0.0) + float(error[mask].sum())
                counts[gap], counted[gap] = counts.get(gap, 0) + pixels, counted.get(gap, 0) + 1

    def over(chosen: list[int]) -> float:
        total = sum(counts[gap] for gap in chosen)
        return sum(sums[gap] for gap in chosen) / total if total else float("nan")

    steps = sorted(sums)
    near = [step for step in steps if step <= NEAR_STEPS]
    return EndPointError(
        over(near),
        over([step for step in steps if step > NEAR_STEPS]),
        {step: over([step]) for step in steps},
        sum(counted[step] for step in near),
    )
