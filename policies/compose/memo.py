"""Functions of the noise level computed once, not at every step of every chunk.

A composed policy asks all parents at one grid of levels, the same for all rows and every chunk. What a small head is asked to
do costs as little as the schedules around it, so their values are remembered (CPU: 25 of 60 small operations a step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from kineflow.policies.field import Field, HeadField
from kineflow.policies.paths import NoisePath, PathPoint

T = TypeVar("T")
MOST = 4096  # remembered levels; more are a sign of levels that never come again


class Remembered(Generic[T]):
    """`function` of a level `[B]`, remembered where all rows share it; on a GPU, where looking would wait, always computed."""

    def __init__(self, function: Callable[[Tensor], T]) -> None:
        self.function = function
        self.known: dict[tuple[float, int, torch.dtype], T] = {}

    def __call__(self, lam: Tensor) -> T:
        if lam.ndim != 1 or lam.device.type != "cpu" or lam.requires_grad:
            return self.function(lam)
        first, rows = lam[0].item(), len(lam)
        if rows > 1 and not torch.equal(lam, lam[:1].expand(rows)):
            return self.function(lam)
        key = (first, rows, lam.dtype)
        if key not in self.known:
            if len(self.known) >= MOST:
                self.known.clear()
            self.known[key] = self.function(lam)
        return self.known[key]


class RememberedPath:
    """A path that answers from memory for levels and times that come again."""

    def __init__(self, path: NoisePath) -> None:
        self.path = path
        self.from_lambda = Remembered(path.from_lambda)
        self.at: Remembered[PathPoint] = Remembered(path.at)

    @property
    def num_steps(self) -> int | None:
        return self.path.num_steps

    def to_lambda(self, t: Tensor) -> Tensor:
        return self.path.to_lambda(t)


def remembering(field: Field, path: NoisePath) -> Field:
    """`field` with `path` in place of its head's, through whatever guidance is around it."""
    if isinstance(field, HeadField):
        return dataclasses.replace(field, path=path)
    inner: Any = getattr(field, "field", None)
    if inner is None or not dataclasses.is_dataclass(field) or isinstance(field, type):
        return field
    changed: Field = dataclasses.replace(field, field=remembering(inner, path))
    return changed
