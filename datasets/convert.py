"""From somebody else's recordings to a store: complete or not there at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kineflow.contracts import KineflowError
from kineflow.datasets.codecs import check_policy
from kineflow.datasets.engines import EPISODES_PER_COMMIT, Engine, Job, import_with
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.importers.source import Facts, ImportOptions, open_source
from kineflow.datasets.manifest import CameraRecord, sync
from kineflow.datasets.staged import staged_beside


@dataclass(frozen=True)
class ImportReport:
    """What was carried into the store, as stream -> description, and what was not, as thing -> reason."""

    source: str
    destination: str
    format: str
    episodes: int
    steps: int
    carried: Mapping[str, str]
    not_carried: Mapping[str, str]
    clock: str
    bytes: int
    seconds: float


def import_data(
    name: str,
    source: Path,
    destination: Path,
    options: ImportOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    engine: Engine = "pool",
) -> ImportReport:
    """Import the data of format `name` at `source` as a new store at `destination`; `progress(done, total)` counts episodes.

    With several `workers` (datasets/engines.py) episodes and fingerprint are the same as with one; `done` falls when a worker
    dies and its episodes are done again. As with any spawned process, a script that calls this needs `if __name__ == "__main__"`.

    Raises:
        KineflowError: not such data, an episode that cannot be carried (named), something exists at `destination`, or
            workers that keep dying.
    """
    began, source, destination = time.monotonic(), Path(source), Path(destination)
    if destination.exists():
        raise KineflowError(f"{destination} exists already; choose another destination or remove it")
    options = options or ImportOptions()
    if options.codec:
        check_policy(options.codec, "any")
    opened = open_source(name, source, options)
    facts = opened.facts
    with staged_beside(destination, "importing") as staged:
        licence, cameras = options.licence or facts.licence, _cameras(facts, options)
        store = EpisodeStore.create(staged / "store", facts.interface, facts.clock, facts.provenance, licence, cameras)
        if workers == 1 and engine == "pool":
            # The codecs of the first episode are those of all, so that nothing depends on where segments begin.
            with store.writer(EPISODES_PER_COMMIT, codecs={}) as writer:
                for index in range(len(opened)):
                    writer.add(opened.episode(index))
                    if progress is not None:
                        progress(index + 1, len(opened))
        else:
            job = Job(name, source.absolute(), options, store.path.absolute())
            import_with(engine, workers, job, store, opened, progress or (lambda done, total: None))
        steps, not_carried = int(store.lengths.sum()), {**facts.not_carried, **_inexact(store)}
        store.path.rename(destination)
    sync(destination.parent)
    size = sum(f.stat().st_size for f in destination.rglob("*") if f.is_file())
    seconds = time.monotonic() - began
    where = (str(source), str(destination), name)
    return ImportReport(*where, len(opened), steps, facts.carried, not_carried, facts.clock, size, seconds)


def _cameras(facts: Facts, options: ImportOptions) -> Mapping[str, CameraRecord]:
    if not options.codec:
        return facts.cameras
    return {name: replace(facts.cameras.get(name, CameraRecord()), codec=options.codec) for name in facts.interface.cameras}


def _inexact(store: EpisodeStore) -> dict[str, str]:
    """Cameras whose pixels an encoder of ours has changed, and how to keep them."""
    codecs = {name: [s.frame_array(name).codec for s in store.segments] for name in store.interface.cameras}
    lossy = {name: sorted({codec.name_and_quality for codec in found if codec.lossy}) for name, found in codecs.items()}
    return {
        f"exact pixels of camera '{name}'": f"stored as {', '.join(found)}; `--codec lossless` keeps them, several times larger"
        for name, found in lossy.items()
        if found
    }
