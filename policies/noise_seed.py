"""The seed of the noise behind one chunk: NumPy only, so that simulation, evaluation and robots draw the same."""

from __future__ import annotations

import numpy as np


def noise_seed(episode_seed: int, chunk_index: int) -> int:
    """Seed (63 bits) of the noise behind one chunk, from its episode and its place there alone."""
    return int(np.random.SeedSequence((episode_seed, chunk_index)).generate_state(1, np.uint64)[0] >> np.uint64(1))
