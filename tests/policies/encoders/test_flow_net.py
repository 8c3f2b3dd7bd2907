"""Optical flow as an encoder: the learned one, DIS and RAFT see a known motion, and mean the same by it."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.flow_features import DenseFlow, LucasKanade, motion_of_parts
from kineflow.policies.encoders.flow_net import SIDE, FlowNet, FlowNetwork, upsampled
from kineflow.policies.encoders.flow_peers import DIS, RAFT
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.weights import WeightsError
from kineflow.policies.encoders.window_features import Looker


def textured(size: int, seed: int = 0) -> torch.Tensor:
    """Float [size, size, 3]: smooth blobs of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, cells, cells, generator=generator), size=(size, size), mode="bicubic", align_corners=False)
        for cells in (6, 12, 24, 48)
    ]
    return torch.stack(layers).sum(0)[0].sub(2.0).mul(60).add(128).clamp(0, 255).permute(1, 2, 0)


def moved(right: float, down: float, size: int = SIDE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [1, size, size, 3] twice: what is in the first is `right`, `down` px further in the second."""
    wide = np.asarray(textured(size + 80, seed))
    first = wide[40 : 40 + size, 40 : 40 + size]
    second = cv2.warpAffine(wide, np.float32([[1, 0, right], [0, 1, down]]), wide.shape[1::-1], flags=cv2.INTER_LINEAR)
    second = second[40 : 40 + size, 40 : 40 + size]
    return tuple(torch.from_numpy(np.rint(part).astype(np.uint8))[None] for part in (first, second))  # type: ignore[return-value]


def encoder(config: FlowNet | DIS | RAFT, grid: int = 4) -> DenseFlow:
    return config.build(grid)


@pytest.mark.parametrize("config", [FlowNet(), DIS()], ids=["ours", "DIS"])
@pytest.mark.parametrize(("right", "down"), [(3.0, 0.0), (-2.0, 1.5), (0.0, -3.0), (11.0, 1.0)])
def test_a_known_motion_is_seen(config: FlowNet | DIS, right: float, down: float) -> None:
    """As dense flow of the first picture; as features of the parts of the second, in twelfths of the picture."""
    before, after = moved(right, down)
    flow = encoder(config).dense(before, after)
    assert flow.shape == (1, 2, SIDE, SIDE)
    inside = flow[0, :, 24:-24, 24:-24]
    assert (inside.median(dim=1).values.median(dim=1).values - torch.tensor([right, down])).abs().max() < 0.5
    parts = encoder(config)(before, after)
    assert parts.shape == (1, 16, 4)
    middle = parts[0, [5, 6, 9, 10]].mean(dim=0)
    assert (middle[:2] * SIDE / 12 - torch.tensor([right, down])).abs().max() < 0.75
    assert (middle[2:] < 0.25).all()


def test_motion_of_parts() -> None:
    """Left half of the picture stands, the right half goes a twelfth of the width to the right: by hand."""
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0, :, 4:] = 1 / 12
    assert torch.allclose(motion_of_parts(flow, 2)[0, :, 0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    whole = motion_of_parts(flow, 0)
    assert torch.allclose(whole, torch.tensor([[[0.5, 0.0, 0.5, 0.0]]]), atol=1e-3)


def test_frames_of_other_sizes() -> None:
    """Flow is in pixels of the frames as they came, features do not depend on their size."""
    ours = encoder(FlowNet())
    before, after = moved(6.0, -4.0, size=192)
    flow = ours.dense(before, after)
    assert flow.shape == (1, 2, 192, 192)
    assert (flow[0, :, 48:-48, 48:-48].mean(dim=(1, 2)) - torch.tensor([6.0, -4.0])).abs().max() < 0.8
    small = [
        F.interpolate(x.permute(0, 3, 1, 2).float(), size=96, mode="area").byte().permute(0, 2, 3, 1) for x in (before, after)
    ]
    assert (ours(before, after)[..., :2] - ours(*small)[..., :2]).abs().max() < 0.15


def test_raft_is_in_pixels_of_the_frames() -> None:
    """Its network sees 96 x 160 px as 128 x 160: 8 px of its own down are 6."""
    raft = RAFT("random").build(4)

    class EightPixels(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor, num_flow_updates: int) -> list[torch.Tensor]:
            return [torch.full((len(first), 2, *first.shape[2:]), 8.0)]

    raft.network = EightPixels()
    frames = torch.zeros(1, 96, 160, 3, dtype=torch.uint8)
    flow = raft.dense(frames, frames)
    assert flow.shape == (1, 2, 96, 160)
    assert torch.allclose(flow.mean(dim=(0, 2, 3)), torch.tensor([8.0, 6.0]))


@pytest.mark.parametrize("config", [FlowNet(), DIS(), RAFT("random", updates=1)], ids=["ours", "DIS", "RAFT"])
def test_one_by_one_or_together(config: FlowNet | DIS | RAFT) -> None:
    """A batch gives what its pairs give alone, and an empty one nothing."""
    pairs = [moved(2.0, 1.0, seed=1), moved(-5.0, 3.0, seed=2), moved(0.5, 0.0, seed=3)]
    before, after = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    flow = encoder(config, 3)
    with torch.inference_mode():
        together = flow(before, after)
        alone = torch.cat([flow(*pair) for pair in pairs])
    assert together.shape == (3, 9, 4)
    assert torch.isfinite(together).all()
    assert (together - alone).abs().max() < 1e-3
    assert flow(before[:0], after[:0]).shape == (0, 9, 4)
    assert flow.dense(before[:0], after[:0]).shape == (0, 2, SIDE, SIDE)


def test_training_and_inference_compute_the_same() -> None:
    """With gradients convolutions take another way; so does the prior."""
    torch.manual_seed(0)
    network = FlowNetwork()
    for parameter in network.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    frames = torch.cat([*moved(2.0, 1.0), *moved(-3.0, 0.0, seed=1)]).float()
    grey, cells = network.train().encode(frames)
    trained = network.flows(grey[::2], cells[::2], grey[1::2], cells[1::2])[-1]
    trained.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())
    network.eval()
    with torch.no_grad():
        grey, cells = network.encode(frames)
        used = network.flows(grey[::2], cells[::2], grey[1::2], cells[1::2])[-1]
    assert (trained - used).abs().max() < 1e-4
    assert used.abs().max() > 0.1


def test_upsampling_is_bilinear() -> None:
    flow = torch.randn(2, 144, 2)
    maps = flow.transpose(1, 2).reshape(2, 2, 12, 12)
    expected = 8 * F.interpolate(maps, size=96, mode="bilinear", align_corners=False)
    assert torch.allclose(upsampled(flow, 96), expected, atol=1e-5)
    assert torch.allclose(upsampled(flow, 96, every=2), expected[:, :, ::2, ::2], atol=1e-5)


def test_frozen_in_a_policy(tmp_path: Path) -> None:
    flow = FlowNet().build(4)
    assert not any(parameter.requires_grad for parameter in flow.parameters())
    assert not flow.train().network.training
    assert sum(parameter.numel() for parameter in flow.parameters()) < 50_000


def test_new_weights_are_seen() -> None:
    """Also by what was recorded of a single pair, and by what a copy recorded."""
    before, after = moved(3.0, 0.0)
    flow = FlowNet("random").build(4)
    untrained = flow(before, after)
    copied = copy.deepcopy(flow)
    flow.network.load_state_dict(FlowNet().build(4).network.state_dict())
    trained = FlowNet().build(4)(before, after)
    assert torch.allclose(flow(before, after), trained, atol=1e-5)
    assert torch.equal(copied(before, after), untrained)
    assert (trained - untrained).abs().max() > 0.05


def test_the_cache_knows_the_weights() -> None:
    """Features are kept under a key that other weights change, and nothing else does."""
    shipped, again, other = (FlowNet(name).build(4) for name in ("shipped", "shipped", "random"))
    assert shipped.fingerprint() == again.fingerprint()
    other.config = shipped.config
    assert shipped.fingerprint() != other.fingerprint()
    keys = [Looker.of(GoalVision(frames=Colours(grid=4), flow=flow)) for flow in (FlowNet(), DIS(), DIS("fast"), LucasKanade())]
    assert len({looker.fingerprint for looker in keys if looker}) == 4


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match="12 x 12 cells; the grid 13"):
        FlowNet().build(13)
    with pytest.raises(WeightsError, match="no file"):
        FlowNet(str(tmp_path / "none.safetensors")).build(4)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(KineflowError, match="kineflow train-flow"):
        FlowNet(str(tmp_path / "text.safetensors")).build(4)
    with pytest.raises(KineflowError, match="convert torchvision's"):
        RAFT("raft_small").build(4)
