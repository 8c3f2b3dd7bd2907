"""Decoded frames of one camera in a scratch file: from the second epoch on a frame of JPEG costs a copy instead of a decode.

    <folder>/<key>/frames    row after row, uint8; sparse: only rows that were decoded take disk
    <folder>/<key>/filled    which rows are whole: a header with key and size, one bit a row, crc32c

The key hashes the store's segments in their order, the camera and the decoder, so other data never find this cache. Rows are
listed as filled only after their bytes are durable, by replacing the list in one rename; a list that is torn, of another
key or of another size counts as empty. What a killed process had not listed is decoded again. The frames themselves are not
checked again when they are read: like memory, a scratch disk is trusted once written.

When the byte budget is used up, or the disk is full, further frames are decoded each time. Several processes may share a
cache: they write the same bytes, and lists are joined.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from kineflow.contracts import KineflowError
from kineflow.datasets.checksums import CorruptData, with_crc, without_crc
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.mapped_file import map_file

_FORMAT = "kineflow-decoded-cache-1"
_PAGE = 4096
_LIST_EVERY = 4096  # frames decoded, until they are listed as filled


def default_cache_folder() -> Path:
    """Of this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kineflow" / "frames"


def cache_key(store: EpisodeStore, camera: str) -> str:
    """Of the frames of `camera` in `store` as it is now."""
    segments = [[e.id, [[f.path, f.bytes, f.crc32c] for f in e.files]] for e in store.manifest.segments]
    spec = store.interface.cameras[camera]
    text = json.dumps([_FORMAT, camera, spec.frame_shape, version("simplejpeg"), segments])
    return hashlib.sha256(text.encode()).hexdigest()


class DecodedCache:
    """Frames of `reader` by row, decoded once; any thread may read, and a forked process goes on by itself."""

    def __init__(self, reader: FrameReader, folder: Path, key: str, budget_bytes: int) -> None:
        """Use or start the cache of `key` below `folder`; `budget_bytes` is the most that its frames may take on disk.

        Raises:
            KineflowError: the folder cannot be written; names the remedy.
        """
        self._reader, self._key, self._budget = reader, key, budget_bytes
        self._size = int(np.prod(reader.frame_shape)) * reader.dtype.itemsize
        self._folder = folder / key[:32]
        total = len(reader) * self._size
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._folder / "frames", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            if os.fstat(self._file).st_size != total:
                (self._folder / "filled").unlink(missing_ok=True)
                os.ftruncate(self._file, total)
        except OSError as error:
            raise KineflowError(
                f"{folder}: no decoded cache can be kept here ({error}); name another folder, or use disk"
            ) from error
        self._frames = map_file(self._folder / "frames").reshape(len(reader), self._size)
        self._filled: Bool[np.ndarray, "N"] = self._listed()
        self._used = int(self._cost(np.flatnonzero(self._filled)).sum())
        self._unlisted, self._full = 0, False
        self._lock, self._process = threading.Lock(), os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def filled(self) -> int:
        """Frames that are read without decoding."""
        return int(self._filled.sum())

    @property
    def used_bytes(self) -> int:
        """Of the budget; an upper bound of what the frames take on disk."""
        return self._used

    def read(self, rows: Int64[np.ndarray, "..."], out: np.ndarray) -> None:
        """Frames `rows` into `out` [..., H, W, 3], C-contiguous.

        Raises:
            IndexError: a row is out of range.
            StoreError: a frame that must be decoded is damaged.
        """
        wanted, flat = rows.reshape(-1), out.reshape(rows.size, -1).view(np.uint8)
        if len(wanted) and wanted.min() < 0:
            raise IndexError(f"row {wanted.min()} is below 0")
        have = self._filled[wanted]
        if have.all():
            np.take(self._frames, wanted, axis=0, out=flat, mode="clip")  # clip: straight into `out`
            return
        missing, place = np.unique(wanted[~have], return_inverse=True)
        decoded = np.empty((len(missing), *self._reader.frame_shape), self._reader.dtype)
        self._reader.read(missing, decoded)
        pixels = decoded.reshape(len(missing), -1).view(np.uint8)
        flat[have] = self._frames[wanted[have]]
        flat[~have] = pixels[place]
        self._keep(missing, pixels)

    def flush(self) -> None:
        """List what was decoded so far; happens by itself every few thousand frames."""
        with self._own_lock():
            self._list()

    def _keep(self, rows: Int64[np.ndarray, "M"], pixels: np.ndarray) -> None:
        """Write decoded frames as far as the budget allows."""
        if self._full:
            return
        cost = self._cost(rows)
        with self._own_lock():
            fits = int((self._used + np.cumsum(cost) <= self._budget).sum())
            self._used += int(cost[:fits].sum())
        done = 0
        try:
            for row, frame in zip(rows[:fits].tolist(), pixels[:fits]):
                # Not through the mapping: on a full disk that would end the process.
                if os.pwrite(self._file, frame, row * self._size) != self._size:
                    raise OSError(errno.ENOSPC, "no room for the rest of a frame")
                done += 1
        except OSError:
            self._full = True
        with self._own_lock():
            self._filled[rows[:done]] = True
            self._unlisted += done
            self._full |= fits < len(rows)
            if self._unlisted >= _LIST_EVERY or (self._full and self._unlisted):
                self._list()

    def _list(self) -> None:
        """Make the frames durable, then say so; callers hold the lock."""
        if not self._unlisted:
            return
        try:
            os.fdatasync(self._file)
            self._filled |= self._listed()
            self._used = int(self._cost(np.flatnonzero(self._filled)).sum())
            staged = self._folder / f"filled.{os.getpid()}"
            with open(staged, "wb") as file:
                file.write(with_crc(self._header() + np.packbits(self._filled).tobytes()))
                file.flush()
                os.fsync(file.fileno())
            staged.rename(self._folder / "filled")
        except OSError:
            self._full = True  # nothing is lost but the time to decode it again
        self._unlisted = 0

    def _listed(self) -> Bool[np.ndarray, "N"]:
        try:
            data = (self._folder / "filled").read_bytes()
            body = without_crc(data, "filled")
        except (OSError, CorruptData):
            return np.zeros(len(self._reader), bool)
        header, bits = body[: len(self._header())], np.frombuffer(body[len(self._header()) :], np.uint8)
        if header != self._header() or len(bits) != (len(self._reader) + 7) // 8:
            return np.zeros(len(self._reader), bool)
        return np.unpackbits(bits, count=len(self._reader)).astype(bool)

    def _header(self) -> bytes:
        return (
            json.dumps({"format": _FORMAT, "key": self._key, "frames": len(self._reader), "bytes": self._size}).encode() + b"\n"
        )

    def _cost(self, rows: Int64[np.ndarray, "M"]) -> Int64[np.ndarray, "M"]:
        """Bytes of the pages that each row touches: neighbours share one, so this is an upper bound."""
        first, last = rows * self._size // _PAGE, ((rows + 1) * self._size - 1) // _PAGE
        cost: np.ndarray = (last - first + 1) * _PAGE
        return cost

    def _own_lock(self) -> threading.Lock:
        if self._process != os.getpid():  # forked, perhaps while another thread held it
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock
