"""`kineflow data ...`: episode stores on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kineflow import cli_remote, cli_upkeep
from kineflow.cli_verb import add_verb, positive, show
from kineflow.contracts import interface_differences, to_json, to_plain


def add(verbs: Any) -> None:
    data = verbs.add_parser("data", help="episode stores: import, export, info, doctor, repair, ...").add_subparsers(
        required=True, metavar="COMMAND"
    )
    load = add_verb(data, "import", _import, "import a data set into an episode store")
    load.add_argument("--format", required=True, help="diffusion-policy-zarr, ...: an unknown name lists them all")
    load.add_argument("--schema", type=Path, help="YAML interface that names the dimensions, units and rate of unknown data")
    load.add_argument("--rate-hz", type=positive, help="rate of data without clocks or a schema")
    load.add_argument("--licence", default="", help="licence of the data, kept in the store")
    load.add_argument("--codec", default="", help="of camera frames: auto (default), lossless, jpeg:1 to jpeg:100")
    load.add_argument("--workers", type=int, default=1, help="processes that read and encode; the store is the same")
    load.add_argument("--engine", choices=("pool", "ray"), default="pool", help="ray: the extra 'scale', a cluster")
    load.add_argument("source", type=Path)
    load.add_argument("destination", type=Path)
    info = add_verb(data, "info", _info, "what a store holds")
    info.add_argument("--html", type=Path, metavar="FILE", help="one page with pictures, timelines and what the doctor finds")
    info.add_argument("store", type=Path)
    cli_upkeep.add(data)
    text = "what is wrong or odd in a store; any field of configs/data/doctor.yaml can follow, as in --idle_s 10"
    doctor = add_verb(data, "doctor", _doctor, text, overrides=True)
    doctor.add_argument("store", type=Path)
    doctor.add_argument("--verify", action="store_true", help="every byte, of frames too (all others are always read)")
    doctor.add_argument("--config", default="data/doctor", help="YAML of thresholds (default data/doctor)")
    doctor.add_argument("--html", type=Path, metavar="FILE", help="one page with pictures, timelines and findings")
    doctor.add_argument("--policy", help="also check that this checkpoint's contract fits the store")
    save = add_verb(data, "export", _export, "write a store in another format")
    save.add_argument("--format", required=True, help="an unknown name lists them all")
    save.add_argument("store", type=Path)
    save.add_argument("destination", type=Path)
    common = add_verb(data, "resample", _resample, "a store whose streams share one clock")
    common.add_argument("--rate-hz", type=positive, required=True)
    common.add_argument("--rule", action="append", required=True, help="NAME=nearest|hold|linear|slerp:SECONDS, * for all others")
    common.add_argument("store", type=Path)
    common.add_argument("destination", type=Path)
    cli_remote.add(data)


def _import(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from kineflow.datasets.carried_report import render_carried
    from kineflow.datasets.convert import import_data
    from kineflow.datasets.importers.source import ImportOptions

    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("importing episodes", total=None)
        report = import_data(
            args.format,
            args.source,
            args.destination,
            ImportOptions(args.schema, args.rate_hz, args.licence, args.codec),
            lambda done, total: progress.update(task, completed=done, total=total),
            args.workers,
            args.engine,
        )
    show(args, to_plain(report), lambda: render_carried(report, Console()))
    return 0


def _info(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.datasets.doctor import inspect_store, render_report

    report = inspect_store(args.store)
    if args.html:
        from kineflow.datasets.doctor import diagnose
        from kineflow.datasets.report_page import write_page

        write_page(args.store, diagnose(args.store), args.html)
    show(args, to_plain(report), lambda: render_report(report, Console()))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kineflow.config import load_config
    from kineflow.datasets.doctor import DoctorConfig, Finding, diagnose, render_findings

    findings = diagnose(args.store, load_config(DoctorConfig, args.config, args.overrides), args.verify)
    if args.policy:
        from kineflow.datasets.episode_store import EpisodeStore
        from kineflow.policies.checkpoint import find_checkpoint, read_contract

        needed, offered = read_contract(find_checkpoint(args.policy)).interface, EpisodeStore.open(args.store).interface
        findings += [
            Finding("error", f"store {args.store} against policy {args.policy}", problem, remedy)
            for problem, _, remedy in (line.rpartition("; ") for line in interface_differences(needed, offered))
        ]
    if args.html:
        from kineflow.datasets.report_page import write_page

        write_page(args.store, findings, args.html)
    show(args, to_plain(findings), lambda: render_findings(findings, Console()))
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def _export(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from kineflow.datasets.carried_report import render_carried
    from kineflow.datasets.episode_store import EpisodeStore
    from kineflow.datasets.exporters.target import export_data

    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("exporting episodes", total=None)
        report = export_data(
            args.format,
            EpisodeStore.open(args.store),
            args.destination,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    show(args, to_plain(report), lambda: render_carried(report, Console()))
    return 0


def _resample(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from kineflow.datasets.episode_store import EpisodeStore
    from kineflow.datasets.resample_store import parse_rule, resample_store

    rules = dict(parse_rule(text) for text in args.rule)
    with Progress(console=Console(stderr=True), disable=args.json) as progress:
        task = progress.add_task("resampling episodes", total=None)
        report = resample_store(
            EpisodeStore.open(args.store),
            args.destination,
            args.rate_hz,
            rules,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    show(args, to_plain(report), lambda: Console().print_json(to_json(report)))
    return 0
