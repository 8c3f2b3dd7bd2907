"""After a crash: what a dead recorder left in its journal becomes an episode, up to its last whole step.

A step is an action with the samples of all streams that are recorded together with the actions: those end with the last step
that all of them have. A stream with a clock of its own, or one that stalled, ends where it ended and costs the others nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from kineflow.datasets.committing import discard
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import SUFFIX, Contents, lock_if_abandoned, read_journal
from kineflow.datasets.journal_episode import commit_journal, recorded_episode
from kineflow.datasets.segment import ACTION, schema_hash
from kineflow.datasets.store_error import StoreError

STALLED_S = 1.0  # further apart at the end, streams are no longer recorded together
Outcome = Literal["salvaged", "committed before", "being recorded", "no whole step", "refused"]


@dataclass(frozen=True)
class JournalReport:
    """What became of one journal. `cut` counts samples of each stream after the last whole step; `ends_early_s` names streams
    that ended long before the recording did, and how long."""

    journal: str
    outcome: Outcome
    steps: int = 0
    cut: Mapping[str, int] = field(default_factory=dict)
    ends_early_s: Mapping[str, float] = field(default_factory=dict)
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


def whole_steps(contents: Contents) -> dict[str, int]:
    """How many samples of each stream belong to whole steps; {} when a stream has none."""
    stamps = {name: samples.stamp_ns for name, samples in contents.samples.items()}
    if any(len(s) == 0 for s in stamps.values()):
        return {}
    together = [name for name, s in stamps.items() if _recorded_together(s, stamps[ACTION])]
    steps = min(len(stamps[name]) for name in together)
    return {name: steps if name in together else len(s) for name, s in stamps.items()}


def render_repair(report: RepairReport, console: Console) -> None:
    if not report.journals:
        console.print(f"{report.store}: nothing to repair, no recording was left unfinished", markup=False, highlight=False)
    for journal in report.journals:
        cut = ", ".join(f"{count} of {name}" for name, count in journal.cut.items())
        line = f"{journal.journal}: {journal.outcome}" + (f", {journal.steps} steps" if journal.steps else "")
        console.print(line + (f", cut {cut} after the last whole step" if cut else ""), markup=False, highlight=False)
        for name, seconds in journal.ends_early_s.items():
            console.print(f"  '{name}' ends {seconds:.1f} s before the recording does", markup=False, highlight=False)
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
    kept = whole_steps(contents)
    if not kept and not contents.is_finished:
        problem = f"{problem}not every stream has a sample; `kineflow data gc` removes it"
        return JournalReport(str(journal), "no whole step", problem=problem)
    try:
        episode = recorded_episode(store.interface, contents, store.path / "staging", None if contents.is_finished else kept)
        if not contents.is_finished:
            episode = replace(episode, source=f"{episode.source} (repaired: recording {journal_id} was not finished)".lstrip())
        commit_journal(store, journal_id, episode)
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            raise  # no room: the same for every journal
        return JournalReport(str(journal), "refused", problem=str(error))
    journal.unlink(missing_ok=True)
    count = {name: len(stream.stamp_ns) for name, stream in episode.streams.items()}
    cut = {name: len(s.stamp_ns) - count[name] for name, s in contents.samples.items() if len(s.stamp_ns) > count[name]}
    return JournalReport(str(journal), "salvaged", count[ACTION], cut, _ends_early_s(contents), problem.removesuffix("; "))


def _recorded_together(stamp_ns: np.ndarray, action_ns: np.ndarray) -> bool:
    both = min(len(stamp_ns), len(action_ns))
    apart_s = abs(int(stamp_ns[-1]) - int(action_ns[-1])) / 1e9
    return np.array_equal(stamp_ns[:both], action_ns[:both]) and apart_s <= STALLED_S


def _ends_early_s(contents: Contents) -> dict[str, float]:
    last = {name: int(samples.stamp_ns[-1]) for name, samples in contents.samples.items()}
    early = {name: (max(last.values()) - end) / 1e9 for name, end in sorted(last.items())}
    return {name: seconds for name, seconds in early.items() if seconds > STALLED_S}


def _problem(contents: Contents) -> str:
    if contents.end == "damaged":
        return f"damaged at byte {contents.whole_bytes}: {contents.unread_bytes} bytes from there on are not used; "
    return f"its last record is not whole ({contents.unread_bytes} bytes); " if contents.end == "torn" else ""
