"""Decoded frames of one camera in a scratch file: from the second epoch on a frame of JPEG costs a copy instead of a decode.

    <folder>/<key>/frames    row after row, uint8; sparse: only rows that were decoded take disk
    <folder>/<key>/filled    which rows are whole: a header with key and size, one bit a row, crc32c
    <folder>/<key>/claimed   bytes taken so far, then one byte a row that may take disk; shared memory of all processes

The key hashes the store's segments in their order, the camera and the decoder, so other data never find this cache. Rows are
listed as filled only after their bytes are durable, by replacing the list in one rename; a list that is torn, of another
key or of another size counts as empty. What a killed process had not listed is decoded again. The frames themselves are not
checked again when they are read: like memory, a scratch disk is trusted once written.

When the byte budget is used up, or the disk is full, further frames are decoded each time. Several processes may share a
cache: they write the same bytes, lists are joined, and a row is claimed before it is written, so that the budget bounds what all
of them write, killed ones included. Who opens a cache that is larger than its budget empties it, unless others have it open.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
_LIST_EVERY = 64, 4096  # frames decoded, until they are listed as filled: a sixteenth of all within these bounds


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
            with self._taking_turns():
                self._claims = _shared_bytes(self._folder / "claimed", 8 + len(reader))
                self._taken = self._claims[:8].view(np.int64)
                if os.fstat(self._file).st_size != total or (self._allocated() > budget_bytes and self._is_alone()):
                    (self._folder / "filled").unlink(missing_ok=True)
                    os.ftruncate(self._file, 0)
                    os.ftruncate(self._file, total)
                    self._claims[:] = 0
                self._taken[0] = self._allocated()
                fcntl.flock(self._file, fcntl.LOCK_SH)  # until it is closed, in forked processes too
        except OSError as error:
            raise KineflowError(
                f"{folder}: no decoded cache can be kept here ({error}); name another folder, or use disk"
            ) from error
        self._frames = map_file(self._folder / "frames").reshape(len(reader), self._size)
        self._filled: Bool[np.ndarray, "N"] = self._listed()
        self._unlisted, self._full = 0, False
        self._list_every = int(np.clip(len(reader) // 16, *_LIST_EVERY))
        self._lock, self._process = threading.Lock(), os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            with suppress(Exception):  # the interpreter may be half gone
                self.flush()
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def filled(self) -> int:
        """Frames that are read without decoding."""
        return int(self._filled.sum())

    @property
    def used_bytes(self) -> int:
        """Of the budget, by all processes; an upper bound of what the frames take on disk."""
        return int(self._taken[0])

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
        done, refused = 0, False
        try:
            kept = self._claim(rows)
            rows, pixels, refused = rows[kept], pixels[kept], not kept.all()
            for row, frame in zip(rows.tolist(), pixels):
                # Not through the mapping: on a full disk that would end the process.
                if os.pwrite(self._file, frame, row * self._size) != self._size:
                    raise OSError(errno.ENOSPC, "no room for the rest of a frame")
                done += 1
        except OSError:
            self._full = True
        with self._own_lock():
            self._filled[rows[:done]] = True
            self._unlisted += done
            if self._unlisted >= self._list_every or ((self._full or refused) and self._unlisted):
                self._list()

    def _claim(self, rows: Int64[np.ndarray, "M"]) -> Bool[np.ndarray, "M"]:
        """Which of `rows` may be written: those that somebody claimed before, and as many others as the budget allows."""
        with self._taking_turns():
            claimed = self._claims[8:][rows] != 0
            cost = np.where(claimed, 0, self._cost(rows))
            fits: np.ndarray = claimed | (self._taken[0] + np.cumsum(cost) <= self._budget)
            self._taken[0] += int(cost[fits].sum())
            self._claims[8:][rows[fits]] = 1
        return fits

    def _allocated(self) -> int:
        """Bytes that the frames take on disk or may take by what is claimed."""
        return max(int(self._cost(np.flatnonzero(self._claims[8:])).sum()), os.fstat(self._file).st_blocks * 512)

    def _is_alone(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        """One at a time, among threads and processes: each call has a lock of its own, which a fork does not share."""
        with open(self._folder / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _list(self) -> None:
        """Make the frames durable, then say so; callers hold the lock."""
        if not self._unlisted:
            return
        try:
            os.fdatasync(self._file)
            self._filled |= self._listed()
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


def _shared_bytes(path: Path, size: int) -> np.ndarray:
    """`size` bytes of a file, zero at first, in memory that all who open it share. Its disk is taken now: later is too late."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if os.fstat(file).st_size != size:
            os.ftruncate(file, 0)
            if os.pwrite(file, bytes(size), 0) != size:
                raise OSError(errno.ENOSPC, "no room for the list of its rows")
    finally:
        os.close(file)
    return np.memmap(path, np.uint8, "r+", shape=(size,))
