"""Episodes into a store: checked, compressed, written as one segment aside, then listed in the manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from kineflow.contracts import Episode, Interface
from kineflow.datasets.codecs import FrameCodec, choose
from kineflow.datasets.episode_check import checked
from kineflow.datasets.manifest import Manifest, SegmentEntry, StoreError, TaskRecord, sync
from kineflow.datasets.segment import EncodedEpisode, encode_episode, entry, pack, text_id
from kineflow.datasets.store_error import room_for

_SYNC_THREADS = 8  # the file system joins syncs that wait together


class Committable(Protocol):
    """What a writer needs of a store, wherever that is."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def num_episodes(self) -> int: ...

    def commit(self, episodes: Sequence[EncodedEpisode], segment_id: str = "") -> None: ...


class EpisodeWriter:
    """Context manager that appends checked episodes; on an exception what is not committed yet is dropped."""

    def __init__(
        self,
        store: Committable,
        episodes_per_commit: int,
        segment_id: str = "",
        codecs: Mapping[str, FrameCodec] | None = None,
    ) -> None:
        if episodes_per_commit < 1:
            raise StoreError(f"episodes_per_commit is {episodes_per_commit}; it must be at least 1")
        self._store = store
        self._episodes_per_commit = episodes_per_commit
        self._segment_id = segment_id
        self._given = codecs
        self._pending: list[EncodedEpisode] = []

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()

    def add(self, episode: Episode) -> None:
        """Check, compress and append; with `episodes_per_commit=1` the episode is durable when this returns.

        Raises:
            StoreError: the episode does not fit the schema, or is NaN; names episode, stream and step.
        """
        number = self._store.num_episodes + len(self._pending)
        episode = checked(self._store.manifest.schema, episode, number)
        codecs = self.codecs_of(episode)
        if self._pending and not all(codec.same_bytes(self._pending[0].codecs[name]) for name, codec in codecs.items()):
            self.commit()  # a segment has one codec for each camera
        self._pending.append(encode_episode(self._store.manifest.schema, episode, codecs))
        if len(self._pending) >= self._episodes_per_commit:
            self.commit()

    def commit(self) -> None:
        """Make all pending episodes durable as one segment."""
        if self._pending:
            self._store.commit(self._pending, self._segment_id)
            self._pending = []

    def codecs_of(self, episode: Episode) -> dict[str, FrameCodec]:
        """For each camera: the given one, or as the episodes before it in its segment, where that is possible; else probed."""
        before = self._pending[0].codecs if self._pending else {}
        codecs, records = dict(self._given or before), self._store.manifest.cameras
        for name in self._store.manifest.schema.cameras:
            source = episode.jpeg.get(name)
            if name not in codecs or (source is not None) != (codecs[name].quality == "source"):
                codecs[name] = choose(records[name].codec, episode.streams[name].values, source)
        if self._given is not None and not self._given:
            self._given = codecs
        return codecs


def named(manifest: Manifest, episodes: Sequence[Episode]) -> Manifest:
    """`manifest` with the instructions and splits of `episodes` spelled out; the first to give a text gives its language."""
    tasks = {str(text_id(e.instruction)): TaskRecord(e.instruction, e.language) for e in reversed(episodes) if e.instruction}
    splits = {e.split: text_id(e.split) for e in episodes if e.split}
    return replace(manifest, tasks={**tasks, **manifest.tasks}, splits={**manifest.splits, **splits})


def write_segment(store: Path, interface: Interface, episodes: Sequence[EncodedEpisode], segment_id: str) -> SegmentEntry:
    """Write `segments/<segment_id>/` durably, in the store at `store` but in no manifest yet; callers hold `committing`."""
    files = pack(interface, episodes)
    added = entry(segment_id, episodes, files)
    staged = store / "staging" / added.id
    with room_for(f"a segment of {len(episodes)} episodes", store, sum(map(len, files.values()))):
        for path, data in files.items():
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).write_bytes(data)
        folders = {staged / parent for path in files for parent in Path(path).parents}
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(sync, [*(staged / path for path in files), *folders]))
        (store / "segments").mkdir(exist_ok=True)  # what copies a store may leave out empty folders
        os.rename(staged, store / "segments" / added.id)
        sync(store / "segments")
    return added
