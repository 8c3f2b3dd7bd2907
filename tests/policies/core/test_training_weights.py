"""Time densities and loss spaces: their laws against SciPy and the algebra, and that neither moves what training converges to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from kineflow.config import ConfigError, apply_overrides, from_plain, to_plain_config
from kineflow.contracts import KineflowError
from kineflow.policies.analytic import Mixture, MixtureHead
from kineflow.policies.losses import draw_times, exchange_rate
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.paths import CondOT, Cosine, Path, SquaredCos, VPLinear
from kineflow.policies.predictions import Denoised, Prediction, from_denoised, to_denoised
from kineflow.policies.time_densities import TimeLaw

DOUBLE = torch.float64
COUNT = 20_000
Law = Callable[[torch.Tensor], torch.Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unshifted(noise: torch.Tensor, shift: float) -> torch.Tensor:
    """The inverse of n' = S n / (1 + (S - 1) n)."""
    return noise / (shift - (shift - 1) * noise)


def p_value(law: TimeLaw, expected: stats.rv_continuous, shift: float = 1.0, logit: bool = False) -> float:
    noise = unshifted(law.noise_fraction(torch.Size([COUNT]), generator()), shift)
    values = torch.logit(noise) if logit else noise
    return float(stats.kstest(values.numpy(), expected.cdf).pvalue)


@pytest.mark.parametrize("shift", [1.0, 0.165, 3.0])
@pytest.mark.parametrize(
    ("density", "parameters", "expected", "logit"),
    [
        ("uniform", None, stats.uniform(), False),
        ("logit_normal", None, stats.norm(-0.4, 1), True),
        ("logit_normal", (0.7, 0.5), stats.norm(0.7, 0.5), True),
        ("beta", None, stats.beta(1.5, 1, loc=0.001, scale=0.999), False),
        ("beta", (0.5, 3.0), stats.beta(0.5, 3, loc=0.001, scale=0.999), False),
        ("beta", (4.0, 1.0), stats.beta(4, 1, loc=0.001, scale=0.999), False),
    ],
)
def test_noise_fractions_have_their_law(density: str, parameters: tuple[float, float] | None, expected, logit, shift) -> None:  # type: ignore[no-untyped-def]
    """Kolmogorov-Smirnov against SciPy; with the shift forgotten the same test is certain that it is wrong."""
    law = TimeLaw(density, parameters, shift)  # type: ignore[arg-type]
    assert p_value(law, expected, shift, logit) > 0.01
    if shift != 1:
        assert p_value(law, expected, 1.0, logit) < 1e-9


def test_wrong_conventions_are_told_apart() -> None:
    """Beta(a, b) is not Beta(b, a), and the law is that of the noise fraction, not of t."""
    assert p_value(TimeLaw("beta", (1.5, 3.0)), stats.beta(3, 1.5)) < 1e-9
    t = draw_times(CondOT(), TimeLaw("beta", (4.0, 1.0)), torch.zeros(COUNT, dtype=DOUBLE), generator())
    assert stats.kstest((1 - t).numpy(), stats.beta(4, 1, loc=0.001, scale=0.999).cdf).pvalue > 0.01
    assert stats.kstest(t.numpy(), stats.beta(4, 1, loc=0.001, scale=0.999).cdf).pvalue < 1e-9


def test_shifting_a_logit_normal_moves_its_mean() -> None:
    """The shift multiplies odds: log S more mean."""
    shape = torch.Size([1000])
    shifted, moved = TimeLaw("logit_normal", (0.2, 0.7), 3.0), TimeLaw("logit_normal", (0.2 + math.log(3), 0.7))
    torch.testing.assert_close(shifted.noise_fraction(shape, generator()), moved.noise_fraction(shape, generator()))


@pytest.mark.parametrize(
    "law", [TimeLaw("beta", (1e-4, 1e-4)), TimeLaw("logit_normal", (0.0, 1e3)), TimeLaw("uniform", None, 1e-9)]
)
def test_extreme_laws_stay_in_the_unit_interval(law: TimeLaw) -> None:
    t = draw_times(SquaredCos(100), law, torch.zeros(5000), generator())
    assert torch.isfinite(t).all()
    assert 0 <= t.min() <= t.max() < 1


