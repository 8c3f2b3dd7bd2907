"""Several fields into one: weighted (convex), mixture (OR) and equal density (AND).

All mix denoised chunks, the common currency: with weights that sum to one the result is the same in sample, noise, velocity
or score space (specification: generative core, section 5). Solving the composed field with an ODE does not sample the product
of the densities: for Gaussians the sampled std is the weighted geometric mean of the stds. Stochastic solvers with a
growing k move towards the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.compose.batch import Ask, one_by_one
from kineflow.policies.compose.units import InUnits
from kineflow.policies.compose.weights import Weights
from kineflow.policies.field import Chunk, Field, Level, Tokens
from kineflow.policies.samplers import Noise

Together = Callable[[Sequence[Ask]], list[Chunk]]  # how several fields are asked: one by one, or their heads in one call


@runtime_checkable
class DensityField(Field, Protocol):
    """A field that also knows how likely a noisy chunk is; closed forms do, trained networks do not."""

    def log_density(self, x: Chunk, lam: Level, condition: Tokens | None) -> Float[Tensor, "B"]: ...


@dataclass(frozen=True)
class Conditioned:
    """A field with a condition of its own: policies of one composition have seen different observations."""

    field: Field
    condition: Tokens | None

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        return self.field(x, lam, self.condition)


@dataclass(frozen=True)
class OnSteps:
    """A field of a policy that acts on some of the chunk's steps only; its answer is zero on the others."""

    field: Field
    steps: tuple[int, ...]

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        steps = list(self.steps)
        level = lam if lam.ndim == 1 else lam[:, steps]
        answer = torch.zeros_like(x)
        answer[:, steps] = self.field(x[:, steps], level, condition)
        return answer


