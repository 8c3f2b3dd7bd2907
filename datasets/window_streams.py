"""Streams of a store as arrays in RAM, one row per step, refused where windows over them would lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore

ACTION = "action"


def low_dim_stream(store: EpisodeStore, name: str) -> Float32[np.ndarray, "N D"]:
    """A feature or the action over all episodes; KineflowError when it is absent, has a clock of its own or is not finite."""
    if name != ACTION and name not in store.interface.features:
        raise KineflowError(
            f"{store.path}: no feature '{name}'; it has {sorted(store.interface.features)}; choose one of them or import it"
        )
    if store.has_own_clock(name):
        raise KineflowError(f"{store.path}: '{name}' has a clock of its own; resample it to the clock of the actions at import")
    values = store.low_dim(name)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        episode = int(np.searchsorted(np.cumsum(store.lengths), bad[0], side="right"))
        step = bad[0] - store.lengths[:episode].sum()
        raise KineflowError(
            f"{store.path}: '{name}' is not finite in episode {episode}, step {step}; repair or leave out the episode"
        )
    return values


def camera_frames(store: EpisodeStore, camera: str, episodes: Sequence[int]) -> UInt8[np.ndarray, "N H W 3"]:
    """Frames of the chosen episodes in the rows of the store; the other rows are never touched, so they take no memory."""
    if camera not in store.interface.cameras:
        raise KineflowError(
            f"{store.path}: no camera '{camera}'; it has {sorted(store.interface.cameras)}; choose one of them or import it"
        )
    if store.has_own_clock(camera):
        raise KineflowError(f"{store.path}: '{camera}' has a clock of its own; resample it to the clock of the actions at import")
    spec, ends = store.interface.cameras[camera], np.cumsum(store.lengths)
    frames = np.zeros((int(ends[-1]), spec.height, spec.width, 3), np.uint8)
    for index in episodes:
        frames[ends[index] - store.lengths[index] : ends[index]] = store.episode(index).streams[camera].values
    return frames
