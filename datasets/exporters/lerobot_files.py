"""The files of a LeRobot export: parquet rows, metadata and videos, of v3.0 (many episodes a file) and v2.1 (one)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kineflow.contracts import CameraSpec
from kineflow.datasets.exporters.lerobot_stats import Stats
from kineflow.extras import require

PURPOSE = "to write LeRobot data"
MAX_DATA_BYTES, MAX_VIDEO_BYTES = 100 * 2**20, 200 * 2**20
EPISODES_A_CHUNK = 1000
_CODEC = {"crf": "18", "g": "2", "bf": "0", "preset": "fast"}  # every other frame a key frame: quick random reads


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode's frames of one camera are."""

    file: int
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class EpisodeRow:
    """One episode ready to be written: columns [T, ...], places of its videos, statistics, our own texts."""

    number: int
    length: int
    task: str
    first: int  # row in the whole data set
    columns: Mapping[str, np.ndarray]
    videos: Mapping[str, VideoPlace]
    stats: Mapping[str, Stats]
    texts: Mapping[str, str]
    jpegs: Mapping[str, Sequence[bytes]]  # image columns whose frames are JPEG already


class Tables:
    """Writes data/ and, at the end, the tables in meta/. `types`: column -> (dtype, width), of numbers and of "image"."""

    def __init__(self, root: Path, version: str, types: Mapping[str, tuple[str, int]]) -> None:
        self._root, self._version, self._types = root, version, types
        self._schema = _schema(types)
        self._writer: Any = None
        self._path = root
        self.files = 0
        self._rows: list[dict[str, Any]] = []
        self._stats: list[dict[str, Any]] = []

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    @staticmethod
    def templates(version: str, video: bool) -> dict[str, Any]:
        """Path templates as info.json has them."""
        if version == "v3.0":
            data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            film = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        else:
            data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
            film = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        return {"data_path": data, "video_path": film if video else None}

    def add(self, episode: EpisodeRow) -> None:
        """Append one episode as one row group."""
        pyarrow = require("pyarrow", PURPOSE)
        if self._writer is None or self._version == "v2.1" or self._path.stat().st_size >= MAX_DATA_BYTES:
            self._open(episode.number)
        columns: dict[str, Any] = {**episode.columns, **episode.jpegs}
        arrays = [_array(pyarrow, columns[name], field) for name, field in zip(self._schema.names, self._schema)]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=episode.length)
        self._rows.append(self._listed(episode))
        self._stats.append({"episode_index": episode.number, "stats": _five(episode.stats)})

    def finish(self, tasks: Mapping[str, int], stats: Mapping[str, Stats]) -> None:
        """Write tasks, episodes and statistics."""
        meta = self._root / "meta"
        if self._version == "v2.1":
            _json_lines(meta / "tasks.jsonl", [{"task_index": n, "task": text} for text, n in tasks.items()])
            _json_lines(meta / "episodes.jsonl", self._rows)
            _json_lines(meta / "episodes_stats.jsonl", self._stats)
            return
        pyarrow, parquet = require("pyarrow", PURPOSE), require("pyarrow.parquet", PURPOSE)
        (meta / "stats.json").write_text(json.dumps(stats, indent=4, allow_nan=False))
        table = pyarrow.table({"task_index": pyarrow.array(tasks.values(), "int64"), "task": list(tasks)})
        parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(_PANDAS)}), meta / "tasks.parquet")
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(self._rows), meta / "episodes" / "chunk-000" / "file-000.parquet")

    def _open(self, number: int) -> None:
        parquet = require("pyarrow.parquet", PURPOSE)
        self._close()
        names = _place(self._version, number if self._version == "v2.1" else self.files)
        self._path = self._root / Tables.templates(self._version, False)["data_path"].format(**names)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = parquet.ParquetWriter(self._path, self._schema, compression="snappy", write_page_checksum=True)
        self.files += 1

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _listed(self, episode: EpisodeRow) -> dict[str, Any]:
        """Its line in episodes.jsonl, or its row in meta/episodes."""
        row: dict[str, Any] = {"episode_index": episode.number, "tasks": [episode.task], "length": episode.length}
        if self._version == "v2.1":
            return row | dict(episode.texts)
        row |= {f"data/{name}": value for name, value in _place("v3.0", self.files - 1).items()}
        row |= {"dataset_from_index": episode.first, "dataset_to_index": episode.first + episode.length}
        for key, place in episode.videos.items():
            row |= {f"videos/{key}/{name}": value for name, value in _place("v3.0", place.file).items()}
            row |= {f"videos/{key}/from_timestamp": place.start_s, f"videos/{key}/to_timestamp": place.stop_s}
        for key, stats in episode.stats.items():
            row |= {f"stats/{key}/{name}": value for name, value in stats.items()}
        return row | dict(episode.texts) | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


