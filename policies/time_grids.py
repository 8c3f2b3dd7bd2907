"""Time grids: the noise levels that a solver visits, from noise to data.

A grid of N steps has N + 1 entries, float64 lambdas: N levels at which the network is called and +inf (sigma = 0) at the end.

    name       levels, k = 0 ... N - 1                                                 first level
    uniform    t = k / N on the path's own clock                                        noisiest of the path
    trailing   the same; on discrete paths the name by which it is known                noisiest of the path
    shifted    noise fraction S f / (1 + (S - 1) f) of uniform's f = 1 - k / N            noisiest of the path
    edm        u^(1/rho) in equal steps, u = sigma / alpha (Karras et al. 2022)           noisiest of the path
    lambda     lambda in equal steps (Lu et al. 2022)                                   noisiest of the path
    leading    discrete paths: DDPM index (N - 1 - k) floor(T / N)                       too clean: see below

Where the path begins before the first of edm's or lambda's levels, its noisiest level goes in front of N - 1 of them: the first
state is N(0, 1) noise, and nowhere else on the path is that so. On discrete paths the nearest trained levels are taken, each
once. "leading" is the default elsewhere and here only to reproduce others: with 8 of 100 levels it starts at alpha = 0.23, so
the first state is not what the network expects and every sample is biased (mean 0.461 instead of 0.5 for N(0.5, 0.4^2)).

edm and lambda are poor below 5 steps: up to three calls go to levels next to the ends, where little is decided. With 2, 3, 4
and 5 steps on CondOT, DDIM samples N(0.5, 0.4^2) with a std of .002, .004, .064, .205 on edm, .002, .027, .128, .225 on lambda
and .138, .218, .260, .285 on uniform: take uniform for so few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.paths import NoisePath, lambda_range

GridName = Literal["uniform", "trailing", "shifted", "edm", "lambda", "leading"]
Levels = Float[Tensor, "N"]  # lambda of each call, without the +inf at the end

EDM_ENDS = (-math.log(80.0), -math.log(0.002))  # sigma_max and sigma_min of Karras et al. 2022
SAME_LEVEL = 1e-6  # of lambda: a level computed on another path or in float32 is the same level
LAMBDA_ENDS = (-math.log(80.0), 3.7)  # 3.7: the cleanest level of 100 DDPM steps; beyond it sigma < 0.025


@dataclass(frozen=True)
class TimeGrid:
    """Which levels to visit; a parameter counts only for the name in its comment."""

    name: GridName = "uniform"
    shift: float = 3.0  # shifted: S; above 1 more of the steps are spent near the noise
    rho: float = 7.0  # edm: larger spends more of the steps near the data
    ends: tuple[float, float] = (-math.inf, math.inf)  # edm, lambda: first and last lambda; infinite: EDM_ENDS, LAMBDA_ENDS

    def __post_init__(self) -> None:
        for name, value in (("shift", self.shift), ("rho", self.rho)):
            if not 0 < value < math.inf:
                raise KineflowError(f"{name} of a time grid is {value:g}; it must be finite and above 0")
        if not self.ends[0] < self.ends[1]:
            raise KineflowError(f"ends of a time grid are {list(self.ends)}; they ascend, from noise to data")

    @classmethod
    def parse(cls, text: str) -> TimeGrid:
        """A grid from its command-line form: a name, with `:value` behind "shifted" (shift) and "edm" (rho) where wanted."""
        name, _, value = text.partition(":")
        fields = {"shifted": "shift", "edm": "rho"}
        if name not in get_args(GridName) or (value and name not in fields):
            names = ", ".join(f"{n}[:{fields[n].upper()}]" if n in fields else n for n in get_args(GridName))
            raise KineflowError(f"'{text}' is not a time grid; one of {names}")
        try:
            return cls(name, **{fields[name]: float(value)}) if value else cls(name)  # type: ignore[arg-type]
        except ValueError as error:
            raise KineflowError(f"'{text}': {value!r} is not a number; write for example {name}:3") from error

    def __str__(self) -> str:
        """The command-line form, with `ends` in words where they were chosen."""
        value = {"shifted": f":{self.shift:g}", "edm": f":{self.rho:g}"}.get(self.name, "")
        chosen = self.name in ("edm", "lambda") and self.ends != (-math.inf, math.inf)
        return self.name + value + (f" from {self.ends[0]:g} to {self.ends[1]:g}" if chosen else "")

    def __call__(self, path: NoisePath, steps: int) -> Float[Tensor, "N1"]:
        """The lambdas for `steps` network calls of a head trained on `path`.

        Raises:
            KineflowError: more steps than trained levels, or ends that leave the path.
        """
        levels = path.num_steps
        if steps < 1 or (levels is not None and steps > levels):
            raise KineflowError(
                f"steps is {steps}; it must be at least 1" + (f" and at most {levels} on {path}" if levels else "")
            )
        match self.name:
            case "uniform" | "trailing":
                lam = _at_times(path, torch.arange(steps, dtype=torch.float64) / steps)
            case "shifted":
                noise = 1 - torch.arange(steps, dtype=torch.float64) / steps
                lam = _at_times(path, 1 - self.shift * noise / (1 + (self.shift - 1) * noise))
            case "edm":
                lam = self._from_noisiest(path, steps, EDM_ENDS)
            case "lambda":
                lam = self._from_noisiest(path, steps, LAMBDA_ENDS)
            case "leading":
                lam = _leading(path, steps)
        return torch.cat([lam, torch.full((1,), torch.inf, dtype=torch.float64)])

    def _from_noisiest(self, path: NoisePath, steps: int, ends: tuple[float, float]) -> Levels:
        low, high = self._ends_on(path, ends)
        noisiest = lambda_range(path)[0]
        front = [noisiest] if noisiest < low - SAME_LEVEL else []
        share = torch.linspace(0, 1, steps - len(front), dtype=torch.float64)
        if self.name == "edm":
            start, end = math.exp(-low / self.rho), math.exp(-high / self.rho)
            lam = -self.rho * torch.log(start + share * (end - start))
        else:
            lam = low + share * (high - low)
        lam = torch.cat([torch.tensor(front, dtype=torch.float64), lam])
        return lam if path.num_steps is None else _at_times(path, path.from_lambda(lam))

    def _ends_on(self, path: NoisePath, ends: tuple[float, float]) -> tuple[float, float]:
        """First and last lambda: chosen ones as they are, others as far as the path goes."""
        low, high = lambda_range(path)
        chosen = [end for end in self.ends if not math.isinf(end)]
        if chosen and not low <= min(chosen) <= max(chosen) <= high:
            raise KineflowError(
                f"the ends {list(self.ends)} of the time grid leave {path}, whose lambda runs from {low:.4g} to {high:.4g}; "
                "choose ends inside, or leave them infinite"
            )
        first = max(ends[0], low) if math.isinf(self.ends[0]) else self.ends[0]
        last = min(ends[1], high) if math.isinf(self.ends[1]) else self.ends[1]
        if not first < last:
            raise KineflowError(f"the time grid would run from lambda {first:.4g} to {last:.4g}; choose both ends, ascending")
        return first, last


def uniform_time_grid(path: NoisePath, steps: int) -> Float[Tensor, "N1"]:
    """The grid of flow policies, and on discrete paths the trailing one."""
    return TimeGrid()(path, steps)


def refuse_outside(path: NoisePath, lambdas: Float[Tensor, "N1"], owner: str) -> None:
    """Raise KineflowError when a solver on `lambdas` would ask a head of `path` for levels it was never trained on.

    `owner` names the head. The last entry is not asked for when it is +inf.
    """
    low, high = lambda_range(path)
    asked = lambdas[:-1] if lambdas[-1] == math.inf else lambdas
    first, last = float(asked[0]), float(asked[-1])
    if first < low - SAME_LEVEL or last > high + SAME_LEVEL:
        raise KineflowError(
            f"the time grid runs from lambda {first:.4g} to {last:.4g}, but {owner} was trained on {path}, lambda from {low:.4g} "
            f"to {high:.4g}; use a grid of that path (where policies are mixed: of the one with the smallest range)"
        )


def _at_times(path: NoisePath, t: Float[Tensor, "N"]) -> Levels:
    """Levels at ascending times; on a discrete path the nearest trained ones, each once."""
    if path.num_steps is None:
        return path.to_lambda(t)
    return path.to_lambda(_distinct(torch.round(t * path.num_steps).long(), path.num_steps) / path.num_steps)


def _distinct(wanted: Int64[Tensor, "N"], count: int) -> Float[Tensor, "N"]:
    """Ascending positions moved as little as needed to be N different ones of 0 ... count - 1."""
    k = torch.arange(len(wanted))
    towards_data = torch.cummax(wanted - k, dim=0).values + k
    return torch.minimum(towards_data, count - len(wanted) + k).double()


def _leading(path: NoisePath, steps: int) -> Levels:
    if path.num_steps is None:
        raise KineflowError(f"a leading grid counts trained levels, of which {path} has none; use trailing, uniform or shifted")
    index = torch.arange(steps - 1, -1, -1) * (path.num_steps // steps)
    return path.to_lambda((path.num_steps - 1 - index.double()) / path.num_steps)
