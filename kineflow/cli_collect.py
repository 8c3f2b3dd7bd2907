"""`kineflow collect ...`: demonstrations of the simulated expert into an episode store."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show


def add(verbs: Any) -> None:
    text = "drive the expert in simulation and store what it does; any field of the config can follow, as in --worlds 20"
    collect = add_verb(verbs, "collect", _collect, text, overrides=True)
    collect.add_argument("config", help="YAML file, or the name of a shipped one such as collect/navigation_wheeled")
    collect.add_argument("store", type=Path, help="episode store to make, or to go on with: what it holds is not driven again")
    collect.add_argument("--workers", type=int, help="processes that drive and write (default: one per core)")


def _collect(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kineflow.config import load_config
    from kineflow.policies.collect import CollectConfig, collect

    config = load_config(CollectConfig, args.config, args.overrides)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("driving", total=None, rate="")

        def advance(done: int, total: int) -> None:
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=done, total=total, rate=f"{60 * done / elapsed:.0f} episodes/min" if elapsed else "")

        report = collect(config, args.store, args.workers or os.cpu_count() or 1, advance)
    show(args, report.to_json(), lambda: Console().print(report.text(), highlight=False))
    return 0
