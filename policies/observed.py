"""Observations from outside, checked against what the policy was trained on, to tensors on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from kineflow.contracts import GoalBatch, Horizons, Interface, Observation, Window
from kineflow.policies.observation_check import checked, observed_goals as observed_goals


@dataclass(frozen=True)
class Observed:
    """What an encoder sees: the state and each camera's frames over the last T steps, oldest first, and the goal.

    Frames may come as features of the encoder's frozen backbone (float16 from outside), here and in the goals (`GoalBatch`).
    """

    state: Float[Tensor, "B T S"]
    images: Mapping[str, UInt8[Tensor, "B T H W 3"] | Float[Tensor, "B T P D"]]
    goals: Mapping[str, Tensor] = field(default_factory=dict)
    given: Mapping[str, Bool[Tensor, "B"]] = field(default_factory=dict)
    instruction: tuple[str, ...] = ()


@dataclass(frozen=True)
class Earlier:
    """What was observed when the previous chunk began, and how many actions of it are executed by now."""

    observed: Observed
    executed: Int64[Tensor, "B"]


@dataclass(frozen=True)
class TrainingBatch:
    """Windows on the training device, still in physical units; `weight` of each action in the loss.

    What is not observed is known in training alone.
    """

    observed: Observed
    action: Float[Tensor, "B H A"]
    weight: Float[Tensor, "B H"]
    privileged: Float[Tensor, "B F"] | None = None  # geometry of the privileged features
    earlier: Earlier | None = None  # for methods that learn from the previous chunk
    done: Float[Tensor, "B"] | None = None  # 1 where the task is done at the last observed step
    ahead_s: Float[Tensor, "B"] | None = None  # of the first frame of its goal video, in seconds of the clip
    left_s: Float[Tensor, "B"] | None = None  # of the clip, from where the row is
    distance: Float[Tensor, "B"] | None = None  # steps to the picture that it is asked about, NaN: asked about none


def observed(
    observation: Observation, interface: Interface, horizons: Horizons, device: torch.device, *, needs_goal: bool = True
) -> Observed:
    """Raises ContractError for what the policy does not take, none where it `needs_goal`, other shapes, or non-finite values."""
    state, images = checked(observation, interface, horizons)
    seen = {name: torch.from_numpy(np.ascontiguousarray(frames)).to(device) for name, frames in images.items()}
    goals = observed_goals(observation, interface.goals, needs_goal=needs_goal)
    return with_goals(Observed(torch.from_numpy(state).to(device), seen), goals, device)


def seen(window: Window, dimensions: int, device: torch.device) -> Observed:
    """A training window as its encoder sees it; the first `dimensions` of its state are the policy's."""
    images = {name: torch.from_numpy(frames).to(device, non_blocking=True) for name, frames in window.images.items()}
    state = torch.from_numpy(window.state[..., :dimensions]).to(device, non_blocking=True)
    return with_goals(Observed(state, images), window.goals, device)


def clip_times(goals: GoalBatch | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """`ahead_s` and `left_s` of training windows, each `[B]`, where they are known."""
    known = (None, None) if goals is None else (goals.ahead_s, goals.left_s)
    ahead_s, left_s = (None if value is None else torch.from_numpy(value).to(device) for value in known)
    return ahead_s, left_s


def with_goals(seen: Observed, goals: GoalBatch | None, device: torch.device) -> Observed:
    """`seen` with `goals` on its device."""
    if goals is None:
        return seen
    values = {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in goals.values.items()}
    given = {name: torch.from_numpy(rows).to(device) for name, rows in goals.given.items()}
    return Observed(seen.state, seen.images, values, given, goals.instruction)
