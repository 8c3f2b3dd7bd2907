"""The same frames in every layout that `kineflow bench data` reads, below one folder.

lossless.eps, jpeg.eps     our store with each codec
raw/*.npy                  plain arrays
lerobot_v3/, robomimic.hdf5, replay_buffer.zarr     through our exporters
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Interface, KineflowError, Stream, VectorSpec
from kineflow.datasets.bench.frames_made import natural_frames
from kineflow.datasets.convert import import_data
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.exporters.target import export_data
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.manifest import CameraRecord

OBSERVED, PREDICTED = 2, 16  # frames and actions of a window
EXPORTS = {"lerobot_v3": "lerobot-v3-video", "robomimic.hdf5": "robomimic", "replay_buffer.zarr": "diffusion-policy-zarr"}
_EPISODES_PER_COMMIT = 64


@dataclass(frozen=True)
class DataSet:
    """One set of frames in a folder; `missing` says of an export why it is not there."""

    name: str
    folder: Path
    camera: str
    feature: str
    missing: dict[str, str]


@dataclass(frozen=True)
class Rows:
    """For each window the row that is now, and the first and last row of its episode; windows are numbered by row."""

    first: Int64[np.ndarray, "N"]
    last: Int64[np.ndarray, "N"]

    @classmethod
    def of(cls, lengths: Int64[np.ndarray, "E"]) -> Rows:
        ends = np.cumsum(lengths)
        return cls(np.repeat(ends - lengths, lengths), np.repeat(ends - 1, lengths))

    def observed(self, indices: np.ndarray) -> np.ndarray:
        rows: np.ndarray = np.maximum(indices[:, None] + np.arange(1 - OBSERVED, 1), self.first[indices, None])
        return rows

    def predicted(self, indices: np.ndarray) -> np.ndarray:
        rows: np.ndarray = np.minimum(indices[:, None] + np.arange(PREDICTED), self.last[indices, None])
        return rows


def pusht(folder: Path, episodes: int | None) -> DataSet:
    """The demonstrations that come with Kineflow, simulated, 96 px; the first `episodes` of them."""
    import_data("diffusion-policy-zarr", demo_data(), folder / "imported.eps")
    whole = EpisodeStore.open(folder / "imported.eps")
    camera, feature = next(iter(whole.interface.cameras)), "state"
    return _all_layouts("pusht_96", folder, whole, camera, feature, episodes or whole.num_episodes)


def donkeycar(folder: Path, archive: Path) -> DataSet:
    """Real frames of a small car, 160 x 120, with the source's own JPEG bytes; `archive` is a tub in a .tar.gz."""
    with tarfile.open(archive) as packed:
        wanted = [member for member in packed if not Path(member.name).name.startswith("._")]
        packed.extractall(folder, wanted, filter="data")
    import_data("donkeycar-tub", folder / "tub", folder / "jpeg.eps")
    store = EpisodeStore.open(folder / "jpeg.eps")
    camera, feature = next(iter(store.interface.cameras)), next(iter(store.interface.features), "")
    _raw(store, camera, feature, folder / "raw")
    return DataSet("donkeycar_160x120", folder, camera, feature, dict.fromkeys(EXPORTS, "not measured on these frames"))


def natural(folder: Path, side: int, episodes: int, steps: int) -> DataSet:
    """Made frames that compress like those of a camera."""
    made = EpisodeStore.create(
        folder / "imported.eps", _interface(side), "nominal_10hz", cameras={"front": CameraRecord("lossless")}
    )
    with made.writer(_EPISODES_PER_COMMIT) as writer:
        for number in range(episodes):
            writer.add(_episode(number, side, steps))
    return _all_layouts(f"natural_{side}", folder, made, "front", "state", episodes)


def _interface(side: int) -> Interface:
    def vector(size: int) -> FeatureSpec:
        return FeatureSpec(
            VectorSpec(tuple(f"v{i}" for i in range(size)), ("m",) * size, "base", (-9.0,) * size, (9.0,) * size), 10.0
        )

    return Interface({"state": vector(10)}, vector(7), {"front": CameraSpec(side, side, 10.0)})


def _episode(number: int, side: int, steps: int) -> Episode:
    rng = np.random.default_rng([5, number])
    stamps = np.arange(steps, dtype=np.int64) * 10**8
    streams = {"state": rng.normal(0, 1, (steps, 10)), "action": rng.normal(0, 1, (steps, 7))}
    vectors = {name: Stream(np.clip(values, -8, 8).astype(np.float32), stamps) for name, values in streams.items()}
    return Episode({**vectors, "front": Stream(natural_frames(steps, side, number), stamps)}, clock="nominal_10hz")


def _all_layouts(name: str, folder: Path, source: EpisodeStore, camera: str, feature: str, episodes: int) -> DataSet:
    for codec in ("lossless", "jpeg"):
        policy = {camera: CameraRecord("lossless" if codec == "lossless" else "jpeg:95")}
        copy = EpisodeStore.create(
            folder / f"{codec}.eps", _only(source.interface, camera, feature), source.manifest.clock, cameras=policy
        )
        with copy.writer(_EPISODES_PER_COMMIT) as writer:
            for episode in _episodes(source, (camera, feature, "action"), episodes):
                writer.add(episode)
    lossless = EpisodeStore.open(folder / "lossless.eps")
    _raw(lossless, camera, feature, folder / "raw")
    missing = {}
    for file, kind in EXPORTS.items():
        try:
            export_data(kind, lossless, folder / file)
        except KineflowError as error:
            missing[file] = str(error).split(";")[0]
    return DataSet(name, folder, camera, feature, missing)


def _only(interface: Interface, camera: str, feature: str) -> Interface:
    return Interface({feature: interface.features[feature]}, interface.action, {camera: interface.cameras[camera]})


def _episodes(store: EpisodeStore, names: Sequence[str], number: int) -> Iterator[Episode]:
    for index in range(number):
        episode = store.episode(index)
        yield replace(episode, streams={name: episode.streams[name] for name in names}, jpeg={}, spans=(), goals={})


def _raw(store: EpisodeStore, camera: str, feature: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    reader = FrameReader(store, camera)
    shape = (len(reader), *reader.frame_shape)
    frames = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for start in range(0, len(reader), 256):
        rows = np.arange(start, min(start + 256, len(reader)))
        frames[rows] = reader.read(rows)
    frames.flush()
    np.save(folder / "state.npy", store.low_dim(feature) if feature else np.zeros((len(reader), 0), np.float32))
    np.save(folder / "action.npy", store.low_dim("action"))
    np.save(folder / "lengths.npy", store.lengths)


def files_of(path: Path) -> list[Path]:
    """The file, or all files below the folder."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def size_mb(path: Path) -> float:
    return sum(file.stat().st_size for file in files_of(path)) / 1e6
