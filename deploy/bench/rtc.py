"""`kineflow bench rtc`: success and seams of every way to execute chunks, over the delay of the answers.

PushT: a flow policy, and one that learned to begin with committed actions, trained once and kept in runs/bench/rtc. Navigation:
the shipped policy, which did not learn that. Delays are stated, in virtual time, so the table does not depend on this machine.
The reference of each row is naive asynchronous execution at the same delay. Both plots go to runs/bench/rtc/report.html.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from kineflow.bench_row import Row
from kineflow.config import load_config
from kineflow.contracts import KineflowError, Policy
from kineflow.deploy.bench.rtc_page import write_page
from kineflow.deploy.executor_config import ExecutorConfig, Mode
from kineflow.deploy.loading import load_policy
from kineflow.deploy.simulate import Trace
from kineflow.deploy.simulation import Simulation
from kineflow.deploy.together import asks_together, drive_together
from kineflow.policies.budget import choose_threads, fit_to_minutes
from kineflow.policies.checkpoint import checkpoint_steps
from kineflow.policies.demo import demo_store
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.navigation_trial import NavigationTrial
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.train import TrainConfig, train

FOLDER = Path("runs/bench/rtc")
MODES: tuple[Mode, ...] = ("async", "ensemble", "hard_prefix", "bid", "rtc", "rtc_exact", "trained_rtc")
QUICK_MODES: tuple[Mode, ...] = ("async", "ensemble", "rtc", "trained_rtc")
CLEAN_START = 8
MINUTES = {True: 0.4, False: 12.0}
EXECUTION = 4
SHIPPED = "kineflow://navigation_flow_small"
HALF = 0.5  # of the naive jump: what guidance must reach in the full run


@dataclass(frozen=True)
class Score:
    """Of some episodes at one delay; the jump is the 99th percentile over all seams, in units of the action."""

    world: str
    mode: Mode
    delay: int
    episodes: int
    success: float
    jump: float
    starved: int
    stopped: float  # share of ticks without an action


def bench_rtc(*, quick: bool) -> Iterator[Row]:
    """Quick: PushT with toys of half a minute's training, delays 0 and 4; and two short navigation episodes at delay 2."""
    flow, start = _pusht_policy("flow", 0, quick=quick), _pusht_policy("start", CLEAN_START, quick=quick)
    modes, scores = QUICK_MODES if quick else MODES, list[Score]()
    for delay in (0, 4) if quick else range(11):
        group = []
        for mode in modes:
            policy = start if mode == "trained_rtc" else flow
            group.append(measured("pusht", policy, EvalConfig(), mode, delay, 4 if quick else 50))
        scores += group
        yield from _rows(group, quick=quick)
    try:
        shipped = load_policy(SHIPPED)
    except KineflowError as missing:
        note = f"not measured: {missing}".splitlines()[0]
        yield Row("rtc.navigation", 0.0, "share", "higher", None, "", None, None, None, 0, note)
    else:
        for group in _navigation(shipped, modes, quick=quick):
            scores += group
            yield from _rows(group, quick=quick)
    write_page(scores, FOLDER / "report.html", quick=quick)


def _navigation(shipped: Policy, modes: tuple[Mode, ...], *, quick: bool) -> Iterator[list[Score]]:
    trial = NavigationTrial(time_limit_s=4.0 if quick else 40.0, world="indoor")
    config = EvalConfig(env="navigation", navigation=trial)
    names = [mode for mode in modes if mode != "trained_rtc"]
    for delay in (2,) if quick else range(11):
        yield [measured("navigation", shipped, config, mode, delay, 2 if quick else 20) for mode in names]


def measured(world: str, policy: Policy, config: EvalConfig, mode: Mode, delay: int, episodes: int) -> Score:
    """`episodes` episodes whose answers come `delay` actions late."""
    executor = ExecutorConfig(mode=mode, execution=min(EXECUTION, policy.contract.horizons.execution), initial_delay=delay)
    simulation, traces, won = Simulation(policy, config, executor), list[Trace](), 0
    latency_s = delay / policy.contract.interface.action.rate_hz
    for first in range(0, episodes, 10):
        seeds = range(config.seed_start + first, config.seed_start + min(first + 10, episodes))
        runs = [simulation.episode(simulation.environment(), seed, lambda question: latency_s) for seed in seeds]
        traces += drive_together([episode for episode, _ in runs], asks_together(policy))
        won += sum(robot.success for _, robot in runs)
    jumps = np.array([jump for trace in traces for jump in trace.jumps])
    idle = [tick.intent.action is None for trace in traces for tick in trace.ticks]
    starved = sum(trace.diagnostics.get("starved", 0) for trace in traces)
    late = float(np.percentile(jumps, 99)) if len(jumps) else math.nan
    return Score(world, mode, delay, episodes, won / episodes, late, starved, float(np.mean(idle)))


def _rows(group: list[Score], *, quick: bool) -> Iterator[Row]:
    free = group[0]
    for score in group:
        name, version = f"rtc.{score.world}.{score.mode}.delay_{score.delay}", "naive asynchronous execution at the same delay"
        note = f"without an action in {score.stopped:.0%} of the ticks, plan used up {score.starved} times"
        ratio = score.success / free.success if free.success else None
        n = score.episodes
        yield Row(f"{name}.success", score.success, "share", "higher", free.success, version, ratio, None, None, n, note)
        if math.isnan(score.jump):
            yield Row(f"{name}.jump", 0.0, "action", "lower", None, version, None, None, None, 0, "no seam: the robot stood")
            continue
        ratio = score.jump / free.jump if free.jump else None
        is_ours = score.mode == "rtc" and not quick and ratio is not None
        goal, holds = (f"<= {HALF:g} of naive", ratio <= HALF) if is_ours and ratio is not None else (None, None)
        yield Row(f"{name}.jump", score.jump, "action", "lower", free.jump, version, ratio, goal, holds, n, "p99 of the raw jump")


def _pusht_policy(name: str, clean_start: int, *, quick: bool) -> Policy:
    """The policy of that name, trained where it is missing; toys for the quick run are kept apart."""
    run = FOLDER / (f"{name}_toy" if quick else name)
    if not checkpoint_steps(run):
        config = load_config(TrainConfig, "train/pusht_flow")
        objective = config.policy.objective
        if not isinstance(objective, FlowMatching):
            raise KineflowError(f"train/pusht_flow has a {type(objective).__name__}, which cannot learn starts; use FlowMatching")
        config = replace(config, policy=replace(config.policy, objective=replace(objective, clean_start=clean_start)))
        Console(stderr=True).rule(f"[bold]bench rtc: train {name} for about {MINUTES[quick]:g} minutes")
        demo_store(config.store)
        train(fit_to_minutes(choose_threads(config), MINUTES[quick]), run)
    policy: Policy = load_policy(run)
    return policy
