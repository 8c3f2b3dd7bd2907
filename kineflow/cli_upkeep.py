"""`kineflow data repair|compact|delete|merge|gc`: what keeps a store whole, small and clean."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, positive, show
from kineflow.contracts import to_plain


def add(data: Any) -> None:
    add_verb(data, "repair", _repair, "salvage recordings that died, up to their last whole step").add_argument(
        "store", type=Path
    )
    smaller = add_verb(data, "compact", _compact, "join small segments into large ones")
    smaller.add_argument("--segment-mb", type=positive, default=128.0, help="size of a large one (default 128)")
    smaller.add_argument("store", type=Path)
    drop = add_verb(data, "delete", _delete, "delete episodes")
    drop.add_argument("store", type=Path)
    drop.add_argument("episodes", nargs="+", type=_indices, metavar="INDEX", help="0, or a range 3-7")
    join = add_verb(data, "merge", _merge, "a new store of all episodes of several")
    join.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    join.add_argument("destination", type=Path)
    clean = add_verb(data, "gc", _gc, "remove replaced segments and what stopped writers left; end training runs first")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    clean.add_argument("store", type=Path)


def _repair(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.repair import render_repair, repair

    with _progress(args, "salvaging recordings") as count:
        report = repair(args.store, count)
    show(args, to_plain(report), lambda: render_repair(report, Console()))
    return 0 if report.ok else 1


def _compact(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.upkeep import compact, render_upkeep

    with _progress(args, "joining segments") as count:
        report = compact(args.store, int(args.segment_mb * 2**20), count)
    show(args, to_plain(report), lambda: render_upkeep(report, Console()))
    return 0


def _delete(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.upkeep import delete, render_upkeep

    report = delete(args.store, [index for indices in args.episodes for index in indices])
    show(args, to_plain(report), lambda: render_upkeep(report, Console()))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.merge import merge
    from kineflow.datasets.upkeep import render_upkeep

    with _progress(args, "copying segments") as count:
        report = merge(args.stores, args.destination, count)
    show(args, to_plain(report), lambda: render_upkeep(report, Console()))
    return 0


def _gc(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.collect import collect, render_garbage

    report = collect(args.store, args.dry_run)
    show(args, to_plain(report), lambda: render_garbage(report, Console()))
    return 0


@contextmanager
def _progress(args: argparse.Namespace, text: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _indices(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found:
        raise argparse.ArgumentTypeError(f"expected an episode number such as 4 or a range such as 3-7, got '{text}'")
    return found
