"""Who may write and who may remove what below a store, at the same time. Kernel locks: they end with their owner.

writers.lock             shared: a commit in progress; exclusive: gc, which so takes nobody's half-made segment away
manifest.lock            exclusive: the compare-and-swap (datasets/manifest.py)
staging/<ulid>.journal   exclusive: the recorder that writes it, or the repair that reads it (datasets/journal.py)
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kineflow.datasets.manifest import lock_file, read_manifest
from kineflow.datasets.store_error import StoreError

LOCK = "writers.lock"


@contextmanager
def committing(store: Path, *segment_ids: str) -> Iterator[None]:
    """Hold off gc while these segments are written and published; if that fails, nothing of them stays behind."""
    with lock_file(store / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield
        except Exception:  # what ends the process (a signal, KeyboardInterrupt) leaves the folders to gc
            for segment_id in segment_ids:
                discard(store, segment_id)
            raise


@contextmanager
def nobody_commits(store: Path, wait_s: float = 10.0) -> Iterator[None]:
    """Inside, no commit is in progress anywhere, and those that want to begin wait.

    Raises:
        StoreError: a commit has lasted longer than `wait_s`.
    """
    with lock_file(store / LOCK) as lock:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{store}: somebody has been committing for more than {wait_s:g} s; try again when that is done"
                    ) from None
                time.sleep(0.01)
        yield


def discard(store: Path, segment_id: str) -> bool:
    """Remove the folders of a segment that was not published; False when the manifest lists it, which stays as it is."""
    if any(listed.id == segment_id for listed in read_manifest(store).segments):
        return False
    for place in ("staging", "segments"):
        shutil.rmtree(store / place / segment_id, ignore_errors=True)
    return True
