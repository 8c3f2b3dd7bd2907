"""Real recordings for tests, where they are at hand, in a folder beside the repository which the project must work without;
and a disk in RAM for tests that make thousands of small files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
RAM_DISK, NEEDED_BYTES = Path("/dev/shm"), 2**30


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Name of a folder of real samples to its path; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"needs ../shared/data/{name}")
        return SHARED / name

    return find


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[None]:
    """Temporary folders in RAM where there is room, and no waiting for fsync: for tests whose subject is no power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        if os.access(RAM_DISK, os.W_OK) and shutil.disk_usage(RAM_DISK).free > NEEDED_BYTES:
            patch.setattr(tempfile, "tempdir", str(RAM_DISK))
        yield


@pytest.fixture
def quick_path(quick_disk: None) -> Iterator[Path]:
    """As `tmp_path`, on the quick disk."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
