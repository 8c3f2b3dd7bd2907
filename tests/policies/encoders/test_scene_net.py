"""Features that know where the places of one picture are in another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.scene_net import CELLS, GRID, LOOK, MATCH, SceneNet, SceneNetEncoder, _by_parts
from kineflow.policies.encoders.weights import WeightsError


def features_of(match: torch.Tensor) -> torch.Tensor:
    """Cells `[144, MATCH]`, row by row, as the encoder hands them over."""
    return torch.cat([torch.zeros(1, GRID * GRID, LOOK), _by_parts(F.normalize(match, dim=-1)[None])], dim=-1)


@pytest.fixture(scope="module")
def encoder() -> SceneNetEncoder:
    torch.manual_seed(0)
    made = SceneNet("random").build()
    made.network.sharpness.data.fill_(5.0)
    made.network.nowhere.data.fill_(120.0)
    return made


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 2), (3, 0), (2, -4)])
def test_parts_are_found_where_they_went(encoder: SceneNetEncoder, down: int, right: int) -> None:
    """A picture of cells that all differ, shifted by whole cells; what leaves it is nowhere."""
    torch.manual_seed(1)
    wide = torch.randn(3 * CELLS, 3 * CELLS, MATCH)
    before = wide[CELLS : 2 * CELLS, CELLS : 2 * CELLS]
    after = wide[CELLS - down : 2 * CELLS - down, CELLS - right : 2 * CELLS - right]
    went = encoder.moved(features_of(before.flatten(0, 1)), features_of(after.flatten(0, 1)))[0].unflatten(0, (GRID, GRID))
    rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    stays = ((rows + down >= 0) & (rows + down < CELLS) & (columns + right >= 0) & (columns + right < CELLS)).float()
    share = F.avg_pool2d(stays[None, None], 2)[0, 0]
    torch.testing.assert_close(went[..., 2], share, atol=0.02, rtol=0)
    torch.testing.assert_close(went[..., 0], share * right * 4 / CELLS, atol=0.02, rtol=0)
    torch.testing.assert_close(went[..., 1], share * down * 4 / CELLS, atol=0.02, rtol=0)


def test_frames_of_any_size_and_light_have_features(encoder: SceneNetEncoder) -> None:
    torch.manual_seed(2)
    frames = torch.randint(40, 200, (2, 96, 96, 3), dtype=torch.uint8)
    seen = encoder(frames)
    assert seen.shape == (2, 36, 160)
    matches = seen[..., LOOK:].unflatten(-1, (4, MATCH))
    torch.testing.assert_close(matches.norm(dim=-1), torch.ones(2, 36, 4))
    assert encoder(torch.randint(0, 255, (1, 48, 64, 3), dtype=torch.uint8)).shape == (1, 36, 160)
    darker = (frames.float() * 0.5).to(torch.uint8)
    assert (encoder(darker)[..., LOOK:] - seen[..., LOOK:]).abs().max() < 0.1, "brightness is not what a place is"
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(KineflowError, match="no file"):
        SceneNet(str(tmp_path / "none.safetensors")).build()
    save_file({"stem.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="weights of another network"):
        SceneNet(str(tmp_path / "other.safetensors")).build()


def test_a_goal_is_compared_by_where_things_went_alone(encoder: SceneNetEncoder) -> None:
    """The token of a goal frame changes with matches and with the goal's own motion, not with what anything looks like."""
    from kineflow.policies.encoders.goal_tokens import Correspondence

    torch.manual_seed(3)
    comparison = Correspondence(encoder.moved, GRID * GRID, 4, 16)
    cells = torch.randn(2, CELLS * CELLS, MATCH)
    here, there = (torch.cat([features_of(c), torch.zeros(1, 36, 4)], dim=-1) for c in cells)
    goal = torch.stack([there, here], dim=1)  # [1, 2 frames, 36, 164]
    seconds = torch.tensor([0.0, 0.2])
    tokens = comparison(here, goal, seconds)
    assert tokens.shape == (1, 2, 16)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
    painted, moving = goal.clone(), goal.clone()
    painted[..., :LOOK] = torch.randn(1, 2, 36, LOOK)
    moving[:, 1, :, -4:] += 1.0
    torch.testing.assert_close(comparison(here, painted, seconds), tokens)
    moved = comparison(here, moving, seconds)
    torch.testing.assert_close(moved[:, 0], tokens[:, 0])
    assert not torch.allclose(moved[:, 1], tokens[:, 1])
    assert {name for name, _ in comparison.named_parameters()} == {
        "inputs.weight", "inputs.bias", "outputs.weight", "outputs.bias", "time.weight",
    }, "the frozen network is no part of what is trained here"  # fmt: skip
