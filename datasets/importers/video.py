"""Frames of episodes out of video files, decoded front to back: the next episode goes on where the last one ended.

A decoder hides damage: it paints over what it cannot read and goes on. Here whatever it notices is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.extras import require

PURPOSE = "to decode video"
_COPY = "copy the data again, or leave the camera out with a schema"


class VideoReader:
    """Reads one camera's videos. Reading episodes in order decodes every frame once; others cost a seek to the key frame before.

    Not safe for several threads; a process that forks opens its own.
    """

    def __init__(self, shape: tuple[int, int, int], fps: float) -> None:
        self._shape, self._fps = shape, fps
        self._file: Path | None = None
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._next: tuple[float, Any] | None = None  # the frame after the last one handed out
        self._sought = False  # began at a key frame in the middle of the file

    def read(self, file: Path, start_s: float, length: int, file_frames: int, what: str) -> np.ndarray:
        """`length` frames from `start_s` on, uint8 [T, H, W, 3]; the file must hold `file_frames` in all.

        Raises:
            KineflowError: no such file, another number or size of frames, a damaged stream, or frames that are not 1 / fps
                apart, so that they cannot belong to the rows; `what` names episode and camera.
        """
        av = require("av", PURPOSE)
        try:
            return self._read(av, file, start_s, length, file_frames, what)
        except FileNotFoundError:
            raise KineflowError(f"{what}: {file} is missing; {_COPY}") from None
        except (av.error.FFmpegError, OSError) as error:
            self._file = None
            raise KineflowError(f"{what}: {file} cannot be decoded ({error}); the file is damaged or cut off, {_COPY}") from error

    def _read(self, av: Any, file: Path, start_s: float, length: int, file_frames: int, what: str) -> np.ndarray:
        try:
            self._go_to(av, file, start_s, file_frames, what)
            return self._take(file, start_s, length, what)
        except av.error.InvalidDataError:
            if not self._sought:
                raise
        # The frames shown before a key frame may refer to those before it, which a seek leaves out: begin at the front.
        self._file = None
        self._go_to(av, file, start_s, file_frames, what, seek=False)
        return self._take(file, start_s, length, what)

    def _go_to(self, av: Any, file: Path, start_s: float, file_frames: int, what: str, *, seek: bool = True) -> None:
        half = 0.5 / self._fps
        if self._file == file and self._next is not None and abs(self._next[0] - start_s) < half:
            return
        self._file, self._next = None, None
        container = av.open(str(file))
        if not container.streams.video:
            raise KineflowError(f"{what}: {file} holds no video; {_COPY}")
        stream = container.streams.video[0]
        stream.thread_type = "FRAME"  # with threads by slice errors go unnoticed
        stream.codec_context.options = {"err_detect": "explode"}
        if stream.frames and stream.frames != file_frames:
            raise KineflowError(f"{what}: {file} holds {stream.frames} frames, the rows are {file_frames}; {_COPY}")
        origin = float((stream.start_time or 0) * stream.time_base)
        self._sought = seek and start_s > half
        if self._sought:
            container.seek(int((start_s + origin) / stream.time_base), stream=stream, backward=True)
        self._frames = ((float(f.pts * stream.time_base) - origin, f) for f in container.decode(stream) if f.pts is not None)
        self._next = next(((t, f) for t, f in self._frames if t > start_s - half), None)
        self._file = file

    def _take(self, file: Path, start_s: float, length: int, what: str) -> np.ndarray:
        frames = np.empty((length, *self._shape), np.uint8)
        for row in range(length):
            if self._next is None:
                raise KineflowError(f"{what}: {file} ends after {row} frames, the episode has {length} rows; {_COPY}")
            at, frame = self._next
            if abs(at - start_s - row / self._fps) > 0.5 / self._fps:
                raise KineflowError(
                    f"{what}: frame {row} of {file} is at {at:.4f} s, row {row} at {start_s + row / self._fps:.4f} s; frames "
                    f"were dropped or the frame rate is not {self._fps:g} Hz: record or convert the data again"
                )
            pixels = frame.to_ndarray(format="rgb24")
            if pixels.shape != self._shape:
                raise KineflowError(
                    f"{what}: {file} has frames of {list(pixels.shape)}, info.json says {list(self._shape)}; correct it"
                )
            frames[row] = pixels
            self._next = next(self._frames, None)
        return frames
