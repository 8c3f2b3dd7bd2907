"""Which folder a name means, and the contract in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import kineflow
from kineflow.config import ConfigError, from_plain
from kineflow.contracts import CONTRACT_VERSION, ContractError, KineflowError, PolicyContract
from kineflow.policies.hub import download

SHIPPED = Path(__file__).parent / "shipped"  # checkpoints that come with the package, see policies/shipping.py
_SCHEME = re.compile(r"kineflow:/{1,2}")  # one slash is left of two where somebody made it a Path
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(KineflowError):
    """A checkpoint that cannot be used as it is."""


def find_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The checkpoint folder meant by a run folder, a checkpoint folder, a shipped policy `kineflow://NAME` or a hub name."""
    path = local_folder(source)
    if (path / "contract.json").is_file():
        return path
    if steps := checkpoint_steps(path):
        return path / "checkpoints" / f"{steps[-1]:08d}"
    # A hub name looks like a relative path of two parts: it is one only where no such folder could be meant.
    if path.exists() or path.parent.is_dir() or not HUB_NAME.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no contract.json and no checkpoints/ in it; "
            f"give a run folder, a checkpoint folder, a hub name 'user/model' or one of {shipped_names()}"
        )
    return download(str(source), revision)


def local_folder(source: str | Path) -> Path:
    """`source` as a path; a shipped policy `kineflow://NAME` is a folder in the package.

    Raises:
        CheckpointError: no policy of that name ships; names those that do.
    """
    if not (scheme := _SCHEME.match(str(source))):
        return Path(source)
    name = str(source)[scheme.end() :]
    if f"kineflow://{name}" not in shipped_names():
        raise CheckpointError(f"kineflow://{name}: no such policy ships with this version; there are {shipped_names()}")
    return SHIPPED / name


def is_shipped(source: str | Path) -> bool:
    """Does `source` name a policy of the package, beside which nothing may be written?"""
    return bool(_SCHEME.match(str(source)))


def shipped_names() -> list[str]:
    """`kineflow://NAME` of each policy that comes with the package."""
    return sorted(f"kineflow://{file.parent.name}" for file in SHIPPED.glob("*/contract.json"))


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
