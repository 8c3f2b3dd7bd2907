"""Frames that look like a camera's (textures, moving things, noise of the sensor) and like a simulator's (flat colours)."""

from __future__ import annotations

import numpy as np


def natural_frames(number: int, height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """A panning camera over a 1/f^2 texture with sensor noise of 0.6: uint8 `[number, height, width, 3]`."""
    rng = np.random.default_rng([11, seed])
    tall, wide = height + number, width + number
    frequency = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.fftfreq(wide)) + 1 / max(tall, wide)
    grey = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((tall, wide))) / frequency**2).real for _ in range(3)]
    texture = np.stack([grey[0] + 0.3 * g for g in grey], axis=-1)
    texture = 128 + 48 * (texture - texture.mean()) / texture.std()
    views = np.stack([texture[i : i + height, i : i + width] for i in range(number)])
    return np.clip(views + 0.6 * rng.standard_normal(views.shape), 0, 255).astype(np.uint8)


def simulated_frames(number: int, height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """Flat rectangles that move over white: uint8 `[number, height, width, 3]`."""
    rng = np.random.default_rng([12, seed])
    frames = np.full((number, height, width, 3), 255, np.uint8)
    for frame in frames:
        for _ in range(3):
            top, left = rng.integers(0, height * 3 // 4), rng.integers(0, width * 3 // 4)
            frame[top : top + height // 4, left : left + width // 5] = rng.integers(0, 256, 3)
    return frames


def depth_frames(number: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A slope with a box on it and holes, millimetres: uint16 `[number, height, width]`."""
    rng = np.random.default_rng([13, seed])
    depth = np.broadcast_to(np.linspace(4000, 700, height)[:, None], (number, height, width)) + rng.normal(
        0, 2, (number, height, width)
    )
    depth[:, height // 3 : height // 2, width // 4 : width // 2] = 650
    depth[rng.random(depth.shape) < 0.02] = 0
    return depth.astype(np.uint16)