# --- the optimum -------------------------------------------------------------------------------------------------------

MIXTURE = Mixture(
    torch.tensor([0.3, 0.7], dtype=DOUBLE),
    torch.tensor([[[-1.0, 0.5]], [[0.8, -0.2]]], dtype=DOUBLE),
    torch.tensor([[[0.3, 0.5]], [[0.2, 0.4]]], dtype=DOUBLE),
)


def draws(count: int) -> torch.Tensor:
    which = torch.multinomial(MIXTURE.weights, count, replacement=True, generator=generator(5))
    return MIXTURE.means[which] + MIXTURE.stds[which] * torch.randn(count, 1, 2, generator=generator(6), dtype=DOUBLE)


def minimiser(objective: FlowMatching, teacher: MixtureHead, bias: float = 0.0) -> torch.Tensor:
    """Of all heads c0 (optimum + bias) + c1 + c2 x + c3 t, the (c0, ..., c3) of least loss: exact, as the loss is quadratic."""
    actions = draws(40_000)
    weight = torch.ones(actions.shape[:2])

    def loss(c: torch.Tensor) -> torch.Tensor:
        def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            return c[0] * (teacher(x, t, None) + bias) + c[1] + c[2] * x + c[3] * t[:, None, None]

        return objective.loss(head, actions, None, generator(7), weight).mean()

    start = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    slope = torch.autograd.grad(loss(start), start)[0]
    return torch.linalg.solve(torch.autograd.functional.hessian(loss, start.detach()), -slope)  # type: ignore[no-untyped-call]


OPTIMUM = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=DOUBLE)


@pytest.mark.parametrize(
    ("density", "parameters", "shift"),
    [
        ("uniform", None, 1.0),
        ("uniform", None, 3.0),
        ("logit_normal", None, 0.165),
        ("beta", None, 1.0),
        ("beta", (0.5, 3.0), 1.0),
    ],
)
@pytest.mark.parametrize(("prediction", "loss_space"), [("velocity", "velocity"), ("sample", "velocity"), ("sample", "sample")])
def test_weights_of_training_do_not_move_the_optimum(
    density: str, parameters: tuple[float, float] | None, shift: float, prediction: Prediction, loss_space: Prediction
) -> None:
    """Among heads that contain E[a | x_t] and ways to leave it, every density, loss space and clamp chooses E[a | x_t]."""
    objective = FlowMatching(
        prediction=prediction,
        loss_space=loss_space,
        time_density=density,  # type: ignore[arg-type]
        time_parameters=parameters,
        time_shift=shift,
    )
    teacher = MixtureHead(MIXTURE, CondOT(), prediction)
    torch.testing.assert_close(minimiser(objective, teacher), OPTIMUM, rtol=0, atol=0.06)


def test_a_head_that_is_not_the_optimum_is_found_out() -> None:
    """Negative control of the test above: the head's own bias is taken out again."""
    found = minimiser(FlowMatching(prediction="sample"), MixtureHead(MIXTURE, CondOT(), "sample"), bias=0.5)
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5, 0.0, 0.0], dtype=DOUBLE), rtol=0, atol=0.06)


# --- loss in another space ---------------------------------------------------------------------------------------------


