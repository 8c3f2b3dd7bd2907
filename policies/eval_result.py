"""What an evaluation is asked for and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kineflow.contracts import KineflowError, to_plain
from kineflow.policies.intervals import Estimate, Percentiles, bootstrap_interval, latency_percentiles, wilson_interval
from kineflow.policies.navigation_trial import NavigationTrial, trip_estimates
from kineflow.policies.running_episode import EpisodeResult
from kineflow.policies.samplers import SolverName
from kineflow.policies.time_grids import TimeGrid


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation: seeds `seed_start .. seed_start + episodes - 1`, each an episode of its own."""

    env: Literal["pusht", "navigation"] = "pusht"
    navigation: NavigationTrial = field(default_factory=NavigationTrial)  # what is asked of the policy where env is navigation
    name: str = "pusht"  # results go to eval/<name>/
    episodes: int = 200
    seed_start: int = 100_000  # far from any seed that training uses
    num_envs: int = 32
    batch: int = 32  # rows of every policy call, whatever num_envs is: see rollout.py
    threads: int = 1  # of PyTorch: fixed, because rounding depends on it, and one is never slow on a busy machine
    solver: SolverName | None = None  # none: the checkpoint's
    steps: int | None = None
    grid: str | None = None  # noise levels: uniform, trailing, shifted:3, edm:7, lambda or leading
    diffusion: float | None = None  # k of the solver sde
    temperature: float | None = None  # scale of the noise that a chunk begins with
    videos: int = 3  # spread over the ranking: 3 = best, median, worst; 0 = none
    video_size: int = 448
    fan_samples: int = 16  # chunks sampled from one observation for the report

    def __post_init__(self) -> None:
        if min(self.episodes, self.num_envs, self.batch, self.threads, self.fan_samples) < 1:
            raise KineflowError(f"evaluation: episodes, num_envs, batch, threads and fan_samples must be at least 1, got {self}")
        if self.seed_start < 0 or self.videos < 0:
            raise KineflowError(f"evaluation: seed_start and videos must not be negative, got {self.seed_start}, {self.videos}")
        if self.grid is not None:
            TimeGrid.parse(self.grid)
        if self.video_size < 64 or self.video_size % 2:
            raise KineflowError(f"evaluation: video_size must be even and at least 64, got {self.video_size}")

    @property
    def seeds(self) -> range:
        return range(self.seed_start, self.seed_start + self.episodes)

    @property
    def sampling(self) -> dict[str, Any]:
        """What `ChunkPolicy.resampled` takes: how the policy is to be sampled otherwise; empty: as its checkpoint says."""
        grid = None if self.grid is None else TimeGrid.parse(self.grid)
        asked = {"solver": self.solver, "steps": self.steps, "grid": grid, "diffusion": self.diffusion}
        asked["temperature"] = self.temperature
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class EvalResult:
    """Scores with 95 % intervals; `episodes` in the order of their seeds."""

    mean_max_reward: Estimate
    success_rate: Estimate
    mean_max_coverage: Estimate
    mean_final_coverage: Estimate
    policy_call_ms: Percentiles  # one padded batch
    env_step_ms: Percentiles
    call_s: tuple[float, ...]  # every policy call in order
    wall_s: float
    episodes: tuple[EpisodeResult, ...]
    out_dir: Path
    metrics: Mapping[str, Estimate] = field(default_factory=dict)  # of navigation: see navigation_trial.trip_estimates

    @property
    def report(self) -> Path:
        return self.out_dir / "report.html"

    def to_json(self) -> dict[str, Any]:
        """Scores as plain data: `{"mean_max_reward": {"value", "low", "high", "n"}, "success_rate": {...}, ...}`."""
        return {
            "mean_max_reward": to_plain(self.mean_max_reward),
            "success_rate": to_plain(self.success_rate),
            "mean_max_coverage": to_plain(self.mean_max_coverage),
            "mean_final_coverage": to_plain(self.mean_final_coverage),
            "policy_call_ms": to_plain(self.policy_call_ms),
            "env_step_ms": to_plain(self.env_step_ms),
            **({"metrics": to_plain(self.metrics)} if self.metrics else {}),
            "wall_s": round(self.wall_s, 3),
            "report": str(self.report),
        }


def summarise(
    episodes: Sequence[EpisodeResult], call_s: Sequence[float], wall_s: float, out_dir: Path, bootstrap_seed: int
) -> EvalResult:
    """Aggregate episodes; the bootstrap's seed is given so that the same episodes always give the same interval."""
    ordered = tuple(sorted(episodes, key=lambda episode: episode.seed))
    return EvalResult(
        mean_max_reward=bootstrap_interval([e.max_reward for e in ordered], bootstrap_seed),
        success_rate=wilson_interval(sum(e.success for e in ordered), len(ordered)),
        mean_max_coverage=bootstrap_interval([e.max_coverage for e in ordered], bootstrap_seed),
        mean_final_coverage=bootstrap_interval([e.final_coverage for e in ordered], bootstrap_seed),
        policy_call_ms=latency_percentiles(call_s),
        env_step_ms=latency_percentiles([s for e in ordered for s in e.step_s]),
        call_s=tuple(call_s),
        wall_s=wall_s,
        episodes=ordered,
        out_dir=out_dir,
        metrics=trip_estimates([e.metrics for e in ordered], [e.success for e in ordered], bootstrap_seed),
    )


def ranked(episodes: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Best first; of equal rewards the quicker episode comes first."""
    return sorted(episodes, key=lambda e: (-e.max_reward, e.steps, e.seed))


def spread_over_ranking(episodes: Sequence[EpisodeResult], count: int) -> list[tuple[str, EpisodeResult]]:
    """`count` episodes evenly from best to worst with their labels."""
    order = ranked(episodes)
    last = len(order) - 1
    places = np.unique(np.round(np.linspace(0, last, min(count, len(order)))).astype(int))
    names = {round(last / 2): "median", last: "worst", 0: "best"}
    return [(names.get(int(i), f"rank {i + 1} of {len(order)}"), order[int(i)]) for i in places]
