"""Where a run computes, and how it shows that it does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def device_named(name: str) -> str:
    """A torch device; "auto" is the GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_progress() -> Progress:
    """A bar with the loss, on stderr: stdout belongs to --json."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    return Progress(*columns, console=Console(stderr=True))


def say_left_out(left_out: Mapping[str, int], windows: int) -> None:
    """How many windows observe a gap, by the stream to blame, beside the `windows` that are trained and validated on."""
    if left_out:
        blame = ", ".join(f"{name} {count}" for name, count in left_out.items())
        missing = sum(left_out.values())
        line = f"{missing} of {missing + windows} windows are left out: they would observe a gap ({blame})"
        Console(stderr=True).print(line, markup=False, highlight=False)
