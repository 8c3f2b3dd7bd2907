"""A folder beside what is to be made: renamed when it is complete, so that nobody ever sees a half of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kineflow.datasets.store_error import FULL, room_for

_NEW_S = 10.0  # so long another process may take from making its folder to locking it


@contextmanager
def staged_beside(destination: Path, verb: str) -> Iterator[Path]:
    """An empty folder in the file system of `destination`, for what will be renamed to it; removed at the end.

    What killed processes left of the same work is removed too: the kernel knows by the lock that they are dead.

    Raises:
        StoreError: there is no room, or no right to write.
    """
    prefix = f".{destination.name}.{verb}-"
    with room_for(destination.name, destination.parent):
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(destination.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
        lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    except OSError as error:
        if error.errno in FULL:  # "not allowed" may be about what is read here
            with room_for(destination.name, destination.parent):
                raise
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for left in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):  # another process removes it, or still works there
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - left.stat().st_mtime > _NEW_S:
                    shutil.rmtree(left)
            finally:
                os.close(lock)
