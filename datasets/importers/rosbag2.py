"""Import rosbag2 folders (`metadata.yaml` beside .db3 or .mcap files, all of them one episode) and single .db3 files.

Format: ros2/rosbag2. A .db3 is SQLite with the tables `topics` and `messages`; only those of Iron and later hold type
definitions, so the others are read with the types of the distribution that metadata.yaml names, else of Humble.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.mcap import McapLog
from kineflow.datasets.importers.ros_log import open_logs
from kineflow.datasets.importers.ros_topics import Log, LogMessage, Topic
from kineflow.datasets.importers.source import ImportOptions, Source

_SUFFIXES = (".db3", ".mcap")


@dataclass(frozen=True)
class Db3Log:
    """One SQLite file of a bag as a `Log`; `distribution` names the types of messages that have no definition."""

    path: Path
    distribution: str = ""

    @property
    def label(self) -> str:
        return self.path.name

    def messages(self, left_out: dict[str, str] | None = None) -> Iterator[LogMessage]:
        """All messages in the order in which they were written.

        Raises:
            KineflowError: not a bag, or a damaged one; names the file.
        """
        # A write-ahead log beside the file means that the recorder was killed: SQLite must be free to read it.
        alone = "" if self.path.with_name(self.path.name + "-wal").exists() else "&immutable=1"
        connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro{alone}", uri=True)
        try:
            topics = self._topics(connection)
            for topic, stamp_ns, data in connection.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id"):
                yield LogMessage(topics[topic], int(stamp_ns), bytes(data))
        except (sqlite3.DatabaseError, KeyError) as error:
            raise KineflowError(
                f"{self.path} is not a whole rosbag2 database ({type(error).__name__}: {error}); copy it again, "
                "or keep what is whole with `sqlite3 FILE .recover`"
            ) from error
        finally:
            connection.close()

    def _topics(self, connection: sqlite3.Connection) -> dict[int, Topic]:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        definitions: dict[str, tuple[str, str]] = {}
        if "message_definitions" in tables:
            rows = connection.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
            definitions = {kind: (encoding, text) for kind, encoding, text in rows if text}
        found = connection.execute("SELECT id, name, type, serialization_format FROM topics")
        return {
            number: Topic(name, kind, *definitions.get(kind, ("", "")), encoding, self.distribution)
            for number, name, kind, encoding in found
        }


@dataclass(frozen=True)
class BagLog:
    """All files of one bag, one after another, as one `Log`."""

    path: Path
    parts: tuple[McapLog | Db3Log, ...]
    unfinished: bool

    @property
    def label(self) -> str:
        return self.path.name

    def messages(self, left_out: dict[str, str] | None = None) -> Iterator[LogMessage]:
        if self.unfinished and left_out is not None:
            left_out[f"{self.label}: metadata.yaml"] = "it is missing, so the recorder did not finish; all its files were read"
        for part in self.parts:
            yield from part.messages(left_out)


def open_rosbag2(path: Path, options: ImportOptions) -> Source:
    """A bag folder, a folder of bag folders (episodes in the order of their names), or one .db3 file. See ros_log.py for
    what is carried and how the action is chosen.

    Raises:
        KineflowError: no bag there, a compressed or damaged one, or no stream that can be the action.
    """
    if path.is_file():
        return open_logs("rosbag2", path, [_log(path, "")], options)
    folders = [path] if _is_bag(path) else sorted(folder for folder in path.iterdir() if folder.is_dir() and _is_bag(folder))
    if not folders:
        raise KineflowError(
            f"{path} is no rosbag2 folder (no metadata.yaml, .db3 or .mcap) and holds none; give the folder of a bag"
        )
    logs: list[Log] = [_bag(folder) for folder in folders]
    return open_logs("rosbag2", path, logs, options)


def open_log(path: Path) -> McapLog | Db3Log | BagLog:
    """One recording: a bag folder, a .db3 or an .mcap file; its messages as they were written.

    Raises:
        KineflowError: no bag there, or one compressed as a whole.
    """
    if path.is_file():
        return _log(path, "")
    if path.is_dir() and _is_bag(path):
        return _bag(path)
    raise KineflowError(f"{path} is no recording; give an .mcap or .db3 file, or the folder of a rosbag2")


def _is_bag(folder: Path) -> bool:
    return (folder / "metadata.yaml").is_file() or any(file.suffix in _SUFFIXES for file in folder.iterdir())


def _bag(folder: Path) -> BagLog:
    file = folder / "metadata.yaml"
    if not file.is_file():
        files = sorted((f for f in folder.iterdir() if f.suffix in _SUFFIXES), key=_split)
        return BagLog(folder, tuple(_log(f, "") for f in files), unfinished=True)
    try:
        said: dict[str, Any] = yaml.safe_load(file.read_text())["rosbag2_bagfile_information"]
        names = [str(name) for name in said["relative_file_paths"]]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise KineflowError(f"{file} is not the metadata of a rosbag2 ({error}); run `ros2 bag reindex {folder.name}`") from error
    if said.get("compression_format"):
        raise KineflowError(
            f"{file}: the bag is compressed as a whole ({said.get('compression_mode')}, {said['compression_format']}); "
            "write it anew without, `ros2 bag convert`, or record to MCAP, which compresses by itself"
        )
    # Old recorders name the folder too; files of theirs that were moved lie beside metadata.yaml all the same.
    files = [folder / name if (folder / name).is_file() else folder / Path(name).name for name in names]
    for part in files:
        if not part.is_file():
            raise KineflowError(f"{part} is not there, but {file} names it; copy the bag again")
    return BagLog(folder, tuple(_log(part, str(said.get("ros_distro") or "")) for part in files), unfinished=False)


def _log(file: Path, distribution: str) -> McapLog | Db3Log:
    if file.suffix not in _SUFFIXES:
        raise KineflowError(f"{file}: only .db3 and .mcap files are rosbag2 storage; give one of these")
    return McapLog(file) if file.suffix == ".mcap" else Db3Log(file, distribution)


def _split(file: Path) -> tuple[str, int]:
    """bag_2 comes before bag_10."""
    name, _, number = file.stem.rpartition("_")
    return (name, int(number)) if number.isdigit() else (file.stem, 0)
