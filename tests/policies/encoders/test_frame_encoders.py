"""What all frame encoders share: shapes, frozen weights, fingerprints, grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.clip import CLIPImage
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.efficientnet_lite import EfficientNetLite
from kineflow.policies.encoders.frame_encoder import FrameEncoder, FrameEncoderConfig, pooled
from kineflow.policies.encoders.resnet_gn import ResNetGN
from kineflow.policies.encoders.small_vit import SmallViT

LITE = EfficientNetLite(96, weights="random")
CONFIGS: dict[str, tuple[FrameEncoderConfig, int, int]] = {
    "DINOv2": (DINOv2(size=28, grid=2, weights="random"), 4, 384),
    "CLIP": (CLIPImage("ViT-S-32", size=64, weights="random"), 1, 384),
    "EfficientNetLite": (LITE, 1, 1280),
    "EfficientNetLite, stride 8": (replace(LITE, stride=8, grid=6), 36, 40),
    "SmallViT": (SmallViT(48, grid=3, width=64, depth=1, heads=2), 9, 64),
    "SmallViT, one token": (SmallViT(48, width=64, depth=1, heads=2), 1, 64),
    "ResNetGN": (ResNetGN(64, grid=2, width=8), 4, 64),
}


@pytest.fixture(scope="module")
def built() -> dict[str, FrameEncoder]:
    torch.manual_seed(0)
    return {name: config.build() for name, (config, *_) in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_frames_of_any_size_become_tokens(built: dict[str, FrameEncoder], name: str) -> None:
    encoder, (_, tokens, dim) = built[name], CONFIGS[name]
    assert (encoder.tokens, encoder.dim) == (tokens, dim)
    frames = torch.randint(0, 256, (3, 60, 80, 3), dtype=torch.uint8)
    features = encoder(frames)
    assert features.shape == (3, tokens, dim)
    assert torch.isfinite(features).all()
    with torch.no_grad():  # a frame's features do not depend on its neighbours in the batch
        torch.testing.assert_close(encoder(frames[1:2])[0], features[1], atol=1e-4, rtol=1e-3)
    assert encoder(frames[:0]).shape == (0, tokens, dim)


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_ones_stay_as_they_are_and_others_learn(built: dict[str, FrameEncoder], name: str) -> None:
    encoder = built[name]
    is_trained = name.startswith(("SmallViT", "ResNetGN"))
    encoder.train()
    assert encoder.frozen != is_trained
    assert encoder.training == is_trained
    assert all(module.training == is_trained for module in encoder.modules())
    features = encoder(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    assert features.requires_grad == is_trained
    if is_trained:
        (features * torch.randn_like(features)).sum().backward()
        moved = [value.grad is not None and bool(value.grad.any()) for value in encoder.parameters()]
        assert sum(moved) > 0.6 * len(moved)  # what begins as zero hides what is before it


def test_a_fingerprint_is_of_what_is_computed_and_of_nothing_else(built: dict[str, FrameEncoder]) -> None:
    torch.manual_seed(0)
    encoder = LITE.build()
    same = LITE.build()
    same.load_state_dict(encoder.state_dict())
    assert encoder.fingerprint() == same.fingerprint()
    assert len(encoder.fingerprint()) == 64
    others = {"stretched": encoder.fingerprint()}
    for name, config in (
        ("cropped", replace(LITE, fit="crop")),
        ("coarser", replace(LITE, size=64)),
        ("grid", replace(LITE, grid=3)),
    ):
        other = config.build()
        other.load_state_dict(encoder.state_dict())
        others[name] = other.fingerprint()
    with torch.no_grad():
        next(same.parameters()).view(-1)[0].add_(1e-6)
    others["other weights"] = same.fingerprint()
    others |= {name: value.fingerprint() for name, value in built.items()}
    assert len(set(others.values())) == len(others)


def test_cells_are_pooled_row_by_row() -> None:
    cells = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pooled(cells, 4).flatten().tolist() == list(range(16))
    assert pooled(cells, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(cells, 0).flatten().tolist() == [7.5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SmallViT(100), "size 100 is not a multiple of 16 px; take 96"),
        (SmallViT(96, grid=7), r"grid 7 is not in 0 .. 6"),
        (SmallViT(width=100), "width 100"),
        (ResNetGN(width=12), "width 12 is not a multiple of 8"),
        (ResNetGN(96, grid=4), r"grid 4 is not in 0 .. 3"),
        (CLIPImage("ViT-B-32", size=100, weights="random"), "size 100 is not a multiple of 32"),
        (DINOv2(size=98, grid=8, weights="random"), r"grid 8 is not in 0 .. 7"),
    ],
)
def test_what_cannot_be_built_is_refused(config: FrameEncoderConfig, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        config.build()
