"""What a frozen backbone sees in the frames and goals of training windows, computed once and kept beside the store.

The network's own encoder takes these features instead of pictures (`GoalVisionEncoder.features`): the same numbers, rounded to
float16, without running the backbone in every step. Motion is that between neighbouring frames, so the frames of a goal video
must be neighbours in its clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from rich.console import Console
from rich.progress import track

from kineflow.contracts import GoalSpec, KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.feature_cache import GOALS, FeatureCache, FeatureReader, feature_folder
from kineflow.datasets.window_goals import Goals, GoalWindows
from kineflow.policies.encoders.flow_features import FlowEncoder
from kineflow.policies.encoders.frame_encoder import FrameEncoder
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.goal_fusion import GoalFusion

# Frames looked at together: with 64 the largest maps leave the cache of a CPU, and come from fresh pages each time.
_CHUNK = 16


@dataclass(frozen=True)
class Looker:
    """The frozen part of an encoder of pictures and goals."""

    frames: FrameEncoder
    flow: FlowEncoder | None
    fingerprint: str

    @classmethod
    def of(cls, config: GoalVision | GoalFusion) -> Looker | None:
        """None where the backbone is trained with the policy, so that its features change."""
        frames = config.frames.build()
        if not frames.frozen:
            return None
        flow = config.flow.build(frames.grid) if config.flow else None
        moved = flow.fingerprint() if flow else ""
        return cls(frames.eval(), flow, hashlib.sha256(f"{frames.fingerprint()} {moved}".encode()).hexdigest())

    @torch.inference_mode()
    def __call__(self, clip: UInt8[np.ndarray, "N H W 3"]) -> Float16[np.ndarray, "N P F"]:
        """Features of consecutive frames, those of the motion from the frame before behind them; zeros for the first.

        Raises:
            KineflowError: a value that float16 cannot hold.
        """
        parts = []
        for first in range(0, len(clip), _CHUNK):
            frames = torch.from_numpy(np.array(clip[max(first - 1, 0) : first + _CHUNK]))  # a copy: frames may be read-only
            seen = self.frames(frames[min(first, 1) :])
            if self.flow is not None:
                moved = self.flow(frames[:-1], frames[1:]) if len(frames) > 1 else seen.new_zeros(0, seen.shape[1], self.flow.dim)
                nothing = seen.new_zeros(len(seen) - len(moved), seen.shape[1], self.flow.dim)
                seen = torch.cat([seen, torch.cat([nothing, moved])], dim=-1)
            parts.append(seen.half())
        features = torch.cat(parts)
        if not torch.isfinite(features).all():
            raise KineflowError(f"{type(self.frames).__name__} gives features that are not finite in float16; check its weights")
        return np.asarray(features.numpy())


def encoded_cameras(
    store: EpisodeStore, cameras: Sequence[str], episodes: Sequence[int], looker: Looker
) -> dict[str, FeatureReader]:
    """Features of `cameras` in `episodes`, those that are missing computed first; stopped anywhere, the next call goes on."""
    digests, readers = store.digests(), {}
    for camera in cameras:
        cache, lengths = FeatureCache(feature_folder(store.path), looker.fingerprint, camera), store.stream_lengths(camera)
        known = {index: cache.load(digests[index].tobytes()) for index in episodes}
        missing = [index for index, found in known.items() if found is None or len(found) != lengths[index]]
        for index in _shown(missing, f"features of {camera}"):
            cache.save(digests[index].tobytes(), looker(store.frames(camera, index, 0, int(lengths[index]))))
        readers[camera] = FeatureReader(store, camera, cache, episodes)
    return readers


def encoded_goals(store: EpisodeStore, specs: Mapping[str, GoalSpec], where: GoalWindows, looker: Looker | None) -> Goals:
    """Goals of windows as features, kept by what they show; as frames without a `looker`.

    Raises:
        KineflowError: a video whose frames are not neighbours in its clip, where motion between them is a feature.
    """
    if looker is None:
        return Goals(specs, where, watch=_watched)
    camera = store.interface.cameras.get(where.camera)
    rate_hz = where.rate_hz or (camera.rate_hz if camera else 0.0)
    for name, spec in specs.items():
        if looker.flow is not None and spec.kind == "video" and spec.rate_hz != rate_hz:
            raise KineflowError(
                f"goal '{name}' has {spec.rate_hz:g} frames/s of clips with {rate_hz:g}, but motion is seen between neighbouring "
                "frames; give both one rate_hz, or set flow: null"
            )
    cache = FeatureCache(feature_folder(store.path), looker.fingerprint, GOALS)

    def look(digest: bytes, frames: UInt8[np.ndarray, "N H W 3"]) -> Float16[np.ndarray, "N P F"]:
        if (known := cache.load(digest)) is None:
            cache.save(digest, known := looker(frames))
        return known

    return Goals(specs, where, look, _watched)


def _watched(episodes: Sequence[int]) -> Iterable[int]:
    return _shown(episodes, "goals")


def _shown(episodes: Sequence[int], what: str) -> Iterable[int]:
    """`episodes`, with a bar on the terminal that is gone when they are through."""
    return track(episodes, description=what, console=Console(stderr=True), transient=True)
