"""CLIP (Radford et al. 2021) by open_clip: pictures and texts in one space, each half an encoder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.frame_encoder import FrameEncoder, TextEncoder, check_grid, check_size, pooled_tokens
from kineflow.policies.encoders.preprocessing import CLIP, Fit, Preprocessing
from kineflow.policies.encoders.torchvision_import import open_clip
from kineflow.policies.encoders.weights import RANDOM, WeightsError, weights_file

_FILES = ("open_clip_model.safetensors", "model.safetensors")
_LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@dataclass(frozen=True)
class CLIPImage:
    """Configuration. `model`: open_clip's name (those with "-quickgelu" for OpenAI's weights); `weights`: an open_clip repository
    on the hub, a .safetensors file in open_clip's names, or "random". `size` 0 is the model's own.

    `grid` 0 gives the embedding that is compared with texts, g the patches before that projection, pooled to g x g.
    """

    model: str = "ViT-B-32"
    size: int = 0
    grid: int = 0
    weights: str = _LAION
    frozen: bool = True
    fit: Fit = "stretch"

    def build(self) -> CLIPImageEncoder:
        """Raises KineflowError without open_clip, for a model that is no vision transformer, or weights that are not there."""
        settings = _settings(self.model)
        size, patch = self.size or settings["vision_cfg"]["image_size"], settings["vision_cfg"]["patch_size"]
        check_size(size, patch, f"CLIPImage {self.model}")
        check_grid(self.grid, size // patch, f"CLIPImage {self.model}")
        encoder = CLIPImageEncoder(self, size, _network(self.model, self.weights, "CLIPImage", size).visual)
        encoder.kept_elsewhere = self.weights != RANDOM
        return encoder


class CLIPImageEncoder(FrameEncoder):
    """Frames to `[N, 1, E]`, E the width of the space shared with texts, or `[N, P, D]` with the width of the transformer."""

    def __init__(self, config: CLIPImage, size: int, network: Any) -> None:
        mean, std = CLIP
        dim = network.conv1.out_channels if config.grid else network.output_dim
        super().__init__(dim, config.grid, config.frozen, Preprocessing(size, mean, std, config.fit), {"model": config.model})
        network.output_tokens = True
        self.network = network
        self._side = size // network.patch_size[0]
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        embedding, patches = self.network(pixels)
        if self.grid == 0:
            return embedding[:, None]  # type: ignore[no-any-return]
        return pooled_tokens(patches, self._side, self.grid)


@dataclass(frozen=True)
class CLIPText:
    """Configuration: the text half of `CLIPImage`; give both one `model` and one `weights`."""

    model: str = "ViT-B-32"
    weights: str = _LAION
    frozen: bool = True

    def build(self) -> CLIPTextEncoder:
        """Raises KineflowError as `CLIPImage.build`."""
        size = _settings(self.model)["vision_cfg"]["image_size"]
        network = _network(self.model, self.weights, "CLIPText", size)
        network.visual = None  # only its text half is kept
        encoder = CLIPTextEncoder(self, network, open_clip().get_tokenizer(self.model))
        encoder.kept_elsewhere = self.weights != RANDOM
        return encoder


class CLIPTextEncoder(TextEncoder):
    """Texts to `[N, E]`, not normalised; what is longer than the context (77 tokens) is cut off, as open_clip does."""

    def __init__(self, config: CLIPText, network: Any, tokenizer: Any) -> None:
        super().__init__(network.text_projection.shape[1], config.frozen, {"model": config.model})
        self.network = network
        self._tokenizer = tokenizer
        self._finish()

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        tokens: Tensor = self._tokenizer(list(texts)) if texts else torch.zeros(0, self.network.context_length, dtype=torch.long)
        return self.network.encode_text(tokens.to(self.network.text_projection.device))  # type: ignore[no-any-return]


def _settings(model: str) -> dict[str, Any]:
    """open_clip's configuration of a CLIP whose halves are a vision transformer and the text transformer of CLIP."""
    settings = open_clip().get_model_config(model)
    if settings is None:
        raise KineflowError(f"CLIP: open_clip has no model '{model}'; see open_clip.list_models(), e.g. 'ViT-B-32'")
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    if (
        "custom_text" in settings
        or "timm_model_name" in vision
        or not isinstance(vision["layers"], int)
        or "hf_model_name" in text
    ):
        raise KineflowError(f"CLIP: '{model}' is not a vision transformer with CLIP's own text transformer; take e.g. 'ViT-B-32'")
    return dict(settings)


def _network(model: str, weights: str, what: str, size: int) -> Any:
    """The whole CLIP: its file has both halves."""
    path = weights_file(weights, _FILES, what)
    library = open_clip()
    settings = _settings(model)
    network = library.CLIP(**settings | {"vision_cfg": settings["vision_cfg"] | {"image_size": size}})
    if path is not None:
        try:
            library.load_checkpoint(network, str(path))  # interpolates the positions
        except RuntimeError as error:
            raise WeightsError(f"{what}: {path} has the weights of another network than {model} ({str(error)[:200]})") from error
    return network
