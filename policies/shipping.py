"""Small trained checkpoints that come with the package: `kineflow://NAME` wherever a run or checkpoint is named.

    policies/shipped/<name>/{ema.safetensors (float16), contract.json, config.yaml}      a checkpoint folder like any other

Weights are rounded to float16, which halves them; they are computed with in float32 again. Frozen backbones are not in them
(policies/frozen_weights.py). An export answers the golden question before and after rounding, and is refused when the answers
differ by more than `ROUNDING`; the contract then has the rounded policy's own answer.
"""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kineflow.config import save_config
from kineflow.contracts import to_json
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.checkpoint_folder import SHIPPED, CheckpointError, find_checkpoint
from kineflow.policies.frozen_weights import own_tensors, save_network
from kineflow.policies.golden import golden_error, golden_pair

ROUNDING = 0.02  # relative to the largest action of the golden answer
LARGEST_MB = 12.0
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Export:
    """What was written, and how much of the policy was lost."""

    folder: Path
    megabytes: float
    golden_error: float  # of the rounded weights, relative to the largest action


def export_policy(source: str | Path, name: str, folder: Path = SHIPPED) -> Export:
    """The averaged weights of `source` as `folder`/`name`, rounded; whole, or not at all.

    Raises:
        CheckpointError: no name of a folder, one that is taken, a composed policy, weights that float16 does not hold, an answer
            that changes by more than `ROUNDING`, or more than 12 MB.
    """
    target = folder / name
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"name '{name}': small letters, digits and _, beginning with a letter")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; remove it, or choose another name")
    policy = load_policy(find_checkpoint(source))
    rounded, error = _rounded(policy, source)
    staged = folder / f".{name}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        save_network(rounded.network, staged / "ema.safetensors", torch.float16)
        (staged / "contract.json").write_text(to_json(rounded.contract))
        save_config(rounded.network.config, staged / "config.yaml")
        load_policy(staged)  # what was written gives the golden answer
        megabytes = sum(file.stat().st_size for file in staged.iterdir()) / 1e6
        if megabytes > LARGEST_MB:
            raise CheckpointError(
                f"{source}: {megabytes:.1f} MB in float16, more than the {LARGEST_MB:g} MB that may ship; put it on a hub instead"
            )
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Export(target, megabytes, error)


def _rounded(policy: ChunkPolicy, source: str | Path) -> tuple[ChunkPolicy, float]:
    """With weights that float16 holds exactly, and the error of its golden answer."""
    network = copy.deepcopy(policy.network)
    for name, tensor in own_tensors(network).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.half()).all():
            raise CheckpointError(f"{source}: {name} is not finite in float16 (largest {tensor.abs().max():g}); it cannot ship")
    own = own_tensors(network)
    halves = {name: tensor.half().to(tensor.dtype) for name, tensor in own.items() if tensor.is_floating_point()}
    network.load_state_dict({**network.state_dict(), **halves})
    if not (error := golden_error(network, policy.contract.golden)) <= ROUNDING:
        raise CheckpointError(
            f"{source}: rounded to float16 it gives another golden answer (relative error {error:.2g}, allowed {ROUNDING:g}); "
            "sample it with more, or more even, steps, or ship it on a hub"
        )
    return ChunkPolicy(network, replace(policy.contract, golden=golden_pair(network))), error
