"""Which episodes are trained on and which are held out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import KineflowError


def split_episodes(
    num: int, validation_fraction: float, seed: int, block: int = 1
) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "V"]]:
    """Episodes to train on and to validate on, each sorted: whole episodes, because windows of one episode overlap.

    Every `block` neighbours, counted from the first episode, stay on one side: those recorded in one place, say. A fraction above
    0 holds out at least one block and leaves at least one.
    """
    if block < 1:
        raise KineflowError(f"cannot hold out blocks of {block} episodes; use at least 1")
    blocks = -(-num // block)
    if not 0 <= validation_fraction < 1 or blocks < (2 if validation_fraction else 1):
        raise KineflowError(
            f"cannot hold out {validation_fraction} of {num} episodes in blocks of {block}; use a fraction in [0, 1) and at "
            "least 2 blocks"
        )
    held_out = min(max(round(blocks * validation_fraction), 1), blocks - 1) if validation_fraction else 0
    order = np.random.default_rng(seed).permutation(blocks)
    is_held_out = np.isin(np.arange(num) // block, order[:held_out])
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
