"""Frames to MP4: H.264, yuv420p, index in front; plays in every current browser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from kineflow.contracts import KineflowError


def encode_video(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, fps: int, most_kbps: int | None = None) -> int:
    """Write RGB frames of equal, even size to `path` and return how many there were; `most_kbps`: where quality ends.

    Raises:
        KineflowError: no frames, or an odd size (4:2:0 chroma halves both sides).
    """
    count = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        # Flat colours and sharp edges: "animation" spends bits on edges. One thread: the same frames give the same file.
        stream.options = {"crf": "21", "preset": "medium", "tune": "animation", "threads": "1"}
        if most_kbps is not None:
            stream.options |= {"maxrate": f"{most_kbps}k", "bufsize": f"{2 * most_kbps}k"}
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            height, width = frame.shape[:2]
            if height % 2 or width % 2:
                raise KineflowError(f"{path}: frames of {width} x {height} px; H.264 needs even sides")
            if count == 0:
                stream.width, stream.height = width, height
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if count:
            container.mux(stream.encode())
    if not count:
        raise KineflowError(f"{path}: no frames to encode")
    return count


def video_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height
