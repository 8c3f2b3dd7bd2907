"""metrics.jsonl of a run: one line for each logged step, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def log_record(run: Path, record: dict[str, float], board: SummaryWriter) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    for name in record.keys() - {"step", "time_s"}:
        board.add_scalar(name, record[name], int(record["step"]))


def forget_after(run: Path, step: int) -> float:
    """Drop the lines after `step`, which come again, and a line cut short; returns the seconds of training so far."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    metrics.write_text("".join(line + "\n" for line in kept))
    return float(json.loads(kept[-1])["time_s"]) if kept else 0.0
