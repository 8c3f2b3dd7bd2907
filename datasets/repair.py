"""After a crash: what a dead recorder left in its journal becomes an episode, up to its last whole step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from kineflow.datasets.committing import discard
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import SUFFIX, Contents, lock_if_abandoned, read_journal
from kineflow.datasets.journal_episode import commit_journal, recorded_episode
from kineflow.datasets.segment import ACTION, schema_hash
from kineflow.datasets.store_error import StoreError

Outcome = Literal["salvaged", "committed before", "being recorded", "no whole step", "refused"]


@dataclass(frozen=True)
class JournalReport:
    """What became of one journal. `cut` counts samples of each stream after the last time that all streams reach."""

    journal: str
    outcome: Outcome
    steps: int = 0
    cut: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class RepairReport:
    """What `repair` found and did; `episodes` is what the store holds now."""

    store: str
    journals: tuple[JournalReport, ...]
    episodes: int

    @property
    def ok(self) -> bool:
        """Nothing is left that cannot be salvaged."""
        return not any(journal.outcome == "refused" for journal in self.journals)


def repair(path: Path, progress: Callable[[int, int], None] | None = None) -> RepairReport:
    """Salvage every journal below `path` whose recorder is dead; those of living ones are left alone.

    A journal is removed only after its episode is committed. Stopped at any point, the next repair goes on: the segment has
    the journal's name, so that nothing is committed twice. `progress(done, total)` counts journals.

    Raises:
        StoreError: no store at `path`, or no room; what is not salvaged yet stays.
    """
    store = EpisodeStore.open(path)
    found = sorted((store.path / "staging").glob(f"*{SUFFIX}"))
    reports = []
    for number, journal in enumerate(found):
        reports.append(_repair(store, journal))
        if progress is not None:
            progress(number + 1, len(found))
    store.reload()
    return RepairReport(str(path), tuple(reports), store.num_episodes)


def common_time(contents: Contents) -> int | None:
    """The last time, ns, that every stream reaches; None when there is no step up to it."""
    stamps = [samples.stamp_ns for samples in contents.samples.values()]
    if any(len(s) == 0 for s in stamps):
        return None
    until = min(int(s[-1]) for s in stamps)
    return until if all(s[0] <= until for s in stamps) else None


def render_repair(report: RepairReport, console: Console) -> None:
    if not report.journals:
        console.print(f"{report.store}: nothing to repair, no recording was left unfinished", highlight=False)
    for journal in report.journals:
        cut = ", ".join(f"{count} of {name}" for name, count in journal.cut.items())
        line = f"{journal.journal}: {journal.outcome}" + (f", {journal.steps} steps" if journal.steps else "")
        console.print(line + (f", cut {cut} after the last whole step" if cut else ""), markup=False, highlight=False)
        if journal.problem:
            console.print(f"  {journal.problem}", markup=False, highlight=False)


def _repair(store: EpisodeStore, journal: Path) -> JournalReport:
    lock = lock_if_abandoned(journal)
    if lock is None:
        return JournalReport(str(journal), "being recorded", problem="its recorder lives; it is left alone")
    try:
        return _salvage(store, journal)
    finally:
        os.close(lock)


def _salvage(store: EpisodeStore, journal: Path) -> JournalReport:
    """The caller holds the lock of `journal`."""
    journal_id = journal.name.removesuffix(SUFFIX)
    if not discard(store.path, journal_id):
        journal.unlink(missing_ok=True)
        return JournalReport(str(journal), "committed before")
    try:
        contents = read_journal(journal)
    except StoreError as error:
        return JournalReport(str(journal), "no whole step", problem=f"{error}; `kineflow data gc` removes it")
    if contents.opening["schema_hash"] != schema_hash(store.interface):
        problem = "it was recorded with another schema than the store has; repair it in the store it was recorded for"
        return JournalReport(str(journal), "refused", problem=problem)
    problem = _problem(contents)
    until = None if contents.is_finished else common_time(contents)
    if until is None and not contents.is_finished:
        problem = f"{problem}not every stream has a sample; `kineflow data gc` removes it"
        return JournalReport(str(journal), "no whole step", problem=problem)
    episode = recorded_episode(store.interface, contents, store.path / "staging", until)
    if not contents.is_finished:
        episode = replace(episode, source=f"{episode.source} (repaired: recording {journal_id} was not finished)".lstrip())
    try:
        commit_journal(store, journal_id, episode)
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            raise  # no room: the same for every journal
        return JournalReport(str(journal), "refused", problem=str(error))
    journal.unlink(missing_ok=True)
    kept = {name: len(stream.stamp_ns) for name, stream in episode.streams.items()}
    cut = {name: len(s.stamp_ns) - kept[name] for name, s in contents.samples.items() if len(s.stamp_ns) > kept[name]}
    return JournalReport(str(journal), "salvaged", kept[ACTION], cut, problem.removesuffix("; "))


def _problem(contents: Contents) -> str:
    if contents.end == "damaged":
        return f"damaged at byte {contents.whole_bytes}: {contents.unread_bytes} bytes from there on are not used; "
    return f"its last record is not whole ({contents.unread_bytes} bytes); " if contents.end == "torn" else ""
