"""Search for a chunk that scores well: best of N, weighted particles, Rollover Budget Forcing.

The score looks at denoised chunks, so it can judge a candidate at every noise level. The budget is a number of field calls
per observation, and hard: a batch of N candidates is N calls. Row b of the batch is searched with the noise of its own seed,
stays in its place in every call, and never waits for or looks at its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field as dataclass_field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.policies.field import Chunk, Field, Tokens
from kineflow.policies.paths import CondOT, over
from kineflow.policies.search.steps import Candidates, Steps
from kineflow.policies.stepping import Noise
from kineflow.policies.time_grids import uniform_time_grid

Scores = Float[Tensor, "B N"]
Score = Callable[[Candidates], Scores]  # higher is better; finite


@runtime_checkable
class Method(Protocol):
    """A way to spend a budget of field calls."""

    @property
    def steps(self) -> Steps: ...

    def __call__(self, field: Field, score: Score, noise: Noise, condition: Tokens | None, budget: int) -> Chunk:
        """One chunk for each row of `noise`, in at most `budget` field calls for each row."""
        ...


@dataclass
class Judge:
    """Denoises and scores candidates, and counts: it refuses a call beyond the budget instead of making it."""

    field: Field
    score: Score
    condition: Tokens | None
    budget: int
    used: int = 0  # field calls for each row so far

    def __call__(self, x: Candidates, lam: Float[Tensor, "B"]) -> tuple[Candidates, Scores]:
        """`x` at lambda per row to denoised candidates and their scores."""
        rows, count = x.shape[:2]
        if self.used + count > self.budget:
            raise KineflowError(f"a search of {self.budget} calls tried to make call {self.used + count}: a bug in the method")
        self.used += count
        condition = None if self.condition is None else self.condition.repeat_interleave(count, dim=0)
        sample = self.field(x.flatten(0, 1), lam.repeat_interleave(count), condition).reshape(x.shape)
        scores = self.score(sample).to(x.dtype)
        if scores.shape != (rows, count) or not bool(torch.isfinite(scores).all()):
            raise KineflowError(
                f"the reward must give one finite number for each of {rows} x {count} chunks, got shape {tuple(scores.shape)}, "
                f"values {scores.flatten()[:4].tolist()}...; give a large negative number to what is forbidden"
            )
        return sample, scores


@dataclass(frozen=True)
class BestOfN:
    """Sample as many chunks as the budget allows, keep the best. `steps` without churn are DDIM: ordinary samples."""

    steps: Steps = dataclass_field(default_factory=lambda: Steps.along(uniform_time_grid(CondOT(), 10), k=0.0))

    def __call__(self, field: Field, score: Score, noise: Noise, condition: Tokens | None, budget: int) -> Chunk:
        count = _particles(self.steps, budget)
        judge, x = Judge(field, score, condition, budget), _draw(noise, count)
        sample, scores = judge(x, _level(self.steps, x, 0))
        for i in range(len(self.steps.churn)):
            fresh = _draw(noise, count) if self.steps.churn[i] > 0 else torch.zeros_like(x)
            x = self.steps.propose(_index(x, i), x, sample, fresh)
            sample, scores = judge(x, _level(self.steps, x, i + 1))
        return _take(sample, scores.argmax(dim=1))


@dataclass(frozen=True)
class Particles:
    """Chunks whose weighted average estimates that of p(a) exp(score(a) / temperature) / Z."""

    chunks: Candidates
    scores: Scores
    log_weights: Scores  # exp of them sums to 1 over N
    log_normaliser: Float[Tensor, "B"]  # log Z; its exponential is unbiased for what the steps sample


@dataclass(frozen=True)
class WeightedParticles:
    """Sequential Monte Carlo: weights grow by exp((r_i - r_before) / temperature), resampled when few particles matter.

    The increments telescope to exp(r_last / temperature): the scores of half denoised chunks steer, but do not bias. Needs
    churn, or resampled copies stay copies.
    """

    steps: Steps = dataclass_field(default_factory=lambda: Steps.along(uniform_time_grid(CondOT(), 10), k=1.0))
    temperature: float = 1.0  # in units of the score; small is greedy
    threshold: float = 0.5  # resample below this share of effective particles
    pick: Literal["best", "sample"] = "best"  # the best score, or a draw by weight: a sample of the tilted law

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.threshold <= 1:
            raise KineflowError(
                f"particles need temperature > 0 and a threshold within [0, 1], got {self.temperature:g} and {self.threshold:g}"
            )

    def __call__(self, field: Field, score: Score, noise: Noise, condition: Tokens | None, budget: int) -> Chunk:
        found = self.particles(field, score, noise, condition, budget)
        if self.pick == "best":
            return _take(found.chunks, found.scores.argmax(dim=1))
        return _take(found.chunks, _systematic(found.log_weights, _uniform(noise), 1)[:, 0])

    def particles(self, field: Field, score: Score, noise: Noise, condition: Tokens | None, budget: int) -> Particles:
        count = _particles(self.steps, budget)
        judge, x = Judge(field, score, condition, budget), _draw(noise, count)
        sample, scores = judge(x, _level(self.steps, x, 0))
        even = torch.full_like(scores, -math.log(count))
        weights, log_normaliser = self._reweigh(even, scores, x.new_zeros(len(x)))
        for i in range(len(self.steps.churn)):
            few = torch.exp(-torch.logsumexp(2 * weights, dim=1)) < self.threshold * count
            chosen = _systematic(weights, _uniform(noise), count)  # always drawn: one row's fate never shifts the noise
            chosen = torch.where(few[:, None], chosen, torch.arange(count, device=x.device))
            weights = torch.where(few[:, None], even, weights)
            x, sample, before = (_choose(value, chosen) for value in (x, sample, scores))
            x = self.steps.propose(_index(x, i), x, sample, _draw(noise, count))
            sample, scores = judge(x, _level(self.steps, x, i + 1))
            weights, log_normaliser = self._reweigh(weights, scores - before, log_normaliser)
        return Particles(sample, scores, weights, log_normaliser)

    def _reweigh(self, log_weights: Tensor, gain: Tensor, log_normaliser: Tensor) -> tuple[Tensor, Tensor]:
        raw = log_weights + gain / self.temperature
        total = torch.logsumexp(raw, dim=1)
        return raw - total[:, None], log_normaliser + total


@dataclass(frozen=True)
class RolloverBudgetForcing:
    """Kim et al. 2025: propose by SDE until a candidate beats the best so far; what a step did not spend goes to the next.

    Starts from the best of `first` noises by the score of the chunk denoised in one step. A step that finds nothing better
    within its budget takes its own best candidate. Ends early when little is left to improve: the budget is a bound.

    The paper's levels are `Steps.rollover(10)`. They search near the noise only; on small closed-form laws they found less than
    plain best-of-N, and the steps below more (tests/policies/search/test_search.py), so these are the default.
    """

    steps: Steps = dataclass_field(default_factory=lambda: Steps.along(uniform_time_grid(CondOT(), 10), k=1.0))
    first: int = 25

    def __call__(self, field: Field, score: Score, noise: Noise, condition: Tokens | None, budget: int) -> Chunk:
        moves = len(self.steps.churn)
        if self.first < 1 or budget < self.first + moves:
            raise KineflowError(
                f"a budget of {budget} calls is too small: {self.first} first noises and {moves} proposals are "
                f"{self.first + moves}; raise the budget or lower `first`"
            )
        judge, starts = Judge(field, score, condition, budget), _draw(noise, self.first)
        samples, scores = judge(starts, _level(self.steps, starts, 0))
        winner = scores.argmax(dim=1, keepdim=True)
        x, sample, best = _choose(starts, winner), _choose(samples, winner), _choose(scores, winner)[:, 0]
        allowance = torch.tensor([*self._allowances(budget - self.first), 0], device=x.device)
        still = torch.tensor([*[churn == 0 for churn in self.steps.churn], True], device=x.device)  # one proposal, no choice
        index = torch.zeros(len(x), dtype=torch.long, device=x.device)
        left, step_best = allowance[index], torch.full_like(best, -math.inf)
        step_x, step_sample, levels = x, sample, self.steps.levels(x)
        while judge.used < budget and bool((index < moves).any()):
            here = index.clamp(max=moves - 1)  # rows that have arrived go through the motions: every call has the same shape
            proposal = self.steps.propose(here, x, sample, _draw(noise, 1))
            denoised, found = judge(proposal, levels[here + 1])
            better = found[:, 0] > step_best
            step_x, step_sample = _where(better, proposal, step_x), _where(better, denoised, step_sample)
            step_best, left = torch.maximum(step_best, found[:, 0]), left - 1
            go = ((step_best > best) | (left == 0) | still[here]) & (index < moves)
            x, sample = _where(go, step_x, x), _where(go, step_sample, sample)
            best = torch.where(go, torch.maximum(best, step_best), best)
            step_best = torch.where(go, -math.inf, step_best)
            index = index + go.long()
            left = torch.where(go, left + allowance[index], left)
        return sample[:, 0]

    def _allowances(self, budget: int) -> list[int]:
        """Calls of each step: the whole budget, spread evenly over the steps that propose; steps without churn take one."""
        proposing = [i for i, churn in enumerate(self.steps.churn) if churn > 0]
        spare = budget - len(self.steps.churn)
        shares = {i: spare * (n + 1) // len(proposing) - spare * n // len(proposing) for n, i in enumerate(proposing)}
        return [1 + shares.get(i, 0) for i in range(len(self.steps.churn))]


def _particles(steps: Steps, budget: int) -> int:
    if budget < (levels := len(steps.lambdas)):
        raise KineflowError(f"a budget of {budget} calls does not pay for one sample of {levels} steps; raise it or take fewer")
    return budget // levels


def _draw(noise: Noise, count: int) -> Candidates:
    """Candidate j is the row's j-th draw: more candidates keep the first ones."""
    return torch.stack([noise.draw() for _ in range(count)], dim=1)


