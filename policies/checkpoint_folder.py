"""Which folder a name means, and the contract in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import kineflow
from kineflow.config import ConfigError, from_plain
from kineflow.contracts import CONTRACT_VERSION, ContractError, KineflowError, PolicyContract
from kineflow.policies.hub import download

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(KineflowError):
    """A checkpoint that cannot be used as it is."""


def find_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The checkpoint folder meant by a run folder, a checkpoint folder or a hub name."""
    path = Path(source)
    if (path / "contract.json").is_file():
        return path
    if steps := checkpoint_steps(path):
        return path / "checkpoints" / f"{steps[-1]:08d}"
    # A hub name looks like a relative path of two parts: it is one only where no such folder could be meant.
    if path.exists() or path.parent.is_dir() or not HUB_NAME.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no contract.json and no checkpoints/ in it; "
            "give a run folder, a checkpoint folder or a hub name 'user/model'"
        )
    return download(str(source), revision)


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the whole checkpoints in a run folder, ascending; a half-written one has another name."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


def read_contract(folder: Path) -> PolicyContract:
    """contract.json as a value; refuses a newer version."""
    file = folder / "contract.json"
    try:
        data = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); the checkpoint is incomplete, use another step") from error
    version = data.get("contract_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > CONTRACT_VERSION:
        raise ContractError(
            f"{file}: contract version {version}, this kineflow {kineflow.__version__} reads up to "
            f"{CONTRACT_VERSION}; upgrade kineflow"
        )
    try:
        contract: PolicyContract = from_plain(PolicyContract, data, str(file))
    except ConfigError as error:
        raise ContractError(str(error)) from error
    return contract
