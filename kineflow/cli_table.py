"""`kineflow table ...`: many evaluations of navigation policies as one table, made by a job that can be stopped at any time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show


def add(verbs: Any) -> None:
    text = "drive policies x bodies x goals into one table, going on where an earlier call stopped; config fields can follow"
    table = add_verb(verbs, "table", _table, text, overrides=True)
    table.add_argument("config", help="YAML file, or the name of a shipped one such as table/navigation")
    table.add_argument("--out", type=Path, default=Path("runs/table"), help="folder of the cells (default runs/table)")
    table.add_argument("--workers", type=int, default=1, help="cells that are driven at once, each on one core (default 1)")


def _table(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kineflow.config import load_config
    from kineflow.policies.navigation_table import TableConfig, fill

    config = load_config(TableConfig, args.config, args.overrides)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("episodes", total=None)
        rows = fill(config, args.out, args.workers, lambda done, total: progress.update(task, completed=done, total=total))
    show(args, rows, lambda: Console().print(Markdown((args.out / "table.md").read_text())))
    return 0