class Videos:
    """Encodes RGB cameras; frame k of a file is at k / fps."""

    def __init__(self, root: Path, version: str, cameras: Mapping[str, CameraSpec], fps: float) -> None:
        self._root, self._version, self._cameras, self._fps = root, version, cameras, fps
        self._rate = Fraction(fps).limit_denominator(10_000)
        self._open: dict[str, tuple[Any, Any, Path]] = {}
        self._file: dict[str, int] = {}
        self._frames: dict[str, int] = {}
        self.files = 0

    def __enter__(self) -> Videos:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for key in list(self._open):
            self._finish(key)

    def add(self, key: str, frames: np.ndarray, number: int) -> VideoPlace:
        """Append the frames uint8 [T, H, W, 3] of episode `number`."""
        av = require("av", PURPOSE)
        if key not in self._open or self._version == "v2.1" or self._open[key][2].stat().st_size >= MAX_VIDEO_BYTES:
            self._start(av, key, number)
        container, stream, _ = self._open[key]
        first = self._frames[key]
        for offset, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = first + offset, 1 / self._rate
            container.mux(stream.encode(frame))
        self._frames[key] = first + len(frames)
        return VideoPlace(self._file[key], first / self._fps, self._frames[key] / self._fps)

    def _start(self, av: Any, key: str, number: int) -> None:
        if key in self._open:
            self._finish(key)
        self._file[key] = self._file.get(key, -1) + 1
        names = _place(self._version, number if self._version == "v2.1" else self._file[key])
        path = self._root / Tables.templates(self._version, True)["video_path"].format(video_key=key, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(path), "w")
        stream = container.add_stream("libx264", rate=self._rate, options=_CODEC)
        stream.width, stream.height, stream.pix_fmt = self._cameras[key].width, self._cameras[key].height, "yuv420p"
        stream.codec_context.time_base = 1 / self._rate
        self._open[key], self._frames[key] = (container, stream, path), 0
        self.files += 1

    def _finish(self, key: str) -> None:
        container, stream, _ = self._open.pop(key)
        container.mux(stream.encode(None))
        container.close()


def _place(version: str, number: int) -> dict[str, int]:
    chunk, inside = divmod(number, EPISODES_A_CHUNK)
    if version == "v2.1":
        return {"episode_chunk": chunk, "episode_index": number}
    return {"chunk_index": chunk, "file_index": inside}


def _schema(types: Mapping[str, tuple[str, int]]) -> Any:
    pyarrow = require("pyarrow", PURPOSE)
    fields: list[Any] = []
    features: dict[str, Any] = {}
    for key, (dtype, width) in types.items():
        if dtype == "image":
            kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            features[key] = {"_type": "Image"}
        else:
            kind, features[key] = getattr(pyarrow, dtype)(), {"dtype": dtype, "_type": "Value"}
            if width > 1:  # one dimension is a plain column
                kind = pyarrow.list_(kind, width)
                features[key] = {"feature": features[key], "length": width, "_type": "List"}
        fields.append(pyarrow.field(key, kind))
    return pyarrow.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _array(pyarrow: Any, values: np.ndarray | Sequence[bytes], field: Any) -> Any:
    if pyarrow.types.is_struct(field.type):
        encoded = [frame if isinstance(frame, bytes) else png(frame) for frame in values]
        return pyarrow.array([{"bytes": data, "path": None} for data in encoded], field.type)
    if pyarrow.types.is_fixed_size_list(field.type):
        flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1), field.type.value_type)
        return pyarrow.FixedSizeListArray.from_arrays(flat, field.type.list_size)
    return pyarrow.array(np.ascontiguousarray(values).reshape(-1), field.type)


def png(frame: np.ndarray) -> bytes:
    """Lossless: RGB uint8 [H, W, 3], or depth uint16 [H, W] as 16-bit grey."""
    image = require("PIL.Image", PURPOSE)
    buffer = io.BytesIO()
    image.fromarray(np.ascontiguousarray(frame)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _five(stats: Mapping[str, Stats]) -> dict[str, Stats]:
    """What v2.1 knows: no quantiles."""
    return {key: {n: s[n] for n in ("min", "max", "mean", "std", "count")} for key, s in stats.items()}


def _json_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


# pandas finds its index here: lerobot looks tasks up by that index, which must be the text.
_PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    ],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ],
    "pandas_version": "2.0.0",
}
