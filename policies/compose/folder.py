"""A composed policy on disk: a folder that loads like any checkpoint.

<out>/
  compose.yaml     parents, weights, operator, solver (composition.py)
  contract.json    the union of the parents' contracts, with a golden pair of its own
  parents/<i>_<name>/{ema.safetensors, contract.json, config.yaml}      copies: the folder is whole by itself

With `link` the parents stay where they are and compose.yaml names them by relative path; then the folder cannot be moved or
uploaded alone, and a parent that is trained on is noticed, because the golden pair no longer fits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kineflow.config import load_config, save_config
from kineflow.contracts import KineflowError, to_json
from kineflow.policies.checkpoint import CheckpointError, ChunkPolicy, find_checkpoint, load_policy, read_contract
from kineflow.policies.compose.composition import Composition
from kineflow.policies.compose.policy import ComposedPolicy
from kineflow.policies.golden import TOLERANCE, error_of

COMPOSE_FILE = "compose.yaml"


def load_parents(sources: Sequence[str | Path], device: str = "cpu") -> tuple[list[ChunkPolicy], list[str]]:
    """Parents and their names; a composed policy is refused, because its parents can be composed directly."""
    folders = [find_checkpoint(source) for source in sources]
    if composed := [str(source) for source, folder in zip(sources, folders) if (folder / COMPOSE_FILE).is_file()]:
        raise KineflowError(f"{composed[0]} is a composed policy itself; compose its parents, with products of the weights")
    names: list[str] = []
    for folder in folders:
        run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
        name = run.resolve().name
        names.append(name if name not in names else f"{name}-{len(names)}")
    return [load_policy(folder, device) for folder in folders], names


def save_composed(policy: ComposedPolicy, folder: Path, sources: Sequence[str | Path] = ()) -> ComposedPolicy:
    """Write `folder`, which must not hold a policy yet; with `sources` the parents are linked instead of copied."""
    refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if sources:
        places = [os.path.relpath(find_checkpoint(source).resolve(), folder.resolve()) for source in sources]
    else:
        places = [f"parents/{i}_{name}" for i, name in enumerate(policy.names)]
        for parent, place in zip(policy.parents, places):
            parent.save_pretrained(folder / place)
    saved = replace(policy, composition=replace(policy.composition, parents=tuple(places)))
    save_config(saved.composition, folder / COMPOSE_FILE)
    (folder / "contract.json").write_text(to_json(saved.contract))
    return saved


def refuse_used(folder: Path) -> None:
    """Raises KineflowError unless `folder` is new or holds nothing but a search that was stopped."""
    search = folder / "search"
    others = [p for p in folder.iterdir() if p != search] if folder.is_dir() else [p for p in [folder] if p.exists()]
    done = [p for p in search.iterdir() if p.name != "arms"] if search.is_dir() else [p for p in [search] if p.exists()]
    if others or done:
        raise KineflowError(f"{folder}: is not empty; name another folder, or remove it")


def load_composed(folder: Path, device: str = "cpu") -> ComposedPolicy:
    """The policy of `folder`, its golden pair and its parents' replayed.

    Raises:
        CheckpointError: a parent is missing, or the composition does not give the recorded output.
    """
    composition, contract = load_config(Composition, folder / COMPOSE_FILE), read_contract(folder)
    places = [folder / place for place in composition.parents]
    if missing := [place for place in places if not place.exists()]:
        raise CheckpointError(f"{folder}: its parent {missing[0]} is not there; linked parents must stay where they were")
    parents, names = load_parents(places, device)
    policy = ComposedPolicy(tuple(parents), tuple(name.partition("_")[2] or name for name in names), composition, contract)
    if not (error := error_of(policy.predict, contract.interface, contract.golden)) <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: the composed policy does not reproduce the golden output in its contract (relative error {error:.2g}, "
            f"allowed {TOLERANCE:g}); a parent or compose.yaml was changed: compose again"
        )
    return policy
