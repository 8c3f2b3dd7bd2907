"""Load whatever a folder or name holds: an exported policy or a policy server, which need no torch, or any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kineflow.deploy.exported import is_exported, load_exported
from kineflow.deploy.remote import RemotePolicy, is_remote


def load_policy(source: str | Path, device: str = "cpu") -> Any:
    """An exported folder, the ws:// or wss:// address of a policy server (its token in the file that KINEFLOW_TOKEN_FILE names),
    or whatever `kineflow.policies.load.load_policy` takes: run, checkpoint, composed, shipped, hub.

    Raises:
        KineflowError: nothing usable there, or it does not give the golden answer of its contract.
    """
    if is_remote(source):
        return RemotePolicy.connect(str(source))
    if is_exported(source):
        return load_exported(source)
    from kineflow.policies.load import load_policy as load  # needs torch

    return load(source, device)
