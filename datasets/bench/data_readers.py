"""Readers of the same windows: ours in every form, and others' layouts by the leanest code and by the real packages.

Each is opened with a data set and answers `read(indices)`: images uint8 [B, 2, H, W, 3], with states and actions read as well
(from RAM where readers of the layout keep them there). They do no more work than the layout needs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8

from kineflow.contracts import Horizons, KineflowError, Window
from kineflow.datasets.bench.data_sets import OBSERVED, PREDICTED, DataSet, Rows
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.frames import FrameReader
from kineflow.datasets.window_images import Images
from kineflow.datasets.windows import WindowReader
from kineflow.extras import require

Read = Callable[[Int64[np.ndarray, "B"]], UInt8[np.ndarray, "B 2 H W 3"]]
BATCH = 64


@dataclass(frozen=True)
class Contestant:
    """How a layout is opened, and what it is in words; `file` is what it reads, below the data set's folder."""

    open: Callable[[DataSet], Read]
    file: str
    words: str
    lossy: bool = False


def contestants(data: DataSet) -> Mapping[str, Contestant]:
    """All that this data set has."""
    lossless = (data.folder / "lossless.eps").exists()
    ours = {"ours_lz4hc": ("lossless.eps", "lossless")} if lossless else {}
    ours |= {"ours_jpeg": ("jpeg.eps", "JPEG")}
    made = {
        f"{name}_{form}": Contestant(_ours(file, form), file, f"our {codec} store, {form} reader", codec == "JPEG")
        for name, (file, codec) in ours.items()
        for form in ("native", "pure")
    }
    kept: dict[str, Contestant] = {
        "ours_cache": Contestant(_ours("jpeg.eps", "native", "cache"), "jpeg.eps", "our JPEG store, decoded cache warm", True),
        "ours_ram": Contestant(_ours("jpeg.eps", "native", "ram"), "jpeg.eps", "our JPEG store, decoded to RAM", True),
        "memmap": Contestant(open_memmap, "raw", "np.load(mmap_mode='r').take into a reused buffer"),
        "jpeg_decode": Contestant(_jpeg_decode, "jpeg.eps", "simplejpeg.decode_jpeg of bytes in RAM", True),
    }
    if not lossless:
        return made | kept
    others = {
        "zarr_python": Contestant(_zarr_python, "lossless.eps", "zarr-python, a slice for each window"),
        "tensorstore": Contestant(_tensorstore, "lossless.eps", "tensorstore, all slices of a batch at once"),
        "robomimic_bare": Contestant(_robomimic_bare, "robomimic.hdf5", "bare h5py slices of a robomimic file"),
        "robomimic": Contestant(_robomimic, "robomimic.hdf5", "robomimic SequenceDataset, frame_stack 2, no cache"),
        "lerobot_lean": Contestant(_lerobot_lean, "lerobot_v3", "LeRobot v3 h264 by pyarrow and av, open decoder", True),
        "replay_buffer": Contestant(
            _replay_buffer, "replay_buffer.zarr", "diffusion_policy ReplayBuffer in RAM, per-sample copies"
        ),
    }
    return made | kept | others


def window_reader(data: DataSet, file: str, images: Images) -> WindowReader:
    """Our reader of every window of a store of `data`."""
    store = EpisodeStore.open(data.folder / file)
    features = [data.feature] if data.feature else []
    return WindowReader(
        store, features, Horizons(OBSERVED, PREDICTED, 1), range(store.num_episodes), [data.camera], images=images
    )


@contextmanager
def native_switched(on: bool) -> Iterator[None]:
    before = os.environ.get("KINEFLOW_NATIVE")
    os.environ["KINEFLOW_NATIVE"] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINEFLOW_NATIVE"]
        else:
            os.environ["KINEFLOW_NATIVE"] = before


def _ours(file: str, form: str, where: Literal["disk", "cache", "ram"] = "disk") -> Callable[[DataSet], Read]:
    def opened(data: DataSet) -> Read:
        with native_switched(form == "native"):
            if form == "native" and not FrameReader(EpisodeStore.open(data.folder / file), data.camera).is_native:
                raise KineflowError("the compiled reader is not there (see native_status)")
            reader = window_reader(data, file, Images(where, cache=data.folder / "cache"))
        if where == "cache":
            for start in range(0, len(reader), BATCH):
                reader.read(np.arange(start, min(start + BATCH, len(reader))))
        buffer = reader.buffer(BATCH)

        def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
            return reader.read(indices, out=buffer).images[data.camera]

        return read

    return opened


