"""The error of a store, and the one it raises when the disk is full."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kineflow.contracts import KineflowError

# A quota and a limit on the size of files (RLIMIT_FSIZE) stop a writer just as a full disk does.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(KineflowError):
    """A store that cannot be read or written; the message names the file and the remedy."""


@contextmanager
def room_for(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Turn "no space left" of the writes inside into a StoreError that says how many bytes `what` needs.

    Raises:
        StoreError: disk, quota or file-size limit is full; the caller has to leave the store as it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(folder).free
        raise StoreError(
            f"{folder}: no room for {what} ({error.strerror}): it needs {_size(needed)}, {_size(free)} are free; "
            f"free at least {_size(max(needed - free, 0) or needed)} and try again; what was committed before is intact"
        ) from error


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count} bytes"
