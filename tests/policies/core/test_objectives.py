"""Losses against closed forms (a single possible chunk makes every perfect head exact), what heads are shown, and refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from kineflow.config import from_plain, to_plain_config
from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.field import Field, HeadField, SampleOptions
from kineflow.policies.guidance import ClassifierFreeGuidance, Clip
from kineflow.policies.losses import draw_times, row_mean
from kineflow.policies.objectives import MIP, Diffusion, FlowMap, FlowMatching, ObjectiveConfig, Regression
from kineflow.policies.paths import CondOT, ContinuousSquaredCos, Cosine, Path, SquaredCos, VarianceExploding, VPLinear
from kineflow.policies.predictions import Prediction
from kineflow.policies.samplers import RowNoise, sde
from kineflow.policies.time_grids import TimeGrid

DOUBLE = torch.float64
PATHS = [CondOT(), Cosine(), VPLinear(), ContinuousSquaredCos(), SquaredCos(100), VarianceExploding()]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
ALL: list[ObjectiveConfig] = [FlowMatching(), Diffusion(), Regression(), MIP()]

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass
class Recorder:
    """A head that writes down what it is shown."""

    answer: Answer
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        self.seen.append((x, t, condition))
        return self.answer(x, t, condition)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_chunk(count: int = 64) -> tuple[torch.Tensor, Mixture]:
    chunk = torch.randn(1, 4, 2, generator=generator(9), dtype=DOUBLE)
    return chunk.expand(count, 4, 2), Mixture(torch.ones(1, dtype=DOUBLE), chunk, torch.zeros_like(chunk))


def ones(actions: torch.Tensor) -> torch.Tensor:
    return torch.ones(actions.shape[:2], dtype=actions.dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_perfect_head_of_one_chunk_has_no_loss(path: Path, prediction: Prediction) -> None:
    """O6: x reveals the noise, so the optimal answer is the target itself; with it, sampling returns the chunk."""
    actions, law = one_chunk()
    head = MixtureHead(law, path, prediction)
    objective = FlowMatching(path=path, prediction=prediction, loss_space=prediction)
    assert objective.loss(head, actions, None, generator(), ones(actions)).max().item() < 1e-16
    objective = dataclasses.replace(objective, per_action_time=True)
    assert objective.loss(head, actions, None, generator(), ones(actions)).max().item() < 1e-16
    sampled = objective.sample(head, RowNoise(np.arange(3), (4, 2), DOUBLE), None)
    torch.testing.assert_close(sampled, actions[:3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_of_the_head_is_the_loss(prediction: Prediction) -> None:
    actions, law = one_chunk()
    perfect = MixtureHead(law, CondOT(), prediction)
    objective = FlowMatching(prediction=prediction, loss_space=prediction)
    loss = objective.loss(lambda x, t, c: perfect(x, t, c) + 0.1, actions, None, generator(), ones(actions))
    torch.testing.assert_close(loss, torch.full_like(loss, 0.01), rtol=1e-9, atol=0)


def test_loss_space_changes_the_weight_as_the_algebra_says() -> None:
    """|v|-loss = |a|-loss / (1 - t)^2 = |eps|-loss / t^2 on CondOT."""
    actions, law = one_chunk()
    factors: dict[Prediction, Callable[[torch.Tensor], torch.Tensor]] = {"sample": lambda t: 1 - t, "epsilon": lambda t: t}
    for prediction, factor in factors.items():
        perfect = MixtureHead(law, CondOT(), prediction)

        def wrong(
            x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, perfect: MixtureHead = perfect
        ) -> torch.Tensor:
            return perfect(x, t, condition) + 0.1

        head = Recorder(wrong)
        loss = FlowMatching(prediction=prediction, t_eps=0.0).loss(head, actions, None, generator(), ones(actions))
        torch.testing.assert_close(loss, 0.01 / factor(head.seen[0][1]) ** 2, rtol=1e-6, atol=0)


def test_heads_see_the_mixture_of_chunk_and_noise() -> None:
    """With chunk 0, x = (1 - t) eps: unit variance after dividing; with one time per action each its own."""
    actions = torch.zeros(4000, 4, 2, dtype=DOUBLE)
    for per_action in (False, True):
        head = Recorder(lambda x, t, c: x)
        FlowMatching(per_action_time=per_action).loss(head, actions, None, generator(), ones(actions))
        x, t, _ = head.seen[0]
        assert t.shape == ((4000, 4) if per_action else (4000,))
        eps = x / (1 - t)[..., None] if per_action else x / (1 - t)[:, None, None]
        assert eps.var().item() == pytest.approx(1, abs=0.03)
        assert abs(eps.mean().item()) < 0.03
        if per_action:
            assert abs(torch.corrcoef(t.T)[0, 1].item()) < 0.1


def test_condition_reaches_the_head_and_the_sampler() -> None:
    actions, condition = torch.zeros(3, 4, 2), torch.ones(3, 5, 7)
    for objective in ALL:
        head = Recorder(lambda x, t, c: x)
        objective.loss(head, actions, condition, generator(), ones(actions))
        objective.sample(head, RowNoise(np.arange(3), (4, 2)), condition)
        assert len(head.seen) >= 2
        assert all(seen is condition for _, _, seen in head.seen)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_padding_has_no_say(objective: ObjectiveConfig) -> None:
    actions = torch.randn(6, 4, 2, generator=generator(1))
    weight = torch.ones(6, 4)
    weight[:, 2:] = 0
    head: Answer = lambda x, t, c: 0.1 * torch.tanh(x)  # noqa: E731
    clean = objective.loss(head, actions, None, generator(), weight)
    garbage = actions.clone()
    garbage[:, 2:] = 1e3
    assert torch.equal(objective.loss(head, garbage, None, generator(), weight), clean)
    assert not torch.equal(objective.loss(head, actions, None, generator(), torch.ones(6, 4)), clean)


def test_row_mean_by_hand() -> None:
    error = torch.tensor([[[1.0, 3.0], [10.0, 10.0]], [[4.0, 4.0], [8.0, 8.0]], [[1.0, 1.0], [1.0, 1.0]]])
    weight = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    assert row_mean(error, weight).tolist() == [2.0, 5.0, 0.0]
    assert row_mean(error, weight.bool()).tolist() == [2.0, 6.0, 0.0]


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_the_generator_is_the_only_randomness(objective: ObjectiveConfig) -> None:
    actions = torch.randn(6, 4, 2, generator=generator(1))
    head: Answer = lambda x, t, c: 0.3 * x  # noqa: E731
    first, again, other = (objective.loss(head, actions, None, generator(seed), ones(actions)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is isinstance(objective, Regression)
    noise = [objective.sample(head, RowNoise(np.array([5, 6]), (4, 2)), None) for _ in range(2)]
    assert torch.equal(*noise)
    alone = objective.sample(head, RowNoise(np.array([6]), (4, 2)), None)
    assert torch.equal(noise[0][1:], alone)


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "beta"])
def test_time_densities(density: Literal["uniform", "logit_normal", "beta"]) -> None:
    """Mean and median of the noise fraction 1 - t: uniform; sigmoid(N(-.4, 1)); .999 Beta(1.5, 1) + .001."""
    t = draw_times(CondOT(), density, torch.zeros(200_000, dtype=DOUBLE), generator())
    noise = 1 - t
    median = {"uniform": 0.5, "logit_normal": 1 / (1 + math.exp(0.4)), "beta": 0.999 * 0.5 ** (2 / 3) + 0.001}[density]
    mean = {"uniform": 0.5, "logit_normal": None, "beta": 0.999 * 0.6 + 0.001}[density]
    assert noise.median().item() == pytest.approx(median, abs=5e-3)
    assert mean is None or noise.mean().item() == pytest.approx(mean, abs=5e-3)
    if density == "logit_normal":
        assert torch.logit(noise).std().item() == pytest.approx(1, abs=0.01)
    assert t.min() >= 0
    assert t.max() < 1


def test_discrete_paths_train_every_level_alike() -> None:
    t = draw_times(SquaredCos(100), "uniform", torch.zeros(200_000, dtype=torch.float32), generator())
    index = SquaredCos(100).time_to_index(t)
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-4)
    counts = torch.bincount(index.round().long(), minlength=100)
    assert len(counts) == 100
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_never_takes_a_time_to_one(dtype: torch.dtype) -> None:
    """Drawn in float64, a time just below one would round up, where some targets are infinite."""
    t = draw_times(CondOT(), "uniform", torch.zeros(100_000, dtype=dtype), generator(1))
    assert t.dtype == dtype
    assert t.max().item() < 1


def test_diffusion_is_flow_matching_with_other_defaults() -> None:
    actions = torch.randn(5, 4, 2, generator=generator(2))
    head: Answer = lambda x, t, c: torch.sin(x)  # noqa: E731
    diffusion = Diffusion(prediction="sample", steps=5, solver="ddpm")
    general = FlowMatching(
        path=SquaredCos(100), prediction="sample", loss_space="sample", solver="ddpm", steps=5, clip=1.0, condition_dropout=0.0
    )
    assert diffusion.general == general
    same = [o.loss(head, actions, None, generator(), ones(actions)) for o in (diffusion, general)]
    assert torch.equal(*same)
    assert torch.equal(*(o.sample(head, RowNoise(np.arange(3), (4, 2)), None) for o in (diffusion, general)))
    assert diffusion.sampler_spec() == general.sampler_spec()
    assert diffusion.sampler_spec().path == "SquaredCos(num_steps=100)"


def test_clip_bounds_what_diffusion_samples() -> None:
    head: Answer = lambda x, t, c: -3 * x  # noqa: E731
    sampled = Diffusion().sample(head, RowNoise(np.arange(4), (4, 2)), None)
    assert sampled.abs().max().item() == 1.0
    free = Diffusion(clip=math.inf).sample(head, RowNoise(np.arange(4), (4, 2)), None)
    assert free.abs().max().item() > 10


def test_steps_and_guidance_can_be_overridden() -> None:
    null = torch.zeros(1, 1, 1)
    head = Recorder(lambda x, t, c: x if c is None else 0 * x + c)
    objective = FlowMatching(steps=4, condition_dropout=0.1)
    condition = torch.ones(2, 1, 1)
    noise = [RowNoise(np.arange(2), (4, 2)) for _ in range(3)]
    objective.sample(head, noise[0], condition, SampleOptions(null, steps=7))
    assert len(head.seen) == 7
    plain = objective.sample(head, noise[1], condition, SampleOptions(null))
    guided = objective.sample(head, noise[2], condition, SampleOptions(null, guidance_scale=3.0))
    assert head.seen[-1][0].shape[0] == 4
    torch.testing.assert_close(guided - plain, torch.full_like(plain, 2.0), rtol=1e-5, atol=1e-5)  # velocity 1 -> 3, for t = 0..1


@pytest.mark.parametrize("kind", [FlowMatching, Diffusion])
def test_sampling_is_what_is_configured(kind: type[FlowMatching] | type[Diffusion]) -> None:
    """Interval, clip, grid, solver and its k: what `sample` makes of them is what one puts together by hand."""
    condition, null, grid = torch.ones(3, 1, 1, dtype=DOUBLE), torch.zeros(1, 1, 1, dtype=DOUBLE), TimeGrid("shifted", shift=2.0)
    head: Answer = lambda x, t, c: 0.7 * torch.tanh(x) + 0.3 * (0 if c is None else c)  # noqa: E731
    settings = {"solver": "sde", "diffusion": 0.5, "grid": grid, "guidance_interval": (-2.0, 0.5), "clip": 0.8}
    objective = kind(prediction="sample", condition_dropout=0.1, guidance_scale=2.0, steps=6, **settings)  # type: ignore[arg-type]

    def sampled(chosen: FlowMatching | Diffusion) -> torch.Tensor:
        return chosen.sample(head, RowNoise(np.arange(3), (4, 2), DOUBLE), condition, SampleOptions(null))

    guided = ClassifierFreeGuidance(HeadField(head, objective.path, objective.prediction), null, 2.0, (-2.0, 0.5))
    fresh = RowNoise(np.arange(3), (4, 2), DOUBLE)
    by_hand = sde(Clip(guided, -0.8, 0.8), fresh.draw(), grid(objective.path, 6), condition, fresh, k=0.5)
    assert torch.equal(sampled(objective), by_hand)
    for name, other in {"diffusion": 1.0, "grid": TimeGrid(), "guidance_interval": (-2.0, math.inf), "clip": 0.7}.items():
        assert not torch.equal(sampled(dataclasses.replace(objective, **{name: other})), by_hand), name  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [FlowMatching, Diffusion])
def test_temperature_scales_the_noise_that_a_chunk_begins_with(kind: type[FlowMatching] | type[Diffusion]) -> None:
    """A linear field keeps the scale: with exactly predicted data N(0, 1) chunks have the temperature as their deviation."""

    def sampled(temperature: float, **settings: Any) -> torch.Tensor:
        objective = kind(prediction="sample", steps=40, temperature=temperature, clip=math.inf, **settings)

        def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            point = objective.path.at(t[:, None, None])
            return x * point.alpha / (point.alpha**2 + point.sigma**2)

        return objective.sample(head, RowNoise(np.arange(50), (4, 2), DOUBLE), None)

    for temperature in (0.0, 0.3):
        torch.testing.assert_close(sampled(temperature), temperature * sampled(1.0))
    assert sampled(1.0).std() > 0.9
    assert kind(temperature=0.3).sampler_spec().temperature == 0.3
    for wrong in ({"temperature": -0.1}, {"temperature": math.inf}, {"temperature": 0.5, "solver": "sde"}):
        with pytest.raises(KineflowError, match="temperature is"):
            kind(**wrong)  # type: ignore[arg-type]


def test_the_diagonal_of_a_flow_map_is_sampled_as_configured() -> None:
    head: Answer = lambda x, t, c: torch.tanh(2 * x) - x  # noqa: E731
    grid, fresh, again = TimeGrid("shifted", shift=2.0), *(RowNoise(np.arange(3), (4, 2), DOUBLE) for _ in range(2))
    sampled = FlowMap(solver="sde", steps=6, diffusion=0.5, grid=grid, clip=0.8).sample(head, again, None)
    field = Clip(HeadField(head, CondOT(), "velocity"), -0.8, 0.8)
    assert torch.equal(sampled, sde(field, fresh.draw(), grid(CondOT(), 6), None, fresh, k=0.5))


def test_a_guide_stands_between_the_head_and_its_solver() -> None:
    """The guide sees the clipped denoised chunk, and the solver integrates what the guide says: here it ends at 7."""
    seen: list[float] = []

    def guide(field: Field) -> Field:
        def to_seven(x: torch.Tensor, lam: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            seen.append(field(x, lam, condition).abs().max().item())
            return torch.full_like(x, 7.0)

        return to_seven

    noise = RowNoise(np.arange(3), (4, 2))
    sampled = Diffusion(steps=5).sample(lambda x, t, c: 100 * x, noise, None, SampleOptions(guide=guide))
    assert (sampled == 7).all()
    assert seen == [1.0] * 5


def test_guidance_without_a_null_condition_is_refused() -> None:
    with pytest.raises(KineflowError, match=r"guidance_scale is 2 but .* train with condition_dropout > 0"):
        FlowMatching(guidance_scale=2.0).sample(lambda x, t, c: x, RowNoise(np.arange(2), (4, 2)), torch.ones(2, 1, 1))


@pytest.mark.parametrize(("objective", "calls"), [(Regression(), 1), (MIP(), 2)])
def test_baselines_refuse_what_they_cannot_do(objective: Regression | MIP, calls: int) -> None:
    head, noise = Recorder(lambda x, t, c: x + 1), RowNoise(np.arange(2), (4, 2))
    objective.sample(head, noise, None, SampleOptions(steps=calls, guidance_scale=1.0))
    assert len(head.seen) == calls
    for options in (SampleOptions(steps=5), SampleOptions(guidance_scale=2.0), SampleOptions(guide=lambda field: field)):
        with pytest.raises(KineflowError, match=f"always takes {calls} network calls"):
            objective.sample(head, noise, None, options)


def test_regression_by_hand() -> None:
    actions = torch.randn(3, 4, 2, generator=generator(1), dtype=DOUBLE)
    head = Recorder(lambda x, t, c: x + 0.5)
    loss = Regression().loss(head, actions, None, generator(), ones(actions))
    torch.testing.assert_close(loss, ((0.5 - actions) ** 2).mean(dim=(1, 2)), rtol=1e-12, atol=0)
    assert (head.seen[0][0] == 0).all()
    assert (head.seen[0][1] == 0).all()
    assert (Regression().sample(head, RowNoise(np.arange(3), (4, 2)), None) == 0.5).all()


def test_mip_by_hand() -> None:
    """|f(0, 0, c) - a|^2 / t* + |f(a + (1 - t*) z, t*, c) - a|^2 / (1 - t*), then f(f(0, 0, c), t*, c)."""
    actions = torch.randn(2000, 4, 2, generator=generator(1), dtype=DOUBLE)
    head = Recorder(lambda x, t, c: x + t[:, None, None] + 0.5)
    loss = MIP(t_star=0.8).loss(head, actions, None, generator(), ones(actions))
    (zero, start, _), (near, late, _) = head.seen
    assert (zero == 0).all()
    assert (start == 0).all()
    assert (late == 0.8).all()
    assert ((near - actions) / 0.2).std().item() == pytest.approx(1, abs=0.02)
    expected = (0.5 - actions) ** 2 / 0.8 + (near + 1.3 - actions) ** 2 / 0.2
    torch.testing.assert_close(loss, expected.mean(dim=(1, 2)), rtol=1e-12, atol=0)
    sampled = MIP(t_star=0.8).sample(head, RowNoise(np.arange(3), (4, 2), DOUBLE), None)
    torch.testing.assert_close(sampled, torch.full_like(sampled, 0.5 + 0.8 + 0.5), rtol=1e-12, atol=0)


def test_losses_train_a_network() -> None:
    """The gradient reaches the weights: a linear head learns the one chunk there is."""
    actions = one_chunk(32)[0].float()
    for objective in (FlowMatching(prediction="sample", loss_space="sample"), Regression(), MIP()):
        bias = torch.zeros(4, 2, requires_grad=True)
        optimiser = torch.optim.SGD([bias], lr=0.3)
        for step in range(200):
            loss = objective.loss(lambda x, t, c, b=bias: b.expand_as(x), actions, None, generator(step), ones(actions)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        torch.testing.assert_close(bias.detach(), actions[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "objective", [*ALL, FlowMatching(path=VarianceExploding(rho=5.0), prediction="edm", time_density="beta")]
)
def test_config_round_trip(objective: ObjectiveConfig) -> None:
    assert from_plain(ObjectiveConfig, to_plain_config(objective), "train.yaml: objective") == objective


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "FlowMatching", "prediction": "velocty"}, "did you mean 'velocity'"),
        ({"kind": "FlowMatching", "solver": "heum"}, "did you mean 'heun'"),
        ({"kind": "Difusion"}, "did you mean 'Diffusion'"),
        ({"kind": "MIP", "t_star": 1.0}, "t_star must be between 0 and 1, got 1.0"),
        ({"kind": "Diffusion", "steps": 101}, "at most 100"),
        ({"kind": "FlowMatching", "steps": 0}, "steps is 0"),
        ({"kind": "FlowMatching", "condition_dropout": 1.5}, "condition_dropout"),
        ({"kind": "FlowMatching", "guidance_scale": 2.0}, "condition_dropout > 0"),
    ],
)
def test_bad_configuration_is_one_clear_error(data: dict[str, object], words: str) -> None:
    with pytest.raises(KineflowError, match=words):
        from_plain(ObjectiveConfig, data, "train.yaml: objective")
