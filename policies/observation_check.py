"""Observations from outside, checked against what a policy was trained on. NumPy only: exported policies ask it without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from kineflow.contracts import ContractError, GoalBatch, GoalSpec, Horizons, Interface, Observation


def checked(
    observation: Observation, interface: Interface, horizons: Horizons
) -> tuple[Float32[np.ndarray, "B T S"], dict[str, np.ndarray]]:
    """The state, and the cameras' frames or features of them.

    Raises:
        ContractError: other shapes or types than the policy's, a camera that is missing, or values that are not finite.
    """
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
        if not are_features(frames, expected) and (frames.shape != expected or frames.dtype != np.uint8):
            raise ContractError(
                f"observation.images['{name}'] is {frames.dtype} {frames.shape}, the policy needs uint8 {expected}; resize it"
            )
        images[name] = frames
    return np.ascontiguousarray(observation.state, dtype=np.float32), images


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


def are_features(frames: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Features `[..., P, D]` in place of as many frames `[..., H, W, 3]`; the encoder knows its P and D."""
    return frames.dtype == np.float16 and frames.ndim == len(shape) - 1 and frames.shape[:-2] == shape[:-3]


def _checked_goal(name: str, goal: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.uint8 and are_features(goal, shape):
        return goal
    if goal.shape != shape or goal.dtype != dtype:
        raise ContractError(
            f"observation.goal['{name}'] is {goal.dtype} {goal.shape}, the policy needs {dtype} {shape}; convert it"
        )
    if dtype == np.float32 and not np.isfinite(goal).all():
        raise ContractError(f"observation.goal['{name}'] is not finite; ask for the goal again, do not act on it")
    return goal
