"""GoalVision: what each token holds, that a goal not given is not seen, and that pictures and their features are one input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kineflow.contracts import CameraSpec, GoalSpec, KineflowError, VectorSpec
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.flow_features import LucasKanade
from kineflow.policies.encoders.goal import GoalVision, GoalVisionEncoder, OtherFeatures
from kineflow.policies.encoders.goal_tokens import Comparison, FrameTokens, Mixing, Similarity, TemporalPooling, as_waves
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.observed import Observed

SIZE, T, G = 16, 2, 3
BODIES = ("wheeled", "drone", "humanoid")
SPEC = VectorSpec(
    (*BODIES, "vx", "yaw_rate"), ("", "", "", "m/s", "rad/s"), "base", (0.0,) * 3 + (-2.0,) * 2, (1.0,) * 3 + (2.0,) * 2
)
CAMERAS = {"front": CameraSpec(SIZE, SIZE, 10.0)}
GOALS = {
    "image": GoalSpec("image", SIZE, SIZE),
    "video": GoalSpec("video", SIZE, SIZE, G, 4.0),
    "words": GoalSpec("instruction"),
}
SMALL = GoalVision(
    frames=Colours(size=8, grid=2),
    text=HashedWords(16),
    flow=LucasKanade(size=8),
    embodiments=BODIES,
    token=32,
    queries=2,
    attention_heads=2,
    matching=4,
    depth=1,
    state=State(width=16, depth=1, token=32),
)


def build(config: GoalVision = SMALL, goals: dict[str, GoalSpec] = GOALS) -> GoalVisionEncoder:
    """As if trained for a while: layers that are zero at initialisation have some size. In evaluation mode."""
    torch.manual_seed(0)
    encoder = config.build(SPEC, T, CAMERAS, goals)
    for parameter in encoder.parameters():
        if parameter.numel() and parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def seen(rows: int = 3, seed: int = 0, given: dict[str, list[bool]] | None = None) -> Observed:
    generator = torch.Generator().manual_seed(seed)

    def frames(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (rows, *shape, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)

    state = torch.randn(rows, T, 5, generator=generator)
    state[..., :3] = F.one_hot(torch.arange(rows) % 3, 3)[:, None].float()
    told = {name: torch.tensor((given or {}).get(name, [True] * rows)) for name in GOALS}
    words = tuple(("go to the red door", "stop at the sofa", "find the lamp")[row % 3] for row in range(rows))
    return Observed(state, {"front": frames(T)}, {"image": frames(), "video": frames(G)}, told, words)


def test_layout_covers_all_tokens_once() -> None:
    encoder = build()
    counts = {part: where.stop - where.start for part, where in encoder.layout.items()}
    assert counts == {
        "embodiment": 1,
        "similarity": 1,
        "state": 1,
        "camera_front": 4 + T - 1,
        "goal_image": 2 + 1,
        "goal_video": 2 + G,
        "goal_words": 1,
    }
    covered = [i for where in encoder.layout.values() for i in range(where.start, where.stop)]
    assert covered == list(range(encoder.token_shape[0]))
    assert encoder(seen()).shape == (3, *encoder.token_shape)
    assert encoder(seen()).dtype == torch.float32


def test_token_0_is_the_robot_and_nothing_else() -> None:
    """It stays when guidance hides the rest, so nothing of goal or pictures may leak into it; the one-hot is exact."""
    encoder = build()
    tokens, other = encoder(seen(seed=0)), encoder(seen(seed=1))
    assert torch.equal(tokens[:, 0, :3], torch.eye(3))
    assert torch.equal(tokens[:, 0], other[:, 0])
    assert (tokens[:, 1:] - other[:, 1:]).abs().amax(dim=(0, 2)).min() > 1e-3  # every other token does see something
    assert encoder.kept_tokens == 1


def with_goal(observed: Observed, name: str, value: torch.Tensor) -> Observed:
    return replace(observed, goals={**observed.goals, name: value})


CHANGES: dict[str, Callable[[Observed], Observed]] = {
    "live frame": lambda o: replace(
        o, images={"front": torch.cat([o.images["front"][:, :-1], 255 - o.images["front"][:, -1:]], 1)}
    ),
    "earlier frame": lambda o: replace(
        o, images={"front": torch.cat([255 - o.images["front"][:, :1], o.images["front"][:, 1:]], 1)}
    ),
    "velocity": lambda o: replace(o, state=torch.cat([o.state[..., :3], o.state[..., 3:] + 1], -1)),
    "robot": lambda o: replace(o, state=torch.cat([o.state[..., :3].roll(1, -1), o.state[..., 3:]], -1)),
    "goal image": lambda o: with_goal(o, "image", 255 - o.goals["image"]),
    "goal video": lambda o: with_goal(o, "video", 255 - o.goals["video"]),
    "order of the video": lambda o: with_goal(o, "video", o.goals["video"].flip(1)),
    "words": lambda o: replace(o, instruction=("find the lamp", "go to the red door", "stop at the sofa")),
}
READS = {  # where, without mixing, each change must and must not be seen
    "live frame": {"similarity", "camera_front", "goal_image", "goal_video"},
    "earlier frame": {"camera_front"},
    "velocity": {"state"},
    "robot": {"embodiment"},
    "goal image": {"goal_image"},
    "goal video": {"goal_video"},
    "order of the video": {"goal_video"},
    "words": {"similarity", "goal_words"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_input_is_seen_where_it_belongs(what: str) -> None:
    encoder = build(replace(SMALL, depth=0))
    before, after = encoder(seen()), encoder(CHANGES[what](seen()))
    moved = {part for part, where in encoder.layout.items() if (before - after)[:, where].abs().max() > 1e-4}
    assert moved == READS[what]


def test_mixing_lets_every_token_see_every_other_but_keeps_the_plain_ones() -> None:
    torch.manual_seed(0)
    mixing = Mixing(16, 2, kept=2)
    tokens = torch.randn(2, 6, 16)
    assert torch.equal(mixing(tokens), tokens)  # the identity at first
    torch.nn.init.normal_(mixing.out.weight)
    changed = tokens.clone()
    changed[:, 0] += 1
    moved = (mixing(changed) - mixing(tokens)).abs().amax(dim=(0, 2))
    assert moved[2:].min() > 1e-3
    assert torch.equal(mixing(changed)[:, :2], changed[:, :2])


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)), ids=str)
def test_what_is_not_given_is_not_seen(given: tuple[bool, ...]) -> None:
    """Row 1 is told some of the goals, rows 0 and 2 all: contents of the others change nothing in row 1, and all in row 0."""
    encoder, names = build(), list(GOALS)
    told = {name: [True, is_given, True] for name, is_given in zip(names, given)}
    observed = seen(given=told)
    base = encoder(observed)
    for name, is_given, what in zip(names, given, ("goal image", "goal video", "words")):
        moved = (encoder(CHANGES[what](observed)) - base).abs().amax(dim=(1, 2))
        assert moved[0] > 1e-3, name
        assert (moved[1] > 1e-3) == is_given, name
        assert is_given or moved[1] == 0, name


def test_nobody_told_is_the_same_as_no_such_goal_in_the_batch() -> None:
    encoder = build()
    nobody = seen(given={"image": [False] * 3, "video": [False] * 3})
    absent = replace(nobody, goals={}, given={"words": nobody.given["words"]})
    assert torch.equal(encoder(nobody), encoder(absent))


def test_rows_are_independent() -> None:
    encoder, told = build(), {"image": [True, False, True], "video": [False, True, True], "words": [True, True, False]}
    together = seen(given=told)
    for row in range(3):
        alone = Observed(
            together.state[row : row + 1],
            {"front": together.images["front"][row : row + 1]},
            {name: value[row : row + 1] for name, value in together.goals.items()},
            {name: value[row : row + 1] for name, value in together.given.items()},
            together.instruction[row : row + 1],
        )
        torch.testing.assert_close(encoder(together)[row : row + 1], encoder(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flow", [LucasKanade(size=8), None], ids=["flow", "no flow"])
def test_features_are_the_same_input_as_their_frames(flow: LucasKanade | None) -> None:
    encoder, frames = build(replace(SMALL, flow=flow)), seen()
    half = {name: encoder.features(value if value.ndim == 5 else value[:, None]).half() for name, value in frames.goals.items()}
    half["image"] = half["image"][:, 0]
    known = Observed(
        frames.state, {"front": encoder.features(frames.images["front"]).half()}, half, frames.given, frames.instruction
    )
    assert known.goals["video"].shape == (3, G, 4, 7 + 2 * bool(flow))
    torch.testing.assert_close(encoder(known), encoder(frames), rtol=5e-3, atol=5e-3)
    with pytest.raises(KineflowError, match="compute them again"):
        encoder(replace(known, images={"front": known.images["front"][..., :-1]}))


def test_flow_of_the_first_frame_is_not_known() -> None:
    """A cache knows what came before the window; frames alone do not. Both must look the same."""
    encoder, features = build(), torch.ones(2, G, 4, 9, dtype=torch.float16)
    assert torch.equal(encoder.features(features)[:, 0, :, 7:], torch.zeros(2, 4, 2))
    assert torch.equal(encoder.features(features)[:, 1:], features[:, 1:].float())
    assert torch.equal(encoder.features(seen().goals["video"])[:, 0, :, 7:], torch.zeros(3, 4, 2))
    assert encoder.features(seen().goals["video"])[:, 1:, :, 7:].abs().min() > 0


def test_lucas_kanade_measures_a_known_motion() -> None:
    """A wave moved by (0.5, -0.25) px; where there is no texture there is no motion."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def picture(dx: float, dy: float) -> torch.Tensor:
        wave = 0.5 + 0.2 * torch.sin((x - dx) / 3) + 0.2 * torch.cos((y - dy) / 4)
        return (255 * wave).round().to(torch.uint8)[None, ..., None].expand(-1, -1, -1, 3)

    flow = LucasKanade(size=32, damping=1e-6).build(2)
    torch.testing.assert_close(
        flow(picture(0, 0), picture(0.5, -0.25)), torch.tensor([0.5, -0.25]).expand(1, 4, 2), rtol=0, atol=0.05
    )
    grey = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    assert torch.equal(flow(grey, grey), torch.zeros(1, 4, 2))


