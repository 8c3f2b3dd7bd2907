"""Heads of one architecture asked in one call, their parameters stacked.

A head sits deep inside its field: units, clip and guidance are around it. So the fields are walked twice, first to hear what
each head is asked, then with the answers of one call to all of them (torch.func.vmap over parameters and questions).

Measured on one CPU thread, batch 1 (`kineflow bench compose` has the rows): two small MLPs take 1.4 times as long as one after
the other, three DiTs of 5 M parameters 0.8 to 0.9 times. It is meant for accelerators, where starting a small kernel costs more
than computing it; none was at hand to measure one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from kineflow.contracts import KineflowError
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.field import Chunk, Head, Level, Tokens

Ask = Callable[[], Chunk]


def one_by_one(asks: Sequence[Ask]) -> list[Chunk]:
    return [ask() for ask in asks]


@dataclass(frozen=True)
class HeadStack:
    """Heads of one architecture as one module; `members` are their places among the policies that are asked.

    The parameters are copied at the first call: policies are not trained on or moved after they have been composed.
    """

    members: tuple[int, ...]
    heads: tuple[nn.Module, ...]

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Each argument has one entry per head on its first axis, and so has the result."""
        bare, state = self._stacked

        def one(state: dict[str, Tensor], x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            answer: Tensor = functional_call(bare, state, (x, t, condition))
            return answer

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap everywhere: it would loop over the heads
            answers: Tensor = vmap(one)(state, x, t, condition)
        return answers

    @cached_property
    def _stacked(self) -> tuple[nn.Module, dict[str, Tensor]]:
        parameters, buffers = stack_module_state(list(self.heads))
        return copy.deepcopy(self.heads[0]).to("meta"), {k: v.detach() for k, v in {**parameters, **buffers}.items()}


@dataclass
class Slot:
    """In place of a head: notes what it is asked, or hands out the answer that a joint call found, or asks the head."""

    head: Head
    listening: bool = False
    asked: list[tuple[Tensor, ...]] = field(default_factory=list)
    answer: Chunk | None = None

    def __call__(self, x: Chunk, t: Level, condition: Tokens | None) -> Chunk:
        if self.listening:
            self.asked.append((x, t) if condition is None else (x, t, condition))
            return torch.zeros_like(x)
        if self.answer is None:
            return self.head(x, t, condition)
        answer, self.answer = self.answer, None
        return answer


@dataclass(frozen=True)
class Batch:
    """Answers of several fields, with their heads (behind `slots`) asked together where their questions have one shape.

    They have not where guidance doubles the rows of only some, at levels inside only one's interval: one by one there.
    """

    stacks: Sequence[HeadStack]
    slots: Sequence[Slot]

    def __call__(self, asks: Sequence[Ask]) -> list[Chunk]:
        for slot in self.slots:
            slot.listening, slot.asked = True, []
        one_by_one(asks)
        for slot in self.slots:
            slot.listening = False
        for stack in self.stacks:
            self._answer(stack)
        return one_by_one(asks)

    def _answer(self, stack: HeadStack) -> None:
        slots = [self.slots[i] for i in stack.members]
        shapes = {tuple((v.shape, v.dtype) for v in slot.asked[0]) if len(slot.asked) == 1 else () for slot in slots}
        if len(shapes) > 1 or len(next(iter(shapes))) < 3:
            return
        questions = [torch.stack(values) for values in zip(*(slot.asked[0] for slot in slots))]
        for slot, answer in zip(slots, stack(*questions)):
            slot.answer = answer


def stacks_of(parents: Sequence[ChunkPolicy], names: Sequence[str], batched: str) -> tuple[HeadStack, ...]:
    """The heads that are asked together: `always` all of them, `auto` those of one architecture if on an accelerator.

    Raises:
        KineflowError: `always`, and the policies cannot be asked together.
    """
    if batched == "never" or len(parents) < 2:
        return ()
    kinds = [_architecture(parent) for parent in parents]
    if batched == "always":
        for kind, name in zip(kinds, names):
            if different := [what for what, value in kind.items() if value != kinds[0][what]]:
                what = different[0]
                raise KineflowError(
                    f"batched: always asks all heads in one call, but those of '{names[0]}' and '{name}' differ in {what}: "
                    f"{kinds[0][what]} and {kind[what]}; use auto, which asks such heads one after the other"
                )
        groups = [tuple(range(len(parents)))]
    else:
        first = [kinds.index(kind) for kind in kinds]
        groups = [tuple(i for i, f in enumerate(first) if f == leader) for leader in sorted(set(first))]
        groups = [group for group in groups if len(group) > 1 and parents[group[0]].network.action_scale.device.type != "cpu"]
    return tuple(HeadStack(group, tuple(parents[i].network.head for i in group)) for group in groups)


def _architecture(parent: ChunkPolicy) -> dict[str, object]:
    """Everything that has to be equal; named for messages."""
    network = parent.network
    state = {**dict(network.head.named_parameters()), **dict(network.head.named_buffers())}
    return {
        "head": network.config.head,
        "horizon": network.config.horizons.prediction,
        "condition [tokens, features]": tuple(network.encoder.token_shape),
        "device": str(network.action_scale.device),
        "parameters": {name: (tuple(value.shape), str(value.dtype)) for name, value in state.items()},
    }
