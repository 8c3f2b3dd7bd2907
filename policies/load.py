"""Load whatever a folder or hub name holds: a trained policy or a composed one."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from kineflow.policies import checkpoint
from kineflow.policies.compose.folder import COMPOSE_FILE, load_composed
from kineflow.policies.compose.policy import ComposedPolicy

LoadedPolicy: TypeAlias = checkpoint.ChunkPolicy | ComposedPolicy


def load_policy(source: str | Path, device: str = "cpu", *, revision: str | None = None) -> LoadedPolicy:
    """From a run folder (its newest checkpoint), a checkpoint folder, a folder of `kineflow compose` or a hub name.

    Raises:
        CheckpointError: nothing usable there, or it does not give the output recorded in its contract.
    """
    folder = checkpoint.find_checkpoint(source, revision)
    if (folder / COMPOSE_FILE).is_file():
        return load_composed(folder, device)
    return checkpoint.load_policy(folder, device)
