"""`kineflow export RUN --name NAME`: a trained policy as a small checkpoint that ships with the package."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kineflow.cli_verb import add_verb, show


def add(verbs: Any) -> None:
    text = "write a policy as a float16 checkpoint of at most 12 MB; in the package itself it is then called kineflow://NAME"
    export = add_verb(verbs, "export", _export, text)
    export.add_argument("policy", help="run folder, checkpoint folder or hub name")
    export.add_argument("--name", required=True, help="small letters, digits and _")
    export.add_argument("--out", type=Path, help="folder to put the folder NAME into (default: that of the shipped ones)")


def _export(args: argparse.Namespace) -> int:
    from kineflow.policies.checkpoint_folder import SHIPPED
    from kineflow.policies.shipping import export_policy

    made = export_policy(args.policy, args.name, args.out or SHIPPED)
    called = made.folder if args.out else f"kineflow://{args.name}"
    lines = f"exported: {made.folder} ({made.megabytes:.1f} MB, rounding moves the golden answer by {made.golden_error:.1e})"
    data = {**asdict(made), "folder": str(made.folder)}
    show(args, data, lambda: print(f"{lines}   next: kineflow eval {called}"))
    return 0
