"""The journal of one episode while it is recorded: `staging/<ulid>.journal`, a file that only grows.

    magic "KFJRNL01", then records: head (24 bytes, little-endian), payload

    head      length u32, kind u8, 0 u8, stream u16 (place in `streams` of the opening), stamp int64 ns,
              crc32c u32 of the payload, crc32c u32 of the 20 bytes before
    payload   OPENING, CLOSING  JSON: what is known of the episode; CLOSING when it was finished (may come again)
              VECTOR            float32 [D]
              FRAME             blosc lz4 of the frame's bytes
              JPEG              the bytes of the camera

The writer holds an flock on the file, so that "nobody lives who writes this" is known and not guessed. A record is handed
to the kernel before `append` returns: the death of the process loses nothing. The death of the machine loses at most what
was appended since the last fsync (`sync_s`), plus one fsync.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np

from kineflow.datasets.manifest import sync
from kineflow.datasets.store_error import StoreError, room_for

MAGIC = b"KFJRNL01"
SUFFIX = ".journal"
OPENING, CLOSING, VECTOR, FRAME, JPEG = range(5)
_HEAD = struct.Struct("<IBBHqI")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size


@dataclass(frozen=True)
class Record:
    """What to append: for OPENING and CLOSING stream and stamp are 0."""

    kind: int
    stream: int
    stamp_ns: int
    payload: bytes


class JournalWriter:
    """Appends whole records or nothing. Safe for several threads."""

    def __init__(self, staging: Path, journal_id: str, opening: Mapping[str, Any], sync_s: float) -> None:
        """Make the journal; `sync_s` is the time between two fsyncs (in a thread of their own), 0: none.

        Raises:
            StoreError: the disk is full or read-only.
        """
        self.path = staging / f"{journal_id}{SUFFIX}"
        # Locked and begun under another name: nobody may find it unlocked.
        hidden = staging / f"{journal_id}{SUFFIX}.new"
        with room_for("the recording", staging):
            staging.mkdir(exist_ok=True)  # what copies a store may leave out empty folders
            self._file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write_lock = threading.Lock()
            self._size = self._synced = 0
            self._failed_sync: OSError | None = None
            self._write([MAGIC, *_framed(Record(OPENING, 0, 0, json.dumps(opening).encode()))])
            os.rename(hidden, self.path)
        except BaseException:
            os.close(self._file)
            hidden.unlink(missing_ok=True)
            raise
        self.is_mine = True  # False in a process that was forked from the one that made it
        _open_here.add(self)
        self._stop = threading.Event()
        self._syncing: threading.Thread | None = None
        if sync_s > 0:
            sync(staging)
            self._syncing = threading.Thread(target=self._sync_every, args=(sync_s,), daemon=True, name="journal fsync")
            self._syncing.start()

    def append(self, records: Sequence[Record]) -> None:
        """Hand all records to the kernel; the process may die as soon as this returns.

        Raises:
            StoreError: no room (nothing was appended; go on once there is room), or the disk failed to sync.
        """
        failed = self._failed_sync
        if failed is not None:
            raise StoreError(
                f"{self.path}: the disk could not sync it ({self._failed_sync}); check the disk"
            ) from self._failed_sync
        self._write([part for record in records for part in _framed(record)])

    def close(self) -> None:
        """Let go of the journal; it stays where it is."""
        if not self.is_mine:
            return
        _open_here.discard(self)
        self._stop.set()
        if self._syncing is not None:
            self._syncing.join()
        os.close(self._file)

    def disown(self) -> None:
        """In a forked process: the lock must end with the process that records."""
        self.is_mine = False
        os.close(self._file)

    def _write(self, parts: list[bytes]) -> None:
        needed = sum(map(len, parts))
        with self._write_lock:
            try:
                with room_for("the recording", self.path.parent, needed):
                    written = os.writev(self._file, parts)
                    if written < needed:  # the kernel wrote what fitted; the rest says why it does not
                        rest = memoryview(b"".join(parts))[written:]
                        while rest:
                            rest = rest[os.write(self._file, rest) :]
            except BaseException:
                os.ftruncate(self._file, self._size)  # no torn record: what comes next must be found behind it
                raise
            self._size += needed

    def _sync_every(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            size = self._size
            if size != self._synced:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    self._failed_sync = error
                    return
                self._synced = size


_open_here: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _disown_all() -> None:
    for writer in list(_open_here):
        writer.disown()
    _open_here.clear()


os.register_at_fork(after_in_child=_disown_all)


@dataclass(frozen=True)
class Samples:
    """The records of one stream: stamps, and where each payload lies in the file."""

    stamp_ns: np.ndarray  # int64 [T]
    kinds: tuple[int, ...]
    places: tuple[tuple[int, int], ...]  # (offset, length)


@dataclass(frozen=True)
class Contents:
    """What a journal holds up to its end or its first record that is not whole."""

    opening: Mapping[str, Any]
    facts: Mapping[str, Any]  # what is known of the episode, in the form of journal_episode.plain_facts
    is_finished: bool  # the recorder was asked to commit it, and nothing was appended after that
    samples: Mapping[str, Samples]
    data: np.ndarray  # uint8, the mapped file
    end: Literal["whole", "torn", "damaged"]
    whole_bytes: int

    @property
    def unread_bytes(self) -> int:
        return len(self.data) - self.whole_bytes

    def payload(self, place: tuple[int, int]) -> bytes:
        return self.data[place[0] : place[0] + place[1]].tobytes()


def read_journal(path: Path) -> Contents:
    """Every whole record, each checked by its crc32c; reading ends at the first that is not.

    Raises:
        StoreError: not a journal, or one without a whole opening (nothing was appended to it).
    """
    data = _mapped(path)
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise StoreError(f"{path} is not a journal of this version (it does not begin with {MAGIC.decode()})")
    described: dict[int, dict[str, Any]] = {}
    last_kind = -1
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    at, end = len(MAGIC), _ending(data, len(MAGIC))
    while end is None:
        length, kind, _, stream, stamp, _ = _HEAD.unpack_from(data.data, at)
        first = at + HEAD_BYTES
        if kind in (OPENING, CLOSING):
            described[kind] = json.loads(data[first : first + length].tobytes())
        else:
            found.setdefault(stream, []).append((stamp, kind, first, length))
        at, last_kind = first + length, kind
        end = _ending(data, at)
    if OPENING not in described:
        raise StoreError(f"{path}: its opening is {end}: it says of no stream what it is, nothing can be salvaged")
    samples = {name: _samples(found.get(number, [])) for number, name in enumerate(described[OPENING]["streams"])}
    facts = described.get(CLOSING, described[OPENING]["facts"])
    return Contents(described[OPENING], facts, last_kind == CLOSING and end == "whole", samples, data, end, at)


def lock_if_abandoned(path: Path) -> int | None:
    """Take the journal over from a writer that is dead: its open descriptor, or None while the writer lives or it is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None


