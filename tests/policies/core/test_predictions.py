"""T1: every conversion in every direction, on every path, against a Gaussian mixture's closed forms; the ends; the signs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from kineflow.policies.analytic import Mixture
from kineflow.policies.paths import (
    CondOT,
    ContinuousSquaredCos,
    Cosine,
    Path,
    PathPoint,
    SquaredCos,
    VarianceExploding,
    VPLinear,
)
from kineflow.policies.predictions import EDM_DATA_STD, Denoised, Prediction, from_denoised, network_input, to_denoised

DOUBLE = torch.float64
PATHS = [
    CondOT(),
    Cosine(),
    VPLinear(),
    ContinuousSquaredCos(),
    SquaredCos(100),
    VarianceExploding(),
    VarianceExploding(data_std=0.3),
]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def mixture() -> Mixture:
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(3, 4, 2, generator=generator, dtype=DOUBLE)
    stds = 0.2 + torch.rand(3, 4, 2, generator=generator, dtype=DOUBLE)
    return Mixture(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), means, stds)


def state(path: Path, t: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, PathPoint, Denoised]:
    """A state on the path at times `[B]`, with the pair (a, eps) it was mixed from."""
    generator = torch.Generator().manual_seed(seed)
    a, eps = torch.randn(2, len(t), 4, 2, generator=generator, dtype=DOUBLE)
    point = path.at(t).over(a)
    return point.alpha * a + point.sigma * eps, point, Denoised(a, eps)


def exact(prediction: Prediction, x: torch.Tensor, point: PathPoint) -> torch.Tensor:
    """What an optimal network of this type answers; each form has its own formula, none uses the code under test."""
    law, (alpha, sigma) = mixture(), (point.alpha, point.sigma)
    sample, score, velocity = law.sample(x, point), law.score(x, point), law.velocity(x, point)
    u, y, std = sigma / alpha, x / alpha, point.data_std
    skip, out = std**2 / (u**2 + std**2), u * std / torch.sqrt(u**2 + std**2)
    return {
        "sample": sample,
        "epsilon": -sigma * score,
        "velocity": velocity,
        "velocity_to_noise": -velocity,
        "v": -alpha * sigma * score - sigma * sample,
        "score": score,
        "edm": (sample - skip * y) / out,
    }[prediction]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("source", PREDICTIONS)
def test_all_directions_on_a_mixture(path: Path, source: Prediction) -> None:
    x, point, _ = state(path, torch.linspace(0.02, 0.98, 25, dtype=DOUBLE))
    denoised = to_denoised(source, exact(source, x, point), x, point)
    # Dividing by alpha or sigma spends that many digits; nothing else may be lost.
    lost = 1e-12 * torch.maximum(1 / point.alpha, 1 / point.sigma).clamp(max=1e3)
    assert ((denoised.sample - exact("sample", x, point)).abs() <= lost).all()
    assert ((denoised.noise - exact("epsilon", x, point)).abs() <= lost).all()
    for target in PREDICTIONS:
        error = (from_denoised(target, denoised, point) - exact(target, x, point)).abs()
        assert (error <= lost * _amplification(target, point)).all()


def _amplification(target: Prediction, point: PathPoint) -> torch.Tensor:
    """How much of an error in (a, eps) the target itself passes on."""
    if target == "score":
        return 1 + 1 / point.sigma
    return 1 + (point.alpha_dot.abs() + point.sigma_dot.abs() if "velocity" in target else point.sigma)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_twelve_digits_on_flow_paths(prediction: Prediction) -> None:
    """The tolerance of the specification, plain, where no end is near: CondOT, t in [.1, .9]."""
    x, point, _ = state(CondOT(), torch.linspace(0.1, 0.9, 33, dtype=DOUBLE))
    denoised = to_denoised(prediction, exact(prediction, x, point), x, point)
    for target in PREDICTIONS:
        torch.testing.assert_close(from_denoised(target, denoised, point), exact(target, x, point), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_of_a_pair_gives_the_pair_back(path: Path, prediction: Prediction) -> None:
    x, point, pair = state(path, torch.linspace(0.05, 0.95, 19, dtype=DOUBLE))
    back = to_denoised(prediction, from_denoised(prediction, pair, point), x, point)
    torch.testing.assert_close(back.sample, pair.sample, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.noise, pair.noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(point.alpha * back.sample + point.sigma * back.noise, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_both_ends_are_finite_and_right(path: Path, prediction: Prediction, t: float) -> None:
    """Nothing is divided by alpha = 0 or sigma = 0: values and gradients stay finite, and what x reveals is exact."""
    raw = torch.full((1, 4, 2), 0.3, dtype=DOUBLE, requires_grad=True)
    x, point, _ = state(path, torch.tensor([t], dtype=DOUBLE))
    x.requires_grad_()
    denoised = to_denoised(prediction, raw, x, point)
    (denoised.sample.sum() + denoised.noise.sum()).backward()
    for value in (denoised.sample, denoised.noise, raw.grad, x.grad, network_input(prediction, x, point)):
        assert value is not None
        assert torch.isfinite(value).all()
    # The network's own word is taken where x says nothing; what x says overrules the network only where sigma is exactly 0.
    if point.sigma.item() == 0 and prediction != "sample":
        torch.testing.assert_close(denoised.sample, x, rtol=1e-15, atol=1e-15)
    if point.alpha.item() == 0 and prediction not in ("epsilon", "score"):
        torch.testing.assert_close(denoised.noise, x, rtol=1e-15, atol=1e-15)
    if point.alpha.item() == 0 and prediction in ("epsilon", "score"):
        assert (denoised.sample == 0).all()


@pytest.mark.parametrize("path", [VPLinear(), ContinuousSquaredCos()], ids=str)
def test_velocity_of_a_vp_path_converges_to_its_special_case_at_the_data(path: Path) -> None:
    """sigma' is infinite at t = 1; the special case must be the limit, not another value."""
    x = torch.full((1, 4, 2), 0.7, dtype=DOUBLE)
    gaps = []
    for distance in (1e-4, 1e-6, 1e-8):
        point = path.at(torch.tensor([1 - distance], dtype=DOUBLE)).over(x)
        gaps.append((to_denoised("velocity", torch.full_like(x, 0.3), x, point).sample - x).abs().max().item())
    at_end = to_denoised("velocity", torch.full_like(x, 0.3), x, path.at(torch.ones(1, dtype=DOUBLE)).over(x))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4
    assert (at_end.sample == x).all()
    assert (at_end.noise == 0).all()


