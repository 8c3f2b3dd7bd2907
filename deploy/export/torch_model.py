"""A model of torch.export, run by torch: for machines that have it, and as a third opinion in parity checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch


class TorchModel:
    """An exported program; see `kineflow.deploy.runtimes.Model`. Threads are those of the process (`torch.set_num_threads`)."""

    def __init__(self, file: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._program = torch.export.load(file).module()
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [torch.from_numpy(np.array(inputs[name])) for name in self._inputs]
        return {name: value.numpy() for name, value in zip(self._outputs, self._program(*given))}
