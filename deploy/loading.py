"""Load whatever a folder or name holds: an exported policy, which needs no torch, or any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kineflow.deploy.exported import is_exported, load_exported


def load_policy(source: str | Path, device: str = "cpu") -> Any:
    """An exported folder, or whatever `kineflow.policies.load.load_policy` takes: run, checkpoint, composed, shipped, hub.

    Raises:
        KineflowError: nothing usable there, or it does not give the golden answer of its contract.
    """
    if is_exported(source):
        return load_exported(source)
    from kineflow.policies.load import load_policy as load  # needs torch

    return load(source, device)
