"""Where a LeRobot data set keeps what: versions 2.0, 2.1 and 3.0 brought to one list of episodes.

    v2.x  data/chunk-000/episode_000007.parquet      videos/chunk-000/<key>/episode_000007.mp4
          meta/info.json  meta/episodes.jsonl  meta/tasks.jsonl  meta/episodes_stats.jsonl (2.1) or meta/stats.json (2.0)
    v3.0  data/chunk-000/file-000.parquet            videos/<key>/chunk-000/file-000.mp4      many episodes a file
          meta/info.json  meta/episodes/chunk-000/file-000.parquet  meta/tasks.parquet  meta/stats.json

Format: huggingface/lerobot, src/lerobot/datasets. Paths come from the templates in info.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kineflow.contracts import KineflowError
from kineflow.extras import require

PURPOSE = "to read LeRobot data"
SIDECAR = "meta/kineflow.json"
EPISODE_SIDECAR = "kineflow/episode"  # key of the per-episode metadata, JSON text
VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Clip:
    """Frames of one episode in a video file: the first one is at `start_s`; `file_frames` is what the file must hold in all."""

    file: Path
    start_s: float
    file_frames: int


@dataclass(frozen=True)
class Listed:
    """One episode as the metadata list it."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    clips: Mapping[str, Clip] = field(default_factory=dict)
    sidecar: str = ""


