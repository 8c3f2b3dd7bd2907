"""What an import or export carried and what not, as text for a terminal; `--json` has the same as data."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from kineflow.datasets.convert import ImportReport
from kineflow.datasets.exporters.target import ExportReport


def render_carried(report: ImportReport | ExportReport, console: Console) -> None:
    """Print `report`: one line of facts, then what was carried and what was not, with reasons."""
    size = f", {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s" if isinstance(report, ImportReport) else ""
    clock = f", clock {report.clock}" if isinstance(report, ImportReport) else ""
    console.print(f"{report.source} -> {report.destination} ({report.format})", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{report.episodes} episodes, {report.steps} steps{clock}{size}", markup=False, highlight=False)
    _list(console, "carried", report.carried)
    _list(console, "not carried", report.not_carried or {"": "nothing is left behind"})


def _list(console: Console, title: str, things: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for thing, said in things.items():
        table.add_row(_plain(thing), _plain(said))
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # "[96, 96, 3]" is no markup
