"""One network, several embodiments: a small set of adapters for each, the base frozen (Diffscaler, Xu et al. 2024).

Every nn.Linear y = W x + b of the network becomes, while an embodiment is in use,

    y = (1 + a) W x + b^ + b + s W_up relu(W_down x)

with a, b^ and W_up zero at first, so a new set changes nothing, bit for bit. The base's tensors, their names and its
checkpoint stay as they are; a set is one small file `adapters/<embodiment>.safetensors` beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kineflow.contracts import KineflowError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class LinearAdapter(nn.Module):
    """What one embodiment changes of one linear layer."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(linear.weight.new_zeros(linear.out_features))  # a
        self.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))  # b^
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.strength = nn.Parameter(linear.weight.new_ones(()))  # s
        nn.init.kaiming_uniform_(self.down, a=5**0.5)  # as nn.Linear starts

    def forward(self, linear: nn.Linear, x: Float[Tensor, "*S I"], y: Float[Tensor, "*S O"]) -> Float[Tensor, "*S O"]:
        """`y` is what the base layer answers to `x`."""
        product = y if linear.bias is None else y - linear.bias
        low_rank = F.linear(F.relu(F.linear(x, self.down)), self.up)
        return y + self.gain * product + self.bias + self.strength * low_rank


class EmbodimentAdapters(nn.Module):
    """Adapters around `network`, which is frozen from now on; its parameters here are those of the adapters alone.

    `use` switches the whole network over; None is the base. Rank and base must be those a set was trained with.
    """

    def __init__(self, network: nn.Module, rank: int = 4) -> None:
        super().__init__()
        layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
        if not layers or rank < 1:
            raise KineflowError(f"adapters need linear layers and a rank of at least 1; found {len(layers)} and rank {rank}")
        self.rank, self.active = rank, ""
        self.sets = nn.ModuleDict()
        self._layers = {name.replace(".", "/"): layer for name, layer in layers}  # module names have no dots
        self._base = _fingerprint(network)
        network.requires_grad_(False)
        for name, layer in self._layers.items():
            layer.register_forward_hook(partial(self._adapted, name))

    def add(self, embodiment: str) -> Iterator[nn.Parameter]:
        """A new set that changes nothing yet, in use from now on. Returns its parameters: what to train."""
        if not NAME.fullmatch(embodiment) or embodiment in self.sets:
            raise KineflowError(
                f"embodiment {embodiment!r} is {'there already' if embodiment in self.sets else 'no file name'}; "
                "choose another name of letters, digits, _ and -"
            )
        self.sets[embodiment] = nn.ModuleDict({n: LinearAdapter(layer, self.rank) for n, layer in self._layers.items()})
        self.use(embodiment)
        return self.sets[embodiment].parameters()

    def use(self, embodiment: str | None) -> None:
        """Answer as `embodiment` from now on; None as the base."""
        self.active = "" if embodiment is None else self._known(embodiment)

    def save(self, embodiment: str, folder: Path) -> Path:
        """Write the set beside the base's checkpoint in `folder`."""
        file = folder / "adapters" / f"{self._known(embodiment)}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {n: v.detach().cpu().contiguous() for n, v in self.sets[embodiment].state_dict().items()}
        save_file(tensors, file, metadata={"base": self._base, "rank": str(self.rank)})
        return file

    def load(self, embodiment: str, folder: Path) -> None:
        """Add or replace the set that `save` wrote, and use it. Raises KineflowError for another base, rank or damage."""
        file = folder / "adapters" / f"{embodiment}.safetensors"
        try:
            tensors = load_file(file)
            with safe_open(file, "pt") as stored:
                metadata = stored.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise KineflowError(
                f"{file}: cannot be read ({error}); train adapters for '{embodiment}' or copy the file"
            ) from error
        for what, ours in (("rank", str(self.rank)), ("base", self._base)):
            if (theirs := metadata.get(what)) != ours:
                raise KineflowError(
                    f"{file}: was trained for {what} {theirs}, this network has {what} {ours}; "
                    "adapters fit no other; load the base that they were trained on"
                )
        if embodiment not in self.sets:
            self.add(embodiment)
        self.sets[embodiment].load_state_dict(tensors)
        self.use(embodiment)

    def _known(self, embodiment: str) -> str:
        if embodiment not in self.sets:
            there = ", ".join(self.sets) or "none"
            raise KineflowError(f"no adapters for embodiment '{embodiment}'; there are {there}; add or load it first")
        return embodiment

    def _adapted(self, name: str, layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self.active:
            return None  # the output as it is
        adapter = self.sets[self.active][name]  # type: ignore[index]
        return adapter(layer, inputs[0], output)  # type: ignore[no-any-return]


def _fingerprint(network: nn.Module) -> str:
    """Of all weights, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
