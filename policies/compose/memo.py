"""A composed policy asks all parents at one grid of levels, the same for all rows and in every chunk: worked out once.

Around a small head the schedules cost as much as the head itself (some 40 small operations a step on SquaredCos). At a known
level everything around it is linear, so it comes down to three numbers: a_hat = from_x x + from_raw head(gain x, t).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from kineflow.policies.field import Chunk, Field, HeadField, Level, Tokens

T = TypeVar("T")
MOST = 4096  # remembered levels; more are a sign of levels that never come again


@dataclass(frozen=True)
class Remembered(Generic[T]):
    """`function` of a level `[B]` that all rows share, remembered; None where they do not.

    On a GPU, where looking at a value waits for all work before it, always None.
    """

    function: Callable[[Tensor], T]
    known: dict[tuple[float, int, torch.dtype], T] = field(default_factory=dict, repr=False)

    def __call__(self, lam: Tensor) -> T | None:
        if lam.ndim != 1 or lam.device.type != "cpu":
            return None
        rows = len(lam)
        key = (lam.item() if rows == 1 else lam[0].item(), rows, lam.dtype)
        if key[1] > 1 and not torch.equal(lam, lam[:1].expand_as(lam)):
            return None
        if key not in self.known:
            if len(self.known) >= MOST:
                self.known.clear()
            self.known[key] = self.function(lam)
        return self.known[key]


@dataclass(frozen=True)
class HeadLevel:
    """A head at one level: a_hat = from_x x + from_raw head(gain x, t)."""

    gain: float
    from_x: float
    from_raw: float
    t: Level


class _Probe:
    """In place of a head: notes what it is asked and answers with a constant."""

    def __init__(self, answer: float) -> None:
        self.answer, self.asked, self.t = answer, torch.empty(0), torch.empty(0)

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None) -> Chunk:
        self.asked, self.t = x, t
        return torch.full_like(x, self.answer)


def head_level(one: HeadField, lam: Level) -> HeadLevel:
    """The three numbers, found by asking `one` at x = 1 and x = 0 with constants for its head; float64."""
    level, unit = lam[:1].double(), torch.ones(1, 1, 1, dtype=torch.float64)
    zero, constant = _Probe(0.0), _Probe(1.0)
    from_x = dataclasses.replace(one, head=zero)(unit, level, None).item()
    from_raw = dataclasses.replace(one, head=constant)(0 * unit, level, None).item()
    return HeadLevel(zero.asked.item(), from_x, from_raw, one.path.from_lambda(lam))


@dataclass(frozen=True)
class PreparedHead:
    """A HeadField that remembers its levels; `levels` are of a HeadField with the same path and prediction."""

    field: HeadField
    levels: Remembered[HeadLevel]

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        level = self.levels(lam)
        if level is None:
            return self.field(x, lam, condition)
        raw = self.field.head(x if level.gain == 1 else x * level.gain, level.t, condition)
        raw = raw if raw.dtype == x.dtype else raw.to(x.dtype)
        return (x * level.from_x).add(raw, alpha=level.from_raw)


def at_head(one: Field, change: Callable[[HeadField], Field]) -> Field:
    """`one` with its HeadField changed, through whatever guidance is around it."""
    if isinstance(one, HeadField):
        return change(one)
    inner: Any = getattr(one, "field", None)
    if inner is None or not dataclasses.is_dataclass(one):
        return one
    changed: Field = dataclasses.replace(one, field=at_head(inner, change))
    return changed


def head_of(one: Field) -> HeadField | None:
    """The HeadField inside `one`."""
    inner = getattr(one, "field", None)
    return one if isinstance(one, HeadField) else head_of(inner) if inner is not None else None
