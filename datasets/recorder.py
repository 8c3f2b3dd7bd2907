"""Recording on a robot: sample by sample, each stream at its own rate, and nothing that was appended is lost.

    with EpisodeRecorder(store, instruction="open the door", source="kitchen 3") as recorder:
        recorder.append("pose", pose, stamp_ns)
        recorder.append("front", frame, camera_stamp_ns)     # an array, or the camera's own JPEG bytes
        ...
        recorder.finish(success=True)

Each sample goes to a journal at once (datasets/journal.py); `finish` turns the journal into a committed episode by the
same path that `kineflow data repair` takes after a crash, so that this path is always in use. RAM does not grow with the
length of the recording.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec, Episode, Goal, Span
from kineflow.datasets.checksums import CorruptData
from kineflow.datasets.codecs import check_jpeg
from kineflow.datasets.episode_check import checked_facts
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.journal import CLOSING, FRAME, JPEG, VECTOR, JournalWriter, Record, read_journal
from kineflow.datasets.journal_episode import commit_journal, compress_frame, plain_facts, recorded_episode
from kineflow.datasets.manifest import new_ulid
from kineflow.datasets.segment import schema_hash, vector_streams
from kineflow.datasets.store_error import StoreError

Sample = np.ndarray | Sequence[float] | bytes
_log = logging.getLogger(__name__)


class EpisodeRecorder:
    """One episode being recorded; context manager.

    Leaving the block commits what was appended (`finish()`), unless `finish` or `abort` was called. On an exception the
    journal stays for `kineflow data repair`. Methods may be called from several threads, one stream from one thread; what
    another thread appends while `finish` runs is either in the episode or refused.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        instruction: str = "",
        source: str = "",
        clock: str = "sensor",
        language: str = "und",
        split: str = "",
        seed: int | None = None,
        operator: str = "",
        goals: Mapping[str, Goal] | None = None,
        sync_s: float = 1.0,
    ) -> None:
        """What is known of the episode now survives a crash; `finish` may still change it. `sync_s`: see journal.py.

        Raises:
            StoreError: one of these facts cannot be stored, or there is no room.
        """
        self._store, self._interface = store, store.interface
        self._widths = vector_streams(self._interface)
        self._streams = [*self._widths, *self._interface.cameras]
        self._number = {name: number for number, name in enumerate(self._streams)}
        self._last_ns: dict[str, int] = {}
        self._facts: dict[str, Any] = {
            "instruction": instruction,
            "success": None,
            "source": source,
            "clock": clock,
            "language": language,
            "spans": (),
            "goals": dict(goals or {}),
            "split": split,
            "seed": seed,
            "operator": operator,
        }
        self.id = new_ulid()
        self._facts = self._checked(self._facts)  # now: after a crash nobody is there who could mend them
        opening = {
            "streams": self._streams,
            "schema_hash": schema_hash(self._interface),
            "facts": plain_facts(self._facts),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_ns": time.time_ns(),
        }
        self._journal = JournalWriter(store.path / "staging", self.id, opening, sync_s)
        self._is_open = True
        self._lock = threading.Lock()  # no sample comes between what `finish` reads and the end of the journal

    def __enter__(self) -> EpisodeRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._is_open:
            return
        if kind is None:
            try:
                self.finish()
                return
            except BaseException:
                self._leave()
                raise
        self._leave()

    def append(self, stream: str, value: Sample, stamp_ns: int) -> None:
        """Record one sample of `stream`: `[D]`, a frame, or the JPEG bytes of a frame. Survives SIGKILL when it returns.

        Raises:
            StoreError: it does not fit the schema, is not finite, is not later than the one before, or there is no room;
                nothing was recorded, and recording can go on.
        """
        self.append_step({stream: value}, stamp_ns)

    def append_step(self, values: Mapping[str, Sample], stamp_ns: int) -> None:
        """Record samples of several streams taken together: all of them or none. Raises as `append` does."""
        self._require_open()
        stamp = _stamp(stamp_ns, f"recording {self.id}, streams {sorted(values)}")
        records = [self._record(stream, value, stamp) for stream, value in values.items()]
        with self._lock:
            self._require_open()
            self._journal.append(records)
            for stream in values:
                self._last_ns[stream] = stamp

    def finish(self, *, success: bool | None = None, spans: Sequence[Span] = (), **changed: Any) -> None:
        """Commit the episode durably and remove the journal; `changed` are other fields of `Episode` known only now.

        Raises:
            StoreError: a stream has no sample, an unknown field, one that cannot be stored, or there is no room. The recorder
                stays open: append, free some room and call `finish` again, or `abort`.
        """
        self._require_open()
        unknown = set(changed) - set(self._facts)
        if unknown:
            raise StoreError(f"episodes have no field {sorted(unknown)}; finish() takes {sorted(self._facts)}")
        known = self._checked(self._facts | {"success": success, "spans": tuple(spans), **changed})
        with self._lock:
            self._require_open()
            empty = [name for name in self._streams if name not in self._last_ns]
            if empty:
                raise StoreError(
                    f"recording {self.id}: no sample of {empty}; append to each stream of the schema, or call abort()"
                )
            self._is_open = False  # other threads need not wait to be told that it is over
        try:
            self._facts = known
            self._journal.append([Record(CLOSING, 0, 0, json.dumps(plain_facts(known)).encode())])
            episode = recorded_episode(self._interface, read_journal(self._journal.path), self._store.path / "staging")
            commit_journal(self._store, self.id, episode)
            self._journal.path.unlink()
        except BaseException:
            self._is_open = True
            raise
        self._journal.close()

    def abort(self) -> None:
        """Drop the episode."""
        with self._lock:
            self._require_open()
            self._journal.path.unlink()
            self._close()

    def _checked(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        known = checked_facts(Episode({}, **facts), f"recording {self.id}")
        return {name: getattr(known, name) for name in facts}

    def _record(self, stream: str, value: Sample, stamp_ns: int) -> Record:
        what = f"recording {self.id}, stream '{stream}'"
        if stream not in self._number:
            raise StoreError(f"{what} is not in the store's schema; it has {self._streams}")
        last = self._last_ns.get(stream)
        if last is not None and stamp_ns <= last:
            raise StoreError(f"{what}: timestamp {stamp_ns} ns does not come after {last} ns; drop the sample or mend the clock")
        if stream in self._widths:
            return Record(VECTOR, self._number[stream], stamp_ns, _vector(value, self._widths[stream], what))
        camera = self._interface.cameras[stream]
        if isinstance(value, bytes):
            return Record(JPEG, self._number[stream], stamp_ns, _jpeg(value, camera, what))
        return Record(FRAME, self._number[stream], stamp_ns, _frame(value, camera, what))

    def _leave(self) -> None:
        with self._lock:
            self._close()
        _log.warning(
            "recording %s was not finished; what was appended is in %s: run `kineflow data repair %s`",
            self.id,
            self._journal.path,
            self._store.path,
        )

    def _close(self) -> None:
        self._is_open = False
        self._journal.close()

    def _require_open(self) -> None:
        if not self._journal.is_mine:
            raise StoreError(f"recording {self.id} was made in another process; make a new EpisodeRecorder in this one")
        if not self._is_open:
            raise StoreError(f"recording {self.id} is over; make a new EpisodeRecorder for the next episode")


def _stamp(stamp_ns: int, what: str) -> int:
    try:
        stamp = operator.index(stamp_ns)
    except TypeError:
        raise StoreError(
            f"{what}: timestamp {stamp_ns!r} is no whole number; give int nanoseconds, as time.time_ns() does"
        ) from None
    if not -(2**63) <= stamp < 2**63:
        raise StoreError(f"{what}: timestamp {stamp} ns does not fit into int64; drop the sample or mend the clock")
    return stamp


def _vector(value: Sample, width: int, what: str) -> bytes:
    given = np.asarray(value)
    if given.shape != (width,) or given.dtype.kind not in "fiub":
        raise StoreError(f"{what}: {given.dtype} {list(given.shape)}, the schema says numbers [{width}]")
    with np.errstate(over="ignore"):
        stored = given.astype("<f4")
    if not np.isfinite(stored).all() or (given.dtype.kind in "iu" and not np.array_equal(stored, given)):
        raise StoreError(f"{what}: {given.tolist()} is not finite or not exact as float32; drop the sample or mend its source")
    return stored.tobytes()


def _frame(value: Sample, camera: CameraSpec, what: str) -> bytes:
    dtype = np.uint8 if camera.kind == "rgb" else np.uint16
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != camera.frame_shape:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        needed = f"{np.dtype(dtype)} {list(camera.frame_shape)}, or JPEG bytes of a colour camera"
        raise StoreError(f"{what}: {found}, the schema says {needed}")
    return compress_frame(value)


def _jpeg(value: bytes, camera: CameraSpec, what: str) -> bytes:
    try:
        height, width = check_jpeg(value)
    except CorruptData as error:
        raise StoreError(f"{what}: {error}; drop the frame or mend its source") from None
    if camera.kind != "rgb" or (height, width) != (camera.height, camera.width):
        raise StoreError(f"{what}: a JPEG of {height} x {width}, the schema says {camera.kind} {camera.height} x {camera.width}")
    return value
