"""What is left of the executing chunk, as the prefix of the next request: NumPy only, robots make it without torch.

The three ways to use it are in policies/real_time_chunking.py.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float

from kineflow.contracts import ActionChunk, CommittedPrefix, KineflowError, PrefixMethod

MaskShape = Literal["exponential", "linear", "ones", "zeros"]


def soft_mask(horizon: int, delay: int, execution: int, shape: MaskShape = "exponential") -> Float[np.ndarray, "H"]:
    """How much action i of the new chunk is bound to the old one: 1 up to `delay`, 0 from `horizon - execution` on."""
    if not 0 <= delay <= execution <= horizon - delay or execution < 1:
        raise KineflowError(
            f"real-time chunking needs delay <= execution <= horizon - delay; got delay {delay}, execution {execution}, "
            f"horizon {horizon}: use fewer sampling steps, a longer horizon or a slower control rate"
        )
    end = horizon - execution
    position = np.arange(horizon)
    falling = np.clip((end - position) / (end - delay + 1), 0, 1)
    match shape:
        case "exponential":
            middle = falling * np.expm1(falling) / math.expm1(1)
        case "linear":
            middle = falling
        case "ones":
            middle = (position < end).astype(float)
        case "zeros":
            middle = np.zeros(horizon)
    return np.where(position < delay, 1.0, middle)


def committed_prefix(
    previous: ActionChunk,
    consumed: int,
    delay: int,
    execution: int,
    shape: MaskShape = "exponential",
    method: PrefixMethod = "guided",
) -> CommittedPrefix:
    """What is left of `previous` [B, H, A] after `consumed` actions, as the prefix of the next request.

    prefix = committed_prefix(chunk, consumed=4, delay=2, execution=4)
    chunk = policy.predict(observation, SamplingRequest(seeds, prefix=prefix))  # its first 2 actions are past on arrival
    """
    rows, horizon, dimensions = previous.actions.shape
    if not 0 <= consumed <= horizon:
        raise KineflowError(f"consumed is {consumed}; the previous chunk has {horizon} actions")
    # Padding is never read: its weight is zero.
    padding = np.zeros((rows, consumed, dimensions), previous.actions.dtype)
    actions = np.concatenate([previous.actions[:, consumed:], padding], axis=1)
    mask = soft_mask(horizon, delay, execution, shape) * (np.arange(horizon) < horizon - consumed)
    return CommittedPrefix(actions, np.tile(mask.astype(np.float32), (rows, 1)), delay, method)