class MemmapWindows:
    """Plain arrays as a `BatchReader`, so that the same loader reads them."""

    def __init__(self, data: DataSet) -> None:
        raw = data.folder / "raw"
        images = np.load(raw / "images.npy", mmap_mode="r", allow_pickle=False)
        self._shape, self._images = images.shape[1:], np.asarray(images).reshape(len(images), -1)  # a view of the mapping
        self._state = np.load(raw / "state.npy", allow_pickle=False)
        self._action = np.load(raw / "action.npy", allow_pickle=False)
        self._rows, self._camera = Rows.of(np.load(raw / "lengths.npy", allow_pickle=False)), data.camera

    def __len__(self) -> int:
        return len(self._images)

    def buffer(self, batch_size: int) -> Window:
        past, future = (batch_size, OBSERVED), (batch_size, PREDICTED)
        images = {self._camera: np.empty((*past, *self._shape), np.uint8)}
        state, action = (np.empty((*n, a.shape[1]), np.float32) for n, a in ((past, self._state), (future, self._action)))
        return Window(state, action, np.zeros(past, bool), np.zeros(future, bool), images)

    def read(self, indices: Int64[np.ndarray, "B"], *, out: Window | None = None) -> Window:
        window = out or self.buffer(len(indices))
        observed = self._rows.observed(indices)
        np.take(self._images, observed, axis=0, out=window.images[self._camera].reshape(*observed.shape, -1), mode="clip")
        np.take(self._state, observed, axis=0, out=window.state, mode="clip")
        np.take(self._action, self._rows.predicted(indices), axis=0, out=window.action, mode="clip")
        return window


def open_memmap(data: DataSet) -> Read:
    windows = MemmapWindows(data)
    buffer = windows.buffer(BATCH)
    return lambda indices: windows.read(indices, out=buffer).images[data.camera]


class _LowDim:
    """States and actions in RAM, as every lean reader has them."""

    def __init__(self, data: DataSet) -> None:
        raw = data.folder / "raw"
        self.state, self.action = (np.load(raw / f"{name}.npy", allow_pickle=False) for name in ("state", "action"))
        self.lengths = np.load(raw / "lengths.npy", allow_pickle=False)
        self.rows = Rows.of(self.lengths)
        self.shape = np.load(raw / "images.npy", mmap_mode="r", allow_pickle=False).shape[1:]

    def touch(self, indices: np.ndarray) -> np.ndarray:
        """Gather states and actions; returns the observed rows."""
        observed = self.rows.observed(indices)
        _ = self.state[observed], self.action[self.rows.predicted(indices)]
        return observed


def _jpeg_decode(data: DataSet) -> Read:
    store = EpisodeStore.open(data.folder / "jpeg.eps")
    frames = [jpeg for episode in range(store.num_episodes) for jpeg in store.jpegs(episode, data.camera) or ()]
    low = _LowDim(data)
    out = np.empty((BATCH, OBSERVED, *low.shape), np.uint8)
    flat = out.reshape(BATCH * OBSERVED, -1)

    def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
        for place, row in enumerate(low.rows.observed(indices).reshape(-1).tolist()):
            simplejpeg.decode_jpeg(frames[row], "RGB", buffer=flat[place])
        return out

    return read


def _zarr_python(data: DataSet) -> Read:
    import zarr

    return _segment_slices(data, lambda path: zarr.open_array(str(path), mode="r"), lambda parts: parts)


def _tensorstore(data: DataSet) -> Read:
    tensorstore = require("tensorstore", "for this row")

    def opened(path: Path) -> Any:
        return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}, read=True).result()

    return _segment_slices(data, lambda path: _Futures(opened(path)), lambda parts: [part.result() for part in parts])


class _Futures:
    def __init__(self, array: Any) -> None:
        self._array, self.shape = array, array.shape

    def __getitem__(self, rows: slice) -> Any:
        return self._array[rows].read()


def _segment_slices(data: DataSet, opened: Callable[[Path], Any], gathered: Callable[[list[Any]], list[Any]]) -> Read:
    store = EpisodeStore.open(data.folder / "lossless.eps")
    arrays = [opened(store.path / "segments" / s.entry.id / "cameras" / data.camera) for s in store.segments]
    ends, low = np.cumsum([array.shape[0] for array in arrays]), _LowDim(data)
    starts = ends - [array.shape[0] for array in arrays]

    def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
        observed = low.touch(indices)
        of = np.searchsorted(ends, observed[:, 0], side="right").tolist()
        places = [(arrays[k], first - int(starts[k]), last - int(starts[k])) for k, (first, last) in zip(of, observed.tolist())]
        parts = gathered([array[first : last + 1] for array, first, last in places])
        return np.stack([np.asarray(p) if len(p) == OBSERVED else np.repeat(np.asarray(p), OBSERVED, axis=0) for p in parts])

    return read


