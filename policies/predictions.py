"""What a network predicts, and the one object everything else uses: the denoised chunk with its noise.

With x = alpha a + sigma eps, Dt = alpha' sigma - sigma' alpha and the clock t = 0 noise, t = 1 data:

    sample             a
    epsilon            eps
    velocity           alpha' a + sigma' eps                 CondOT: a - eps
    velocity_to_noise  -velocity                             pi0 / openpi, whose clock runs 1 - t: eps - a
    v                  alpha eps - sigma a                   diffusers "v_prediction", on any path (diffusers: VP paths only)
    score              grad log p = -eps / sigma
    edm                F of Karras et al. 2022: a = c_skip y + c_out F(c_in y), y = x / alpha; sigma_data from the path, or 0.5

A network that is optimal in one form is optimal in every other. Nothing here divides by alpha = 0 or sigma = 0. What a form
does not say at an end is filled with the prior mean, zero: epsilon and score say nothing of the sample where alpha = 0, and
x says nothing of the noise where sigma = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.policies.paths import EDM_DATA_STD as EDM_DATA_STD, PathPoint

Prediction = Literal["sample", "epsilon", "velocity", "velocity_to_noise", "v", "score", "edm"]


@dataclass(frozen=True)
class Denoised:
    """The best guesses E[a | x] and E[eps | x]; alpha sample + sigma noise = x."""

    sample: Float[Tensor, "B H A"]
    noise: Float[Tensor, "B H A"]


def network_input(prediction: Prediction, x: Float[Tensor, "B H A"], point: PathPoint) -> Float[Tensor, "B H A"]:
    """`x` as the network sees it: as it is, but for EDM's c_in x / alpha. `point` broadcasts over `x`."""
    return x / _edm_norm(point) if prediction == "edm" else x


def to_denoised(prediction: Prediction, raw: Float[Tensor, "B H A"], x: Float[Tensor, "B H A"], point: PathPoint) -> Denoised:
    """Network output `raw` at state `x` to the denoised chunk and its noise. `point` broadcasts over `x`."""
    alpha, sigma = point.alpha, point.sigma
    match prediction:
        case "sample":
            return Denoised(raw, _ratio(x - alpha * raw, sigma))
        case "epsilon":
            return Denoised(_ratio(x - sigma * raw, alpha), raw)
        case "velocity":
            return _from_velocity(raw, x, point)
        case "velocity_to_noise":
            return _from_velocity(-raw, x, point)
        case "v":
            power = alpha**2 + sigma**2
            return Denoised((alpha * x - sigma * raw) / power, (sigma * x + alpha * raw) / power)
        case "score":
            return Denoised(_ratio(x + sigma**2 * raw, alpha), -sigma * raw)
        case "edm":
            # c_skip, c_out and 1 / alpha multiplied out: regular at both ends.
            norm = _edm_norm(point)
            skip, std = x / norm**2, point.data_std
            return Denoised(std**2 * alpha * skip + sigma * std * raw / norm, sigma * skip - alpha * std * raw / norm)


def from_denoised(prediction: Prediction, denoised: Denoised, point: PathPoint) -> Float[Tensor, "B H A"]:
    """The inverse of `to_denoised`; with the true (a, eps) it is the training target.

    Infinite only where the target is: velocity on variance-preserving paths at t = 1. The score at sigma = 0 is not a
    function of (a, eps); zero stands in for it.
    """
    sample, noise, alpha, sigma = denoised.sample, denoised.noise, point.alpha, point.sigma
    match prediction:
        case "sample":
            return sample
        case "epsilon":
            return noise
        case "velocity":
            return point.alpha_dot * sample + point.sigma_dot * noise
        case "velocity_to_noise":
            return -(point.alpha_dot * sample + point.sigma_dot * noise)
        case "v":
            return alpha * noise - sigma * sample
        case "score":
            return -_ratio(noise, sigma)
        case "edm":
            return (sigma * sample - point.data_std**2 * alpha * noise) / (point.data_std * _edm_norm(point))


def _from_velocity(raw: Tensor, x: Tensor, point: PathPoint) -> Denoised:
    """a = (sigma v - sigma' x) / Dt, eps = (alpha' x - alpha v) / Dt."""
    speed = point.alpha_dot * point.sigma - point.sigma_dot * point.alpha
    # VP paths reach the data, alpha = 1, at infinite speed: sigma' / Dt tends to -1, the other ratios to 0.
    share = torch.where(torch.isinf(speed), -1, point.sigma_dot / speed)
    sample = point.sigma / speed * raw - share * x
    return Denoised(sample, point.alpha_dot / speed * x - point.alpha / speed * raw)


def _edm_norm(point: PathPoint) -> Tensor:
    return torch.sqrt(point.sigma**2 + (point.data_std * point.alpha) ** 2)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and zero (in value and gradient) where the denominator is zero."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))
