"""Observations from outside, checked against what the policy was trained on, to tensors on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64, UInt8
from torch import Tensor

from kineflow.contracts import ContractError, GoalBatch, GoalSpec, Horizons, Interface, Observation, Window


@dataclass(frozen=True)
class Observed:
    """What an encoder sees: the state and each camera's frames over the last T steps, oldest first, and the goal.

    Frames may come as float16 features of the encoder's frozen backbone, here and in the goals (`GoalBatch`).
    """

    state: Float[Tensor, "B T S"]
    images: Mapping[str, UInt8[Tensor, "B T H W 3"] | Float16[Tensor, "B T P D"]]
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
    rows = len(observation.state)
    size = sum(spec.vector.size for spec in interface.features.values())
    expected: tuple[int, ...] = (rows, horizons.observation, size)
    if observation.state.shape != expected:
        raise ContractError(
            f"observation.state has shape {observation.state.shape}, the policy needs {expected}: "
            f"rows, observation horizon, dimensions of {tuple(interface.features)}"
        )
    if not np.isfinite(observation.state).all():
        row, step, dim = np.argwhere(~np.isfinite(observation.state))[0]
        raise ContractError(
            f"observation.state[{row}, {step}, {dim}] is {observation.state[row, step, dim]}; "
            "drop the observation, do not act on it"
        )
    images = {}
    for name, camera in interface.cameras.items():
        if name not in observation.images:
            raise ContractError(f"observation.images has no '{name}' (it has {sorted(observation.images)}); the policy needs it")
        frames, expected = observation.images[name], (rows, horizons.observation, camera.height, camera.width, 3)
        if not _are_features(frames, expected) and (frames.shape != expected or frames.dtype != np.uint8):
            raise ContractError(
                f"observation.images['{name}'] is {frames.dtype} {frames.shape}, the policy needs uint8 {expected}; resize it"
            )
        images[name] = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    state = torch.from_numpy(np.ascontiguousarray(observation.state, dtype=np.float32)).to(device)
    return with_goals(Observed(state, images), observed_goals(observation, interface.goals, needs_goal=needs_goal), device)


def observed_goals(observation: Observation, specs: Mapping[str, GoalSpec], *, needs_goal: bool = True) -> GoalBatch | None:
    """Those of `observation`, for all of its rows; None for a policy without goals.

    Raises:
        ContractError: a goal that the policy does not take (better refused than silently ignored: the caller believes that it
            steers), none of those that it takes where it `needs_goal`, or another shape.
    """
    rows, words = len(observation.state), [name for name, spec in specs.items() if spec.kind == "instruction"]
    told = set(observation.goal) | ({words[0] if words else "instruction"} if observation.instruction else set())
    if unknown := sorted(told - set(specs)):
        what = "instruction" if unknown[0] == "instruction" else f"goal '{unknown[0]}'"
        takes = f"it takes {sorted(specs)}" if specs else "leave it out or use another policy"
        raise ContractError(f"this policy takes no {what}, but was given one; {takes}")
    if not specs:
        return None
    if not told and needs_goal:
        raise ContractError(f"this policy needs a goal, one of {sorted(specs)}, and was given none")
    if observation.instruction and len(observation.instruction) != rows:
        raise ContractError(f"observation.instruction has {len(observation.instruction)} texts for {rows} rows; give one per row")
    values = {}
    for name, spec in specs.items():
        dtype = np.dtype(np.uint8 if spec.kind in ("image", "video") else np.float32)
        goal = observation.goal.get(name, np.zeros((rows, *spec.shape), dtype))
        if spec.kind != "instruction":
            values[name] = _checked_goal(name, goal, (rows, *spec.shape), dtype)
    given = {name: np.full(rows, name in told) for name in specs}
    return GoalBatch(values, given, observation.instruction or ("",) * rows)


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


def _are_features(frames: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Features `[..., P, D]` in place of as many frames `[..., H, W, 3]`; the encoder knows its P and D."""
    return frames.dtype == np.float16 and frames.ndim == len(shape) - 1 and frames.shape[:-2] == shape[:-3]


def _checked_goal(name: str, goal: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.uint8 and _are_features(goal, shape):
        return goal
    if goal.shape != shape or goal.dtype != dtype:
        raise ContractError(
            f"observation.goal['{name}'] is {goal.dtype} {goal.shape}, the policy needs {dtype} {shape}; convert it"
        )
    if dtype == np.float32 and not np.isfinite(goal).all():
        raise ContractError(f"observation.goal['{name}'] is not finite; ask for the goal again, do not act on it")
    return goal
