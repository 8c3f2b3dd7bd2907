"""Windows for those who use PyTorch's DataLoader. Kineflow itself trains through `StreamLoader`, which is faster.

    DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2)                      one item a window, collated by torch
    DataLoader(dataset, batch_size=None, sampler=WindowSampler(len(dataset), 64, seed))  one item a batch, nothing to collate

Safe with any start method after windows were read in the parent: the reader keeps no open decoder or file position, a forked
worker goes on with its mappings and a spawned one opens the store again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from kineflow.contracts import Window
from kineflow.datasets.windows import WindowReader

Item = dict[str, Any]  # tensors by name; "images" is a dict of them by camera


class TorchWindowDataset(Dataset[Item]):
    """One item for each window: state float32 [T, S], action float32 [H, A], state_is_pad [T], action_is_pad [H] and images, a
    dict of uint8 [T, H, W, 3]. Indexed by an array of B windows, the same with B in front."""

    def __init__(self, reader: WindowReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: Int64[np.ndarray, "B"]) -> Item: ...

    def __getitem__(self, index: int | Int64[np.ndarray, "B"]) -> Item:
        if isinstance(index, np.ndarray) and index.ndim:
            return _tensors(self.reader.read(index))
        return self.__getitems__([int(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """All windows of a batch in one read; the items are views of it."""
        whole = _tensors(self.reader.read(np.asarray(indices, np.int64)))
        return [
            {name: {c: v[row] for c, v in value.items()} if name == "images" else value[row] for name, value in whole.items()}
            for row in range(len(indices))
        ]


def _tensors(window: Window) -> dict[str, Any]:
    fields: dict[str, Tensor] = {
        name: torch.from_numpy(getattr(window, name)) for name in ("state", "action", "state_is_pad", "action_is_pad")
    }
    return {**fields, "images": {name: torch.from_numpy(frames) for name, frames in window.images.items()}}
