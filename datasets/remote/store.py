"""An episode store at a URL: read through a local cache, appended to by conditional writes.

objects   the same files as on disk: manifest.json, segments/<ulid>/...
reading   the manifest once; small files and shards on first use, whole and checked, into a cache with a limit; single
          frames of shards that are not there by coalesced range requests (datasets/remote/frames.py)
writing   the files of a segment, then manifest.json only if its entity tag is still the one that was read
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kineflow.contracts import Interface
from kineflow.datasets.checksums import CorruptData, crc32c
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.episode_writer import named
from kineflow.datasets.kept_totals import extended
from kineflow.datasets.manifest import (
    NAME,
    VERSION,
    FileEntry,
    Manifest,
    SegmentEntry,
    StaleGeneration,
    manifest_bytes,
    new_ulid,
    parse_manifest,
    sync,
    write_manifest,
)
from kineflow.datasets.remote.objects import Missing, Objects
from kineflow.datasets.remote.segment_cache import CONNECTIONS, SegmentCache
from kineflow.datasets.segment import EncodedEpisode, Segment, entry, pack
from kineflow.datasets.staged import staged_beside
from kineflow.datasets.store_error import StoreError

DEFAULT_LIMIT = 20 * 10**9
_ATTEMPTS = 10  # at a copy that others evict; more readers than that at once need a larger cache
T = TypeVar("T")


class RemoteSegment(Segment):
    """A segment whose files come when they are asked for, and again where the copy is gone or damaged."""

    def __init__(self, store: Path, listed: SegmentEntry, cache: SegmentCache) -> None:
        self._cache = cache
        super().__init__(store, listed)
        self.name = f"{cache.url}/segments/{listed.id}"

    @property
    def cache(self) -> SegmentCache:
        return self._cache

    def listed(self, path: str) -> FileEntry:
        """Size and checksum of a file; StoreError when the manifest does not list it."""
        if path not in self._listed:
            raise self.damaged(path, "the manifest does not list it")
        return self._listed[path]

    def checked_path(self, path: str) -> Path:
        return self._cache.path(self.entry.id, self.listed(path))

    def read(self, path: str) -> bytes:
        for _ in range(2):
            data = self._copied(path, Path.read_bytes)
            if crc32c(data) == self.listed(path).crc32c:
                return data
            self._cache.drop_damaged(self.entry.id, [self.listed(path)])
        raise self.damaged(path, "its bytes are not the ones that were committed (crc32c differs)")

    def _read_shard(self, path: str) -> bytes | memoryview:
        return self.read(path) if path.endswith("zarr.json") else self._copied(path, _mapped)

    def _copied(self, path: str, read: Callable[[Path], T]) -> T:
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError):  # evicted since it was found
                return read(self.checked_path(path))
        raise StoreError(
            f"{self.name}/{path}: others removed its copy {_ATTEMPTS} times before it could be read; raise limit_bytes"
        )

    def _decode(self, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except CorruptData:
            self._cache.drop_damaged(self.entry.id, self.entry.files)
        return super()._decode(decode)

    def _remedy(self) -> str:
        return "upload it again from a sound copy"

    def _check_size(self, file: FileEntry) -> None:
        """Nothing is here yet: sizes and checksums are compared as files arrive."""


class RemoteStore(EpisodeStore):
    """`EpisodeStore` at a URL. Instances are made by `open` and `create`; what others commit is seen after `reload()`."""

    def __init__(self, objects: Objects, cache: SegmentCache, folder: Path, manifest: Manifest, tag: str) -> None:
        self.objects, self._cache, self._tag = objects, cache, tag
        super().__init__(folder, manifest)

    @classmethod
    def open(  # type: ignore[override]
        cls, url: str, cache: Path | None = None, limit_bytes: int = DEFAULT_LIMIT, **options: Any
    ) -> RemoteStore:
        """Open the store at `url` (s3://bucket/path, https://...); copies go below `cache` (default ~/.cache/kineflow/stores).

        Raises:
            StoreError: no store there, the server cannot be reached, or the manifest is damaged.
        """
        objects = Objects(url, **options)
        folder = (cache or Path.home() / ".cache" / "kineflow" / "stores") / hashlib.sha256(objects.url.encode()).hexdigest()[:16]
        data, tag = objects.get_tagged(NAME)
        manifest = parse_manifest(data, f"{objects.url}/{NAME}", objects.url)
        return cls(objects, SegmentCache(objects, folder, limit_bytes), folder, manifest, tag)

    @classmethod
    def create(  # type: ignore[override]
        cls, url: str, interface: Interface, like: EpisodeStore, cache: Path | None = None, **options: Any
    ) -> RemoteStore:
        """Make an empty store at `url` with the records of `like`; StoreError when one is there."""
        objects = Objects(url, **options)
        empty = replace(
            like.manifest, schema=interface, segments=(), tasks={}, stats={}, splits={}, split_stats={}, stats_of="", generation=0
        )
        try:
            objects.put_if(NAME, manifest_bytes(empty), None)
        except StaleGeneration:
            raise StoreError(f"{objects.url} holds a store already; choose another URL") from None
        return cls.open(url, cache, **options)

    def reload(self) -> None:
        data, self._tag = self.objects.get_tagged(NAME)
        self._show(parse_manifest(data, f"{self.objects.url}/{NAME}", self.objects.url))

    def prefetch(self, shards: bool = False) -> None:
        """Fetch what is not here yet: numbers and metadata, 16 files at once; with `shards` the frames too."""
        wanted = [(e.id, f) for e in self.manifest.segments for f in e.files if shards or not _is_shard(f.path)]
        self._cache.prefetch(wanted)

    def commit(self, episodes: Sequence[EncodedEpisode], segment_id: str = "") -> None:
        files = pack(self.interface, episodes)
        added = entry(segment_id or new_ulid(), episodes, files)
        upload(self.objects, added, lambda path: files[path])
        while added.id not in {listed.id for listed in self.manifest.segments}:
            listed = named(extended(self.manifest, self.segments, added, episodes), [e.episode for e in episodes])
            new = replace(listed, generation=self.manifest.generation + 1, version=VERSION)
            # Refused: somebody else was first, or we were, and the answer to the request that was repeated got lost.
            with suppress(StaleGeneration):
                self.objects.put_if(NAME, manifest_bytes(new), self._tag)
            self.reload()

    def _segment(self, listed: SegmentEntry) -> Segment:
        return RemoteSegment(self.path, listed, self._cache)


def upload(objects: Objects, listed: SegmentEntry, contents: Callable[[str], bytes]) -> None:
    """All files of a segment, several at once; it is in no manifest yet, so nobody can see a part of it."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda file: objects.put(f"segments/{listed.id}/{file.path}", contents(file.path)), listed.files))


def push(store: EpisodeStore, url: str, progress: Callable[[int, int], None] | None = None, **options: Any) -> RemoteStore:
    """Copy a local store to `url`, segment by segment, then its manifest; what is there already is not sent again.

    Raises:
        StoreError: another store is at `url`, somebody else committed there meanwhile, or a local file is damaged.
    """
    objects = Objects(url, **options)
    there, tag = _remote_manifest(objects)
    known = {e.id for e in there.segments} if there else set()
    mine = {e.id for e in store.manifest.segments}
    if there is not None and (there.schema != store.interface or not known <= mine):
        raise StoreError(
            f"{objects.url} holds another store ({len(known - mine)} segments that this one has not); choose another URL"
        )
    todo = [segment for segment in store.segments if segment.entry.id not in known]
    for number, segment in enumerate(todo):
        upload(objects, segment.entry, segment.read)
        if progress is not None:
            progress(number + 1, len(todo))
    try:
        objects.put_if(NAME, manifest_bytes(store.manifest), tag)
    except StaleGeneration as error:
        if objects.get(NAME) != manifest_bytes(store.manifest):
            raise StoreError(f"{error}; what was sent is kept there: push again") from error
    return RemoteStore.open(url, **options)


def pull(url: str, destination: Path, progress: Callable[[int, int], None] | None = None, **options: Any) -> EpisodeStore:
    """Copy the store at `url` to a new local one, every file checked; it appears complete or not at all.

    Raises:
        StoreError: something exists at `destination`, a file is not what was committed, or the server cannot be reached.
    """
    destination = Path(destination)
    if destination.exists():
        raise StoreError(f"{destination} exists already; choose another destination or remove it")
    objects = Objects(url, **options)
    manifest = parse_manifest(objects.get(NAME), f"{objects.url}/{NAME}", objects.url)
    with staged_beside(destination, "pulling") as staged:
        folder = staged / "store"
        for name in ("segments", "staging"):
            (folder / name).mkdir(parents=True)
        cache = SegmentCache(objects, folder, max(1, sum(f.bytes for e in manifest.segments for f in e.files)))
        for number, listed in enumerate(manifest.segments):
            cache.prefetch((listed.id, file) for file in listed.files)
            if progress is not None:
                progress(number + 1, len(manifest.segments))
        write_manifest(folder, manifest)
        folder.rename(destination)
    sync(destination.parent)
    return EpisodeStore.open(destination)


def _remote_manifest(objects: Objects) -> tuple[Manifest | None, str | None]:
    try:
        data, tag = objects.get_tagged(NAME)
    except Missing:
        return None, None
    return parse_manifest(data, f"{objects.url}/{NAME}", objects.url), tag


def _mapped(path: Path) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _is_shard(path: str) -> bool:
    return path.startswith("cameras/") and not path.endswith("zarr.json")
