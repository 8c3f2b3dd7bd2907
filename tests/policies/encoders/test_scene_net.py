"""Features that know where the places of one picture are in another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.scene_net import CELLS, GRID, LOOK, MATCH, SAYS, SceneNet, SceneNetEncoder, _by_parts
from kineflow.policies.encoders.scene_words import WORDS, SceneWords
from kineflow.policies.encoders.weights import WeightsError


def features_of(match: torch.Tensor) -> torch.Tensor:
    """Cells `[144, MATCH]`, row by row, as the encoder hands them over."""
    return torch.cat([torch.zeros(1, GRID * GRID, SAYS), _by_parts(F.normalize(match, dim=-1)[None])], dim=-1)


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
    assert seen.shape == (2, 36, 182)
    matches = seen[..., SAYS:].unflatten(-1, (4, MATCH))
    torch.testing.assert_close(matches.norm(dim=-1), torch.ones(2, 36, 4))
    assert encoder(torch.randint(0, 255, (1, 48, 64, 3), dtype=torch.uint8)).shape == (1, 36, 182)
    darker = (frames.float() * 0.5).to(torch.uint8)
    assert (encoder(darker)[..., SAYS:] - seen[..., SAYS:]).abs().max() < 0.1, "brightness is not what a place is"
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
    goal = torch.stack([there, here], dim=1)  # [1, 2 frames, 36, 186]
    seconds = torch.tensor([0.0, 0.2])
    tokens = comparison(here, goal, seconds)
    assert tokens.shape == (1, 2, 16)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
    painted, moving = goal.clone(), goal.clone()
    painted[..., :SAYS] = torch.randn(1, 2, 36, SAYS)
    moving[:, 1, :, -4:] += 1.0
    torch.testing.assert_close(comparison(here, painted, seconds), tokens)
    moved = comparison(here, moving, seconds)
    torch.testing.assert_close(moved[:, 0], tokens[:, 0])
    assert not torch.allclose(moved[:, 1], tokens[:, 1])
    assert {name for name, _ in comparison.named_parameters()} == {
        "inputs.weight", "inputs.bias", "outputs.weight", "outputs.bias", "time.weight",
    }, "the frozen network is no part of what is trained here"  # fmt: skip


def test_words_are_heard_whole_and_in_any_number() -> None:
    heard = SceneWords().build()(
        ["go to the red boxes and stop", "Find the CAR next to the sofas", "no carpet, no colour: reddish", ""]
    )
    names = [{WORDS[i] for i in row.nonzero()[:, 0].tolist()} for row in heard]
    assert names == [{"red", "box"}, {"car", "sofa"}, set(), set()]


def test_parts_are_called_by_colour_and_by_kind(encoder: SceneNetEncoder) -> None:
    """By hand: a red box here, a red ball there; words that name less ask less."""
    seen = torch.zeros(1, 36, 182)
    for part, chances in {3: {"red": 0.8, "box": 0.5}, 7: {"red": 0.6, "ball": 1.0}}.items():
        for name, chance in chances.items():
            seen[0, part, LOOK + WORDS.index(name)] = chance
    hear = SceneWords().build()
    both, colour, noun, nothing = (encoder.called(seen, hear([text]))[0] for text in ("the red box", "red", "box", "go on"))
    assert both[[3, 7, 9]].tolist() == [pytest.approx([0.8, 0.4]), pytest.approx([0.6, 0.0]), [0.0, 0.0]]
    assert colour[[3, 7]].tolist() == [pytest.approx([0.8, 0.8]), pytest.approx([0.6, 0.6])]
    assert noun[[3, 7]].tolist() == [pytest.approx([1.0, 0.5]), [1.0, 0.0]]
    assert nothing.abs().max() == 0


def test_features_say_what_the_network_names(encoder: SceneNetEncoder) -> None:
    torch.manual_seed(4)
    frame = torch.randint(0, 255, (1, 96, 96, 3), dtype=torch.uint8)
    _, look = encoder.network(frame.permute(0, 3, 1, 2) / 255)
    colour, noun = (logits.softmax(dim=-1)[0, :, 1:] for logits in encoder.network.named(look))
    cells = torch.cat([look[0], colour, noun], dim=-1).reshape(6, 2, 6, 2, -1).mean(dim=(1, 3)).reshape(36, -1)
    torch.testing.assert_close(encoder(frame)[0, :, :SAYS], cells)


def test_a_policy_of_both_sees_where_the_named_thing_is(encoder: SceneNetEncoder) -> None:
    from kineflow.policies.encoders.goal_tokens import Similarity

    torch.manual_seed(5)
    similarity = Similarity(SAYS, len(WORDS), 36, 8, 24, called=encoder.called)
    words, seen = SceneWords().build()(["the red box"]), torch.zeros(1, 36, 182)
    seen[0, 3, [LOOK + WORDS.index(name) for name in ("red", "box")]] = torch.tensor([0.9, 0.5])
    there = similarity(seen, words, torch.ones(1)).detach()
    assert there.shape == (1, 1, 24)
    assert similarity.channels == 3
    assert there[0, 0, 2] == pytest.approx(0.45)
    elsewhere = similarity(seen.roll(1, dims=1), words, torch.ones(1)).detach()
    assert elsewhere[0, 0, 2] == pytest.approx(0.45)
    assert not torch.allclose(there[0, 0, 3:], elsewhere[0, 0, 3:])
    assert similarity(seen, words, torch.zeros(1)).detach()[0, 0, 2] == 0, "who was not told words hears none"