def test_goal_dropout_hides_some_but_never_all() -> None:
    encoder = build(replace(SMALL, goal_dropout=0.5)).train()
    rows = 600
    told = {
        "image": [True] * rows,
        "video": [row % 2 == 0 for row in range(rows)],
        "words": [row % 3 == 0 for row in range(rows)],
    }
    observed = seen(rows, given=told)
    given = torch.stack([observed.given[name] for name in sorted(GOALS)], 1)
    shown = encoder._told(observed)
    kept = torch.stack([shown[name] for name in sorted(GOALS)], 1)
    assert not (kept & ~given).any()
    assert kept.any(dim=1).all()
    assert torch.equal(kept[given.sum(1) == 1], given[given.sum(1) == 1])
    # Of two goals each stays with probability 1/2: both with 1/4, otherwise one.
    two = given.sum(1) == 2
    assert kept[two].sum(1).float().mean().item() == pytest.approx(1.25, abs=0.1)
    assert all(torch.equal(rows, observed.given[name]) for name, rows in encoder.eval()._told(observed).items())


def test_the_one_goal_that_is_left_is_drawn_by_its_odds() -> None:
    encoder = build(replace(SMALL, goal_dropout=1.0, goal_odds={"words": 3.0})).train()
    rows = 2000
    told = {"image": [True] * rows, "video": [False] * rows, "words": [row % 2 == 0 for row in range(rows)]}
    shown = encoder._told(seen(rows, given=told))
    assert torch.equal(shown["image"].int() + shown["words"].int(), torch.ones(rows, dtype=torch.int32))
    assert shown["words"][::2].float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert not shown["words"][1::2].any()
    with pytest.raises(KineflowError, match="odds of 'words' are 0"):
        replace(SMALL, goal_odds={"words": 0.0})
    with pytest.raises(KineflowError, match="goal_odds names 'sound'"):
        build(replace(SMALL, goal_odds={"sound": 2.0}))


