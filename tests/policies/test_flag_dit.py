"""Flag-DiT: what its parts promise (bounded logits, relative positions, a condition path that starts closed), at any horizon."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kineflow.policies.heads import flag_dit
from kineflow.policies.heads.embedding import rotate
from kineflow.policies.heads.flag_dit import Attention, FlagDiT, FlagDiTHead

H, A, N, D = 16, 2, 3, 24
SMALL = FlagDiT(width=32, depth=2, attention_heads=2)
SDPA = F.scaled_dot_product_attention


def inputs(horizon: int = H, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, horizon, A, generator=generator),
        torch.rand(batch, generator=generator),
        torch.randn(batch, N, D, generator=generator),
    )


def head(config: FlagDiT = SMALL, horizon: int = H, open_gates: bool = True) -> FlagDiTHead:
    """As if trained for a while: every zero-initialised layer has some size; without `open_gates` all but the attention gates."""
    torch.manual_seed(0)
    built = config.build(horizon, A, (N, D))
    for name, parameter in built.named_parameters():
        if parameter.abs().max() == 0 and (open_gates or not name.endswith("attention.gate")):
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def test_new_block_is_the_identity() -> None:
    block = SMALL.build(H, A, (N, D)).blocks[0]
    x = torch.randn(2, H, 32)
    torch.testing.assert_close(block(x, torch.randn(2, 1, 32), torch.randn(2, N, 32)), x, rtol=0, atol=0)


def test_cross_attention_starts_closed_but_learns() -> None:
    """tanh(0) = 0: no condition token is seen one by one. The gates have a gradient at once, the keys once they open."""
    closed, (x, t, condition) = head(open_gates=False), inputs()
    attention = closed.blocks[0].attention
    tokens, given = torch.randn(3, H, 32), torch.randn(3, N, 32)
    assert torch.equal(attention(tokens, given), attention(tokens, 0 * given))
    closed(x, t, condition).square().sum().backward()
    assert all(block.attention.gate.grad.abs().min() > 0 for block in closed.blocks)
    assert attention.condition_kv.weight.grad.abs().max() == 0
    opened = head().blocks[0].attention
    assert (opened(tokens, given) - opened(tokens, 0 * given)).abs().max() > 1e-2


def test_every_condition_token_is_seen_for_itself() -> None:
    """Swapping two tokens keeps their mean, so a pooled condition would not notice the swap."""
    trained, (x, t, condition) = head(), inputs()
    assert (trained(x, t, condition[:, [1, 0, 2]]) - trained(x, t, condition)).abs().max() > 1e-3
    for token in range(N):
        changed = condition.clone()
        changed[:, token] += 1
        assert (trained(x, t, changed) - trained(x, t, condition)).abs().max() > 1e-3


@pytest.mark.parametrize("condition_share", [0.0, 1.0], ids=["among actions", "with condition"])
def test_attention_sees_distances_not_positions(condition_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions moved by 7: nothing changes. Queries and keys moved by different amounts: everything does."""
    attention, x, given = head().blocks[0].attention, torch.randn(2, H, 32), condition_share * torch.randn(2, N, 32)
    base = attention(x, given)
    monkeypatch.setattr(flag_dit, "rotate", moved(lambda: 7))
    torch.testing.assert_close(attention(x, given), base, rtol=1e-4, atol=1e-5)
    places = iter([7, 3])
    monkeypatch.setattr(flag_dit, "rotate", moved(lambda: next(places)))
    assert (attention(x, given) - base).abs().max() > 1e-3


