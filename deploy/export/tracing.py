"""A network's computation with all decisions made: what depends on its inputs is written down, everything else is a number in it.

    def act(state, noise): ...            Python: schedules in float64, loops over steps, `if` on shapes and on constants
    traced(act, {"state": ..., "noise": ...}, ("actions",))
                                          a flat graph of tensor functions; levels and time embeddings are constants

torch.export alone cannot look into such code: schedules are computed in it by tensors whose values steer Python (`only_final`,
`levels_of`). Here it runs once, on real tensors. A function without an input among its arguments is simply called; its result is
a constant of the graph. Python that decides on a value that depends on an input is an error, not a guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from kineflow.contracts import KineflowError
from kineflow.deploy.export.resampling import averaged, resized

Function = Callable[..., Mapping[str, Tensor]]

# Their result has the shape of the input and no number of it.
_OF_SHAPE = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_tensor, Tensor.new_empty),
}
# Of several arguments the first one is the value, the others give a type or shape.
_OF_FIRST = {Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as}
_TO_PYTHON = {
    *(Tensor.__bool__, Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.numpy),
    *(torch.equal, torch.allclose, Tensor.equal, Tensor.allclose),
}
# Runtimes compute these differently from each other, or not at all; as products with constants they are the same everywhere.
_INSTEAD: Mapping[Any, Callable[..., Tensor]] = {F.interpolate: resized, F.adaptive_avg_pool2d: averaged}


def traced(function: Function, inputs: Mapping[str, Tensor], outputs: Sequence[str], taken: Sequence[str] = ()) -> fx.GraphModule:
    """`function(**inputs)` as a graph with the inputs in this order and the named entries of what it returns.

    `taken`: boolean inputs, of which the graph computes what is needed where they hold: `any()` of one is taken to be true.

    Raises:
        KineflowError: Python decides on a number that depends on an input; such a network has no graph.
    """
    recorder = _Recorder()
    placeholders = {name: recorder.placeholder(name, value) for name, value in inputs.items()}
    recorder.taken = {id(placeholders[name]) for name in taken}
    with recorder:
        answer = function(**placeholders)
    return recorder.finished([answer[name] for name in outputs])


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._graph, self._root = fx.Graph(), nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._constants: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # an id is of one tensor only while that lives
        self.taken: set[int] = set()

    def placeholder(self, name: str, value: Tensor) -> Tensor:
        own = value.clone()
        self._know(own, self._graph.placeholder(name))
        return own

    def finished(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        self._graph.output(tuple(self._written(value) for value in outputs))
        module = fx.GraphModule(self._root, self._graph)
        return module.eval()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__iter__:
            with self:
                return iter(args[0].unbind(0))
        if func in _OF_SHAPE or not self._depends(func, args, kwargs):
            return func(*args, **kwargs)
        if func in _TO_PYTHON:
            raise KineflowError(
                f"this policy cannot be exported: Python decides, by {getattr(func, '__name__', func)}(), on a number that "
                "depends on what is observed (solver adaptive does); sample it with another solver"
            )
        if func in (Tensor.any, torch.any) and len(args) == 1 and id(args[0]) in self.taken:
            return torch.ones((), dtype=torch.bool)
        if func in _INSTEAD:
            with self:
                return _INSTEAD[func](*args, **kwargs)
        answer = func(*args, **kwargs)
        self._record(func, args, kwargs, answer)
        return answer

    def _depends(self, func: Any, args: Any, kwargs: Any) -> bool:
        asked = args[:1] if func in _OF_FIRST else (*args, *kwargs.values())
        return any(id(value) in self._nodes for value in _tensors(asked))

    def _record(self, func: Any, args: Any, kwargs: Any, answer: Any) -> None:
        if not any(True for _ in _tensors((answer,))) and func is not Tensor.__setitem__:
            return  # a shape, a number of rows, a type
        args = (args[0], _places(args[1])) if func is Tensor.__getitem__ else args
        written = tuple(self._written(a) for a in args), {k: self._written(v) for k, v in kwargs.items()}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            node = self._graph.call_function(getattr, (written[0][0], func.__self__.__name__))
        elif getattr(Tensor, name, None) is func:
            node = self._graph.call_method(name, *written)
        else:
            node = self._graph.call_function(func, *written)
        if func is Tensor.__setitem__:
            self._know(args[0], self._nodes.get(id(args[0]), node))
        elif isinstance(answer, Tensor):
            self._know(answer, node)
        else:
            for place, part in enumerate(answer):
                if isinstance(part, Tensor):
                    self._know(part, self._graph.call_function(operator.getitem, (node, place)))

    def _know(self, value: Tensor, node: fx.Node) -> None:
        self._nodes[id(value)] = node
        self._alive.append(value)

    def _written(self, value: Any) -> Any:
        """An argument as the graph has it."""
        if isinstance(value, Tensor):
            return self._nodes[id(value)] if id(value) in self._nodes else self._constant(value)
        if isinstance(value, tuple | list):
            parts = [self._written(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, slice):
            return slice(*(self._written(part) for part in (value.start, value.stop, value.step)))
        return value

    def _constant(self, value: Tensor) -> fx.Node:
        if id(value) not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._root.register_buffer(name, value.detach().clone())
            self._constants[id(value)] = self._graph.get_attr(name)
            self._alive.append(value)
        return self._constants[id(value)]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(value, slice):
            yield from _tensors((value.start, value.stop, value.step))


def _places(index: Any) -> Any:
    """An index with constant masks as places: how many are chosen is then known."""
    if isinstance(index, tuple):
        return tuple(_places(part) for part in index)
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 1:
        return index.nonzero()[:, 0]
    return index
