"""MixFlow's source: its moments, its divergence, and a flow that starts there."""

from __future__ import annotations

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.mix_flow import Guess, GuessFromChunk, MixFlow, shifted

DOUBLE = torch.float64
H, A = 4, 2


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, H, A, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def guess(count: int) -> Guess:
    mean = torch.linspace(-1, 1, H * A, dtype=DOUBLE).view(1, H, A).expand(count, H, A)
    return Guess(mean, torch.linspace(0.2, 1.5, H * A, dtype=DOUBLE).view(1, H, A).expand(count, H, A))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_the_source_has_the_mixed_moments(share: float) -> None:
    """N(w mu, w Sigma + (1 - w) I): the variances mix, not the deviations."""
    count = 60_000
    drawn = guess(count).mixed(torch.full((count,), share, dtype=DOUBLE)).draw(normal(count))
    one = guess(1)
    torch.testing.assert_close(drawn.mean(dim=0), share * one.mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(dim=0), (share * one.std**2 + 1 - share)[0], rtol=0.03, atol=0)


def test_without_a_share_it_is_white_noise_bit_for_bit() -> None:
    noise = normal(5)
    assert torch.equal(guess(5).mixed(torch.zeros(5, dtype=DOUBLE)).draw(noise), noise)


def test_divergence_is_that_of_two_gaussians() -> None:
    g = guess(3)
    white = torch.distributions.Normal(torch.zeros_like(g.mean), torch.ones_like(g.std))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(g.mean, g.std), white).mean(dim=(1, 2))
    torch.testing.assert_close(g.divergence(), expected, rtol=1e-12, atol=0)
    assert Guess(torch.zeros(1, H, A), torch.ones(1, H, A)).divergence().item() == 0


def ones(count: int) -> torch.Tensor:
    return torch.ones(count, H, dtype=DOUBLE)


def test_the_perfect_head_of_one_chunk_has_no_loss_from_any_source() -> None:
    """With one possible chunk a, x reveals the start: velocity (a - x) / (1 - t); then the loss is the divergence alone."""
    count = 500
    actions = normal(1).expand(count, H, A)

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return (actions[: len(x)] - x) / (1 - t)[:, None, None]

    loss = MixFlow(divergence_weight=0.0).loss_from(
        head, guess(count), actions, None, torch.Generator().manual_seed(1), ones(count)
    )
    assert loss.max().item() < 1e-20
    weighted = MixFlow(divergence_weight=2.0).loss_from(
        head, guess(count), actions, None, torch.Generator().manual_seed(1), ones(count)
    )
    torch.testing.assert_close(weighted, 2 * guess(count).divergence(), rtol=1e-9, atol=1e-12)
    for share in (0.0, 0.5, 1.0):
        sampled = MixFlow(steps=3).sample_from(head, guess(7), normal(7), None, share)
        torch.testing.assert_close(sampled, actions[:7], rtol=1e-12, atol=1e-12)


def test_training_draws_its_share_of_the_guess_and_both_terms_teach() -> None:
    """At a head that does not move and one chunk 0, the start is minus the target: w ~ U[0, 1] by its moments."""
    count = 20_000
    mean = torch.full((count, H, A), 3.0, dtype=DOUBLE, requires_grad=True)
    narrow = Guess(mean, torch.full_like(mean, 1e-9))
    seen: list[torch.Tensor] = []

    def still(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        seen.append(x / (1 - t)[:, None, None])
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(1)
    MixFlow().loss_from(still, narrow, torch.zeros(count, H, A, dtype=DOUBLE), None, generator, ones(count))
    rows = seen[0].detach().mean(dim=(1, 2))  # of start = 3 w + sqrt(1 - w) z
    assert rows.mean().item() == pytest.approx(1.5, abs=0.03)
    assert rows.var().item() == pytest.approx(9 / 12 + 0.5 / (H * A), abs=0.03)

    def perfect(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return -x / (1 - t)[:, None, None]

    objective = MixFlow(divergence_weight=2.0)
    loss = objective.loss_from(perfect, narrow, torch.zeros(count, H, A, dtype=DOUBLE), None, generator, ones(count))
    (gradient,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(gradient, 2.0 * mean.detach() / (H * A), rtol=1e-6, atol=1e-9)  # of the divergence alone


def test_sampling_starts_at_the_guess() -> None:
    """A head that does not move: the chunk is the start itself."""
    noise = normal(7)

    def still(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros_like(x)

    sampled = MixFlow().sample_from(still, guess(7), noise, None, 1.0)
    torch.testing.assert_close(sampled, guess(7).mean + guess(7).std * noise, rtol=1e-12, atol=0)
    with pytest.raises(KineflowError, match=r"share is -0\.1"):
        MixFlow().sample_from(still, guess(7), noise, None, -0.1)


def test_the_source_learns_where_the_chunk_will_be() -> None:
    """Chunks near the previous one: the guess moves there, so that less is left for the flow. It begins as white noise."""
    torch.manual_seed(0)
    source = GuessFromChunk(H, A, (1, 3), width=32).double()
    previous, condition = 2 * normal(256), torch.randn(256, 1, 3, dtype=DOUBLE)
    actions = previous + 0.1 * normal(256, seed=2)
    first = source(previous, condition)
    assert first.mean.abs().max() == 0
    assert (first.std == 1).all()

    head = torch.nn.Linear(H * A + 1, H * A).double()

    def velocity(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return head(torch.cat([x.flatten(1), t[:, None]], dim=1)).view_as(x)

    parameters = [*source.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(250):
        optimizer.zero_grad()
        objective = MixFlow()
        objective.loss_from(velocity, source(previous, condition), actions, condition, generator, ones(256)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = source(previous, condition)
    before, after = (((actions - g.mean) ** 2).mean().item() for g in (first, learned))
    assert after < 0.5 * before


def test_a_shifted_chunk_is_what_is_left_of_it() -> None:
    chunk = torch.arange(4.0).view(1, 4, 1)
    assert shifted(chunk, 0).flatten().tolist() == [0, 1, 2, 3]
    assert shifted(chunk, 2).flatten().tolist() == [2, 3, 3, 3]
    assert shifted(chunk, 4).flatten().tolist() == [3, 3, 3, 3]
    with pytest.raises(KineflowError, match="5 actions executed of a chunk of 4"):
        shifted(chunk, 5)


@pytest.mark.parametrize("wrong", [{"divergence_weight": -1.0}, {"steps": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(KineflowError, match="MixFlow needs"):
        MixFlow(**wrong)  # type: ignore[arg-type]
