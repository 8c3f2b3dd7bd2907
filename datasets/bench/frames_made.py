"""Frames like a camera's, made here: 1/f textures, two moving textured things, half of the episodes with a panning camera."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

_FALL = 1.6  # of the spectrum's amplitude with frequency, as in photographs
_NOISE = 0.6  # of the sensor, grey levels


def natural_frames(number: int, side: int, seed: int) -> UInt8[np.ndarray, "N S S 3"]:
    """One episode of `number` frames, a pure function of its arguments."""
    rng = np.random.default_rng([side, seed])
    pan = seed % 2
    world = _texture(rng, side + number * pan)
    things = [_texture(rng, side // 4) for _ in range(2)]
    start, speed = rng.uniform(0, side * 3 / 4, (2, 2)), rng.uniform(-2, 2, (2, 2))
    frames = np.empty((number, side, side, 3), np.uint8)
    for index in range(number):
        view = world[index * pan : index * pan + side, :side].copy()
        for thing, origin, velocity in zip(things, start, speed):
            top, left = (np.abs((origin + index * velocity) % (1.5 * side) - 0.75 * side)).astype(int)
            view[top : top + len(thing), left : left + len(thing)] = thing[: side - top, : side - left]
        frames[index] = np.clip(view + _NOISE * rng.standard_normal(view.shape), 0, 255)
    return frames


def _texture(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) + 1 / size
    grey, *tints = (
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) / frequency**_FALL, (size, size)) for _ in range(4)
    )
    colour = np.stack([grey + 0.3 * tint for tint in tints], axis=-1)
    centred: np.ndarray = 128 + 48 * (colour - colour.mean()) / colour.std()
    return centred
