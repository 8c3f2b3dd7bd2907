"""Export as MCAP: a folder with one `episode_000000.mcap` an episode, ROS 2 messages with their definitions, zstd chunks.

Foxglove opens the files as they are; `kineflow data import --format mcap` gives the episodes back as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.ros_messages import RosMessage, definition, described, episode_messages
from kineflow.datasets.exporters.target import Carried, Progress
from kineflow.extras import require


def export_mcap(store: EpisodeStore, destination: Path, progress: Progress) -> Carried:
    """Write every episode of `store` into the new folder `destination`."""
    carried = Carried(*described(store))
    destination.mkdir()
    for index in range(store.num_episodes):
        write_mcap(destination / f"episode_{index:06d}.mcap", episode_messages(store, index))
        progress(index + 1, store.num_episodes)
    return carried


def write_mcap(file: Path, messages: Iterable[RosMessage]) -> dict[str, tuple[str, int]]:
    """One MCAP file; returns topic -> type and number of messages."""
    channels: dict[str, int] = {}
    schemas: dict[str, int] = {}
    counts: dict[str, tuple[str, int]] = {}
    with open(file, "wb") as opened:
        writer = require("mcap.writer", "to write MCAP").Writer(opened, enable_data_crcs=True)
        writer.start(profile="ros2", library="kineflow")
        for sequence, message in enumerate(messages):
            if message.type not in schemas:
                text = definition(message.type).encode()
                schemas[message.type] = writer.register_schema(message.type, "ros2msg", text)
            if message.topic not in channels:
                qos = {"offered_qos_profiles": ""}
                channels[message.topic] = writer.register_channel(message.topic, "cdr", schemas[message.type], qos)
            stamp_ns = message.stamp_ns
            writer.add_message(channels[message.topic], stamp_ns, message.data, stamp_ns, sequence)
            counts[message.topic] = (message.type, counts.get(message.topic, ("", 0))[1] + 1)
        writer.finish()
    return counts
