"""Training-time RTC: what is drawn, what is learned, and how a request asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kineflow.contracts import CommittedPrefix, ContractError, KineflowError, SamplingRequest
from kineflow.policies.analytic import CorrelatedGaussian
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.losses import with_clean_start
from kineflow.policies.objectives import Diffusion, FlowMap, FlowMatching
from kineflow.policies.real_time_chunking import CommittedStart
from kineflow.policies.samplers import RowNoise, euler, uniform_time_grid
from tests.policies.test_guided_policy import SEEDS, network, observation


def test_three_rows_of_ten_have_no_start_and_the_others_all_lengths() -> None:
    generator, t = torch.Generator().manual_seed(0), torch.full((20_000,), 0.5)
    times, weight = with_clean_start(t, torch.ones(20_000, 6), 4, generator)
    delay = (times > 0.99).sum(dim=1)
    shares = torch.bincount(delay, minlength=6) / 20_000
    np.testing.assert_allclose(shares, [0.3, *[0.175] * 4, 0], atol=0.01)
    assert torch.equal(weight == 0, times > 0.99)
    assert (times[:, :1] >= times[:, 1:2]).all()  # a start, not just any actions
    assert times.max() < 1
    padded, _ = with_clean_start(torch.rand(50, 6), torch.ones(50, 6, dtype=torch.bool), 4, generator)
    assert padded.shape == (50, 6)
    with pytest.raises(KineflowError, match="leave at least one"):
        with_clean_start(t, torch.ones(20_000, 4), 4, generator)


def test_the_start_is_not_in_the_loss() -> None:
    """A head that answers nonsense where the time is 1 has the loss of one that does not."""
    objective, actions, condition = FlowMatching(clean_start=3), torch.randn(64, 6, 2), torch.zeros(64, 1, 1)

    def loss(nonsense: float) -> torch.Tensor:
        def head(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
            return torch.where(t[..., None] > 0.999999, nonsense, 0.1 * x)

        return objective.loss(head, actions, condition, torch.Generator().manual_seed(1), torch.ones(64, 6))

    torch.testing.assert_close(loss(0.0), loss(1e3))
    assert torch.isfinite(loss(1e3)).all()
    assert objective.sampler_spec().clean_start == 3


def test_a_head_that_learned_starts_listens_to_them() -> None:
    """Chunks of a correlated Gaussian: the mean of the rest given two actions, to half of what a head without starts misses."""
    step = torch.arange(5.0)
    covariance = 0.5 * torch.exp(-((step[:, None] - step) ** 2) / 8) + 0.02 * torch.eye(5)
    law, missed = CorrelatedGaussian(torch.zeros(5, 1), covariance), {}
    known = torch.tensor([0.9, 1.0, 0.0, 0.0, 0.0])[None, :, None]
    truth, _ = law.given(known, torch.arange(5)[:, None] < 2)
    factor = torch.linalg.cholesky(covariance)
    for clean_start in (0, 3):
        torch.manual_seed(0)
        objective, generator = FlowMatching(clean_start=clean_start), torch.Generator().manual_seed(0)
        head = MLP(width=64, depth=2).build(5, 1, (1, 1))
        optimiser = torch.optim.Adam(head.parameters(), 3e-3)
        for _ in range(500):
            actions = (torch.randn(256, 5, generator=generator) @ factor.T)[..., None]
            condition = torch.zeros(256, 1, 1)
            loss = objective.loss(head, actions, condition, generator, torch.ones(256, 5)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            noise = RowNoise(np.arange(400), (5, 1))
            committed = known.expand(400, -1, -1)
            start = CommittedStart(euler, committed, torch.full((400,), 2))
            grid = uniform_time_grid(objective.path, 10)
            chunk = start(objective.field(head), noise.draw(), grid, torch.zeros(400, 1, 1), noise)
        assert torch.equal(chunk[:, :2], committed[:, :2])
        missed[clean_start] = float((chunk.mean(dim=0) - truth[0])[2:].abs().mean())
    assert missed[3] < 0.1
    assert missed[3] < 0.5 * missed[0]


def test_a_request_for_a_start_gets_it_in_physical_units() -> None:
    net, seen = network(FlowMatching(steps=4, clean_start=4)), observation()
    wanted = np.random.default_rng(3).uniform(-2, 2, (3, 8, 2)).astype(np.float32)
    mask = np.where(np.arange(8) < 3, 1.0, 0.0).astype(np.float32)[None].repeat(3, axis=0)
    prefix = CommittedPrefix(wanted, mask, 3, "start")
    actions = net.predict(seen, SamplingRequest(SEEDS, prefix=prefix)).actions
    np.testing.assert_allclose(actions[:, :3], wanted[:, :3], atol=1e-5)
    assert np.abs(actions[:, 3:] - wanted[:, 3:]).max() > 0.1
    with pytest.raises(ContractError, match="some must be left"):
        net.predict(seen, SamplingRequest(SEEDS, prefix=replace(prefix, delay=8)))
    with pytest.raises(ContractError, match="cannot begin with given actions"):
        network(FlowMap(solver="euler", steps=4)).predict(seen, SamplingRequest(SEEDS, prefix=prefix))


@pytest.mark.parametrize(
    "objective", [FlowMatching(steps=4), Diffusion(steps=4, prediction="sample", clip=9.0)], ids=["flow", "diffusion"]
)
def test_a_request_chooses_between_the_two_guided_forms(objective: FlowMatching | Diffusion) -> None:
    net, seen = network(objective), observation()
    wanted = net.predict(seen, SamplingRequest(SEEDS + 10)).actions
    mask = np.where(np.arange(8) < 4, 1.0, 0.0).astype(np.float32)[None].repeat(3, axis=0)
    free, cheap, exact = (
        net.predict(seen, SamplingRequest(SEEDS, prefix=CommittedPrefix(wanted, weight, 2, method))).actions
        for weight, method in ((0 * mask, "guided"), (mask, "guided"), (mask, "exact"))
    )
    gaps = [np.abs(actions - wanted)[:, :4].mean() for actions in (free, cheap, exact)]
    assert max(gaps[1:]) < 0.5 * gaps[0]
    assert np.abs(cheap - exact).max() > 1e-3
