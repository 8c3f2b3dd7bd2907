"""What a composition is: the parents, their weights and how the common field is solved. Saved as compose.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kineflow.contracts import KineflowError
from kineflow.policies.compose.weights import WeightKnot, Weights, check_weights
from kineflow.policies.samplers import SolverName
from kineflow.policies.time_grids import TimeGrid

Operator = Literal["convex", "and", "or"]
Batched = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Composition:
    """`parents` are folders, relative to the file that this is read from.

    `batched` asks parents whose heads have one architecture in one call, with their parameters stacked; the answer is the same.
    auto does so on an accelerator only: on a CPU small heads measured 1.4 times slower so (compose/batch.py). always refuses
    parents that differ, auto asks those one after the other.
    """

    parents: tuple[str, ...]
    weights: tuple[float, ...]  # one for each parent, one in sum; `and` finds its own and takes none
    schedule: tuple[WeightKnot, ...] = ()  # weights by noise level instead of `weights`
    operator: Operator = "convex"
    solver: SolverName = "ddim"
    steps: int = 10
    grid: TimeGrid = field(default_factory=TimeGrid)
    diffusion: float = 1.0  # k of solver sde: 0 the ODE, 1 the noise of DDPM; a growing k goes to the product of the densities
    approximate: bool = False  # accept normalisers that differ by a factor per entry
    execution: int = 0  # executed steps; 0: the shortest time that a parent executes
    batched: Batched = "auto"
    noise: Literal["shared", "independent"] = "shared"  # independent: a baseline, every parent has a noisy chunk of its own

    def __post_init__(self) -> None:
        if len(self.parents) < 2:
            raise KineflowError(f"a composition needs two policies or more, got {len(self.parents)}: {list(self.parents)}")
        if self.operator == "and":
            if self.weights or self.schedule:
                raise KineflowError("operator and finds the weights by itself (equal change of log-density); leave --weights out")
            if self.solver not in ("ddpm", "sde") or (self.solver == "sde" and self.diffusion != 1):
                raise KineflowError(
                    f"operator and follows the SDE with k = 1, but the solver is {self.solver} (k = {self.diffusion:g}); "
                    "use --solver ddpm, which is that"
                )
        elif self.schedule:
            if self.weights:
                raise KineflowError("weights and a schedule of weights exclude each other; give one of them")
            _ = self.table
        else:
            check_weights(self.weights)
        if self.operator != "and" and self.table.size != len(self.parents):
            raise KineflowError(f"{self.table.size} weights for {len(self.parents)} policies; give one weight for each")
        if self.noise == "independent" and self.operator != "convex":
            raise KineflowError(f"independent noise is a baseline of operator convex, not of {self.operator}")
        if self.execution < 0 or self.steps < 1:
            raise KineflowError(f"execution must not be negative and steps at least 1; got {self.execution} and {self.steps}")

    @property
    def table(self) -> Weights:
        """The weights by noise level; equal ones for `and`, which has none."""
        if self.schedule:
            return Weights(self.schedule)
        return Weights.constant(self.weights or [1 / len(self.parents)] * len(self.parents))
