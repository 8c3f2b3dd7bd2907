"""Recording a sample episode step by step, for the tests of recorder, repair and upkeep."""

from __future__ import annotations

from kineflow.contracts import Episode
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.recorder import EpisodeRecorder


def recorder_of(store: EpisodeStore, episode: Episode) -> EpisodeRecorder:
    return EpisodeRecorder(store, instruction=episode.instruction, source=episode.source, clock=episode.clock, sync_s=0)


def in_order(episode: Episode) -> list[tuple[int, str, int]]:
    """Every sample as (stamp, stream, row), in the order in which a robot would see them."""
    return sorted((int(t), name, row) for name, stream in episode.streams.items() for row, t in enumerate(stream.stamp_ns))


def append_all(recorder: EpisodeRecorder, episode: Episode, first: int = 0, last: int | None = None) -> None:
    """Samples `[first, last)` of `in_order(episode)`."""
    for stamp, name, row in in_order(episode)[first:last]:
        recorder.append(name, episode.streams[name].values[row], stamp)


def record(store: EpisodeStore, episode: Episode) -> None:
    recorder = recorder_of(store, episode)
    append_all(recorder, episode)
    recorder.finish(success=episode.success)
