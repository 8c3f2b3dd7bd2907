"""Real pictures, and wheels that some tests read: fetched once, skipped where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kineflow.pinned_wheel import PinnedWheel, WheelError, wheel_path

PICTURES = Path(__file__).parent / "pictures"
NAMES = ("chelsea", "coffee", "rocket")


def pillow(name: str) -> Image.Image:
    return Image.open(PICTURES / f"{name}.jpg").convert("RGB")


def frames(*pictures: Image.Image) -> torch.Tensor:
    """uint8 [N, H, W, 3] of pictures of one size."""
    return torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))


def fetched(wheel: PinnedWheel) -> Path:
    try:
        return wheel_path(wheel)
    except WheelError as error:
        pytest.skip(str(error))
