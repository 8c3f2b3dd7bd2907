"""Where a number came from: code version, packages and machine, for manifests."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import kineflow

_PACKAGES = ("numpy", "torch", "gymnasium", "gym-pusht", "pymunk", "opencv-python", "zarr", "av")


def code_version() -> dict[str, Any]:
    """Version of kineflow, and the git commit when it runs from a checkout (`dirty`: with uncommitted changes)."""
    folder = Path(kineflow.__file__).resolve().parent
    # Only a repository that tracks this very package counts; a virtual environment may lie inside somebody else's.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"kineflow": importlib.metadata.version("kineflow"), "git": None, "dirty": None}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"kineflow": importlib.metadata.version("kineflow"), "git": commit, "dirty": bool(changes)}


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that numbers depend on, and Python's."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {"python": platform.python_version(), **{name: installed[name] for name in _PACKAGES if name in installed}}


def machine() -> dict[str, str]:
    """Operating system and processor kind, without names that identify the machine."""
    return {"system": platform.system(), "architecture": platform.machine()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
