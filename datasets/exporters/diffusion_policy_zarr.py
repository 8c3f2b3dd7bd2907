"""Export as a diffusion-policy replay buffer: a Zarr v2 folder with `data/<stream>` [N, ...] and `meta/episode_ends`.

Format: real-stanford/diffusion_policy, `diffusion_policy/common/replay_buffer.py`: all buffers have one row a step, only time
is chunked, `episode_ends` are exclusive. Demonstrations of PushT get the names and shapes that its data sets use (`img`,
`keypoint` [9, 2]). What the format has no place for lies where its readers do not look: clocks in `meta/timestamp_ns`, the
rest in the attribute `kineflow` of the root (datasets/sidecar.py); an import finds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import Carried, Progress
from kineflow.datasets.importers.diffusion_policy_zarr import ATTRIBUTE, STAMPS, buffers_of
from kineflow.datasets.sidecar import episode_sidecar, left_out, store_sidecar, without_second_loss

CHUNK_BYTES = 2_000_000
_WHOLE: Any = {"write_empty_chunks": True}  # a chunk of zeros that is left out looks like one that was lost


def export_replay_buffer(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """Write every episode of `store` into the new folder `destination`.

    Raises:
        KineflowError: a stream has a clock of its own, so that row i of it is not step i.
    """
    interface = store.interface
    vectors, names = [*interface.features, "action"], [*interface.features, "action", *interface.cameras]
    own = [name for name in names if store.has_own_clock(name)]
    if own:
        raise KineflowError(
            f"{store.path}: {own} have clocks of their own, a replay buffer has one row a step for all streams; "
            "bring them to one clock first with `kineflow data resample`"
        )
    buffers = buffers_of(interface)
    ends = np.cumsum(store.lengths)
    root = zarr.open_group(destination, mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    meta.create_array("episode_ends", data=ends, chunks=ends.shape, compressors=None, config=_WHOLE)
    meta.create_array(STAMPS, data=store.stamps("action"), compressors=_compressor(), config=_WHOLE)
    for name in vectors:
        _Buffer(data, *buffers[name], int(ends[-1]), np.float32).append(store.low_dim(name), last=True)
    frames = {
        name: _Buffer(data, *buffers[name], int(ends[-1]), np.uint8 if camera.kind == "rgb" else np.uint16)
        for name, camera in interface.cameras.items()
    }
    episodes, missing = [], {"statistics": "an import computes them again"}
    for index in range(store.num_episodes):
        episode = store.episode(index)
        for name, buffer in frames.items():
            buffer.append(episode.streams[name].values, last=index + 1 == store.num_episodes)
        episodes.append({**episode_sidecar(episode), "instruction": episode.instruction})
        missing |= left_out(episode)
        progress(index + 1, store.num_episodes)
    jpegs = [name for name in frames if any(s.frame_array(name).codec.name == "jpeg" for s in store.segments)]
    missing |= {f"JPEG bytes of {name}": "the frames are decoded; an import keeps these frames lossless" for name in jpegs}
    root.attrs[ATTRIBUTE] = {"store": store_sidecar(without_second_loss(store, keeps_jpeg=False)), "episodes": episodes}
    return Carried(_said(buffers), missing)


def _said(buffers: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    carried = {name: f"data/{buffer} {list(shape)} a step" for name, (buffer, shape) in buffers.items()}
    carried["clock"] = f"meta/{STAMPS}, which only Kineflow reads"
    carried["instruction, success, spans, split, seed, operator, schema, calibration"] = f"attribute '{ATTRIBUTE}', likewise"
    return carried


def _compressor() -> Blosc:
    return Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)


class _Buffer:
    """One array that is written chunk by chunk, so that memory holds one chunk and one episode."""

    def __init__(self, data: zarr.Group, name: str, shape: tuple[int, ...], rows: int, dtype: type[np.generic]) -> None:
        row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._chunk = max(1, min(rows, CHUNK_BYTES // max(1, row_bytes)))
        chunks = (self._chunk, *shape)
        self._array = data.create_array(
            name, shape=(rows, *shape), chunks=chunks, dtype=np.dtype(dtype), compressors=_compressor(), config=_WHOLE
        )
        self._held, self._row = np.empty((0, *shape), dtype), 0

    def append(self, values: np.ndarray, last: bool) -> None:
        self._held = np.concatenate([self._held, values.reshape(len(values), *self._held.shape[1:])])
        ready = len(self._held) if last else len(self._held) // self._chunk * self._chunk
        if ready:
            self._array[self._row : self._row + ready] = self._held[:ready]
            self._held, self._row = self._held[ready:], self._row + ready
