"""`kineflow demo`: the whole main path once, on real demonstrations, in about ten minutes on a laptop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from kineflow.config import ConfigError, load_config
from kineflow.datasets.convert import import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import ImportOptions
from kineflow.policies.budget import choose_threads, fit_to_minutes
from kineflow.policies.checkpoint import checkpoint_steps, load_policy
from kineflow.policies.eval_result import EvalConfig, EvalResult
from kineflow.policies.evaluation import evaluate
from kineflow.policies.train import TrainConfig, resume_run, train

console = Console(stderr=True)


def run_demo(run: Path, *, minutes: float, episodes: int) -> EvalResult:
    """Import, train, evaluate; returns the result, whose report.html lies below `run`/eval/."""
    config = replace(load_config(EvalConfig, "eval/pusht"), episodes=episodes)
    console.rule("[bold]1/3  real demonstrations into an episode store")
    store = demo_store(run.parent / "data" / "pusht.eps")
    console.rule(f"[bold]2/3  train a flow-matching policy for about {minutes:g} minutes")
    _train(run, store, minutes)
    console.rule(f"[bold]3/3  {episodes} unseen starts, closed loop")
    result = evaluate(load_policy(run), config, run / "eval" / "demo", run, console)
    console.print(f"report: [bold]{result.report}[/]  (open it in a browser)", soft_wrap=True)
    return result


LICENCE = "MIT (Columbia Artificial Intelligence and Robotics Lab); see datasets/assets/pusht_replay/README.md"


def demo_store(path: Path) -> Path:
    """The 206 PushT demonstrations as an episode store; imported once."""
    if (path / "manifest.json").exists():
        console.print(f"{path}: {EpisodeStore.open(path).num_episodes} episodes, imported before")
    else:
        with Progress(console=console) as progress:
            task = progress.add_task("importing episodes", total=None)
            report = import_data(
                "diffusion-policy-zarr",
                demo_data(),
                path,
                ImportOptions(licence=LICENCE),
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        console.print(
            f"{path}: {report.episodes} episodes, {report.steps} steps, {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s"
        )
    return path


def _train(run: Path, store: Path, minutes: float) -> None:
    """Resume an interrupted demo of the same budget; move a finished or different one aside; else start."""
    if (run / "config.yaml").exists():
        if _is_unfinished(run) and (run / "minutes").exists() and float((run / "minutes").read_text()) == minutes:
            console.print(f"{run}: continuing the interrupted run")
            resume_run(run)
            return
        aside = next(p for n in range(1, 10_000) if not (p := run.with_name(f"{run.name}.{n}")).exists())
        run.rename(aside)
        console.print(f"{run} held an earlier run: moved to {aside}")
    config = replace(load_config(TrainConfig, "train/pusht_flow"), store=store)
    config = fit_to_minutes(choose_threads(config), minutes)
    console.print(f"measured: {config.steps} steps on {config.threads} threads fit into {minutes:g} minutes here")
    run.mkdir(parents=True, exist_ok=True)
    (run / "minutes").write_text(str(minutes))
    train(config, run)


def _is_unfinished(run: Path) -> bool:
    try:
        steps = load_config(TrainConfig, run / "config.yaml").steps
    except ConfigError:
        return False  # written by another version: not ours to continue
    return (checkpoint_steps(run) or [0])[-1] < steps
