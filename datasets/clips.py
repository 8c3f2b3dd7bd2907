"""Goal clips as they are looked at."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8


def with_rest(clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T1 H W 3"]:
    """The clip, and its last frame once more: at the end nothing moves. So goal clips are looked at."""
    return np.concatenate([clip, clip[-1:]])
