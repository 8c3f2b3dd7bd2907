"""`kineflow data push|pull|version|versions|checkout`: stores at a URL and versions of stores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show
from kineflow.contracts import to_json, to_plain


def add(data: Any) -> None:
    send = add_verb(data, "push", _push, "copy a store to a URL (s3://, gs://, az://); only what is new is sent")
    send.add_argument("store", type=Path)
    send.add_argument("url")
    take = add_verb(data, "pull", _pull, "copy the store at a URL (also https://), every file checked")
    take.add_argument("url")
    take.add_argument("destination", type=Path)
    keep = add_verb(data, "version", _version, "commit what a store holds now to an Icechunk repository")
    keep.add_argument("store", type=Path)
    keep.add_argument("repository", help="a folder, or s3://bucket/path")
    keep.add_argument("--message", required=True)
    add_verb(data, "versions", _versions, "the versions in an Icechunk repository, newest first").add_argument("repository")
    out = add_verb(data, "checkout", _checkout, "a version of a store as a new store on disk")
    out.add_argument("repository")
    out.add_argument("destination", type=Path)
    out.add_argument("--version", default="", help="its id (default: the newest)")


def _push(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from kineflow.datasets.episode_store import EpisodeStore
    from kineflow.datasets.remote.store import push

    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("sending segments", total=None)
        there = push(
            EpisodeStore.open(args.store), args.url, lambda done, total: progress.update(task, completed=done, total=total)
        )
    report = {"store": str(args.store), "url": args.url, "episodes": there.num_episodes, "fingerprint": there.fingerprint()}
    show(args, report, lambda: Console().print_json(to_json(report)))
    return 0


def _pull(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from kineflow.datasets.remote.store import pull

    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("fetching segments", total=None)
        here = pull(args.url, args.destination, lambda done, total: progress.update(task, completed=done, total=total))
    report = {"url": args.url, "store": str(here.path), "episodes": here.num_episodes, "fingerprint": here.fingerprint()}
    show(args, report, lambda: Console().print_json(to_json(report)))
    return 0


def _version(args: argparse.Namespace) -> int:
    from kineflow.datasets.episode_store import EpisodeStore
    from kineflow.datasets.remote.versions import save_version

    saved = save_version(EpisodeStore.open(args.store), args.repository, args.message)
    report = {"store": str(args.store), "repository": args.repository, "version": saved}
    show(args, report, lambda: print(f"version {saved}"))
    return 0


def _versions(args: argparse.Namespace) -> int:
    from kineflow.datasets.remote.versions import versions

    found = versions(args.repository)
    show(args, to_plain(found), lambda: print("\n".join(f"{v.id}  {v.written_at}  {v.message}" for v in found) or "none"))
    return 0


def _checkout(args: argparse.Namespace) -> int:
    from kineflow.datasets.remote.versions import load_version

    here = load_version(args.repository, args.destination, args.version)
    report = {"repository": args.repository, "store": str(here.path), "episodes": here.num_episodes}
    report["fingerprint"] = here.fingerprint()
    show(args, report, lambda: print(f"{here.path}: {here.num_episodes} episodes"))
    return 0
