"""Small networks without Python between their operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Traced:
    """Functions of two frames as TorchScript: a pair takes 160 small operations, between which Python is a third of the time.

    TorchScript is deprecated, and nothing else does this without a compiler; where it is gone, the functions are called as they
    are. What was recorded holds the weights of then: `weights` is what it is good for.
    """

    def __init__(self) -> None:
        self._recorded: dict[tuple[str, torch.dtype], tuple[object, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        return Traced()

    def __call__(self, compute: Callable[[Tensor, Tensor], Tensor], weights: object, first: Tensor, second: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call, attr-defined]
            return compute(first, second)
        key = (compute.__name__, first.dtype)
        if key not in self._recorded or self._recorded[key][0] is not weights:
            self._recorded[key] = (weights, _recorded(compute, first, second))
        done: Tensor = self._recorded[key][1](first, second)
        return done


def _recorded(compute: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Any:
    class Pair(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return compute(first, second)

    try:
        # Not in inference mode, whose tensors could not be kept.
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            example = (first.clone(), second.clone())
            return torch.jit.freeze(torch.jit.trace(Pair().eval(), example, check_trace=False))  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError):
        return compute
