"""Several stores of one schema in a new one: `kineflow data merge`. Segments are copied as they are, every byte checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kineflow.contracts import interface_differences
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import Manifest, SegmentEntry, StoreError, read_manifest, replace_manifest, sync
from kineflow.datasets.segment import Segment, schema_hash
from kineflow.datasets.staged import staged_beside
from kineflow.datasets.store_error import room_for
from kineflow.datasets.upkeep import UpkeepReport, report, with_segments

_SYNC_THREADS = 8


def merge(sources: Sequence[Path], destination: Path, progress: Callable[[int, int], None] | None = None) -> UpkeepReport:
    """Make the store `destination` of all episodes of `sources`, in their order; it is complete or not there at all.

    `progress(done, total)` counts segments.

    Raises:
        StoreError: fewer than two stores or one named twice, schemas or calibrations that differ (named), one segment in two
            stores, a damaged file, something at `destination`, or no room.
    """
    destination = Path(destination)
    if destination.exists():
        raise StoreError(f"{destination} exists already; choose another destination or remove it")
    if len({Path(source).resolve() for source in sources}) < max(2, len(sources)):
        raise StoreError(f"merge needs two stores or more, each named once, got {[str(source) for source in sources]}")
    manifests = {Path(source): read_manifest(Path(source)) for source in sources}
    first = manifests[Path(sources[0])]
    for source, manifest in manifests.items():
        _require_equal(Path(sources[0]), first, source, manifest)
    copies = [(source, entry) for source, manifest in manifests.items() for entry in manifest.segments]
    _require_distinct(copies)
    with staged_beside(destination, "merging") as staged:
        merged = _joined(list(manifests.values()))
        store = EpisodeStore.create(
            staged / "store", merged.schema, merged.clock, merged.provenance, merged.licence, merged.cameras
        )
        for number, (source, entry) in enumerate(copies):
            _copy(source, entry, store.path)
            if progress is not None:
                progress(number + 1, len(copies))
        sync(store.path / "segments")
        listed = with_segments(store.path, merged, [entry for _, entry in copies])
        after = replace_manifest(store.path, listed, store.manifest.generation)
        store.path.rename(destination)
    sync(destination.parent)
    return report(destination, replace(after, segments=()), after)


def _require_equal(first: Path, expected: Manifest, other: Path, found: Manifest) -> None:
    problems = [*interface_differences(expected.schema, found.schema), *interface_differences(found.schema, expected.schema)]
    for name in expected.schema.cameras if not problems else ():
        if expected.cameras[name].calibration != found.cameras[name].calibration:
            problems.append(f"camera '{name}' is calibrated otherwise")
    if not problems and schema_hash(expected.schema) != schema_hash(found.schema):
        problems = [f"{expected.schema} against {found.schema}"]
    problems = [problem.replace("the policy", str(first)) for problem in problems]  # whose words these are elsewhere
    if problems:
        raise StoreError(f"{other} cannot be merged with {first}, their schemas differ:\n  " + "\n  ".join(problems))


def _require_distinct(copies: Sequence[tuple[Path, SegmentEntry]]) -> None:
    holder: dict[str, Path] = {}
    for source, entry in copies:
        if entry.id in holder:
            raise StoreError(f"{holder[entry.id]} and {source} both hold segment {entry.id}: its episodes would be there twice")
        holder[entry.id] = source


def _joined(manifests: Sequence[Manifest]) -> Manifest:
    def texts(name: str, between: str) -> str:
        return between.join(dict.fromkeys(text for m in manifests if (text := getattr(m, name))))

    first = manifests[0]
    cameras = {name: replace(c, lossy=any(m.cameras[name].lossy for m in manifests)) for name, c in first.cameras.items()}
    return replace(
        first,
        cameras=cameras,
        clock=texts("clock", " + "),
        provenance=texts("provenance", "; "),
        licence=texts("licence", "; "),
        tasks={key: task for m in reversed(manifests) for key, task in m.tasks.items()},
        splits={name: code for m in manifests for name, code in m.splits.items()},
    )


def _copy(source: Path, entry: SegmentEntry, store: Path) -> None:
    segment, folder = Segment(source, entry), store / "segments" / entry.id
    with room_for(f"segment {entry.id}", store, sum(file.bytes for file in entry.files)):
        for file in entry.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_bytes(segment.read(file.path))
        folders = {folder / parent for file in entry.files for parent in Path(file.path).parents}
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(sync, [*(folder / file.path for file in entry.files), *folders]))
