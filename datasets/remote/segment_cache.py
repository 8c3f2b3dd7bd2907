"""Local copies of the files of a remote store: checked when they arrive, no more than a limit, the longest unused go first.

A copy may go at any moment, removed by another thread or process that needs the room; whoever finds it gone fetches it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from kineflow.datasets.checksums import crc32c
from kineflow.datasets.manifest import FileEntry, new_ulid
from kineflow.datasets.remote.objects import Objects
from kineflow.datasets.store_error import StoreError, room_for

CONNECTIONS = 16
_ABANDONED_S = 3600.0  # no writer takes so long for one file: it was killed


class SegmentCache:
    """Files of `segments/<id>/` of one store below `folder`. Several processes may share it; any of it may be removed.

    The limit holds for what is fetched in one process: a copy that another reader has open stays readable until it is done.
    """

    def __init__(self, objects: Objects, folder: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise StoreError(f"a segment cache of {limit_bytes} bytes holds nothing; give limit_bytes >= 1")
        self._objects, self._folder, self._limit = objects, folder, limit_bytes
        self._room = threading.Condition()
        self._arriving: dict[Path, int] = {}  # being written: they count, but cannot make room
        self._sizes = self._oldest_first()
        self._remove_abandoned()

    @property
    def url(self) -> str:
        return self._objects.url

    @property
    def held_bytes(self) -> int:
        return sum(self._sizes.values())

    def held(self, segment: str, file: FileEntry) -> Path | None:
        """Where the copy is, if there is one."""
        path = self._folder / "segments" / segment / file.path
        try:
            if path.stat().st_size != file.bytes:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def path(self, segment: str, file: FileEntry) -> Path:
        """Where the copy is, fetched if it is not there.

        Raises:
            StoreError: the object is missing, is not what was committed, is larger than the limit, or the disk is full.
        """
        return self.held(segment, file) or self._fetch(segment, file)

    def drop_damaged(self, segment: str, files: Iterable[FileEntry]) -> bool:
        """Remove the copies that are not what arrived, found when one of them was read; False when all are sound."""
        dropped = False
        for file in files:
            path = self.held(segment, file)
            if path is not None and crc32c(path.read_bytes()) != file.crc32c:
                path.unlink(missing_ok=True)
                dropped = True
        return dropped

    def fits(self, file: FileEntry) -> bool:
        return file.bytes <= self._limit

    def prefetch(self, files: Iterable[tuple[str, FileEntry]]) -> None:
        """Fetch many small files at once: each costs a round trip."""
        wanted = [(segment, file) for segment, file in files if self.held(segment, file) is None]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda pair: self._fetch(*pair), wanted))

    def _fetch(self, segment: str, file: FileEntry) -> Path:
        if not self.fits(file):
            raise StoreError(
                f"{self._objects.url}: segments/{segment}/{file.path} has {file.bytes} bytes, the cache may hold {self._limit}; "
                "raise limit_bytes"
            )
        data = self._objects.get(f"segments/{segment}/{file.path}")
        if len(data) != file.bytes or crc32c(data) != file.crc32c:
            raise StoreError(
                f"{self._objects.url}/segments/{segment}/{file.path} is not what was committed (size or crc32c differ, "
                f"{len(data)} bytes of {file.bytes}); upload it again from a sound copy"
            )
        path = self._folder / "segments" / segment / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{new_ulid()}")
        self._reserve(partial, file.bytes)
        try:
            with room_for("a copy of a remote file", self._folder, file.bytes):
                partial.write_bytes(data)
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            with self._room:
                del self._arriving[partial]
                if path.exists():
                    self._sizes[path] = file.bytes
                self._room.notify_all()
        return path

    def _reserve(self, partial: Path, size: int) -> None:
        """Make room for `size` bytes, waiting for others that are being written where nothing else can go."""
        with self._room:
            while self._taken() + size > self._limit:
                self._sizes = self._oldest_first()
                for path in list(self._sizes):
                    if self._taken() + size <= self._limit:
                        break
                    path.unlink(missing_ok=True)
                    del self._sizes[path]
                if self._taken() + size > self._limit:
                    self._room.wait()
            self._arriving[partial] = size

    def _taken(self) -> int:
        return sum(self._sizes.values()) + sum(self._arriving.values())

    def _oldest_first(self) -> dict[Path, int]:
        """Bytes of each copy, the longest unused first."""
        found = []
        for path in self._folder.glob("segments/*/**/*"):
            with suppress(FileNotFoundError):  # another process removed it
                if path.is_file() and not path.name.startswith("."):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
        return {path: size for _, path, size in sorted(found)}

    def _remove_abandoned(self) -> None:
        for path in self._folder.glob("segments/*/**/.*"):
            with suppress(FileNotFoundError):
                if path.is_file() and time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
