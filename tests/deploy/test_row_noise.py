"""Noise without torch is that of `RowNoise`, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from kineflow.deploy.row_noise import SeedNoise
from kineflow.policies.samplers import RowNoise


@pytest.mark.parametrize("shape", [(16, 2), (8, 4), (8, 3), (5, 3), (3, 2), (7, 1)])  # blocks of 16, a rest, fewer than 16
def test_numbers_of_torch(shape: tuple[int, int]) -> None:
    for seed in (0, 1, -5, 2**40 + 3, 2**62):
        drawn = RowNoise(np.array([seed]), shape)
        expected = np.stack([drawn.draw()[0].numpy() for _ in range(3)])
        np.testing.assert_array_equal(SeedNoise(seed).draw(3, shape), expected)