def _uniform(noise: Noise) -> Float[Tensor, "B"]:
    uniform: Tensor = torch.special.ndtr(noise.draw()[:, 0, 0].double())
    return uniform


def _index(x: Candidates, i: int) -> Int64[Tensor, "B"]:
    return torch.full((len(x),), i, device=x.device)


def _level(steps: Steps, x: Candidates, i: int) -> Float[Tensor, "B"]:
    return steps.levels(x)[_index(x, i)]


def _systematic(log_weights: Scores, uniform: Float[Tensor, "B"], count: int) -> Int64[Tensor, "B M"]:
    """Particle j is chosen within one of `count` w_j times (Kitagawa 1996); float64, so that the last place is not missed."""
    edges = torch.cumsum(torch.exp(log_weights.double()), dim=1)
    places = (torch.arange(count, device=edges.device) + uniform[:, None]) / count * edges[:, -1:]
    return torch.searchsorted(edges, places).clamp(max=edges.shape[1] - 1)


def _choose(values: Float[Tensor, "B N *rest"], index: Int64[Tensor, "B M"]) -> Float[Tensor, "B M *rest"]:
    return torch.take_along_dim(values, over(index, values), dim=1)


def _take(values: Candidates, index: Int64[Tensor, "B"]) -> Chunk:
    return _choose(values, index[:, None])[:, 0]


def _where(rows: Tensor, yes: Candidates, no: Candidates) -> Candidates:
    return torch.where(over(rows, yes), yes, no)
