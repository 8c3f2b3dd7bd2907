"""One contestant of `bench sampler`: a head with a solver, how well it played and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from kineflow.policies.intervals import Estimate, Percentiles


@dataclass(frozen=True)
class Contest:
    """One head with one solver: how well it plays and what a chunk costs. `coverage` and `success` by episode, same starts."""

    head: str
    solver: str
    steps: int
    calls: int
    coverage: Estimate
    success: Estimate
    chunk_ms: Percentiles
    per_episode: tuple[float, ...]
