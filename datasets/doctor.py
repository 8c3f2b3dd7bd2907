"""What is wrong or odd in a store. Reads only.

`check_store` says whether every byte is what was written; `diagnose` also looks at clocks, values and pictures
(datasets/doctor_checks/), each against a threshold of `DoctorConfig`. What a store holds: datasets/store_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kineflow.datasets.doctor_checks.clocks import clock_findings
from kineflow.datasets.doctor_checks.episodes import episode_findings
from kineflow.datasets.doctor_checks.finding import DoctorConfig as DoctorConfig, Finding as Finding
from kineflow.datasets.doctor_checks.integrity import RESTORE, check_integrity
from kineflow.datasets.doctor_checks.motion import motion_findings
from kineflow.datasets.doctor_checks.pictures import picture_findings
from kineflow.datasets.doctor_checks.recordings import Recordings
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import StoreError
from kineflow.datasets.store_report import (
    StoreReport as StoreReport,
    inspect_store as inspect_store,
    render_report as render_report,
)

Progress = Callable[[int, int], None]
CHECKS = (episode_findings, clock_findings, motion_findings, picture_findings)
SHOWN = 4  # findings of one kind and stream that are printed; --json and --html have all


def check_store(path: Path, progress: Progress | None = None) -> list[Finding]:
    """Every problem of the bytes of the store at `path`, worst first; [] when all are as written. `progress` counts segments."""
    return check_integrity(path, True, progress)


def diagnose(
    path: Path, config: DoctorConfig | None = None, verify: bool = False, progress: Progress | None = None
) -> list[Finding]:
    """All findings of the store at `path`, errors first, then by kind and stream, worst first.

    Without `verify` frames are read only where a check needs some of them: everything else is verified all the same. Where
    files are damaged, clocks, values and pictures are not judged. `progress(done, total)` counts segments.
    """
    config = config or DoctorConfig()
    findings = check_integrity(path, verify, progress)
    try:
        recordings = Recordings(EpisodeStore.open(path))
        for check in CHECKS if recordings.number and not _unreadable(findings) else ():
            findings += check(recordings, config)
    except StoreError as error:
        if not _unreadable(findings):
            findings.append(Finding("error", str(path), str(error), RESTORE))
    return [finding for group in grouped(findings) for finding in group]


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """By severity, kind and stream; each group with the worst first. Damage is not grouped."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for number, finding in enumerate(findings):
        alone = number if finding.kind == "integrity" else -1
        groups.setdefault((finding.severity, finding.kind, finding.stream, alone), []).append(finding)
    ordered = sorted(groups.values(), key=lambda group: group[0].severity)
    return [sorted(group, key=lambda finding: -finding.weight) for group in ordered]


def render_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print findings; of many of one kind and stream the worst."""
    if not findings:
        console.print(
            "[green]sound[/green]: every file, checksum, timestamp and statistic is as it was written, and nothing is odd"
        )
    for group in grouped(findings):
        for finding in group[:SHOWN]:
            colour = "red" if finding.severity == "error" else "yellow"
            console.print(f"[{colour}]{finding.severity}[/{colour}]", escape(finding.where), markup=True, highlight=False)
            console.print(f"  {finding.problem}", markup=False, highlight=False)
            if finding is group[0]:
                console.print(f"  remedy: {finding.remedy}", markup=False, highlight=False)
        if len(group) > SHOWN:
            console.print(f"  ... and {len(group) - SHOWN} more like these: --json or --html FILE lists them", markup=False)
    errors = sum(finding.severity == "error" for finding in findings)
    if findings:
        console.print(f"{errors} errors, {len(findings) - errors} warnings", highlight=False)


def _unreadable(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)
