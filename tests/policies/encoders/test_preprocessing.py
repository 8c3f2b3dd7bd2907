"""Preprocessing against the transforms of timm, open_clip and torchvision, on photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.preprocessing import CLIP, EFFICIENTNET_LITE, IMAGENET, Preprocessing, resized
from kineflow.policies.encoders.torchvision_import import open_clip, timm, torchvision
from tests.policies.encoders.conftest import NAMES, frames, pillow


def as_seen(picture: Image.Image, how: str) -> Image.Image:
    if how == "portrait":
        return picture.transpose(Image.Transpose.ROTATE_90)
    return picture.resize((120, 81)) if how == "small" else picture


def timms(size: int) -> Callable[[Image.Image], Any]:
    timm()
    from timm.data import create_transform, resolve_data_config

    released = timm().get_pretrained_cfg("vit_small_patch14_dinov2").to_dict()
    return create_transform(**resolve_data_config({"input_size": (3, size, size)}, pretrained_cfg=released))  # type: ignore[no-any-return]


def open_clips(size: int) -> Callable[[Image.Image], Any]:
    from importlib import import_module

    open_clip()
    return import_module("open_clip.transform").image_transform(size, is_train=False)  # type: ignore[no-any-return]


def efficientnets(size: int) -> Callable[[Image.Image], Any]:
    """The authors' evaluation (TensorFlow: crop, then resize) in the order of everybody else: resize, then crop."""
    torchvision()
    from torchvision import transforms as t

    bicubic = t.InterpolationMode.BICUBIC
    mean, std = EFFICIENTNET_LITE
    return t.Compose([t.Resize(size + 32, bicubic), t.CenterCrop(size), t.ToTensor(), t.Normalize(mean, std)])


CASES = {
    "DINOv2 98": (timms, 98, Preprocessing(98, *IMAGENET, "crop")),
    "DINOv2 224": (timms, 224, Preprocessing(224, *IMAGENET, "crop")),
    "CLIP 224": (open_clips, 224, Preprocessing(224, *CLIP, "crop")),
    "EfficientNet-Lite 224": (efficientnets, 224, Preprocessing(224, *EFFICIENTNET_LITE, "crop", share=224 / 256)),
    "EfficientNet-Lite 96": (efficientnets, 96, Preprocessing(96, *EFFICIENTNET_LITE, "crop", share=96 / 128)),
}


@pytest.mark.parametrize("how", ["landscape", "portrait", "small"])
@pytest.mark.parametrize("case", CASES)
def test_the_pixels_are_those_of_the_librarys_own_transform(case: str, how: str) -> None:
    make, size, ours = CASES[case]
    theirs = make(size)
    std = torch.tensor(ours.std)[:, None, None]
    for name in NAMES:
        picture = as_seen(pillow(name), how)
        difference = (ours(frames(picture))[0] - theirs(picture)).abs() * std * 255  # in grey levels
        # Pillow's weights have 22 bits, PyTorch's 16.
        assert difference.max() < 2.01, name
        assert (difference > 0.01).float().mean() < 0.01, name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stretching_is_pillows_resize_of_the_whole_picture(interpolation: str) -> None:
    picture = pillow("coffee")
    ours = Preprocessing(96, (0.0,) * 3, (1.0,) * 3, interpolation=interpolation)(frames(picture))[0] * 255  # type: ignore[arg-type]
    theirs = frames(picture.resize((96, 96), Image.Resampling[interpolation.upper()]))[0].permute(2, 0, 1)
    assert (ours - theirs).abs().max() < 1.01
    assert ((ours - theirs).abs() > 0.01).float().mean() < 0.01


def test_on_other_devices_pixels_differ_by_one_grey_level_at_most() -> None:
    pixels = frames(pillow("chelsea")).permute(0, 3, 1, 2)
    here, there = (resized(pixels, 96, 140, "bicubic", in_floats=where).int() for where in (False, True))
    assert (here - there).abs().max() == 1


def test_frames_of_the_right_size_are_not_resampled() -> None:
    noise = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    for fit in ("crop", "stretch"):
        ours = Preprocessing(96, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0), fit)(noise)  # type: ignore[arg-type]
        exact = (noise.double() / 255 - torch.tensor([0.5, 0.25, 0.0])) / torch.tensor([0.5, 1.0, 2.0])
        torch.testing.assert_close(ours, exact.permute(0, 3, 1, 2).float(), atol=1e-6, rtol=0)


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(KineflowError, match=r"share 1.5"):
        Preprocessing(96, *IMAGENET, share=1.5)
