"""`kineflow export RUN`: with --format for a robot, models that need no torch; with --name weights that ship with the package."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show
from kineflow.interface import KineflowError

CHECK_INPUTS = 32  # questions of the parity gate with --check; 8 without


def add(verbs: Any) -> None:
    text = (
        "write a policy for a robot (--format: the whole pipeline as models that need no torch, refused unless they answer as "
        "the policy does), or as a float16 checkpoint of at most 12 MB (--name: in the package itself it is then kineflow://NAME)"
    )
    export = add_verb(verbs, "export", _export, text)
    export.add_argument("policy", help="run folder, checkpoint folder, kineflow://NAME or hub name")
    export.add_argument("--name", help="small letters, digits and _")
    export.add_argument("--format", choices=["onnx", "openvino", "torch"], help="of the models")
    export.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32", help="bf16 and int8: openvino only")
    export.add_argument("--steps", type=_counts, default=(), help="solver steps beside the policy's own, a model each: 4,2")
    export.add_argument("--threads", type=int, default=1, help="of the runtime on the robot (default 1)")
    export.add_argument("--instruction", action="append", default=[], help="text that an encoder of torch is to know; repeatable")
    export.add_argument("--check", action="store_true", help=f"parity over {CHECK_INPUTS} inputs, and latency by threads")
    export.add_argument(
        "--out", type=Path, help="folder to make (--format; default RUN/export/FORMAT-PRECISION), or to put NAME into (--name)"
    )


def _export(args: argparse.Namespace) -> int:
    if (args.name is None) == (args.format is None):
        raise KineflowError("kineflow export: give --format (onnx, openvino or torch) for a robot, or --name to ship a policy")
    if args.name and (args.check or args.steps or args.instruction or args.precision != "fp32"):
        raise KineflowError("--check, --steps, --instruction and --precision belong to --format; leave them out with --name")
    return _ship(args) if args.name else _models(args)


def _ship(args: argparse.Namespace) -> int:
    from kineflow.policies.checkpoint_folder import SHIPPED
    from kineflow.policies.shipping import export_policy

    made = export_policy(args.policy, args.name, args.out or SHIPPED)
    called = made.folder if args.out else f"kineflow://{args.name}"
    lines = f"exported: {made.folder} ({made.megabytes:.1f} MB, rounding moves the golden answer by {made.golden_error:.1e})"
    data = {**asdict(made), "folder": str(made.folder)}
    show(args, data, lambda: print(f"{lines}   next: kineflow eval {called}"))
    return 0


def _models(args: argparse.Namespace) -> int:
    from kineflow.contracts import to_plain
    from kineflow.deploy.export.folder import ExportConfig, export_models
    from kineflow.policies.checkpoint_folder import is_shipped, local_folder
    from kineflow.policies.load import load_policy

    home = local_folder(args.policy)
    home = Path("runs") / home.name if is_shipped(args.policy) or not home.is_dir() else home
    config = ExportConfig(
        format=args.format,
        precision=args.precision,
        steps=args.steps,
        threads=args.threads,
        inputs=CHECK_INPUTS if args.check else 8,
        instructions=tuple(args.instruction),
        measured_threads=tuple(range(1, min(os.cpu_count() or 1, 4) + 1)) if args.check else (),
    )
    out = args.out or home / "export" / f"{args.format}-{args.precision}"
    made = export_models(load_policy(args.policy), args.policy, out, config)
    data = {"folder": str(made.folder), "megabytes": made.megabytes, **to_plain(made.manifest)}
    show(args, data, lambda: _print(made))
    return 0


def _print(made: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "runtime", "precision", "inputs", "largest error", "median", "allowed", title="parity")
    for r in made.manifest.parity:
        table.add_row(r.model, r.runtime, r.precision, str(r.inputs), f"{r.error:.1e}", f"{r.median:.1e}", f"{r.allowed:g}")
    console = Console()
    console.print(table)
    if made.manifest.latency:
        times = Table("model", "threads", "p50 ms", "p95 ms", "least ms", "calls", "load", title="latency of one chunk")
        for t in made.manifest.latency:
            cells = (f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}", f"{t.least_ms:.2f}", str(t.calls), f"{t.load:.1f}")
            times.add_row(t.model, str(t.threads), *cells)
        console.print(times)
    print(f"exported: {made.folder} ({made.megabytes:.1f} MB)   next: kineflow eval {made.folder}")


def _counts(text: str) -> Sequence[int]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 4,2, got {text}") from None