@dataclass(frozen=True)
class Convex:
    """sum w_i a_i, with weights for each noise level. `cover` says which policies act on which steps: elsewhere the others
    share the weight. A policy that never counts is never called, so one weight of 1 is that policy alone, bit for bit."""

    fields: Sequence[Field]
    weights: Weights
    cover: Float[Tensor, "P H"] | None = None  # 1: acts on this step
    together: Together = one_by_one

    def __post_init__(self) -> None:
        if self.weights.size != len(self.fields):
            raise KineflowError(f"{self.weights.size} weights for {len(self.fields)} policies; give one weight for each")

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        return self.mix(self.together([partial(self.fields[i], x, lam, condition) for i in self.counting]), lam)

    def mix(self, answers: Sequence[Chunk], lam: Level) -> Chunk:
        """Answers of the counting policies, weighed."""
        if len(answers) == 1:
            return answers[0]
        if self.cover is None and len(self.weights.knots) == 1:
            shares = [self.weights.knots[0].weights[i] for i in self.counting]
            total = answers[0] * shares[0]
            for answer, share in zip(answers[1:], shares[1:]):
                total = total.add(answer, alpha=share)
            return total
        weights = self._shares(lam)[..., list(self.counting)]
        return (torch.stack(list(answers), dim=-1) * weights[:, :, None]).sum(dim=-1)

    @cached_property
    def counting(self) -> tuple[int, ...]:
        """The policies that have a weight at some level, or act alone on some step."""
        weighted = torch.tensor(self.weights.largest) > 0
        if self.cover is not None:
            reached = (self.cover * weighted[:, None]).sum(dim=0) > 0
            weighted = weighted | (self.cover[:, ~reached] > 0).any(dim=1)
        return tuple(weighted.nonzero().flatten().tolist())

    def _shares(self, lam: Level) -> Float[Tensor, "B #H P"]:
        """Weights on each step: normalised over the policies that act there; equal where only weightless ones do."""
        weights = self.weights.at(lam)
        weights = weights[:, None] if lam.ndim == 1 else weights
        if self.cover is None:
            return weights
        cover = self.cover.T.to(weights)
        weights = weights * cover
        total = weights.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, weights / torch.where(total > 0, total, 1), cover / cover.sum(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Apart:
    """A baseline for `Convex`: every policy has a noisy chunk of its own, from noise of its own, and all of them step with
    the weighed answer. The state is `[B, P H, A]`, one chunk after the other; at the end they are one."""

    convex: Convex

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        chunks = x.chunk(len(self.convex.fields), dim=1)
        asks = [partial(self.convex.fields[i], chunks[i], lam, condition) for i in self.convex.counting]
        mixed = self.convex.mix(self.convex.together(asks), lam)
        return mixed.repeat(1, len(chunks), 1)


@dataclass(frozen=True)
class Either:
    """OR: the field of the mixture sum w_i p_i, that is sum of w_i p_i(x) a_i / sum of w_i p_i(x). Needs densities."""

    fields: Sequence[Field]
    weights: Weights
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.weights.size != len(self.fields):
            raise KineflowError(f"{self.weights.size} weights for {len(self.fields)} policies; give one weight for each")
        for index, one in enumerate(self.fields):
            if not has_density(one):
                name = self.names[index] if self.names else f"policy {index}"
                raise KineflowError(
                    f"OR weighs each policy by how likely the noisy chunk is under it, and '{name}' has no density: a trained "
                    "network answers with the denoised chunk alone; use --operator and (needs none) or convex"
                )

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        level = lam if lam.ndim == 1 else lam[:, 0]
        log_share = torch.log(self.weights.at(level)) + self._log_densities(x, lam, condition)
        share = torch.exp(log_share - torch.logsumexp(log_share, dim=-1, keepdim=True))
        answers = torch.stack([one(x, lam, condition) for one in self.fields], dim=-1)
        return (answers * share[:, None, None]).sum(dim=-1)

    def _log_densities(self, x: Chunk, lam: Level, condition: Tokens | None) -> Float[Tensor, "B P"]:
        return torch.stack([log_density(one, x, lam, condition) for one in self.fields], dim=-1)


@dataclass
class EqualDensity:
    """AND: steps along which log p_i changes by the same amount for every policy i (superposition, Skreta et al. 2024).

    With dy = r (m - y) + u' sqrt(r) z, r = 1 - (u' / u)^2, one step of the reverse SDE with k = 1 in y = x / alpha, and the
    Ito change d log p_i = <s_i, dy> - (u^2 - u'^2) |s_i|^2 / 2 of a density under it, equal changes are the linear system

        <a_i - a_j, m> = (|a_i|^2 - |a_j|^2) / 2 - u' / sqrt(r) <a_i - a_j, z>,      m = sum w_i a_i,  sum w_i = 1

    so m is the point at equal distance from all answers, and the noise along their differences is taken back. One object per
    sampling: it is the field AND the noise of the ancestral solver, because the weights of a step depend on its noise.
    """

    fields: Sequence[Field]
    fresh: Noise
    together: Together = one_by_one
    _differences: Tensor | None = field(default=None, repr=False)  # of the last answers, [B, P - 1, H A]

    def __call__(self, x: Chunk, lam: Level, condition: Tokens | None) -> Chunk:
        answers = torch.stack(self.together([partial(one, x, lam, condition) for one in self.fields]), dim=1).flatten(2)
        self._differences = answers[:, 1:] - answers[:, :1]
        middle = self._combine(self._differences.square().sum(dim=-1) / 2)
        return (answers[:, 0] + middle).view_as(x)

    def draw(self) -> Chunk:
        noise = self.fresh.draw()
        if self._differences is None:
            return noise
        along = torch.einsum("bpn,bn->bp", self._differences, noise.flatten(1))
        return noise - self._combine(along).view_as(noise)

    def _combine(self, products: Float[Tensor, "B differences"]) -> Float[Tensor, "B N"]:
        """The vector in the span of the differences that has these products with them; the shortest where they are few."""
        assert self._differences is not None
        gram = self._differences @ self._differences.mT
        if gram.shape[-1] == 1:  # two policies: no matrix to invert
            flat = gram == 0
            inverse = torch.where(flat, 0, 1 / torch.where(flat, 1, gram))
        else:
            inverse = torch.linalg.pinv(gram, hermitian=True)
        return torch.einsum("bpn,bpq,bq->bn", self._differences, inverse, products)


def has_density(one: Field) -> bool:
    """Whether `log_density` works: closed forms, and units or conditions around them."""
    if isinstance(one, InUnits | Conditioned):
        return has_density(one.field)
    return isinstance(one, DensityField)


def log_density(one: Field, x: Chunk, lam: Level, condition: Tokens | None) -> Float[Tensor, "B"]:
    """log p(x) of the noisy chunk in canonical scaling, in the units in which `one` is asked."""
    if isinstance(one, Conditioned):
        return log_density(one.field, x, lam, one.condition)
    if isinstance(one, InUnits):
        seen, stretch = one.seen(x, lam)
        # The volume changes by the factor stretch * scale in every entry.
        volume = torch.log(stretch * one.change.scale).expand_as(x).sum(dim=(-2, -1))
        return log_density(one.field, seen, lam - math.log(one.change.ratio), condition) + volume
    if not isinstance(one, DensityField):
        raise KineflowError(f"{type(one).__name__} has no density; only closed forms know theirs")
    return one.log_density(x, lam, condition)
