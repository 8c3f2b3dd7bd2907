"""Both families of heads: shapes, time per sample and per action, gradients, sizes, and what each must not depend on."""

from __future__ import annotations

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.embedding import rotate
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet

H, A, N, D = 16, 2, 1, 24
HEADS = [
    UNet(channels=(16, 32, 64), groups=8, signal_width=32),
    DiT(width=32, depth=2, attention_heads=2),
    DiT(width=32, depth=2, attention_heads=2, patch=4),
    MLP(width=64, depth=2),
    FlagDiT(width=32, depth=2, attention_heads=2),
    FlowDiT(width=32, depth=2, attention_heads=2),
]


def excited(head: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised layers hide everything: give each parameter some size, as training would."""
    torch.manual_seed(0)
    for parameter in head.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return head


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, H, A, generator=generator),
        torch.rand(batch, generator=generator),
        torch.randn(batch, N, D, generator=generator),
    )


@pytest.mark.parametrize("config", HEADS, ids=lambda c: f"{type(c).__name__}")
class TestHeads:
    def test_time_per_action_equals_time_per_sample_when_constant(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D)))
        x, t, condition = inputs()
        single, per_action = head(x, t, condition), head(x, t[:, None].expand(-1, H), condition)
        assert single.shape == (3, H, A)
        torch.testing.assert_close(single, per_action, rtol=1e-5, atol=1e-5)

    def test_each_input_matters(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D)))
        x, t, condition = inputs()
        base = head(x, t, condition)
        assert (head(x + 1, t, condition) - base).abs().max() > 1e-3
        assert (head(x, 1 - t, condition) - base).abs().max() > 1e-3
        assert (head(x, t, condition + 1) - base).abs().max() > 1e-3

    def test_one_action_time_changes_the_output(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D)))
        x, t, condition = inputs()
        times = t[:, None].repeat(1, H)
        changed = times.clone()
        changed[:, 5] = (changed[:, 5] + 0.5) % 1
        assert (head(x, changed, condition) - head(x, times, condition)).abs().max() > 1e-4

    def test_rows_are_independent(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D)))
        x, t, condition = inputs()
        alone = torch.cat([head(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(head(x, t, condition), alone, rtol=1e-5, atol=1e-5)

    def test_every_parameter_learns(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D)))
        head(*inputs()).square().sum().backward()
        silent = [name for name, p in head.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert silent == []


@pytest.mark.parametrize("config", HEADS, ids=lambda c: f"{type(c).__name__}")
class TestTwoTimes:
    def test_a_head_that_starts_from_a_one_time_head_is_that_head(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        one = excited(config.build(H, A, (N, D)))
        two = config.build(H, A, (N, D), two_times=True)
        missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
        assert not unexpected
        assert all(name.startswith("time.gap.") for name in missing)
        x, t, condition = inputs()
        for end in (None, t, torch.ones_like(t)):
            torch.testing.assert_close(two(x, t, condition, end), one(x, t, condition), rtol=0, atol=0)

    def test_a_trained_gap_matters_and_none_means_the_same_time(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = excited(config.build(H, A, (N, D), two_times=True))
        x, t, condition = inputs()
        torch.testing.assert_close(head(x, t, condition), head(x, t, condition, t), rtol=0, atol=0)
        assert (head(x, t, condition, (t + 1) / 2) - head(x, t, condition)).abs().max() > 1e-3
        single = head(x, t, condition, (t + 1) / 2)
        times = t[:, None].expand(-1, H)
        torch.testing.assert_close(single, head(x, times, condition, (times + 1) / 2), rtol=1e-5, atol=1e-5)

    def test_ordinary_heads_are_unchanged_and_refuse_a_second_time(self, config: UNet | DiT | MLP | FlagDiT | FlowDiT) -> None:
        head = config.build(H, A, (N, D))
        assert not [name for name in head.state_dict() if "gap" in name]
        x, t, condition = inputs()
        with pytest.raises(KineflowError, match="two_times=True"):
            head(x, t, condition, t)


@pytest.mark.parametrize("config", [HEADS[1], HEADS[3], HEADS[4]], ids=["DiT", "MLP", "FlagDiT"])
def test_zero_output_at_initialisation(config: DiT | MLP | FlagDiT) -> None:
    assert config.build(H, A, (N, D))(*inputs()).abs().max() == 0


def test_new_dit_block_is_the_identity() -> None:
    head = DiT(width=32, depth=1, attention_heads=2).build(H, A, (N, D))
    x, signal = torch.randn(2, H, 32), torch.randn(2, 1, 32)
    torch.testing.assert_close(head.blocks[0](x, signal), x)


def test_rotary_attention_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    scores = (rotate(query) @ rotate(key).transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores[2, 5], scores[7, 10])
    assert not torch.allclose(scores[2, 5], scores[2, 6])


def test_rotary_makes_dit_see_order() -> None:
    head = excited(HEADS[1].build(H, A, (N, D)))
    x, t, condition = inputs()
    assert not torch.allclose(head(x.flip(1), t, condition).flip(1), head(x, t, condition), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "horizon", "message"),
    [
        (UNet(channels=(16, 32, 64)), 14, "horizon that 4 divides, got 14"),
        (UNet(channels=(12, 24)), 16, "not multiples of groups 8"),
        (DiT(patch=3), 16, "patch 3 does not divide the prediction horizon 16"),
        (DiT(width=100, attention_heads=4), 16, "width 100"),
        (FlagDiT(width=100, attention_heads=4), 16, "FlagDiT.width 100"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: UNet | DiT | FlagDiT, horizon: int, message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        config.build(horizon, A, (N, D))