@dataclass(frozen=True)
class Layout:
    """A data set's metadata, whatever its version."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    episodes: tuple[Listed, ...]
    splits: Mapping[str, tuple[int, int]]
    robot: str
    absent: Mapping[str, str] = field(default_factory=dict)  # video keys that info.json declares and nothing holds
    sidecar: Any = None


def read_layout(root: Path) -> Layout:
    """The metadata of the data set in folder `root`.

    Raises:
        KineflowError: not a LeRobot data set, an unknown version, or metadata that are damaged, missing or contradictory.
    """
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise KineflowError(f"{root} is not a LeRobot data set: there is no {info_file}; give the folder that holds meta/")
    info = read_json(info_file)
    version = str(info.get("codebase_version", ""))
    if version not in VERSIONS:
        remedy = "convert it with lerobot's own script first" if version.startswith("v1") else "upgrade Kineflow, or convert it"
        raise KineflowError(f"{info_file}: codebase_version '{version}', known are {', '.join(VERSIONS)}; {remedy}")
    fps, features = info.get("fps"), info.get("features")
    if not isinstance(fps, (int, float)) or fps <= 0 or not isinstance(features, dict) or not features:
        raise KineflowError(f"{info_file}: fps {fps!r} and features {type(features).__name__} are not usable; restore the file")
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    tasks = _tasks_v3(root) if version == "v3.0" else _tasks_v2(root)
    videos = [key for key, feature in features.items() if feature.get("dtype") == "video"]
    episodes, absent = read(root, info, videos, float(fps))
    _check_episodes(episodes, root)
    sidecar = read_json(root / SIDECAR) if (root / SIDECAR).is_file() else None
    splits = _splits(info.get("splits"), info_file)
    robot = str(info.get("robot_type") or "")
    return Layout(root, version, float(fps), features, tasks, episodes, splits, robot, absent, sidecar)


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise KineflowError(f"{file}: cannot be read as JSON ({error}); restore the file") from error


def read_table(file: Path, columns: Sequence[str] | None = None) -> Any:
    """A whole parquet file as an Arrow table; only those of `columns` that it has."""
    parquet = require("pyarrow.parquet", PURPOSE)
    try:
        opened = parquet.ParquetFile(file)
        known = opened.schema_arrow.names
        return opened.read(None if columns is None else [c for c in columns if c in known])
    except FileNotFoundError:
        raise KineflowError(f"{file} is missing; the copy of the data set is not complete, copy it again") from None
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise KineflowError(f"{file}: not a whole parquet file ({str(error)[:200]}); copy the data set again") from error


def _tasks_v3(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.parquet"
    table = read_table(file) if file.is_file() else None
    if table is None:
        return {}
    names = table.column_names
    # pandas wrote the text as an index: "task" where it was named, "__index_level_0__" where it was not.
    text = next((n for n in ("task", "__index_level_0__") if n in names), None)
    if text is None or "task_index" not in names:
        raise KineflowError(f"{file}: columns {names}, needed are task_index and task; restore the file")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist())))


def _tasks_v2(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.jsonl"
    return {int(row["task_index"]): str(row["task"]) for row in _lines(file, ("task_index", "task"))} if file.is_file() else {}


def _lines(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise KineflowError(f"{file} is missing; the copy of the data set is not complete, copy it again")
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise KineflowError(f"{file}, line {number}: not JSON ({error}); restore the file") from error
        missing = [key for key in keys if key not in row]
        if missing:
            raise KineflowError(f"{file}, line {number}: no {', '.join(missing)}; restore the file")
        rows.append(row)
    return rows


def _episodes_v2(
    root: Path, info: Mapping[str, Any], videos: Sequence[str], fps: float
) -> tuple[tuple[Listed, ...], dict[str, str]]:
    rows = sorted(_lines(root / "meta" / "episodes.jsonl", ("episode_index", "length")), key=lambda r: int(r["episode_index"]))
    # A declared camera of which there is no file at all was never recorded; one file missing among others is damage.
    absent = {
        key: "info.json declares it, but there is no video of it" for key in videos if not any(root.glob(f"videos/*/{key}"))
    }
    chunk = int(info.get("chunks_size") or 1000)
    episodes = []
    for row in rows:
        index, length = int(row["episode_index"]), int(row["length"])
        values = {"episode_index": index, "episode_chunk": index // chunk}
        data = _found(root, info.get("data_path"), f"data/*/episode_{index:06d}.parquet", values)
        clips = {}
        for key in videos:
            if key not in absent:
                pattern = f"videos/*/{key}/episode_{index:06d}.mp4"
                clips[key] = Clip(_found(root, info.get("video_path"), pattern, {**values, "video_key": key}), 0.0, length)
        texts = row.get("tasks") or ([row["task"]] if "task" in row else [])
        episodes.append(Listed(index, length, tuple(map(str, texts)), data, clips, str(row.get(EPISODE_SIDECAR) or "")))
    return tuple(episodes), absent


def _episodes_v3(
    root: Path, info: Mapping[str, Any], videos: Sequence[str], fps: float
) -> tuple[tuple[Listed, ...], dict[str, str]]:
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise KineflowError(f"{root / 'meta' / 'episodes'} holds no parquet file; the copy is not complete, copy it again")
    wanted = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index", EPISODE_SIDECAR]
    for key in videos:
        wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows = []
    for file in files:
        table = read_table(file, wanted)
        missing = [c for c in wanted[:2] + wanted[3:5] if c not in table.column_names]
        if missing:
            raise KineflowError(f"{file}: no column {', '.join(missing)}; restore the file")
        rows += table.to_pylist()
    rows.sort(key=lambda r: int(r["episode_index"]))
    absent = {
        key: "info.json declares it, meta/episodes lists no video of it"
        for key in videos
        if not any(f"videos/{key}/chunk_index" in row for row in rows)
    }
    found = [_listed_v3(root, info, row, [key for key in videos if key not in absent]) for row in rows]
    frames: dict[Path, int] = {}
    for listed in found:
        for clip in listed.clips.values():
            frames[clip.file] = frames.get(clip.file, 0) + listed.length
    return tuple(
        Listed(
            e.index,
            e.length,
            e.tasks,
            e.data,
            {k: Clip(c.file, c.start_s, frames[c.file]) for k, c in e.clips.items()},
            e.sidecar,
        )
        for e in found
    ), absent


def _listed_v3(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], videos: Sequence[str]) -> Listed:
    index = int(row["episode_index"])
    values = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    data = _found(root, info.get("data_path"), None, values)
    clips = {}
    for key in videos:
        place = [row.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index", "from_timestamp")]
        if None in place:
            raise KineflowError(f"{root / 'meta' / 'episodes'}: episode {index} lists no video of '{key}'; restore the metadata")
        values = {"video_key": key, "chunk_index": place[0], "file_index": place[1]}
        clips[key] = Clip(_found(root, info.get("video_path"), None, values), float(place[2] or 0.0), 0)
    tasks = tuple(map(str, row.get("tasks") or ()))
    return Listed(index, int(row["length"]), tasks, data, clips, str(row.get(EPISODE_SIDECAR) or ""))


def _found(root: Path, template: Any, pattern: str | None, values: Mapping[str, Any]) -> Path:
    """The path of the template; where nothing is there, what `pattern` finds (GR00T's templates name the wrong folder)."""
    try:
        named = Path(str(template).format(**values))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise KineflowError(
            f"{root / 'meta' / 'info.json'}: path '{template}' cannot be filled in ({error}); correct it"
        ) from None
    if named.is_absolute() or ".." in named.parts:
        raise KineflowError(f"{root / 'meta' / 'info.json'}: path '{template}' leads out of the data set; correct it")
    if pattern is not None and not (root / named).is_file():
        return next(iter(sorted(root.glob(pattern))), root / named)
    return root / named


def _check_episodes(episodes: Sequence[Listed], root: Path) -> None:
    if not episodes:
        raise KineflowError(f"{root} lists no episodes")
    seen: set[int] = set()
    for listed in episodes:
        if listed.length < 1 or listed.index in seen:
            problem = f"has length {listed.length}" if listed.length < 1 else "is listed twice"
            raise KineflowError(f"{root / 'meta'}: episode {listed.index} {problem}; repair or remove it with lerobot's tools")
        seen.add(listed.index)


def _splits(splits: Any, file: Path) -> dict[str, tuple[int, int]]:
    """Split -> [first, last) episode; only ranges are known."""
    found = {}
    for name, text in (splits or {}).items():
        first, colon, last = str(text).partition(":")
        if not colon or not first.isdigit() or not last.isdigit():
            raise KineflowError(f"{file}: split '{name}' is {text!r}, needed is a range such as '0:50'; correct it")
        found[str(name)] = (int(first), int(last))
    return found
