"""Versions of a store in an Icechunk repository (extra `versioned`): each is one commit, and any of them can be taken out again.

The repository holds the same Zarr groups as the store, so that any Zarr reader opens them there too. For training take a version
out: a segment on disk is read many times faster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kineflow.datasets.checksums import crc32c
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import Manifest, manifest_bytes, parse_manifest, sync, write_manifest
from kineflow.datasets.staged import staged_beside
from kineflow.datasets.store_error import StoreError, room_for
from kineflow.extras import require

PURPOSE = "to keep versions of a store"
BRANCH = "main"


@dataclass(frozen=True)
class Version:
    """One commit, newest first in `versions`. `written_at` is ISO 8601, UTC."""

    id: str
    message: str
    written_at: str


def save_version(store: EpisodeStore, repository: str, message: str, **options: Any) -> str:
    """Commit what `store` holds now; segments that are in the repository already are not sent again. Returns the version's id.

    `repository` is a folder or s3://bucket/path; `options` are those of icechunk.s3_storage (default: AWS_... variables).

    Raises:
        StoreError: a file of the store is damaged, or somebody else committed meanwhile.
    """
    icechunk = require("icechunk", PURPOSE)
    repo = icechunk.Repository.open_or_create(_storage(icechunk, repository, options))
    session = repo.writable_session(BRANCH)
    there = asyncio.run(_held(session.store))
    try:
        asyncio.run(_write(session.store, store, there))
        return str(session.commit(message))
    except icechunk.ConflictError as error:
        raise StoreError(f"{repository}: somebody else committed meanwhile; save the version again") from error


def versions(repository: str, **options: Any) -> list[Version]:
    """The commits of the repository, newest first."""
    icechunk = require("icechunk", PURPOSE)
    repo = _open(icechunk, repository, options)
    found = [Version(str(s.id), str(s.message), s.written_at.isoformat()) for s in repo.ancestry(branch=BRANCH)]
    return found[:-1]  # the last one is the empty repository


def load_version(repository: str, destination: Path, version: str = "", **options: Any) -> EpisodeStore:
    """A version (default: the newest) as a new local store, every file checked; complete or not at all.

    Raises:
        StoreError: something exists at `destination`, there is no such version, or a file is not what was committed.
    """
    destination = Path(destination)
    if destination.exists():
        raise StoreError(f"{destination} exists already; choose another destination or remove it")
    icechunk = require("icechunk", PURPOSE)
    repo = _open(icechunk, repository, options)
    try:
        session = repo.readonly_session(snapshot_id=version) if version else repo.readonly_session(BRANCH)
    except (icechunk.IcechunkError, ValueError) as error:
        known = ", ".join(v.id for v in versions(repository, **options)[:5])
        raise StoreError(f"{repository} has no version '{version}'; the newest are {known or 'none'}") from error
    with staged_beside(destination, "loading") as staged:
        folder = staged / "store"
        for name in ("segments", "staging"):
            (folder / name).mkdir(parents=True)
        write_manifest(folder, asyncio.run(_read(session.store, folder, repository)))
        folder.rename(destination)
    sync(destination.parent)
    return EpisodeStore.open(destination)


def _open(icechunk: Any, repository: str, options: Mapping[str, Any]) -> Any:
    try:
        return icechunk.Repository.open(_storage(icechunk, repository, options))
    except icechunk.IcechunkError as error:
        first = str(error).strip().splitlines()[0]
        raise StoreError(f"{repository} is no Icechunk repository ({first}); make one with `kineflow data version`") from error


def _storage(icechunk: Any, repository: str, options: Mapping[str, Any]) -> Any:
    url = urlparse(repository)
    if url.scheme == "s3":
        more = options if options else {"from_env": True}
        return icechunk.s3_storage(bucket=url.netloc, prefix=url.path.strip("/"), **more)
    if url.scheme:
        raise StoreError(f"{repository}: versions are kept in a folder or at s3://bucket/path")
    return icechunk.local_filesystem_storage(str(Path(repository).absolute()))


async def _held(objects: Any) -> Manifest | None:
    """The manifest in the repository, if there is one."""
    root = await _get(objects, "zarr.json")
    text = json.loads(root)["attributes"].get("manifest") if root else None
    return parse_manifest(text.encode(), "manifest", "the repository") if text else None


async def _write(objects: Any, store: EpisodeStore, there: Manifest | None) -> None:
    buffer = require("zarr.core.buffer.cpu", PURPOSE).Buffer.from_bytes
    known = {e.id for e in there.segments} if there else set()
    mine = {e.id for e in store.manifest.segments}
    await objects.set("zarr.json", buffer(_group({"manifest": manifest_bytes(store.manifest).decode()})))
    if there is None:
        await objects.set("segments/zarr.json", buffer(_group({})))
    for gone in known - mine:
        await objects.delete_dir(f"segments/{gone}")
    for segment in store.segments:
        if segment.entry.id not in known:
            # A node comes after the group that it is in, and a chunk after its array.
            paths = sorted((f.path for f in segment.entry.files), key=lambda p: (not p.endswith("zarr.json"), p.count("/")))
            for path in paths:
                await objects.set(f"segments/{segment.entry.id}/{path}", buffer(segment.read(path)))


async def _read(objects: Any, folder: Path, repository: str) -> Manifest:
    manifest = await _held(objects)
    if manifest is None:
        raise StoreError(f"{repository} holds no episode store; save one with `kineflow data version`")
    with room_for("a version", folder, sum(f.bytes for e in manifest.segments for f in e.files)):
        for listed in manifest.segments:
            for file in listed.files:
                data = await _get(objects, f"segments/{listed.id}/{file.path}")
                if data is None or len(data) != file.bytes or crc32c(data) != file.crc32c:
                    raise StoreError(f"{repository}: segments/{listed.id}/{file.path} is missing or not what was committed")
                path = folder / "segments" / listed.id / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return manifest


async def _get(objects: Any, path: str) -> bytes | None:
    found = await objects.get(path, require("zarr.core.buffer", PURPOSE).default_buffer_prototype())
    return None if found is None else bytes(found.to_bytes())


def _group(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}).encode()
