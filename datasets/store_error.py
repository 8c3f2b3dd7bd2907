"""The error of a store, and the ones it raises when the disk is full or cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kineflow.contracts import KineflowError

# A quota and a limit on the size of files (RLIMIT_FSIZE) stop a writer just as a full disk does.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(KineflowError):
    """A store that cannot be read or written; the message names the file and the remedy."""


@contextmanager
def room_for(what: str, folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn "no space left" and "not allowed" of the writes inside into a StoreError; `needed` bytes are for `what`, 0: not known.

    Raises:
        StoreError: disk, quota or file-size limit is full, or the folder is read-only; the caller has to leave the store as it
            was.
    """
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            raise StoreError(
                f"{folder}: {what} cannot be written ({error.strerror}: {error.filename}); mount it writable, get the rights, "
                "or work on a copy"
            ) from error
        if error.errno not in FULL:
            raise
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free
        wanted = f"it needs {_size(needed)}, " if needed else ""
        limits = os.statvfs(there)
        if limits.f_files and not limits.f_favail:
            raise StoreError(
                f"{folder}: no room for {what} ({error.strerror}): its file system can hold no more files (inodes), "
                "whatever their size; remove some and try again; what was committed before is intact"
            ) from error
        remedy = f"free at least {_size(max(needed - free, 0) or needed)}" if needed else "free some room"
        raise StoreError(
            f"{folder}: no room for {what} ({error.strerror}): {wanted}{_size(free)} are free; "
            f"{remedy} and try again; what was committed before is intact"
        ) from error


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count} bytes"
