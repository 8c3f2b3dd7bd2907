"""`kineflow train-flow`: the optical flow network on the simulator's ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show


def add(verbs: Any) -> None:
    text = "film pairs in simulation and train the optical flow network on them; any field of the config can follow"
    train = add_verb(verbs, "train-flow", _train_flow, text, overrides=True)
    train.add_argument("config", nargs="?", default="train_flow/navigation", help="default train_flow/navigation")
    folder = "run folder (default runs/flow_net); pairs that it holds are not filmed again"
    train.add_argument("--run", type=Path, default=Path("runs/flow_net"), help=folder)


def _train_flow(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from kineflow.config import load_config
    from kineflow.policies.flow_training import FlowTrainConfig, train_flow

    config = load_config(FlowTrainConfig, args.config, args.overrides)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=args.json) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        report = train_flow(config, args.run, advance)
    next_step = "encoder: flow: {kind: FlowNet, weights: " + report.weights + "}"
    show(args, report.to_json(), lambda: Console().print(f"{report.text()}\nnext: {next_step}", highlight=False, markup=False))
    return 0