def _robomimic_bare(data: DataSet) -> Read:
    h5py = require("h5py", "for this row")
    demos = h5py.File(_present(data, "robomimic.hdf5"), "r", swmr=True, libver="latest")["data"]  # as robomimic opens it
    low = _LowDim(data)
    of = np.repeat(np.arange(len(low.lengths)), low.lengths)
    arrays = [
        [demos[f"demo_{i}"][name] for name in (f"obs/{data.camera}", f"obs/{data.feature}", "actions")] for i in range(len(demos))
    ]

    def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
        images = []
        for now in indices.tolist():
            frames, states, actions = arrays[of[now]]
            step = now - int(low.rows.first[now])
            observed = slice(max(step - 1, 0), step + 1)
            part, _, _ = frames[observed], states[observed], actions[step : step + PREDICTED]
            images.append(part if len(part) == OBSERVED else np.repeat(part, OBSERVED, axis=0))
        return np.stack(images)

    return read


def _robomimic(data: DataSet) -> Read:
    with redirect_stdout(io.StringIO()):  # it announces what it does
        return _robomimic_real(data)


def _robomimic_real(data: DataSet) -> Read:
    dataset = require("robomimic.utils.dataset", "for this row").SequenceDataset
    require("robomimic.utils.obs_utils", "for this row").initialize_obs_utils_with_obs_specs(
        {"obs": {"low_dim": [data.feature], "rgb": [data.camera]}}
    )
    opened = dataset(
        hdf5_path=str(_present(data, "robomimic.hdf5")),
        obs_keys=(data.feature, data.camera),
        dataset_keys=("actions",),
        frame_stack=OBSERVED,
        seq_length=PREDICTED,
        hdf5_cache_mode=None,
        load_next_obs=False,
    )
    return lambda indices: np.stack([opened[i]["obs"][data.camera][:OBSERVED] for i in indices.tolist()])


def _replay_buffer(data: DataSet) -> Read:
    import zarr

    root: Any = zarr.open_group(str(_present(data, "replay_buffer.zarr")), mode="r")
    arrays = {name: np.asarray(array[:]) for name, array in root["data"].arrays()}
    images = next(array for array in arrays.values() if array.ndim == 4)
    rest = [array for array in arrays.values() if array.ndim < 4]
    low = _LowDim(data)

    def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
        out = []
        for now in indices.tolist():
            first = max(now - 1, int(low.rows.first[now]))
            last = min(now + PREDICTED - 1, int(low.rows.last[now]))
            _ = [np.array(array[first : last + 1]) for array in rest]
            part = images[first : now + 1]
            padded = np.empty((OBSERVED, *part.shape[1:]), np.uint8)
            padded[-len(part) :], padded[: OBSERVED - len(part)] = part, part[0]
            out.append(padded)
        return np.stack(out)

    return read


def _lerobot_lean(data: DataSet) -> Read:
    av, parquet = require("av", "for this row"), require("pyarrow.parquet", "for this row")
    root = _present(data, "lerobot_v3")
    (key,) = (folder.name for folder in (root / "videos").iterdir())
    table = parquet.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pydict()
    files = [f"chunk-{c:03d}/file-{f:03d}.mp4" for c, f in zip(*(table[f"videos/{key}/{n}_index"] for n in ("chunk", "file")))]
    start_s, low, open_files = table[f"videos/{key}/from_timestamp"], _LowDim(data), {}
    of = np.repeat(np.arange(len(low.lengths)), low.lengths)
    for file in set(files):
        container = av.open(str(root / "videos" / key / file))
        container.streams.video[0].thread_type = "NONE"
        open_files[file] = container

    def read(indices: Int64[np.ndarray, "B"]) -> np.ndarray:
        return np.stack([window(first, last) for first, last in low.touch(indices).tolist()])

    def window(first: int, last: int) -> np.ndarray:
        container = open_files[files[of[first]]]
        video = container.streams.video[0]
        rate = float(video.average_rate)
        wanted_s = start_s[of[first]] + (first - int(low.rows.first[first])) / rate
        container.seek(max(int((wanted_s + 0.1 / rate) / video.time_base), 0), stream=video)
        frames: list[np.ndarray] = []
        for frame in container.decode(video):
            if frame.time > wanted_s - 0.5 / rate:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == last - first + 1:
                break
        return np.stack(frames if len(frames) == OBSERVED else frames * OBSERVED)

    return read


def _present(data: DataSet, file: str) -> Path:
    if file in data.missing:
        raise KineflowError(data.missing[file])
    return data.folder / file
