"""DINOv2 (Oquab et al. 2023; registers: Darcet et al. 2023): frozen features of patches, from timm's `vit_*_patch14_dinov2`.

timm interpolates the position embedding of its 37 x 37 patches to other sizes with antialiasing. The authors' code does so for
the networks with registers, and without antialiasing for the others; features differ slightly there, and we follow timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.frame_encoder import FrameEncoder, check_grid, check_size, pooled_tokens
from kineflow.policies.encoders.preprocessing import IMAGENET, Fit, Preprocessing
from kineflow.policies.encoders.torchvision_import import timm
from kineflow.policies.encoders.weights import load_weights, weights_file

PATCH = 14


@dataclass(frozen=True)
class DINOv2:
    """Configuration. `model`: timm's name; `weights`: a timm repository on the hub ("" stands for the one of `model`), a
    .safetensors file in timm's names, or "random". `grid` 0 gives the class token, g the patches pooled to g x g.
    """

    model: str = "vit_small_patch14_dinov2"
    size: int = 224
    grid: int = 0
    weights: str = ""
    frozen: bool = True
    fit: Fit = "stretch"

    def build(self) -> DINOv2Encoder:
        """Raises KineflowError without timm, for a name or size it does not have, or weights that are not there."""
        check_size(self.size, PATCH, "DINOv2")
        check_grid(self.grid, self.size // PATCH, "DINOv2")
        names = timm().list_models("vit_*_patch14*dinov2")
        if self.model not in names:
            raise KineflowError(f"DINOv2: timm has no model '{self.model}'; it has {names}")
        path = weights_file(self.weights or f"timm/{self.model}.lvd142m", ("model.safetensors",), "DINOv2")
        network = timm().create_model(self.model, pretrained=False, num_classes=0, img_size=self.size)
        if path is not None:
            from safetensors.torch import load_file
            from timm.models.vision_transformer import checkpoint_filter_fn  # interpolates the positions

            load_weights(network, checkpoint_filter_fn(load_file(path), network), str(path))
        encoder = DINOv2Encoder(self, network)
        encoder.kept_elsewhere = path is not None
        return encoder


class DINOv2Encoder(FrameEncoder):
    """Frames to `[N, P, D]`: D is 384 (small), 768 (base), 1024 (large), 1536 (giant)."""

    def __init__(self, config: DINOv2, network: Any) -> None:
        mean, std = IMAGENET
        preprocessing = Preprocessing(config.size, mean, std, config.fit)
        super().__init__(network.embed_dim, config.grid, config.frozen, preprocessing, {"model": config.model})
        self.network = network
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        tokens: Tensor = self.network.forward_features(pixels)  # class token, registers, patches
        if self.grid == 0:
            return tokens[:, :1]
        side = pixels.shape[2] // PATCH
        return pooled_tokens(tokens[:, self.network.num_prefix_tokens :], side, self.grid)
