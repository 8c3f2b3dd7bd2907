"""Somebody else's recordings, opened for reading: an importer is one function that returns a `Source`.

Formats are listed in `FORMATS`; `convert.py` turns any Source into a store, episode by episode, in one or many processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from kineflow.contracts import Episode, Interface, KineflowError
from kineflow.datasets.manifest import CameraRecord

# name of the format -> module:function that opens it, called as open(path, options) -> Source
FORMATS: dict[str, str] = {
    "diffusion-policy-zarr": "kineflow.datasets.importers.diffusion_policy_zarr:open_replay_buffer",
    "comma2k19": "kineflow.datasets.importers.comma2k19:open_comma2k19",
    "donkeycar-tub": "kineflow.datasets.importers.donkeycar:open_tub",
    "kitti-odometry": "kineflow.datasets.importers.kitti_odometry:open_kitti_poses",
    "lerobot": "kineflow.datasets.importers.lerobot:open_lerobot",
    "mcap": "kineflow.datasets.importers.mcap:open_mcap",
    "rosbag2": "kineflow.datasets.importers.rosbag2:open_rosbag2",
    "robomimic": "kineflow.datasets.importers.robomimic:open_robomimic",
    "isaac-lab": "kineflow.datasets.importers.robomimic:open_robomimic",
    "d4rl": "kineflow.datasets.importers.d4rl:open_d4rl",
    "minari": "kineflow.datasets.importers.minari:open_minari",
    "argoverse2-motion": "kineflow.datasets.importers.argoverse2_motion:open_argoverse2_motion",
    "argoverse2-sensor": "kineflow.datasets.importers.argoverse2_sensor:open_argoverse2_sensor",
    "l5kit": "kineflow.datasets.importers.l5kit:open_l5kit",
    "waymo-motion": "kineflow.datasets.importers.waymo_motion:open_waymo_motion",
    "recon": "kineflow.datasets.importers.recon:open_recon",
    "vint": "kineflow.datasets.importers.vint:open_vint",
    "rlds": "kineflow.datasets.importers.rlds:open_rlds",
}


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about data that do not say it themselves."""

    schema: Path | None = None  # an Interface as YAML: names, units, frames, limits
    rate_hz: float | None = None  # of data without clocks, or of the common clock that streams are resampled to
    licence: str = ""
    codec: str = ""  # of all RGB cameras: "auto", "lossless", "jpeg:<quality>"; "": as the importer says, which is auto


@dataclass(frozen=True)
class Facts:
    """What a source holds, known before the first episode is read. `not_carried`: thing -> reason, said to the user."""

    interface: Interface
    clock: str  # "sensor" or "nominal_10hz"
    provenance: str
    carried: Mapping[str, str]
    not_carried: Mapping[str, str] = field(default_factory=dict)
    cameras: Mapping[str, CameraRecord] = field(default_factory=dict)
    licence: str = ""


class Source(Protocol):
    """Episodes by index, in any order, so that processes can share the work; reading one holds one in memory."""

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def episode(self, index: int) -> Episode:
        """Read episode `index`; raises KineflowError naming file, stream and step when it cannot be carried truthfully."""
        ...


def open_source(name: str, path: Path, options: ImportOptions) -> Source:
    """The data set at `path` in format `name`.

    Raises:
        KineflowError: an unknown format, nothing at `path`, or not data of that format.
    """
    if name not in FORMATS:
        raise KineflowError(f"unknown data format '{name}'; known are {', '.join(sorted(FORMATS))}")
    if not path.exists():
        raise KineflowError(f"{path} does not exist; give the folder or file of the {name} data")
    module, function = FORMATS[name].split(":")
    return cast(Source, getattr(import_module(module), function)(path, options))
