"""Which episodes are trained on and which are held out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError


def split_episodes(num: int, validation_fraction: float, seed: int) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "V"]]:
    """Episodes to train on and to validate on, each sorted: whole episodes, because windows of one episode overlap.

    A fraction above 0 holds out at least one episode and leaves at least one.
    """
    if not 0 <= validation_fraction < 1 or num < (2 if validation_fraction else 1):
        raise KineflowError(
            f"cannot hold out {validation_fraction} of {num} episodes; use a fraction in [0, 1) and >= 2 episodes"
        )
    held_out = min(max(round(num * validation_fraction), 1), num - 1) if validation_fraction else 0
    order = np.random.default_rng(seed).permutation(num)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
