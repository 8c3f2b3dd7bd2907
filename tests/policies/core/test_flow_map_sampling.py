"""Sampling with flow maps: any number of jumps, T12 (gamma-sampling keeps the variance), solvers on the diagonal, refusals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead, MixtureJumps
from kineflow.policies.field import Field, SampleOptions
from kineflow.policies.flow_map import FlowMap, average_velocity, jump_along
from kineflow.policies.flow_map_losses import jump
from kineflow.policies.objectives import FlowMatching, Objective
from kineflow.policies.samplers import RowNoise

DOUBLE = torch.float64


def two_modes() -> Mixture:
    means = torch.tensor([-1.0, 0.7], dtype=DOUBLE)[:, None, None]
    return Mixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), means, torch.tensor([0.3, 0.4], dtype=DOUBLE)[:, None, None])


def gaussian(mean: float, std: float) -> Mixture:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    return Mixture(one.flatten(), mean * one, std * one)


def row_noise(count: int) -> RowNoise:
    return RowNoise(np.arange(count), (1, 1), DOUBLE)


@dataclass
class Scripted:
    """Noise that is written down: draw k gives `script[k]`."""

    script: list[torch.Tensor]
    drawn: int = field(default=0)

    def draw(self) -> torch.Tensor:
        self.drawn += 1
        return self.script[self.drawn - 1]


class TestJumps:
    def test_any_number_of_jumps_of_an_exact_map_is_the_exact_flow(self) -> None:
        head = MixtureJumps(two_modes())
        one = FlowMap(steps=1).sample(head, row_noise(50), None)
        for steps in (2, 4, 7, 16):
            many = FlowMap(steps=1).sample(head, row_noise(50), None, SampleOptions(steps=steps))
            torch.testing.assert_close(many, one, rtol=1e-11, atol=1e-11)
        infinity = torch.tensor(math.inf, dtype=DOUBLE)
        torch.testing.assert_close(one, two_modes().flow(row_noise(50).draw(), -infinity, infinity), rtol=1e-12, atol=1e-12)

    def test_the_diagonal_is_an_ordinary_flow_policy(self) -> None:
        """Solved by Euler it is what the one-time head gives; with many steps it is where one jump lands."""
        mixture, noise = two_modes(), row_noise(50)
        for solver in ("euler", "heun"):
            ours = FlowMap(solver=solver, steps=10).sample(MixtureJumps(mixture), row_noise(50), None)
            theirs = FlowMatching(solver=solver, steps=10).sample(
                MixtureHead(mixture, FlowMatching().path, "velocity"), noise, None
            )
            noise = row_noise(50)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        solved = FlowMap(solver="heun", steps=200).sample(MixtureJumps(mixture), row_noise(50), None)
        jumped = FlowMap().sample(MixtureJumps(mixture), row_noise(50), None)
        assert (solved - jumped).abs().max() < 1e-3

    def test_a_guide_reaches_the_solver(self) -> None:
        def shift(inner: Field) -> Field:
            return lambda x, lam, condition: inner(x, lam, condition) + 1

        objective, head = FlowMap(solver="euler", steps=1), MixtureJumps(gaussian(0.5, 0.0))
        guided = objective.sample(head, row_noise(3), None, SampleOptions(guide=shift))
        torch.testing.assert_close(guided, torch.full_like(guided, 1.5))

    def test_is_an_objective(self) -> None:
        assert isinstance(FlowMap(), Objective)
        spec = FlowMap(steps=2).sampler_spec()
        assert (spec.solver, spec.steps) == ("jump", 2)

    def test_rows_do_not_depend_on_their_neighbours(self) -> None:
        objective, head = FlowMap(gamma=0.7, steps=3), MixtureJumps(two_modes())
        together = objective.sample(head, row_noise(6), None)
        alone = torch.cat([objective.sample(head, RowNoise(np.array([i]), (1, 1), DOUBLE), None) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=0, atol=0)


class TestGammaSampling:
    """T12. On a Gaussian the sampler is linear in each noise that it draws, so its variance is a sum of squares."""

    STD = 0.4
    TIMES = torch.tensor([0.0, 0.3, 0.55, 0.9], dtype=DOUBLE)

    def variance(self, gamma: float) -> float:
        head, count = average_velocity(MixtureJumps(gaussian(0.0, self.STD)), None), len(self.TIMES) - 1
        total = 0.0
        for source in range(count + 1):
            draws = [torch.full((1, 1, 1), float(k == source), dtype=DOUBLE) for k in range(count + 1)]
            reached = jump_along(head, draws[0], self.TIMES, Scripted(draws[1:]), gamma)
            total += float(reached) ** 2
        return total

    @pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
    def test_keeps_the_variance(self, gamma: float) -> None:
        t = float(self.TIMES[-1])
        assert self.variance(gamma) == pytest.approx((t * self.STD) ** 2 + (1 - t) ** 2, abs=1e-12)

    @pytest.mark.parametrize("gamma", [0.3, 0.7, 1.0])
    def test_the_formula_of_one_step(self, gamma: float) -> None:
        """P' = P (S + s^2) / (S + u^2) + u'^2 - s^2 with s = sqrt(1 - gamma^2) u', of y = z / t at u = (1 - t) / t."""
        start, end, other = 0.4, 0.8, 2.3  # `other`: any variance P of y, not only that of the marginal
        u, v, big = (1 - start) / start, (1 - end) / end, self.STD**2
        s2 = (1 - gamma**2) * v**2
        head = average_velocity(MixtureJumps(gaussian(0.0, self.STD)), None)
        times = torch.tensor([start, end], dtype=DOUBLE)
        one, zero = torch.ones(1, 1, 1, dtype=DOUBLE), torch.zeros(1, 1, 1, dtype=DOUBLE)
        state = jump_along(head, one * start * math.sqrt(other), times, Scripted([zero]), gamma)
        renewed = jump_along(head, zero, times, Scripted([one]), gamma)
        measured = float((state**2 + renewed**2) / end**2)
        assert measured == pytest.approx(other * (big + s2) / (big + u**2) + v**2 - s2, abs=1e-12)

    def test_noise_without_the_longer_jump_adds_variance(self) -> None:
        """Negative control: jump to the wanted time itself, then add the same noise."""
        gamma, t, std = 0.7, 0.5, self.STD
        u = average_velocity(MixtureJumps(gaussian(0.0, std)), None)
        one = torch.ones(1, 1, 1, dtype=DOUBLE)
        z = jump(u, one, torch.zeros(1, dtype=DOUBLE), torch.full((1,), t, dtype=DOUBLE))
        wrong = float(z) ** 2 + (gamma * (1 - t)) ** 2
        assert wrong > 1.3 * ((t * std) ** 2 + (1 - t) ** 2)

    def test_gamma_one_is_consistency_sampling(self) -> None:
        """Each jump goes all the way to the data, whatever came before."""
        head, noise = average_velocity(MixtureJumps(gaussian(0.5, 0.0)), None), row_noise(4)
        times = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
        reached = jump_along(head, noise.draw(), times, noise, 1.0)
        torch.testing.assert_close(reached, torch.full_like(reached, 0.5), rtol=0, atol=1e-12)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"diagonal": 0.0}, "diagonal is 0"),
            ({"jumps_to_data": 1.5}, "jumps_to_data is 1.5"),
            ({"gamma": -0.1}, "gamma is -0.1"),
            ({"gamma": 0.5, "solver": "euler"}, "only jumps renew noise"),
            ({"steps": 0}, "steps is 0"),
            ({"clip": 0.0}, "clip is 0"),
        ],
    )
    def test_settings(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(KineflowError, match=message):
            FlowMap(**settings)  # type: ignore[arg-type]

    def test_guidance_has_nothing_to_work_on(self) -> None:
        head = MixtureJumps(two_modes())
        with pytest.raises(KineflowError, match="bake guidance in"):
            FlowMap().sample(head, row_noise(1), None, SampleOptions(guidance_scale=2.0))
        with pytest.raises(KineflowError, match="bake guidance in"):
            FlowMap().field(head, None, 2.0)
        with pytest.raises(KineflowError, match="use solver euler"):
            FlowMap().sample(head, row_noise(1), None, SampleOptions(guide=lambda inner: inner))

    @pytest.mark.parametrize("times", [[0.0], [0.5, 0.5], [0.6, 0.2], [-0.1, 1.0], [0.0, 1.1]])
    def test_grids(self, times: list[float]) -> None:
        head = average_velocity(MixtureJumps(two_modes()), None)
        with pytest.raises(KineflowError, match="must ascend within"):
            jump_along(head, row_noise(1).draw(), torch.tensor(times), row_noise(1))
