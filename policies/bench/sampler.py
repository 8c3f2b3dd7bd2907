"""`kineflow bench sampler`: closed-loop quality on PushT against network calls, for every solver and every distilled head.

Each contestant plays the same starts. Calls are counted at the head while it samples, never taken from the configuration.
Heads live in `runs/bench/sampler/<name>`: put finished runs (or links to them) there, or let the bench train what is missing.
The table and the Pareto front go to `runs/bench/sampler/report.html`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from kineflow.config import load_config
from kineflow.contracts import KineflowError, Observation, SamplingRequest
from kineflow.policies.bench.contest import Contest
from kineflow.policies.bench.rows import Row
from kineflow.policies.bench.sampler_page import write_page
from kineflow.policies.bench.sampler_runs import teachers_of, trained_heads
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.evaluation import environment_factory
from kineflow.policies.intervals import Estimate, Percentiles, bootstrap_interval, latency_percentiles, wilson_interval
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.rollout import Rollout, stack_observations
from kineflow.policies.running_episode import EpisodeResult, RunningEpisode
from kineflow.policies.samplers import SolverName

FOLDER = Path("runs/bench/sampler")
WITHIN = 0.02  # of coverage, a one-call head of its own teacher at ten steps
TEACHER = ("euler", 10)
# Steps of each solver; heun and the midpoint rule take two calls a step but the last, rk4 four, adaptive at most one.
FLOW_SOLVERS: dict[SolverName, tuple[int, ...]] = {
    "euler": (1, 2, 4, 10),
    "heun": (2, 5),
    "midpoint": (2, 5),
    "ab2": (4, 10),
    "dpmpp2m": (2, 4, 10),
    "rk4": (1, 3),
    "ab3": (10,),
    "adaptive": (20,),
    "ddpm": (10,),
    "sde": (10,),
}
DIFFUSION_SOLVERS: dict[SolverName, tuple[int, ...]] = {"ddim": (1, 2, 4, 10), "dpmpp2m": (4, 10), "ddpm": (10,), "sde": (10,)}
QUICK_SOLVERS: dict[SolverName, tuple[int, ...]] = {"euler": (1, 10), "dpmpp2m": (4,)}
CHUNKS_TIMED = {True: 50, False: 300}
EPISODES = {True: 20, False: 100}


def bench_sampler(*, quick: bool, folder: Path = FOLDER) -> Iterator[Row]:
    """Quick: three solvers and the one-call heads that are there already, 20 starts."""
    torch.set_num_threads(1)
    runs = trained_heads(folder, quick=quick)
    teachers = teachers_of(runs)
    console = Console(stderr=True)
    contests: list[Contest] = []
    for name, run in runs.items():
        policy = load_policy(run)
        for solver, steps in contestants(policy, quick=quick):
            contests.append(contest(name, policy, solver, steps, quick=quick))
            last = contests[-1]
            console.print(
                f"{last.head:12} {last.solver:9} {last.calls:2d} calls: coverage {last.coverage.value:.3f}, "
                f"success {last.success.value:.2f}, p99 {last.chunk_ms.p99:.1f} ms"
            )
            yield row(last, contests, teachers.get(name))
    write_page(contests, folder / "report.html", EPISODES[quick])


def contestants(policy: ChunkPolicy, *, quick: bool) -> list[tuple[SolverName | None, int]]:
    """Solver (None: the head's own jumps) and steps to try."""
    objective = policy.network.config.objective
    if isinstance(objective, FlowMatching | Diffusion) and objective.steps > 2:
        if quick:
            return [(s, n) for s, steps in QUICK_SOLVERS.items() for n in steps]
        table = FLOW_SOLVERS if isinstance(objective, FlowMatching) else DIFFUSION_SOLVERS
        return [(s, n) for s, steps in table.items() for n in steps]
    return [(None, n) for n in ((1,) if quick else (1, 2, 4))]


def contest(name: str, policy: ChunkPolicy, solver: SolverName | None, steps: int, *, quick: bool) -> Contest:
    """Evaluate and time one head with one solver."""
    chosen = policy.resampled(solver, steps)
    config = replace(load_config(EvalConfig, "eval/pusht"), episodes=EPISODES[quick])
    rollout = Rollout(chosen, environment_factory(config, chosen.contract), config.num_envs, config.batch)
    episodes = sorted(rollout.run(config.seeds), key=lambda e: e.seed)
    first = RunningEpisode(rollout.envs[0], 0, chosen.contract).observation()
    calls, chunk_ms = timed(chosen, stack_observations([first]), CHUNKS_TIMED[quick])
    label = solver or chosen.contract.sampler.solver
    return Contest(name, label, steps, calls, *_scores(episodes), chunk_ms, tuple(e.max_coverage for e in episodes))


def row(mine: Contest, earlier: Sequence[Contest], taught_by: str | None) -> Row:
    """The contest as a row; a student is held against its own ten-step teacher."""
    teacher = next((c for c in earlier if (c.head, c.solver, c.steps) == (taught_by, *TEACHER)), None)
    goal, holds, reference, version = None, None, None, ""
    if teacher is not None:
        reference, version = teacher.coverage.value, f"its teacher, {teacher.head} with {teacher.solver}, {teacher.calls} calls"
        if mine.calls == 1:
            goal, holds = f"coverage >= {reference:.3f} - {WITHIN}", mine.coverage.value >= reference - WITHIN
        if mine.calls == 2:
            low = teacher.coverage.low
            goal, holds = f"coverage >= {low:.3f}, the teacher's lower bound", mine.coverage.value >= low
    note = (
        f"success {mine.success.value:.3f} [{mine.success.low:.3f}, {mine.success.high:.3f}], coverage "
        f"[{mine.coverage.low:.3f}, {mine.coverage.high:.3f}], chunk p50 {mine.chunk_ms.p50:.2f} ms, "
        f"p99 {mine.chunk_ms.p99:.2f} ms"
    )
    ratio = mine.coverage.value / reference if reference else None
    name = f"sampler.{mine.head}.{mine.solver}.calls_{mine.calls}.coverage"
    return Row(name, mine.coverage.value, "1", "higher", reference, version, ratio, goal, holds, len(mine.per_episode), note)


def _scores(episodes: Sequence[EpisodeResult]) -> tuple[Estimate, Estimate]:
    coverage = bootstrap_interval([e.max_coverage for e in episodes], seed=0)
    return coverage, wilson_interval(sum(e.success for e in episodes), len(episodes))


def timed(policy: ChunkPolicy, observation: Observation, chunks: int) -> tuple[int, Percentiles]:
    """Network calls of one chunk, counted at the head, and the time of one chunk at batch 1 (the first tenth is warm-up)."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    hook = policy.network.head.register_forward_hook(count)
    policy.predict(observation, SamplingRequest(np.zeros(1, np.int64)))
    hook.remove()
    if counted == 0:
        raise KineflowError("the head was not called through its forward, so its calls cannot be counted; call it as a module")
    times = []
    for seed in range(chunks):
        started = time.perf_counter()
        policy.predict(observation, SamplingRequest(np.array([seed])))
        times.append(time.perf_counter() - started)
    return counted, latency_percentiles(times[chunks // 10 :])
