"""Observations from outside, checked against what the policy was trained on, to tensors on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from kineflow.contracts import ContractError, Horizons, Interface, Observation


@dataclass(frozen=True)
class Observed:
    """What an encoder sees: the state and each camera's frames over the last T steps, oldest first."""

    state: Float[Tensor, "B T S"]
    images: Mapping[str, UInt8[Tensor, "B T H W 3"]]


@dataclass(frozen=True)
class Earlier:
    """What was observed when the previous chunk began, and how many actions of it are executed by now."""

    observed: Observed
    executed: Int64[Tensor, "B"]


def observed(observation: Observation, interface: Interface, horizons: Horizons, device: torch.device) -> Observed:
    """Raises ContractError for what the policy does not take, other shapes, or non-finite values."""
    # Better refused than silently ignored: the caller believes that these steer the policy.
    extras = {"goal": observation.goal, "instruction": observation.instruction}
    if given := [name for name, value in extras.items() if value]:
        raise ContractError(f"this policy takes no {given[0]}, but was given one; leave it out or use another policy")
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
        if frames.shape != expected or frames.dtype != np.uint8:
            raise ContractError(
                f"observation.images['{name}'] is {frames.dtype} {frames.shape}, the policy needs uint8 {expected}; resize it"
            )
        images[name] = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    state = torch.from_numpy(np.ascontiguousarray(observation.state, dtype=np.float32)).to(device)
    return Observed(state, images)