def test_signs_are_part_of_the_prediction() -> None:
    """CondOT by hand: velocity is a - eps on our clock, pi0's network says eps - a (trap 11)."""
    x, point, pair = state(CondOT(), torch.tensor([0.25], dtype=DOUBLE))
    torch.testing.assert_close(from_denoised("velocity", pair, point), pair.sample - pair.noise, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(from_denoised("velocity_to_noise", pair, point), pair.noise - pair.sample, rtol=1e-15, atol=1e-15)
    right = to_denoised("velocity_to_noise", pair.noise - pair.sample, x, point).sample
    wrong = to_denoised("velocity", pair.noise - pair.sample, x, point).sample
    torch.testing.assert_close(right, pair.sample, rtol=1e-14, atol=1e-14)
    assert (wrong - pair.sample).abs().max() > 0.1


def test_v_without_denominators_is_right_on_vp_paths_only() -> None:
    """diffusers drops alpha^2 + sigma^2; on CondOT that is wrong (section 2)."""
    for path, holds in ((VPLinear(), True), (CondOT(), False)):
        x, point, pair = state(path, torch.tensor([0.4], dtype=DOUBLE))
        w = from_denoised("v", pair, point)
        torch.testing.assert_close(to_denoised("v", w, x, point).sample, pair.sample, rtol=1e-12, atol=1e-12)
        bare = point.alpha * x - point.sigma * w
        assert bool(torch.allclose(bare, pair.sample, atol=1e-9)) is holds


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_edm_input_is_c_in_of_y(path: Path) -> None:
    x, point, _ = state(path, torch.linspace(0.1, 0.9, 9, dtype=DOUBLE))
    u = point.sigma / point.alpha
    torch.testing.assert_close(
        network_input("edm", x, point), (x / point.alpha) / torch.sqrt(u**2 + point.data_std**2), rtol=1e-12, atol=1e-12
    )
    assert network_input("velocity", x, point) is x


def test_edm_target_has_unit_variance_for_data_of_its_std() -> None:
    """The point of the preconditioning (Karras et al. 2022, appendix B.6)."""
    one, zero = torch.ones(4, 1, 1, dtype=DOUBLE), torch.zeros(4, 1, 1, dtype=DOUBLE)
    point = CondOT().at(torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=DOUBLE)).over(one)
    # Target and input are linear in (a, eps): their variances follow from the two coefficients.
    of_sample, of_noise = from_denoised("edm", Denoised(one, zero), point), from_denoised("edm", Denoised(zero, one), point)
    torch.testing.assert_close(torch.hypot(of_sample * EDM_DATA_STD, of_noise), one, rtol=1e-12, atol=0)
    of_sample, of_noise = network_input("edm", point.alpha, point), network_input("edm", point.sigma, point)
    torch.testing.assert_close(torch.hypot(of_sample * EDM_DATA_STD, of_noise), one, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("path", "t"), [(CondOT(), 0.0), (CondOT(), 0.3), (CondOT(), 0.9), (Cosine(), 0.3), (VPLinear(), 0.3)], ids=str
)
def test_loss_equivalence(path: Path, t: float) -> None:
    """Delta v = (Dt / sigma) Delta a = -(Dt / alpha) Delta eps (section 2)."""
    x, point, pair = state(path, torch.tensor([t], dtype=DOUBLE))
    speed = point.alpha_dot * point.sigma - point.sigma_dot * point.alpha
    moved = pair.sample + 0.01
    noise = (x - point.alpha * moved) / point.sigma
    change = from_denoised("velocity", Denoised(moved, noise), point) - from_denoised("velocity", pair, point)
    torch.testing.assert_close(change, speed / point.sigma * 0.01 * torch.ones_like(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(point.alpha * change, -speed * (noise - pair.noise), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_float32_is_kept_and_close(path: Path, prediction: Prediction) -> None:
    x, point, pair = state(path, torch.tensor([0.2, 0.6], dtype=DOUBLE))
    single = PathPoint(*(v.float() for v in (point.alpha, point.sigma, point.alpha_dot, point.sigma_dot)))
    target = from_denoised(prediction, Denoised(pair.sample.float(), pair.noise.float()), single)
    back = to_denoised(prediction, target, x.float(), single)
    assert target.dtype == back.sample.dtype == back.noise.dtype == torch.float32
    torch.testing.assert_close(back.sample, pair.sample.float(), rtol=1e-3, atol=2e-3)
