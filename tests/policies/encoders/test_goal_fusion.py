"""GoalFusion: a goal that a row is not told is not seen, rows do not see each other, and pictures and features are one input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kineflow.contracts import CameraSpec, GoalSpec, KineflowError, VectorSpec
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.goal_fusion import GoalFusion, GoalFusionEncoder
from kineflow.policies.encoders.scene_net import SceneNet
from kineflow.policies.encoders.state import State
from kineflow.policies.observed import Observed

SIZE, T, G = 16, 3, 6
SPEC = VectorSpec(("vx", "yaw_rate"), ("m/s", "rad/s"), "base", (-2.0, -2.0), (2.0, 2.0))
CAMERAS = {"front": CameraSpec(SIZE, SIZE, 10.0)}
GOALS = {"image": GoalSpec("image", SIZE, SIZE), "video": GoalSpec("video", SIZE, SIZE, G, 2.5)}
SMALL = GoalFusion(Colours(16, 2), token=16, depth=2, attention_heads=2, channels=8, state=State(width=8, depth=1, token=16))


def build(config: GoalFusion = SMALL, spec: VectorSpec = SPEC) -> GoalFusionEncoder:
    """As if trained for a while: layers that are zero at initialisation have some size. In evaluation mode."""
    torch.manual_seed(0)
    encoder = config.build(spec, T, CAMERAS, GOALS)
    for parameter in encoder.parameters():
        if parameter.numel() and parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def seen(image: list[bool], video: list[bool] | None = None, seed: int = 0) -> Observed:
    generator, rows = torch.Generator().manual_seed(seed), len(image)

    def frames(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (rows, *shape, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)

    given = {"image": torch.tensor(image), "video": torch.tensor(video or [False] * rows)}
    return Observed(
        torch.randn(rows, T, 2, generator=generator), {"front": frames(T)}, {"image": frames(), "video": frames(G)}, given
    )


@pytest.mark.parametrize(("readout", "tokens"), [("all", T + 2), ("mean", 1)])
def test_shapes(readout: Any, tokens: int) -> None:
    encoder = build(replace(SMALL, readout=readout))
    assert encoder(seen([True, False])).shape == (2, *encoder.token_shape) == (2, tokens, 16)
    without_state = build(replace(SMALL, readout=readout), VectorSpec((), (), "", (), ()))
    assert without_state.token_shape == (max(tokens - 1, 1), 16)


@pytest.mark.parametrize("readout", ["all", "mean"])
def test_a_goal_that_is_not_told_is_not_seen(readout: Any) -> None:
    """Neither the answer nor its gradient depends on a masked goal; both do where it is told."""
    encoder = build(replace(SMALL, readout=readout))
    observed = seen([True, False])
    other = replace(observed, goals={**observed.goals, "image": 255 - observed.goals["image"]})
    change = (encoder(observed) - encoder(other)).abs().amax(dim=(1, 2))
    assert change[0] > 1e-3
    assert change[1] == 0
    features = {"image": encoder.features(observed.goals["image"][:, None])[:, 0]}
    features["image"].requires_grad_(True)
    known = replace(observed, images={"front": encoder.features(observed.images["front"]).half()}, goals=features)
    (encoder(known) * torch.randn(encoder.token_shape)).sum().backward()  # type: ignore[no-untyped-call]
    gradient = features["image"].grad
    assert gradient is not None
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0
    for parameter in encoder.fuse.parameters():
        parameter.grad = None
    encoder(seen([False, False])).sum().backward()
    assert all(parameter.grad is None or parameter.grad.abs().max() == 0 for parameter in encoder.fuse.parameters())


def test_what_else_is_seen() -> None:
    encoder, observed = build(), seen([True, True])
    frames = observed.images["front"]
    for step in range(T):
        moved = frames.clone()
        moved[:, step] = 255 - moved[:, step]
        assert (encoder(replace(observed, images={"front": moved})) - encoder(observed)).abs().amax(dim=(1, 2)).min() > 1e-3
    assert (encoder(replace(observed, state=observed.state + 1)) - encoder(observed)).abs().amax(dim=(1, 2)).min() > 1e-3


def test_early_fusion_sees_which_part_of_both_frames_agrees() -> None:
    """Goal and frame with their parts moved alike are not the same pair: fusion looks at places."""
    encoder, here, there = build(), torch.randn(1, 4, 7), torch.randn(1, 4, 7)
    assert (encoder.fuse(here, there) - encoder.fuse(here, there.roll(1, 1))).abs().max() > 1e-3
    assert (encoder.fuse(here, there) - encoder.fuse(there, here)).abs().max() > 1e-3


def test_rows_are_independent() -> None:
    encoder, together = build(), seen([True, False, True])
    for row in range(3):
        alone = Observed(
            together.state[row : row + 1],
            {"front": together.images["front"][row : row + 1]},
            {name: value[row : row + 1] for name, value in together.goals.items()},
            {name: value[row : row + 1] for name, value in together.given.items()},
        )
        torch.testing.assert_close(encoder(together)[row : row + 1], encoder(alone), rtol=1e-4, atol=1e-5)


def test_features_are_the_same_input_as_their_frames() -> None:
    encoder, frames = build(), seen([True, True, False])
    image = encoder.features(frames.goals["image"][:, None])[:, 0].half()
    known = replace(frames, images={"front": encoder.features(frames.images["front"]).half()}, goals={"image": image})
    torch.testing.assert_close(encoder(known), encoder(frames), rtol=5e-3, atol=5e-3)
    with pytest.raises(KineflowError, match="compute them again"):
        encoder(replace(known, images={"front": known.images["front"][..., :-1]}))


def test_a_video_alone_is_the_picture_two_seconds_ahead_and_an_image_outdoes_it() -> None:
    encoder, both = build(), seen([False, True], [True, True])
    picture = both.goals["image"].clone()
    picture[0] = both.goals["video"][0, 5]  # 2 s at 2.5 frames/s
    torch.testing.assert_close(encoder(both), encoder(replace(seen([True, True]), goals={"image": picture})))


def test_every_parameter_learns() -> None:
    encoder = build().train()
    (encoder(seen([True, False, True])) * torch.randn(encoder.token_shape)).sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)]
    assert silent == []


@pytest.mark.parametrize(
    ("change", "cameras", "goals", "says"),
    [
        ({}, {}, GOALS, "takes one camera"),
        ({}, CAMERAS, {"words": GoalSpec("instruction")}, r"of kinds \['instruction'\]"),
        ({"state": State(token=24)}, CAMERAS, GOALS, "16 and its state.token 24 differ"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], cameras: Any, goals: Any, says: str) -> None:
    with pytest.raises(KineflowError, match=says):
        replace(SMALL, **change).build(SPEC, T, cameras, goals)
    with pytest.raises(KineflowError, match="multiple of attention_heads"):
        replace(SMALL, token=15)


def test_the_goals_token_says_where_the_goal_is() -> None:
    """A linear map of the untrained token, fitted on some panned pictures, tells how far others are panned.

    Looks of each frame alone do not say that before much training, in which a policy learns to do without its goal.
    """
    torch.manual_seed(0)
    config = replace(SMALL, frames=SceneNet(), channels=32, token=64, state=State(width=8, depth=1, token=64))
    encoder = config.build(SPEC, T, {"front": CameraSpec(96, 96, 10.0)}, {"image": GoalSpec("image", 96, 96)})
    scene = F.interpolate(torch.rand(400, 3, 9, 13), size=(96, 144), mode="nearest")  # patches of colour, no two scenes alike
    pan = torch.randint(-16, 17, (400,))
    panned = torch.stack([view[:, :, begin : begin + 96] for view, begin in zip(scene, (24 + pan).tolist())])
    with torch.no_grad():
        here, there = (encoder.frames((255 * view).byte().movedim(1, -1)) for view in (scene[..., 24:120], panned))
        token = F.pad(encoder.fuse(here, there), (0, 1), value=1.0).double()
    known, asked, truth = slice(0, 300), slice(300, None), pan.double()
    gram = token[known].mT @ token[known] + 1e-3 * torch.eye(token.shape[1])
    told = token[asked] @ torch.linalg.solve(gram, token[known].mT @ truth[known])
    left = (told - truth[asked]).square().mean() / truth[asked].square().mean()
    assert left < 0.4, f"{float(left):.2f} of the variance is left"