def test_some_rows_are_told_that_they_rest() -> None:
    encoder, rows = build(replace(SMALL, state_dropout=0.4)).train(), 500
    observed = seen(rows)
    told = encoder._at_rest(observed).state
    body = [i for i in range(told.shape[-1]) if i in encoder.body]
    rests = (told[..., [i for i in range(told.shape[-1]) if i not in body]] == 0).flatten(1).all(dim=1)
    assert rests.float().mean().item() == pytest.approx(0.4, abs=0.07)
    assert torch.equal(told[..., body], observed.state[..., body])
    assert torch.equal(told[~rests], observed.state[~rests])
    assert encoder.eval()._at_rest(observed) is observed
    with pytest.raises(KineflowError, match=r"state_dropout is 1[.]5"):
        replace(SMALL, state_dropout=1.5)


def test_comparison_knows_a_shift_whatever_moved() -> None:
    """Untrained: the cosines of a scene and the same scene one part to the right are those of any other scene, shifted."""
    torch.manual_seed(0)
    compare = Comparison(dim=64, cells=4, matching=64, width=8)
    torch.nn.init.eye_(compare.look.weight)
    torch.nn.init.zeros_(compare.look.bias)
    compare.inputs.weight.data[:, 16:] = 0  # cosines alone
    parts = torch.linalg.qr(torch.randn(2, 64, 64))[0][:, :4]  # two scenes of parts that have nothing in common
    still, moved = compare(parts, parts[:, None], torch.zeros(1)), compare(parts, parts[:, None].roll(1, 2), torch.zeros(1))
    torch.testing.assert_close(still[0], still[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)
    assert (still - moved).abs().max() > 1e-2


def test_similarity_says_cosines() -> None:
    torch.manual_seed(0)
    module, live, words = Similarity(8, 8, 4, 4, 16, joint=True), torch.randn(3, 4, 8), torch.randn(3, 8)
    told = torch.tensor([1.0, 1.0, 0.0])
    token = module(live, words, told)
    assert token.shape == (3, 1, 16)
    expected = F.cosine_similarity(live.mean(1), words, dim=-1)
    torch.testing.assert_close(token[:2, 0, 2], expected[:2])
    assert (token[:, 0, :2].abs() <= 1).all()
    assert (token[:, 0, 0] >= token[:, 0, 1]).all()  # best part, average part
    assert torch.equal(token[2, 0, :3], torch.zeros(3))  # not told: not similar, whatever the words
    assert torch.equal(module(live, 1 - words, told)[2], token[2])


def test_pooling_is_an_average_over_time() -> None:
    """Of equal frames it gives what it gives of one, and it cannot tell their order by itself (their times do)."""
    torch.manual_seed(0)
    pooling, tokens, same, nothing = TemporalPooling(16, 2, 3), torch.randn(2, 5, 16), torch.eye(16), torch.zeros(20, 16)
    once = pooling(tokens, same, nothing[:5])
    torch.testing.assert_close(pooling(tokens.repeat(1, 4, 1), same, nothing), once, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooling(tokens.flip(1), same, nothing[:5]), once, rtol=1e-4, atol=1e-5)
    waves = as_waves(torch.arange(16) / 4)
    assert (torch.cdist(waves, waves) + torch.eye(16)).min() > 0.1  # 16 frames at 4 Hz are told apart


def test_pooling_is_attention_to_the_tokens() -> None:
    """The same numbers, and gradients, as tokens that are written down, keys and values of each, and a fused kernel."""
    torch.manual_seed(0)
    pooling, parts = TemporalPooling(16, 2, 3), torch.randn(4, 7, 10, requires_grad=True)
    matrix, offsets = torch.randn(16, 10, requires_grad=True), torch.randn(7, 16, requires_grad=True)
    tokens = parts @ matrix.T + offsets
    key, value = pooling.key_value(tokens).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
    query = pooling.queries.unflatten(-1, (2, 8)).transpose(0, 1).expand(4, -1, -1, -1)
    expected = pooling.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    answer = pooling(parts, matrix, offsets)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    known = (parts, matrix, offsets, pooling.queries, pooling.key_value.weight, pooling.key_value.bias)
    found = torch.autograd.grad(answer.square().sum(), known)
    for mine, theirs in zip(found, torch.autograd.grad(expected.square().sum(), known)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("flow", [0, 2])
def test_tokens_are_linear_in_their_parts(flow: int) -> None:
    torch.manual_seed(0)
    layer, features, offsets_s = FrameTokens(5, flow, 4, 16), torch.randn(2, 3, 4, 5 + flow), torch.tensor([0.0, 0.5, 1.0])
    tokens = layer.look(F.rms_norm(features[..., :5], (5,))) + layer.place + layer.time(as_waves(offsets_s))[:, None]
    if layer.motion is not None:
        tokens = tokens + layer.motion(features[..., 5:])
    torch.testing.assert_close(layer(features, offsets_s), tokens, rtol=1e-4, atol=1e-5)


def test_comparison_is_one_layer_of_cosines_and_looks() -> None:
    torch.manual_seed(0)
    layer, live, goal = Comparison(5, 4, 3, 16), torch.randn(2, 4, 5), torch.randn(2, 6, 4, 5)
    here, there = (F.normalize(layer.look(F.rms_norm(x, (5,))), dim=-1) for x in (live, goal))
    cosines = torch.einsum("bpc,bgqc->bgpq", here, there)
    looks = 3**0.5 * torch.stack([here[:, None].expand_as(there), there], dim=2)
    hidden = layer.inputs(torch.cat([cosines.flatten(2), looks.flatten(2)], dim=-1))
    expected = layer.outputs(F.silu(hidden + layer.time(as_waves(torch.arange(6.0)))))
    torch.testing.assert_close(layer(live, goal, torch.arange(6.0)), expected, rtol=1e-4, atol=1e-5)


def test_words_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = build(), []
    embed = encoder.text.embed

    def counted(texts: Any) -> torch.Tensor:
        asked.extend(texts)
        return embed(texts)

    monkeypatch.setattr(encoder.text, "embed", counted)
    first, second = encoder(seen()), encoder(seen())
    assert sorted(asked) == ["find the lamp", "go to the red door", "stop at the sofa"]
    assert torch.equal(first, second)


def test_every_parameter_learns() -> None:
    encoder = build().train()
    observed = seen(given={"image": [True, False, True], "video": [True, True, False], "words": [False, True, True]})
    (encoder(observed) * torch.randn(encoder.token_shape)).sum().backward()
    assert [
        name for name, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)
    ] == []


def test_state_is_what_is_left_without_the_robot() -> None:
    narrow = VectorSpec(("vx", "yaw_rate"), ("m/s", "rad/s"), "base", (-2.0, -2.0), (2.0, 2.0))
    features, state = SMALL.geometry(SPEC, T), torch.randn(4, T, 5)
    assert isinstance(features, OtherFeatures)
    assert torch.equal(features(state), State().geometry(narrow, T)(state[..., 3:]))
    only_robot = VectorSpec(BODIES, ("",) * 3, "base", (0.0,) * 3, (1.0,) * 3)
    encoder = SMALL.build(only_robot, T, CAMERAS, {})
    assert "state" not in encoder.layout
    assert encoder(Observed(state[..., :3], seen(4).images)).shape == (4, *encoder.token_shape)


def test_without_goals_and_without_state_it_is_a_camera_encoder() -> None:
    nothing = VectorSpec((), (), "", (), ())
    encoder = replace(SMALL, embodiments=()).build(nothing, T, CAMERAS)
    assert list(encoder.layout) == ["camera_front"]
    assert encoder.kept_tokens == 0
    assert encoder.similarity is None
    assert replace(SMALL, embodiments=()).geometry(nothing, T) is None


@pytest.mark.parametrize(
    ("change", "goals", "says"),
    [
        ({"camera": "rear"}, GOALS, "'rear'.*front"),
        ({"embodiments": ("boat",)}, GOALS, "boat.*wheeled"),
        ({"frames": Colours(16, 16), "flow": None}, GOALS, "at most 64 parts"),
        ({"state": State(token=24)}, GOALS, "32 and GoalVision.state.token 24"),
        ({}, {"there": GoalSpec("pose")}, "'there', a pose"),
        ({}, {"a": GoalSpec("instruction"), "b": GoalSpec("instruction")}, "several instructions"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], goals: dict[str, GoalSpec], says: str) -> None:
    with pytest.raises(KineflowError, match=says):
        replace(SMALL, **change).build(SPEC, T, CAMERAS, goals)


@pytest.mark.parametrize("change", [{"goal_dropout": 1.1}, {"token": 33}, {"token": 10, "attention_heads": 2}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(KineflowError, match="GoalVision"):
        replace(SMALL, **change)
