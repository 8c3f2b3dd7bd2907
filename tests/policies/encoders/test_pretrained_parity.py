"""DINOv2 and CLIP against timm and open_clip themselves: the same random weights, through a file, must give the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.clip import CLIPImage, CLIPText
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.torchvision_import import open_clip, timm
from kineflow.policies.encoders.weights import WeightsError
from tests.policies.encoders.conftest import frames, pillow

TEXTS = ["go to the red chair", "", "word " * 100]
CLIP_MODEL = "ViT-S-32"


def scramble(network: nn.Module) -> nn.Module:
    """Large random weights: as initialised, a layer scale of 1e-5 would hide what the blocks do."""
    torch.manual_seed(0)
    for value in network.parameters():
        nn.init.normal_(value, std=1.0 if value.ndim < 2 else 2 / value.shape[-1] ** 0.5)
    return network.eval()


@pytest.fixture(scope="module", params=["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def dinov2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, str]:
    """Name, timm's network for any size (its own is 518), and its weights in a file."""
    network = scramble(timm().create_model(request.param, pretrained=False, num_classes=0, dynamic_img_size=True, depth=4))
    path = tmp_path_factory.mktemp("dinov2") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return request.param, network, str(path)


@pytest.mark.parametrize("size", [98, 224])
def test_dinov2_tokens_are_timms(dinov2: tuple[str, Any, str], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, reference, path = dinov2
    shallow = timm().create_model
    monkeypatch.setattr(timm(), "create_model", lambda *a, **k: shallow(*a, **k, depth=4))  # the same blocks, fewer of them
    picture = frames(pillow("chelsea"))
    whole = DINOv2(name, size, grid=size // 14, weights=path).build()
    pixels = whole.preprocessing(picture)
    with torch.no_grad():
        theirs = reference.forward_features(pixels)
    prefix = theirs.shape[1] - (size // 14) ** 2
    assert prefix == (5 if "reg4" in name else 1)
    torch.testing.assert_close(whole(picture), theirs[:, prefix:], atol=2e-4, rtol=1e-4)
    whole.grid = 0
    torch.testing.assert_close(whole(picture), theirs[:, :1], atol=2e-4, rtol=1e-4)
    whole.grid = size // 98
    side = size // 14
    cells = theirs[:, prefix:].unflatten(1, (whole.grid, side // whole.grid, whole.grid, side // whole.grid))
    torch.testing.assert_close(whole(picture), cells.mean((2, 4)).flatten(1, 2), atol=2e-4, rtol=1e-4)


def test_dinov2_weights_of_another_network_are_refused(dinov2: tuple[str, Any, str], tmp_path: Path) -> None:
    name, _, path = dinov2
    with pytest.raises(WeightsError, match=r"lacks \['blocks.*another network"):  # 4 of 12 blocks
        DINOv2(name, 98, weights=path).build()
    with pytest.raises(KineflowError, match=r"no model 'vit_tiny"):
        DINOv2("vit_tiny", weights="random").build()
    with pytest.raises(KineflowError, match=r"size 96 is not a multiple of 14 px; take 98"):
        DINOv2(size=96, weights="random").build()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str]:
    """open_clip's network and transform, and its weights in a file."""
    network, _, transform = open_clip().create_model_and_transforms(CLIP_MODEL, pretrained=None)
    scramble(network)
    path = tmp_path_factory.mktemp("clip") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return network, transform, str(path)


def test_clip_image_embedding_is_open_clips_from_the_picture_on(clip: tuple[Any, Any, str]) -> None:
    network, transform, path = clip
    pictures = [pillow("chelsea"), pillow("rocket").resize((300, 199))]
    ours = CLIPImage(CLIP_MODEL, weights=path, fit="crop").build()
    with torch.no_grad():
        theirs = torch.cat([network.encode_image(transform(picture)[None]) for picture in pictures])
        pixels = torch.cat([ours.preprocessing(frames(picture)) for picture in pictures])
        exact = network.encode_image(pixels)
    torch.testing.assert_close(ours.features(pixels)[:, 0], exact, atol=1e-4, rtol=1e-4)
    whole = torch.cat([ours(frames(picture)) for picture in pictures])[:, 0]
    # What a grey level more or less in one pixel of a hundred makes.
    assert torch.nn.functional.cosine_similarity(whole, theirs).min() > 0.999
    patches = CLIPImage(CLIP_MODEL, grid=7, weights=path, fit="crop").build()
    network.visual.output_tokens = True
    with torch.no_grad():
        _, tokens = network.visual(pixels)
    network.visual.output_tokens = False
    torch.testing.assert_close(patches.features(pixels), tokens, atol=1e-4, rtol=1e-4)


def test_clip_at_another_size_interpolates_positions_as_open_clip_does(clip: tuple[Any, Any, str]) -> None:
    *_, path = clip
    ours = CLIPImage(CLIP_MODEL, size=96, grid=3, weights=path).build()
    reference = open_clip().create_model(CLIP_MODEL, pretrained=path, force_image_size=96).eval()
    reference.visual.output_tokens = True
    pixels = ours.preprocessing(frames(pillow("coffee")))
    with torch.no_grad():
        torch.testing.assert_close(ours.features(pixels), reference.visual(pixels)[1], atol=1e-4, rtol=1e-4)


def test_clip_text_embedding_is_open_clips(clip: tuple[Any, Any, str]) -> None:
    network, _, path = clip
    ours = CLIPText(CLIP_MODEL, path).build()
    with torch.no_grad():
        theirs = network.encode_text(open_clip().get_tokenizer(CLIP_MODEL)(TEXTS))
    torch.testing.assert_close(ours(TEXTS), theirs, atol=1e-4, rtol=1e-4)
    assert ours.dim == theirs.shape[1]
    assert ours([]).shape == (0, ours.dim)
    assert not any(name.startswith("network.visual") for name in ours.state_dict())


@pytest.mark.parametrize(
    ("model", "message"), [("ViT-Z-9", "no model"), ("RN50", "not a vision"), ("ViT-B-16-SigLIP", "not a vision")]
)
def test_clip_models_without_the_two_transformers_are_refused(model: str, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        CLIPImage(model, weights="random").build()


def test_clip_weights_of_another_network_are_refused(clip: tuple[Any, Any, str]) -> None:
    with pytest.raises(WeightsError, match="another network than ViT-S-16"):
        CLIPImage("ViT-S-16", weights=clip[2]).build()
