"""From a store to somebody else's format: one function each, listed in `EXPORTS`; complete or not there at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from kineflow.contracts import KineflowError
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.staged import staged_beside

Progress: TypeAlias = Callable[[int, int], None]

# name of the format -> module:function, called as export(store, folder or file to make, progress) -> Carried
EXPORTS: dict[str, str] = {
    "diffusion-policy-zarr": "kineflow.datasets.exporters.diffusion_policy_zarr:export_replay_buffer",
    "isaac-lab": "kineflow.datasets.exporters.robomimic:export_robomimic",
    "lerobot-v2.1": "kineflow.datasets.exporters.lerobot:export_v21",
    "lerobot-v2.1-video": "kineflow.datasets.exporters.lerobot:export_v21_video",
    "lerobot-v3": "kineflow.datasets.exporters.lerobot:export_v3",
    "lerobot-v3-video": "kineflow.datasets.exporters.lerobot:export_v3_video",
    "robomimic": "kineflow.datasets.exporters.robomimic:export_robomimic",
    "mcap": "kineflow.datasets.exporters.mcap:export_mcap",
    "rosbag2": "kineflow.datasets.exporters.rosbag2:export_rosbag2",
    "rosbag2-db3": "kineflow.datasets.exporters.rosbag2:export_rosbag2_db3",
}


@dataclass(frozen=True)
class Carried:
    """What was written, as stream -> description, and what the format has no place for, as thing -> reason."""

    carried: Mapping[str, str]
    not_carried: Mapping[str, str]


@dataclass(frozen=True)
class ExportReport:
    """One export of all episodes of a store."""

    source: str
    destination: str
    format: str
    episodes: int
    steps: int
    carried: Mapping[str, str]
    not_carried: Mapping[str, str]


def export_data(name: str, store: EpisodeStore, destination: Path, progress: Progress | None = None) -> ExportReport:
    """Write all episodes of `store` to `destination` in format `name`; `progress(done, total)` counts episodes.

    Raises:
        KineflowError: an unknown format, something exists at `destination`, or the store holds what the format cannot.
    """
    if name not in EXPORTS:
        raise KineflowError(f"unknown export format '{name}'; known are {', '.join(sorted(EXPORTS))}")
    destination = Path(destination)
    if destination.exists():
        raise KineflowError(f"{destination} exists already; choose another destination or remove it")
    if store.num_episodes == 0:
        raise KineflowError(f"{store.path} has no episodes, so there is nothing to export")
    module, function = EXPORTS[name].split(":")
    with staged_beside(destination, "exporting") as staged:
        made = staged / destination.name
        done: Carried = getattr(import_module(module), function)(store, made, progress or (lambda done, total: None))
        made.rename(destination)
    steps = int(store.lengths.sum())
    where = (str(store.path), str(destination), name)
    return ExportReport(*where, store.num_episodes, steps, done.carried, done.not_carried)
