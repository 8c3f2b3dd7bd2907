"""What other formats have no place for, as plain JSON that travels beside their data: units, frames, limits, clocks, spans.

An exporter writes it, the importer of the same format finds it, and a store that went through the format comes back whole.
Other people's tools ignore it. Values of the data never live here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kineflow.config import from_plain
from kineflow.contracts import Episode, Goal, Interface, KineflowError, Span, to_plain
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord, Manifest

FORMAT = "kineflow-sidecar"
VERSION = 1
_TEXTS = ("source", "clock", "language", "split", "operator")


@dataclass(frozen=True)
class Sidecar:
    """What a store says of itself."""

    interface: Interface
    cameras: Mapping[str, CameraRecord]
    clock: str
    provenance: str
    licence: str
    format: str = FORMAT
    version: int = VERSION


def without_second_loss(store: EpisodeStore, keeps_jpeg: bool) -> Manifest:
    """The manifest to put into a sidecar: an import must not encode a second time what the store holds as JPEG.

    `keeps_jpeg`: the export carries the stored bytes. Where it does not, or where only some segments are JPEG, the camera is
    called lossless, so that an import keeps the decoded pixels.
    """
    records = dict(store.manifest.cameras)
    for name in store.interface.cameras:
        codecs = {segment.frame_array(name).codec.name for segment in store.segments}
        if "jpeg" in codecs and not (keeps_jpeg and codecs == {"jpeg"}):
            records[name] = replace(records[name], codec="lossless")
    return replace(store.manifest, cameras=records)


def store_sidecar(manifest: Manifest) -> dict[str, Any]:
    """The store's interface and provenance as plain JSON."""
    side = Sidecar(manifest.schema, manifest.cameras, manifest.clock, manifest.provenance, manifest.licence)
    plain: dict[str, Any] = to_plain(side)
    return plain


def read_sidecar(data: Any, where: str) -> Sidecar:
    """The inverse of `store_sidecar`.

    Raises:
        KineflowError: not a sidecar, or one of a newer version; `where` names it.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise KineflowError(f"{where} is not a Kineflow sidecar (format is not '{FORMAT}'); remove it or take the original")
    if not isinstance(data.get("version"), int) or data["version"] > VERSION:
        raise KineflowError(f"{where} has version {data.get('version')}, this Kineflow reads up to {VERSION}; upgrade Kineflow")
    side: Sidecar = from_plain(Sidecar, data, where)
    return side


def episode_sidecar(episode: Episode) -> dict[str, Any]:
    """Everything of an episode but its streams and instruction; goals that are images or videos are left out (`left_out`)."""
    plain: dict[str, Any] = {name: getattr(episode, name) for name in _TEXTS}
    plain |= {"success": episode.success, "seed": episode.seed}
    plain["spans"] = [to_plain(span) for span in episode.spans]
    plain["goals"] = {
        name: {"kind": goal.kind, "value": goal.value.tolist(), "frame": goal.frame}
        for name, goal in episode.goals.items()
        if goal.kind in ("pose", "point")
    }
    return plain


def left_out(episode: Episode) -> dict[str, str]:
    """Goals of `episode` that `episode_sidecar` does not carry."""
    return {
        f"goal {name}": f"{goal.kind}s as goals have no place in the format"
        for name, goal in episode.goals.items()
        if goal.kind in ("image", "video")
    }


def restored(plain: Any, where: str) -> dict[str, Any]:
    """Keyword arguments of `Episode` from `episode_sidecar`.

    Raises:
        KineflowError: it is not what was written; `where` names it.
    """
    try:
        found: dict[str, Any] = {name: str(plain[name]) for name in _TEXTS}
        success, seed = plain["success"], plain["seed"]
        found |= {"success": None if success is None else bool(success), "seed": None if seed is None else int(seed)}
        found["spans"] = tuple(Span(s["text"], int(s["start_ns"]), int(s["stop_ns"]), s["language"]) for s in plain["spans"])
        found["goals"] = {
            name: Goal(goal["kind"], np.array(goal["value"], np.float32), goal["frame"]) for name, goal in plain["goals"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KineflowError(f"{where} is not what Kineflow wrote there ({error!r}); remove it or export again") from error
    return found