def losses_and_times(objective: FlowMatching) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a head that is 0.1 off the only chunk there is, with the times they were drawn at."""
    chunk = torch.randn(1, 4, 2, generator=generator(9), dtype=DOUBLE)
    teacher = MixtureHead(
        Mixture(torch.ones(1, dtype=DOUBLE), chunk, torch.zeros_like(chunk)), objective.path, objective.prediction
    )
    times: list[torch.Tensor] = []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        times.append(t)
        return teacher(x, t, None) + 0.1

    loss = objective.loss(head, chunk.expand(2000, 4, 2), None, generator(), torch.ones(2000, 4))
    return loss, times[0]


@pytest.mark.parametrize("t_eps", [0.05, 0.2])
def test_rit_loss_is_bounded_by_the_clamp(t_eps: float) -> None:
    """RiT: |v|-loss = |a|-loss / max(1 - t, t_eps)^2; the unbounded one away from the data, at most 1 / t_eps^2 there."""
    loss, t = losses_and_times(FlowMatching(prediction="sample", t_eps=t_eps))
    torch.testing.assert_close(loss, 0.01 / (1 - t).clamp(min=t_eps) ** 2, rtol=1e-8, atol=0)
    free, same_t = losses_and_times(FlowMatching(prediction="sample", t_eps=0.0))
    assert torch.equal(t, same_t)
    inside = 1 - t < t_eps
    assert 0 < inside.sum() < len(t)
    torch.testing.assert_close(loss[~inside], free[~inside], rtol=1e-8, atol=0)
    assert loss.max() <= 0.01 / t_eps**2 * (1 + 1e-8) < free[inside].max()


def test_clamp_of_epsilon_heads_is_at_the_noise() -> None:
    loss, t = losses_and_times(FlowMatching(prediction="epsilon", t_eps=0.1))
    torch.testing.assert_close(loss, 0.01 / t.clamp(min=0.1) ** 2, rtol=1e-6, atol=0)


def test_clamp_has_no_say_where_the_spaces_are_the_same() -> None:
    loss, _ = losses_and_times(FlowMatching(prediction="velocity", t_eps=0.9))
    torch.testing.assert_close(loss, torch.full_like(loss, 0.01), rtol=1e-8, atol=0)


@pytest.mark.parametrize("path", [CondOT(), Cosine(), VPLinear()], ids=str)
@pytest.mark.parametrize("loss_space", ["sample", "epsilon", "velocity", "v", "edm"])
@pytest.mark.parametrize("prediction", ["sample", "epsilon", "velocity", "velocity_to_noise", "v", "edm"])
def test_rate_times_error_is_the_converted_error(path: Path, prediction: Prediction, loss_space: Prediction) -> None:
    """The other way to say it: convert the answer and the truth, then subtract."""
    t = torch.linspace(0.1, 0.9, 5, dtype=DOUBLE)
    actions, noise, answer = torch.randn(3, 5, 4, 2, generator=generator(), dtype=DOUBLE)
    truth, point = Denoised(actions, noise), path.at(t).over(actions)
    x = point.alpha * actions + point.sigma * noise
    converted = from_denoised(loss_space, to_denoised(prediction, answer, x, point), point)
    error = (answer - from_denoised(prediction, truth, point)) * exchange_rate(prediction, loss_space, point, 0.0)
    torch.testing.assert_close(error, converted - from_denoised(loss_space, truth, point), rtol=1e-9, atol=1e-9)


# --- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "beta"])
def test_files_that_name_a_density_still_load(density: str) -> None:
    objective = from_plain(FlowMatching, {"kind": "FlowMatching", "time_density": density}, "train.yaml: objective")
    assert objective.times == TimeLaw(density)  # type: ignore[arg-type]


def test_parameters_in_a_file_and_on_the_command_line() -> None:
    data = {"time_density": "beta", "time_parameters": [2, 5], "time_shift": 3, "coupling": "optimal_transport"}
    objective = from_plain(FlowMatching, data, "train.yaml: objective")
    assert objective.times == TimeLaw("beta", (2.0, 5.0), 3.0)
    assert from_plain(FlowMatching, to_plain_config(objective), "train.yaml: objective") == objective
    words = ["--time-density", "logit_normal", "--time-parameters", "0.5", "2", "--time-shift", "0.5", "--t-eps", "0.1"]
    changed = apply_overrides(FlowMatching(), words)
    assert (changed.times, changed.t_eps) == (TimeLaw("logit_normal", (0.5, 2.0), 0.5), 0.1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"time_density": "bta"}, "did you mean 'beta'"),
        ({"time_density": "beta", "time_parameters": [1.5, 0]}, "a and b must be positive"),
        ({"time_density": "logit_normal", "time_parameters": [0, -1]}, "standard deviation, the second, must be positive"),
        ({"time_parameters": [1, 1]}, "uniform takes no time_parameters"),
        ({"time_shift": 0}, "time_shift is 0"),
        ({"t_eps": 1}, "t_eps is 1"),
        ({"t_eps": -0.1}, "t_eps is -0.1"),
    ],
)
def test_bad_values_are_refused(data: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_plain(FlowMatching, data, "train.yaml: objective")
    assert issubclass(ConfigError, KineflowError)