def _framed(record: Record) -> tuple[bytes, bytes]:
    checksum = google_crc32c.value(record.payload)
    head = _HEAD.pack(len(record.payload), record.kind, 0, record.stream, record.stamp_ns, checksum)
    return head + _CRC.pack(google_crc32c.value(head)), record.payload


def _ending(data: np.ndarray, at: int) -> Literal["whole", "torn", "damaged"] | None:
    """None when a whole record begins at `at`; otherwise how the journal ends there."""
    left = len(data) - at
    if left == 0:
        return "whole"
    if left < HEAD_BYTES:
        return "torn"
    head = data[at : at + _HEAD.size]
    if google_crc32c.value(head.tobytes()) != _CRC.unpack_from(data.data, at + _HEAD.size)[0]:
        return "damaged"
    length, *_, checksum = _HEAD.unpack_from(data.data, at)
    if left < HEAD_BYTES + length:
        return "torn"
    first = at + HEAD_BYTES
    return None if google_crc32c.value(data[first : first + length].tobytes()) == checksum else "damaged"


def _samples(found: list[tuple[int, int, int, int]]) -> Samples:
    stamps = np.array([stamp for stamp, *_ in found], np.int64)
    return Samples(stamps, tuple(kind for _, kind, *_ in found), tuple((first, length) for *_, first, length in found))


def _mapped(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.zeros(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