def moved(by: Callable[[], int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        places = by()
        return rotate(F.pad(x, (0, 0, places, 0)))[..., places:, :]

    return rotated


def logits_of(attention: Attention, x: torch.Tensor, given: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The largest |logit| of each of the two attentions, as handed to PyTorch's kernel."""
    seen: list[float] = []

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        seen.append((scale * query @ key.transpose(-1, -2)).abs().max().item())
        return SDPA(query, key, value, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention(x, given)
    return seen


def test_logits_are_bounded_however_large_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """|q| = |k| = sqrt(E) after the norms, so |logit| <= sqrt(E) = 4; without the norms they would be beyond 1e8."""
    attention, bound = head().blocks[0].attention, math.sqrt(16) * (1 + 1e-5)
    for size in (1.0, 1e6):
        x, given = size * torch.randn(2, H, 32), size * torch.randn(2, N, 32)
        among, across = logits_of(attention, x, given, monkeypatch)
        assert 1 < among <= bound
        assert 1 < across <= bound
    monkeypatch.setattr(attention, "query_norm", torch.nn.Identity())
    monkeypatch.setattr(attention, "key_norm", torch.nn.Identity())
    assert logits_of(attention, x, given, monkeypatch)[0] > 1e8


def test_sandwich_bounds_what_a_block_adds() -> None:
    """The norm after each sublayer: whatever its weights, it adds at most tanh(gate) times sqrt(W) per token."""
    block, x = head().blocks[0], torch.randn(2, H, 32)
    with torch.no_grad():
        block.attention.out.weight.mul_(1e4)
        block.mlp_out.weight.mul_(1e4)
    added = block(x, torch.randn(2, 1, 32), torch.randn(2, N, 32)) - x
    assert added.norm(dim=-1).max() < 2 * math.sqrt(32)


def test_scale_of_longer_horizons() -> None:
    attention = Attention(32, 2, horizon=16)
    assert attention.scale(16) == pytest.approx(1 / math.sqrt(16))
    assert attention.scale(256) == pytest.approx(math.sqrt(2 / 16))  # log_16(256) = 2
    assert Attention(32, 2, horizon=1).scale(1) == pytest.approx(1 / math.sqrt(16))


def test_scale_keeps_the_entropy_of_attention() -> None:
    """Over L random keys the entropy grows as log L; with the scale the used share of log L stays nearer to that at 16."""
    torch.manual_seed(0)
    attention = Attention(64, 1, horizon=16)

    def evenness(length: int, scale: float) -> float:
        query, key = (F.rms_norm(torch.randn(64, length, 64), (64,)) for _ in range(2))
        weights = torch.softmax(scale * query @ key.transpose(-1, -2), dim=-1)
        return (-(weights * weights.log()).sum(-1) / math.log(length)).mean().item()

    trained = evenness(16, attention.scale(16))
    assert abs(evenness(256, attention.scale(256)) - trained) < abs(evenness(256, attention.scale(16)) - trained)


def test_any_horizon_at_call_time() -> None:
    """Trained at 16, called at 1, 7 and 40; with one time per action too. A token looks at all actions of its own chunk."""
    trained = head()
    for horizon in (1, 7, 40):
        x, t, condition = inputs(horizon)
        single, per_action = trained(x, t, condition), trained(x, t[:, None].expand(-1, horizon), condition)
        assert single.shape == (3, horizon, A)
        torch.testing.assert_close(single, per_action, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[:, -1] += 1
    assert (trained(changed, t, condition) - trained(x, t, condition))[:, 0].abs().max() > 1e-4


def test_learned_on_short_chunks_holds_on_longer_ones() -> None:
    """Each step averaged with its neighbours, learned at horizon 8, is known at 12 and 16 (1: the error of answering zero)."""
    torch.manual_seed(0)
    net = FlagDiT(width=16, depth=1, attention_heads=2).build(8, 1, (1, 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-2)

    def task(horizon: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(batch, horizon, 1)
        return x, F.avg_pool1d(F.pad(x, (0, 0, 1, 1)).transpose(1, 2), 3, stride=1).transpose(1, 2)

    def error(horizon: int, batch: int) -> torch.Tensor:
        x, target = task(horizon, batch)
        return (net(x, torch.zeros(batch), torch.zeros(batch, 1, 1)) - target).square().mean() / target.square().mean()

    for _ in range(120):
        optimiser.zero_grad()
        error(8, 32).backward()
        optimiser.step()
    with torch.no_grad():
        assert max(error(horizon, 256) for horizon in (8, 12, 16)) < 0.15


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast: bool) -> None:
    exact, (x, t, condition) = head(FlagDiT(width=32, depth=1, attention_heads=2)), inputs()
    expected = exact(x, t, condition)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            answer = exact(x, t, condition)
    else:
        answer = exact.bfloat16()(x.bfloat16(), t, condition.bfloat16())
    assert answer.dtype == torch.bfloat16
    error = (answer.float() - expected).square().mean() / expected.square().mean()
    assert error.sqrt() < 0.05


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's own, when forward mode is first used
def test_forward_mode_derivative_with_the_plain_attention_kernel() -> None:
    """What flow-map losses need: d/dt of the head along with its value, against a central difference."""
    exact, (x, t, condition) = head().double(), (v.double() for v in inputs())

    def along(time: torch.Tensor) -> torch.Tensor:
        return exact(x, time, condition)

    with sdpa_kernel(SDPBackend.MATH):
        value, slope = torch.func.jvp(along, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(value, along(t))
    torch.testing.assert_close(slope, (along(t + 1e-7) - along(t - 1e-7)) / 2e-7, rtol=1e-4, atol=1e-3)


def test_dropout_is_random_in_training_alone() -> None:
    net, (x, t, condition) = head(FlagDiT(width=32, depth=1, attention_heads=2, dropout=0.5)), inputs()
    assert not torch.equal(net(x, t, condition), net(x, t, condition))
    net.eval()
    assert torch.equal(net(x, t, condition), net(x, t, condition))


def test_parameters_match_a_plain_block_of_the_same_ratio() -> None:
    """SwiGLU has three matrices: its hidden width is 2/3, so `mlp_ratio` means what it means for DiT."""
    block = FlagDiT(width=96, depth=1, mlp_ratio=4.0).build(H, A, (N, D)).blocks[0]
    size = block.mlp_in.weight.numel() + block.mlp_out.weight.numel()
    assert size == pytest.approx(2 * 4 * 96**2, rel=0.01)
