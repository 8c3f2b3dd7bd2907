"""Garbage of a store: segments that no manifest lists any more, and what stopped writers left. `kineflow data gc`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kineflow.datasets.committing import nobody_commits
from kineflow.datasets.journal import SUFFIX, lock_if_abandoned, read_journal
from kineflow.datasets.manifest import NAME, StoreError, read_manifest
from kineflow.datasets.repair import whole_steps


@dataclass(frozen=True)
class GarbageReport:
    """What was removed (or would be, `dry_run`), below the store, and what was kept: path -> why."""

    store: str
    removed: tuple[str, ...]
    bytes: int
    kept: dict[str, str]
    dry_run: bool


def collect(path: Path, dry_run: bool = False, wait_s: float = 10.0) -> GarbageReport:
    """Remove what neither the manifest nor a living writer needs.

    Recordings that a repair can salvage are kept. A process that opened the store before its segments were replaced, and still
    reads them, gets an error that names the missing file, never wrong values: end training runs first.

    Raises:
        StoreError: no store, or a commit that lasts longer than `wait_s`.
    """
    path = Path(path)
    read_manifest(path)
    removed, kept, size = [], {}, 0
    with nobody_commits(path, wait_s):
        for leftover, reason in _leftovers(path):
            if reason:
                kept[str(leftover.relative_to(path))] = reason
                continue
            removed.append(str(leftover.relative_to(path)))
            size += _bytes(leftover)
            if not dry_run:
                _remove(leftover)
    return GarbageReport(str(path), tuple(removed), size, kept, dry_run)


def render_garbage(report: GarbageReport, console: Console) -> None:
    verb = "would remove" if report.dry_run else "removed"
    line = f"{report.store}: {verb} {len(report.removed)} leftovers, {report.bytes / 1e6:.1f} MB"
    console.print(line, markup=False, highlight=False)
    for leftover in report.removed:
        console.print(f"  {leftover}", markup=False, highlight=False)
    for leftover, reason in report.kept.items():
        console.print(f"kept {leftover}: {reason}", markup=False, highlight=False)


def _leftovers(store: Path) -> Iterator[tuple[Path, str]]:
    """Everything that is not listed, and why it has to stay ("": it need not)."""
    listed = {entry.id for entry in read_manifest(store).segments}
    for folder in sorted(store.glob("segments/*")):
        if folder.name not in listed:
            yield folder, ""
    for left in sorted(store.glob("staging/*")):
        if left.suffix == SUFFIX or left.name.endswith(f"{SUFFIX}.new"):
            yield left, _needed(left, listed)
        else:
            yield left, ""
    for temporary in sorted(store.glob(f".{NAME}.*")):
        yield temporary, ""


def _needed(journal: Path, listed: set[str]) -> str:
    lock = lock_if_abandoned(journal)
    if lock is None:
        return "it is being recorded"
    os.close(lock)
    if journal.name.removesuffix(SUFFIX) in listed:
        return ""
    try:
        contents = read_journal(journal)
    except StoreError:
        return ""
    return "it can be salvaged: run `kineflow data repair`" if contents.is_finished or whole_steps(contents) else ""


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink(missing_ok=True)


def _bytes(leftover: Path) -> int:
    files = leftover.rglob("*") if leftover.is_dir() else [leftover]
    return sum(file.stat().st_size for file in files if file.is_file())
