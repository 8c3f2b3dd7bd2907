"""Statistics of all episodes and of each split in the manifest: kept while writing, used only with the segments they are of.

`stats_of` is the hash of the segment list (`segments_hash`). Whoever changes the list otherwise than by `extended` (delete,
merge, compact) calls `recounted`; a manifest in which that was forgotten, or of version 1, is recounted when it is asked.
Counting reads the moments of each episode (a few numbers), never its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kineflow.datasets.manifest import Manifest, SegmentEntry, segments_hash
from kineflow.datasets.segment import EncodedEpisode, Segment, vector_streams
from kineflow.datasets.statistics import Moments, Totals, extend, join, totals


def extended(old: Manifest, segments: Sequence[Segment], added: SegmentEntry, episodes: Sequence[EncodedEpisode]) -> Manifest:
    """`old`, whose segments are `segments`, with the segment `added` of `episodes` at the end."""
    old = old if old.stats_of == segments_hash(old.segments) else recounted(old, segments)
    names = vector_streams(old.schema)
    of_split = {
        split: {n: extend(kept.get(n), [e.moments[n] for e in episodes if e.episode.split == split]) for n in names}
        for split in {e.episode.split for e in episodes if e.episode.split}
        for kept in [old.split_stats.get(split, {})]
    }
    listed = (*old.segments, added)
    stats = {n: extend(old.stats.get(n), [e.moments[n] for e in episodes]) for n in names}
    return replace(old, segments=listed, stats=stats, split_stats={**old.split_stats, **of_split}, stats_of=segments_hash(listed))


def recounted(manifest: Manifest, segments: Sequence[Segment]) -> Manifest:
    """`manifest` with the statistics and splits of `segments`, which are those it lists."""
    names = vector_streams(manifest.schema)
    codes = np.concatenate([np.zeros(0, np.int64), *(segment.column("split") for segment in segments)])
    moments = {n: join([segment.moments(n) for segment in segments]) for n in names} if segments else {}
    splits = {split: code for split, code in manifest.splits.items() if (codes == code).any()}
    return replace(
        manifest,
        stats={n: totals(m) for n, m in moments.items()},
        split_stats={split: {n: totals(_rows(m, codes == code)) for n, m in moments.items()} for split, code in splits.items()},
        splits=splits,
        stats_of=segments_hash(manifest.segments),
    )


def kept_totals(manifest: Manifest, segments: Sequence[Segment], split: str | None = None) -> Mapping[str, Totals]:
    """Count, mean, M2, minimum and maximum of each stream over all episodes, or over those of `split`."""
    if manifest.stats_of != segments_hash(manifest.segments):
        manifest = recounted(manifest, segments)
    return manifest.stats if split is None else manifest.split_stats.get(split, {})


def _rows(moments: Moments, chosen: np.ndarray) -> Moments:
    return Moments(moments.count[chosen], moments.rows[chosen])
