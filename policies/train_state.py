"""What training needs to go on exactly where it stopped: optimiser, sampler position and step. Tensors and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kineflow.contracts import KineflowError, Window
from kineflow.datasets.loader import StreamLoader


class TrainStateError(KineflowError):
    """The training state of a checkpoint is damaged."""


def save_train_state(folder: Path, step: int, optimizer: torch.optim.Optimizer, loader: StreamLoader[Window]) -> None:
    """Write `folder`/{optimizer.safetensors, state.json}; `step` is the number of finished optimiser steps."""
    folder.mkdir(parents=True)
    state = optimizer.state_dict()["state"]
    tensors = {f"{index}.{name}": value.contiguous() for index, entry in state.items() for name, value in entry.items()}
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step, "sampler": loader.state_dict()}))


def load_train_state(folder: Path, optimizer: torch.optim.Optimizer, loader: StreamLoader[Window]) -> int:
    """Restore in place and return the number of finished steps; raises TrainStateError for damaged or missing files."""
    state: dict[int, dict[str, Any]] = {}
    try:
        saved = json.loads((folder / "state.json").read_text())
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        loader.load_state_dict(saved["sampler"])
        return int(saved["step"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise TrainStateError(
            f"{folder}: cannot be resumed from ({type(error).__name__}: {error}); "
            f"remove {folder.parent} to go on from the checkpoint before it"
        ) from error


def commit_folder(staging: Path, final: Path) -> None:
    """Flush every file of `staging`, then rename: readers see the whole folder or none of it."""
    for file in [*(p for p in staging.rglob("*") if p.is_file()), *(p for p in staging.rglob("*") if p.is_dir()), staging]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
