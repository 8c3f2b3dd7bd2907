"""Where a plan of body velocities leads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def along(actions: Float[np.ndarray, "H A"], names: Sequence[str], step_s: float) -> Float[np.ndarray, "H_plus_1 3"]:
    """Where a chunk of body velocities `[H, A]` leads: x, y (m), yaw (rad) `[H + 1, 3]` from here, by the midpoint rule."""
    column = {name: actions[:, i] for i, name in enumerate(names)}
    zero = np.zeros(len(actions))
    turn = step_s * column.get("yaw_rate", zero)
    yaw = np.concatenate([[0.0], np.cumsum(turn)])
    middle = yaw[:-1] + turn / 2
    vx, vy = column.get("vx", zero), column.get("vy", zero)
    x = np.cumsum(step_s * (np.cos(middle) * vx - np.sin(middle) * vy))
    y = np.cumsum(step_s * (np.sin(middle) * vx + np.cos(middle) * vy))
    return np.stack([np.concatenate([[0.0], x]), np.concatenate([[0.0], y]), yaw], axis=1)
