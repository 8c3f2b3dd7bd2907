"""A frozen encoder looks at each frame of a store once; training reads its features instead of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16

from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import FeatureCache, FeatureReader, feature_folder
from kineflow.policies.encoders.frame_encoder import FrameEncoder

Progress = Callable[[int, int], None]


def cache_features(
    store: EpisodeStore,
    camera: str,
    encoder: FrameEncoder,
    episodes: Sequence[int] | None = None,
    *,
    folder: Path | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> FeatureReader:
    """Features of `camera` in `episodes` (default: all), those that are missing computed and kept below `folder` (default: the
    store). Stopped anywhere, the next call goes on. `progress(done, total)` counts the missing episodes.

    Raises:
        KineflowError: no such camera, not RGB, an encoder that is still trained, features that float16 cannot hold, or no room.
        StoreError: a damaged frame.
    """
    if camera not in store.interface.cameras or store.interface.cameras[camera].kind != "rgb":
        rgb = sorted(name for name, spec in store.interface.cameras.items() if spec.kind == "rgb")
        raise KineflowError(f"{store.path}: no RGB camera '{camera}'; it has {rgb}; choose one of them")
    if not encoder.frozen:
        raise KineflowError(
            f"{type(encoder).__name__} is trained with the policy, so its features change; only frozen ones are kept"
        )
    cache = FeatureCache(folder or feature_folder(store.path), encoder.fingerprint(), camera)
    wanted = range(store.num_episodes) if episodes is None else episodes
    digests = store.digests()
    lengths = store.stream_lengths(camera)
    missing = [index for index in wanted if _length(cache.load(digests[index].tobytes())) != lengths[index]]
    for done, index in enumerate(missing):
        parts = []
        for first in range(0, int(lengths[index]), batch_size):
            frames = store.frames(camera, index, first, min(first + batch_size, int(lengths[index])))
            parts.append(features_of(encoder, frames))
        cache.save(digests[index].tobytes(), np.concatenate(parts))
        if progress is not None:
            progress(done + 1, len(missing))
    return FeatureReader(store, camera, cache, wanted)


def features_of(encoder: FrameEncoder, frames: np.ndarray) -> Float16[np.ndarray, "N P D"]:
    """Of uint8 frames [N, H, W, 3], as `cache_features` keeps them.

    Raises:
        KineflowError: a value is not finite, or too large for float16 (above 65,504).
    """
    device = next((value.device for value in encoder.state_dict().values()), torch.device("cpu"))
    with torch.inference_mode():
        features = encoder(torch.from_numpy(np.array(frames)).to(device)).half().cpu()  # a copy: frames may be read-only
    if not torch.isfinite(features).all():
        raise KineflowError(
            f"{type(encoder).__name__} gives features that are not finite in float16; scale them or check its weights"
        )
    return np.asarray(features.numpy())


def _length(features: np.ndarray | None) -> int:
    return -1 if features is None else len(features)
