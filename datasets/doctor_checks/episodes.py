"""What is odd about whole episodes: one step only, no split where others have one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kineflow.datasets.doctor_checks.finding import DoctorConfig, Finding
from kineflow.datasets.doctor_checks.recordings import Recordings

_SHORT_REMEDY = "an episode needs two steps to show a motion; leave it out: `kineflow data delete`"
_SPLIT_REMEDY = "give every episode a split when it is recorded or imported (Episode.split), or none at all"


def episode_findings(recordings: Recordings, config: DoctorConfig) -> Iterator[Finding]:
    store = recordings.store
    for episode in np.flatnonzero(store.lengths < 2).tolist():
        problem = f"it has {store.lengths[episode]} step"
        yield recordings.finding("short", episode, "", problem, _SHORT_REMEDY, value=float(store.lengths[episode]), threshold=2)
    codes = np.concatenate([np.zeros(0, np.int64), *(segment.column("split") for segment in store.segments)])
    without = np.flatnonzero(codes == -1)
    if 0 < len(without) < len(codes):
        shown = ", ".join(map(str, without[:8])) + (", ..." if len(without) > 8 else "")
        problem = f"{len(without)} of {len(codes)} episodes have no split, the others have one: episodes {shown}"
        yield recordings.finding("split", None, "", problem, _SPLIT_REMEDY, value=float(len(without)))
    there = {name for name, code in store.manifest.splits.items() if (codes == code).any()}
    for name in config.expect_splits:
        if name not in there:
            problem = f"no episode is in split '{name}'; there is {', '.join(sorted(there)) or 'none'}"
            yield recordings.finding("split", None, "", problem, _SPLIT_REMEDY, value=0.0)
