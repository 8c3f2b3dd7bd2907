"""`kineflow compare A B ...`: train what is a configuration, evaluate everything on the same starts, one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.policies.budget import choose_threads, fit_to_minutes
from kineflow.policies.checkpoint import checkpoint_steps
from kineflow.policies.checkpoint_folder import is_shipped, local_folder
from kineflow.policies.demo import demo_store
from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.evaluation import evaluate
from kineflow.policies.intervals import Estimate, bootstrap_interval
from kineflow.policies.load import load_policy
from kineflow.policies.samplers import SOLVERS
from kineflow.policies.time_grids import TimeGrid
from kineflow.policies.train import TrainConfig, resume_run, train

console = Console(stderr=True)


@dataclass(frozen=True)
class Entry:
    """One policy of the comparison. `difference` is its mean max reward minus the reference's, paired by start."""

    name: str
    run: str
    mean_max_reward: Estimate
    success_rate: Estimate
    difference: Estimate | None
    policy_call_ms: float
    training_steps: int


@dataclass(frozen=True)
class Comparison:
    """Entries in the order given; the first is the reference of the differences."""

    entries: tuple[Entry, ...]
    episodes: int

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.entries]

    def print(self) -> None:
        table = Table(
            "policy",
            "mean max reward",
            "success",
            "difference to the first",
            "ms / call",
            "steps",
            title=f"{self.episodes} starts each",
        )
        for e in self.entries:
            difference = "" if e.difference is None else _interval(e.difference, signed=True)
            cells = (
                _interval(e.mean_max_reward),
                _interval(e.success_rate),
                difference,
                f"{e.policy_call_ms:.1f}",
                str(e.training_steps),
            )
            table.add_row(e.name, *cells)
        Console().print(table)


def compare(
    policies: Sequence[str], *, minutes: float, episodes: int, out: Path, load: Callable[[Path], Any] = load_policy
) -> Comparison:
    """Entries for run folders and configurations; a configuration is trained into `out`/<its name> unless that is done.
    `load` knows more kinds of folders where more is installed (kineflow.deploy.loading).

    `NAME@ddpm:100` is the policy NAME sampled by the solver ddpm in 100 steps, `NAME@dpmpp2m:8:lambda` by dpmpp2m on the grid
    lambda, `NAME@sde=2:20:shifted:3` by the SDE with diffusion 2 on the grid shifted:3.
    """
    config = replace(load_config(EvalConfig, "eval/pusht"), episodes=episodes, name="compare")
    results: list[tuple[str, Path, EvalResult]] = []
    _refuse_equal_names(policies)
    # Before the first minute of training, not after it.
    samplers = [_sampler(sampler, entry) if (sampler := entry.partition("@")[2]) else None for entry in policies]
    for entry, chosen in zip(policies, samplers):
        source, _, sampler = entry.partition("@")
        run = _trained(source, minutes, out)
        policy, name = load(run), run.name
        place = out / run.name if is_shipped(source) else run  # nothing is written into the package
        if chosen:
            policy, name = policy.resampled(**chosen), f"{run.name}@{sampler}"
        console.rule(f"[bold]{name}")
        folder = place / "eval" / f"{config.name}{name[len(run.name) :]}"
        results.append((name, run, evaluate(policy, config, folder, run, console)))
    reference = results[0][2]
    entries = tuple(_entry(name, run, result, reference) for name, run, result in results)
    comparison = Comparison(entries, episodes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.json").write_text(json.dumps(comparison.to_json(), indent=2) + "\n")
    return comparison


def _trained(source: str, minutes: float, out: Path) -> Path:
    """The run folder of `source`, training or resuming it first when `source` is a configuration."""
    if _is_policy(source):
        return local_folder(source)
    config = load_config(TrainConfig, source)
    run = out / Path(source).stem
    if (run / "config.yaml").exists():
        saved = load_config(TrainConfig, run / "config.yaml")
        before = (run / "minutes").read_text() if (run / "minutes").exists() else "unknown"
        if _fixed(saved) != _fixed(config) or before != str(minutes):
            raise KineflowError(
                f"{run} was trained with another configuration or budget ({before} minutes) than asked for now "
                f"({source}, {minutes} minutes); choose another --out, name the run folder itself, or remove it"
            )
        if (checkpoint_steps(run) or [0])[-1] < saved.steps:
            resume_run(run)
        return run
    console.rule(f"[bold]{source}: train for about {minutes:g} minutes")
    if not config.store.exists():
        demo_store(config.store)
    config = fit_to_minutes(choose_threads(config), minutes)
    run.mkdir(parents=True, exist_ok=True)
    (run / "minutes").write_text(str(minutes))
    train(config, run)
    return run


def _is_policy(source: str) -> bool:
    """A run folder, a folder of `kineflow compose`, or a shipped policy."""
    folder = local_folder(source)
    return (folder / "checkpoints").is_dir() or (folder / "contract.json").is_file()


def _fixed(config: TrainConfig) -> TrainConfig:
    """The configuration without what is measured on the machine."""
    return replace(config, steps=0, validate_every=0, checkpoint_every=0, threads=0)


def _refuse_equal_names(policies: Sequence[str]) -> None:
    sources = {source for entry in policies if not _is_policy(source := entry.partition("@")[0])}
    names = [Path(source).stem for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise KineflowError(f"two configurations are called {sorted(twice)}, so they would share a run folder; rename one")


def _sampler(text: str, entry: str) -> dict[str, Any]:
    """SOLVER[=DIFFUSION]:STEPS[:GRID] as what `ChunkPolicy.resampled` takes."""
    solver, _, rest = text.partition(":")
    solver, _, diffusion = solver.partition("=")
    steps, _, grid = rest.partition(":")
    chosen: dict[str, Any] = {"solver": solver}
    try:
        chosen |= {"steps": int(steps)} | ({"diffusion": float(diffusion)} if diffusion else {})
    except ValueError:
        solver = ""
    if solver not in SOLVERS or chosen["steps"] < 1 or (diffusion and solver != "sde"):
        raise KineflowError(
            f"{entry}: expected NAME@SOLVER:STEPS, then :GRID if wanted, with a solver of {sorted(SOLVERS)}, e.g. NAME@ddpm:100, "
            "NAME@dpmpp2m:8:lambda or, with diffusion 2, NAME@sde=2:20"
        )
    return chosen | ({"grid": TimeGrid.parse(grid)} if grid else {})


def _entry(name: str, run: Path, result: EvalResult, reference: EvalResult) -> Entry:
    difference = None
    if result is not reference:
        pairs = zip(result.episodes, reference.episodes, strict=True)
        difference = bootstrap_interval(np.array([mine.max_reward - theirs.max_reward for mine, theirs in pairs]), seed=0)
    return Entry(
        name,
        str(run),
        result.mean_max_reward,
        result.success_rate,
        difference,
        result.policy_call_ms.p50,
        (checkpoint_steps(run) or [0])[-1],  # a composed policy was not trained
    )


def _interval(e: Estimate, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"
