"""Local copies of the files of a remote store: checked when they arrive, no more than a limit, the longest unused go first."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kineflow.datasets.checksums import crc32c
from kineflow.datasets.manifest import FileEntry, new_ulid
from kineflow.datasets.remote.objects import Objects
from kineflow.datasets.store_error import StoreError, room_for

CONNECTIONS = 16


class SegmentCache:
    """Files of `segments/<id>/` of one store below `folder`. Several processes may share it; any of it may be removed.

    The limit holds for what is fetched in one process: a copy that another reader has open stays readable until it is done.
    """

    def __init__(self, objects: Objects, folder: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise StoreError(f"a segment cache of {limit_bytes} bytes holds nothing; give limit_bytes >= 1")
        self._objects, self._folder, self._limit = objects, folder, limit_bytes
        self._lock = threading.Lock()
        self._sizes = {p: p.stat().st_size for p in self._oldest_first()}

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
        self._make_room(file.bytes)
        partial = path.with_name(f".{path.name}.{new_ulid()}")
        with room_for("a copy of a remote file", self._folder, file.bytes):
            try:
                partial.write_bytes(data)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        with self._lock:
            self._sizes[path] = file.bytes
        return path

    def _make_room(self, size: int) -> None:
        with self._lock:
            if sum(self._sizes.values()) + size <= self._limit:
                return
            self._sizes = {p: p.stat().st_size for p in self._oldest_first()}
            for path in list(self._sizes):
                if sum(self._sizes.values()) + size <= self._limit:
                    return
                path.unlink(missing_ok=True)
                del self._sizes[path]

    def _oldest_first(self) -> list[Path]:
        found = []
        for path in self._folder.glob("segments/*/**/*"):
            try:
                if path.is_file() and not path.name.startswith("."):
                    found.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:  # another process removed it
                continue
        return [path for _, path in sorted(found)]
