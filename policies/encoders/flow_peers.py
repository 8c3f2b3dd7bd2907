"""Other ways to see motion, behind the same interface: DIS of OpenCV, without weights, and RAFT of torchvision, with many.

DIS    patches aligned coarse to fine, then a variational refinement (Kroeger et al. 2016); grey levels; frame by frame
RAFT   all pairs of features, refined again and again by a recurrent network (Teed & Deng 2020); slow without a GPU
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.extras import require
from kineflow.policies.encoders.flow_features import DenseFlow
from kineflow.policies.encoders.torchvision_import import torchvision
from kineflow.policies.encoders.weights import RANDOM, load_weights, weights_file

PRESETS = ("ultrafast", "fast", "medium")
_RAFT_MULTIPLE, _RAFT_LEAST = 8, 128  # px: it divides a picture by 8 and halves that three times


@dataclass(frozen=True)
class DIS:
    """Configuration. `preset`: how finely and how often it aligns (OpenCV's)."""

    preset: Literal["ultrafast", "fast", "medium"] = "medium"

    def build(self, grid: int) -> DISFlow:
        """Raises KineflowError without OpenCV."""
        return DISFlow(self, grid)


class DISFlow(DenseFlow):
    """Computed on the processor, wherever the frames are."""

    def __init__(self, config: DIS, grid: int) -> None:
        super().__init__(grid)
        self.config, self._cv2 = config, require("cv2", "for the optical flow DIS")
        self._flow = self._cv2.DISOpticalFlow_create(PRESETS.index(config.preset))

    def __deepcopy__(self, memo: dict[int, Any]) -> DISFlow:
        return DISFlow(self.config, self.grid)  # OpenCV's object cannot be copied

    def dense(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 2 H W"]:
        first, second = (frames.cpu().numpy() for frames in (before, after))
        flows = [self._flow.calc(self._grey(a), self._grey(b), None) for a, b in zip(first, second)]
        stacked = np.stack(flows) if flows else np.zeros((0, *before.shape[1:3], 2), np.float32)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(before.device)

    def _grey(self, frame: np.ndarray) -> np.ndarray:
        return np.asarray(self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2GRAY))


@dataclass(frozen=True)
class RAFT:
    """Configuration. `weights`: "random" (its cost, not its flow) or a .safetensors file of torchvision's state dict.

    Smaller frames are enlarged to 128 px, which is the least that it takes.
    """

    weights: str
    size: Literal["small", "large"] = "small"
    updates: int = 12

    def build(self, grid: int) -> RAFTFlow:
        """Raises KineflowError: no such weights, or torchvision is not installed."""
        if self.updates < 1:
            raise KineflowError(f"RAFT.updates is {self.updates}; it must be at least 1")
        return RAFTFlow(self, grid, self._file())

    def _file(self) -> Path | None:
        if self.weights != RANDOM and not Path(self.weights).expanduser().is_file() and not self.weights.endswith(".safetensors"):
            name = f"raft_{self.size}"
            raise KineflowError(
                f"RAFT: no file {self.weights}; convert torchvision's where there is a network: python -c "
                f'"import safetensors.torch as s; from torchvision.models.optical_flow import {name} as m; '
                f"s.save_file(m(weights='DEFAULT').state_dict(), '{name}.safetensors')\"; and name that file"
            )
        return weights_file(self.weights, (), "RAFT")


class RAFTFlow(DenseFlow):
    """torchvision's network, frozen."""

    def __init__(self, config: RAFT, grid: int, path: Path | None) -> None:
        super().__init__(grid)
        self.config = config
        torchvision()
        from torchvision.models import optical_flow

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same ones each time
            self.network = getattr(optical_flow, f"raft_{config.size}")(weights=None)
        if path is not None:
            from safetensors.torch import load_file

            load_weights(self.network, load_file(path), str(path))
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> RAFTFlow:
        """Frozen: stays in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def dense(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 2 H W"]:
        height, width = before.shape[1:3]
        if len(before) == 0:
            return torch.zeros(0, 2, height, width, device=before.device)
        size = [max(-(-side // _RAFT_MULTIPLE) * _RAFT_MULTIPLE, _RAFT_LEAST) for side in (height, width)]
        first, second = (self._fitted(frames, size) for frames in (before, after))
        flow = self.network(first, second, num_flow_updates=self.config.updates)[-1]
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([width / size[1], height / size[0]])[:, None, None]

    def _fitted(self, frames: UInt8[Tensor, "N H W 3"], size: list[int]) -> Float[Tensor, "N 3 H2 W2"]:
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
