"""Export as rosbag2: a folder with one bag folder an episode, storage MCAP (`rosbag2`) or SQLite (`rosbag2-db3`).

`metadata.yaml` is of version 5 and the SQLite tables of version 3 (ROS 2 Humble), which later distributions read too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import yaml

from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.mcap import write_mcap
from kineflow.datasets.exporters.ros_messages import RosMessage, described, episode_messages
from kineflow.datasets.exporters.target import Carried, Progress

_METADATA_VERSION, _DB3_SCHEMA_VERSION = 5, 3


def export_rosbag2(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """Write every episode of `store` as a bag with MCAP storage into the new folder `destination`."""
    return _export(store, destination, progress, "mcap", ".mcap", write_mcap)


def export_rosbag2_db3(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """Write every episode of `store` as a bag with SQLite storage into the new folder `destination`."""
    return _export(store, destination, progress, "sqlite3", ".db3", _write_db3)


def _export(
    store: EpisodeStore,
    destination: Path,
    progress: Progress,
    storage: str,
    suffix: str,
    write: Callable[[Path, Iterable[RosMessage]], Mapping[str, tuple[str, int]]],
) -> Carried:
    carried = Carried(*described(store))
    for index in range(store.num_episodes):
        bag = destination / f"episode_{index:06d}"
        bag.mkdir(parents=True)
        first_last: list[int] = []
        file = f"{bag.name}_0{suffix}"
        counts = write(bag / file, _watched(episode_messages(store, index), first_last))
        (bag / "metadata.yaml").write_text(_metadata(file, storage, counts, min(first_last), max(first_last)))
        progress(index + 1, store.num_episodes)
    return carried


def _watched(messages: Iterable[RosMessage], first_last: list[int]) -> Iterator[RosMessage]:
    for message in messages:
        first_last[1 if first_last else 0 :] = [message.stamp_ns]
        yield message


def _metadata(file: str, storage: str, counts: Mapping[str, tuple[str, int]], first_ns: int, last_ns: int) -> str:
    total = sum(count for _, count in counts.values())
    span = {"starting_time": {"nanoseconds_since_epoch": first_ns}, "duration": {"nanoseconds": last_ns - first_ns}}
    topics = [
        {
            "topic_metadata": {"name": topic, "type": kind, "serialization_format": "cdr", "offered_qos_profiles": ""},
            "message_count": count,
        }
        for topic, (kind, count) in counts.items()
    ]
    bag = {
        "version": _METADATA_VERSION,
        "storage_identifier": storage,
        **span,
        "message_count": total,
        "topics_with_message_count": topics,
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file],
        "files": [{"path": file, **span, "message_count": total}],
    }
    text: str = yaml.safe_dump({"rosbag2_bagfile_information": bag}, sort_keys=False)
    return text


def _write_db3(file: Path, messages: Iterable[RosMessage]) -> dict[str, tuple[str, int]]:
    counts: dict[str, tuple[str, int]] = {}
    numbers: dict[str, int] = {}
    connection = sqlite3.connect(file)
    try:
        connection.executescript(
            "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
            "CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);"
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,"
            " serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);"
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,"
            " data BLOB NOT NULL);"
            "CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
        )
        connection.execute("INSERT INTO schema VALUES (?, 'humble')", (_DB3_SCHEMA_VERSION,))
        for topic, kind, stamp_ns, data in messages:
            if topic not in numbers:
                numbers[topic] = len(numbers) + 1
                connection.execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr', '')", (numbers[topic], topic, kind))
            row = (numbers[topic], stamp_ns, data)
            connection.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", row)
            counts[topic] = (kind, counts.get(topic, ("", 0))[1] + 1)
        connection.commit()
    finally:
        connection.close()
    return counts
