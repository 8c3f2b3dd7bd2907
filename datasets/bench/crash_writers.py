"""Three writers of the same episodes for `kineflow bench crash`, each with the reader that its users have.

    ours      EpisodeRecorder: step by step into the journal, then a commit
    zarr      zarr-python arrays that grow: resize, write, for one array after the other; the ends of the episodes last
    lerobot   in the style of LeRobot v2.1: a Parquet file for each episode, then info.json rewritten in place, then a line of
              episodes.jsonl

A writer calls `acknowledge(episode, COMMITTED)` once its call has returned, ours also `acknowledge(episode, steps)` after each
step. Arrays of unequal lengths count as torn: diffusion_policy's ReplayBuffer refuses to open them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from kineflow.contracts import CameraSpec, FeatureSpec, Interface, KineflowError, VectorSpec
from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord
from kineflow.datasets.recorder import EpisodeRecorder
from kineflow.datasets.repair import repair

STEPS, SIDE, MOST = 20, 48, 500
_STATE = VectorSpec(("x", "y", "yaw", "speed"), ("m", "m", "rad", "m/s"), "odom", (-9.0,) * 4, (9.0,) * 4)
_ACTION = VectorSpec(("speed", "turn"), ("m/s", "rad/s"), "base", (-9.0,) * 2, (9.0,) * 2)
INTERFACE = Interface({"state": FeatureSpec(_STATE, 50.0)}, FeatureSpec(_ACTION, 50.0), {"front": CameraSpec(SIDE, SIDE, 50.0)})
NAMES = ("state", "action", "front")
COMMITTED = -1
_PAUSE_S = 0.001  # between two steps of a recording, so that kills hit recording and commit alike
Acknowledge = Callable[[int, int], None]


@dataclass
class Outcome:
    """What is left after one kill; `torn`: it does not open, or shows what was never written."""

    acknowledged: int
    lost: int = 0
    torn: str = ""
    salvaged: int = 0
    steps_acknowledged: int = 0  # of the episode in the making
    steps_lost: int = 0
    open_ms: float = 0.0


class Writer(Protocol):
    def create(self, path: Path) -> None:
        """Make an empty store."""

    def write(self, path: Path, acknowledge: Acknowledge) -> None:
        """Append episodes 0, 1, 2, ... to the store."""

    def check(self, path: Path, acknowledged: int, steps: int) -> Outcome:
        """Read all there is; `acknowledged` episodes were, and `steps` of the next one."""


@cache
def _frames() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 3, (MOST + STEPS, SIDE, SIDE, 3), np.uint8)
    return noise + np.linspace(0, 200, SIDE, dtype=np.uint8)[:, None]


def episode(number: int) -> dict[str, np.ndarray]:
    """Streams and `timestamp` of episode `number`: a pure function of it."""
    rng = np.random.default_rng(number)
    stamps = 10**18 + 10**9 * number + 20_000_000 * np.arange(STEPS)
    low = {
        "state": rng.uniform(-1, 1, (STEPS, 4)).astype(np.float32),
        "action": rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32),
    }
    return {**low, "front": _frames()[number : number + STEPS], "timestamp": stamps}


class Ours:
    def create(self, path: Path) -> None:
        EpisodeStore.create(path, INTERFACE, cameras={"front": CameraRecord("lossless")})

    def write(self, path: Path, acknowledge: Acknowledge) -> None:
        store = EpisodeStore.open(path)
        for number in range(MOST):
            given = episode(number)
            recorder = EpisodeRecorder(store, sync_s=0.05)
            for step in range(STEPS):
                recorder.append_step({name: given[name][step] for name in NAMES}, int(given["timestamp"][step]))
                acknowledge(number, step + 1)
                time.sleep(_PAUSE_S)
            recorder.finish(success=True)
            acknowledge(number, COMMITTED)

    def check(self, path: Path, acknowledged: int, steps: int) -> Outcome:
        result = Outcome(acknowledged, steps_acknowledged=steps)
        began = time.perf_counter()
        try:
            store = EpisodeStore.open(path)
            result.open_ms = 1e3 * (time.perf_counter() - began)
            committed = store.num_episodes
            whole = [self._is_whole(store, index) for index in range(committed)]
            result.lost = acknowledged - sum(whole[:acknowledged])
            if not all(whole):
                result.torn = f"episodes {[i for i, ok in enumerate(whole) if not ok]} differ from what was written"
            repair(path)
            store = EpisodeStore.open(path)
            result.salvaged = store.num_episodes - committed
            kept = [self._prefix(store, index) for index in range(committed, store.num_episodes)]
            if committed == acknowledged:  # else the episode in the making had been committed, not yet acknowledged
                result.steps_lost = max(steps - sum(kept), 0)
            errors = [f"{f.where}: {f.problem}" for f in check_store(path) if f.severity == "error"]
            if errors:
                result.torn = "; ".join(errors)
        except KineflowError as error:
            result.torn, result.lost = str(error), acknowledged
        return result

    def _is_whole(self, store: EpisodeStore, index: int) -> bool:
        return self._prefix(store, index) == STEPS

    def _prefix(self, store: EpisodeStore, index: int) -> int:
        """Steps of the episode; -1 when it is not the beginning of the one that was written."""
        found, given = store.episode(index), episode(index)
        length = len(found.streams["action"].stamp_ns)
        same = all(np.array_equal(found.streams[name].values, given[name][:length]) for name in NAMES)
        clocks = all(np.array_equal(found.streams[name].stamp_ns, given["timestamp"][:length]) for name in NAMES)
        return length if same and clocks else -1


class PlainZarr:
    _COLUMNS = (*NAMES, "timestamp")

    def create(self, path: Path) -> None:
        root = zarr.open_group(str(path), mode="w")
        for name, values in episode(0).items():
            root.create_array(name, shape=(0, *values.shape[1:]), chunks=(64, *values.shape[1:]), dtype=values.dtype)
        root.create_array("episode_ends", shape=(0,), chunks=(64,), dtype="i8")

    def write(self, path: Path, acknowledge: Acknowledge) -> None:
        root: Any = zarr.open_group(str(path), mode="r+")
        arrays = {name: root[name] for name in (*self._COLUMNS, "episode_ends")}
        for number in range(MOST):
            columns = {**episode(number), "episode_ends": np.array([(number + 1) * STEPS])}
            for name in (*self._COLUMNS, "episode_ends"):
                array, values = arrays[name], columns[name]
                before = array.shape[0]
                array.resize((before + len(values), *array.shape[1:]))
                array[before:] = values
            acknowledge(number, COMMITTED)

    def check(self, path: Path, acknowledged: int, steps: int) -> Outcome:
        result = Outcome(acknowledged)
        try:
            root: Any = zarr.open_group(str(path), mode="r")
            ends = np.asarray(root["episode_ends"][:])
            lengths = {name: root[name].shape[0] for name in self._COLUMNS}
            whole = [self._is_whole(root, number, int(end)) for number, end in enumerate(ends)]
            result.lost = acknowledged - sum(whole[:acknowledged])
            if set(lengths.values()) != {int(ends[-1]) if len(ends) else 0}:
                result.torn = f"arrays of other lengths than the {len(ends)} episodes that are listed: {lengths}"
            elif not all(whole):
                result.torn = f"episodes {[i for i, ok in enumerate(whole) if not ok]} differ from what was written"
        except Exception as error:  # whatever a reader's user would see
            result.torn, result.lost = f"{type(error).__name__}: {error}", acknowledged
        return result

    def _is_whole(self, root: Any, number: int, end: int) -> bool:
        given = episode(number)
        return end == (number + 1) * STEPS and all(
            np.array_equal(root[name][end - STEPS : end], given[name]) for name in self._COLUMNS
        )


class LeRobotStyle:
    def __init__(self) -> None:
        import pyarrow.parquet  # noqa: F401  the forked writers find it imported

    def create(self, path: Path) -> None:
        (path / "meta").mkdir(parents=True)
        (path / "data").mkdir()
        self._write_info(path, 0)
        (path / "meta" / "episodes.jsonl").write_text("")

    def write(self, path: Path, acknowledge: Acknowledge) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for number in range(MOST):
            given = episode(number)
            table = pa.table(
                {
                    "observation.state": list(given["state"]),
                    "action": list(given["action"]),
                    "observation.images.front": [frame.tobytes() for frame in given["front"]],
                    "timestamp": given["timestamp"],
                    "episode_index": np.full(STEPS, number),
                }
            )
            pq.write_table(table, self._file(path, number))
            self._write_info(path, number + 1)
            with open(path / "meta" / "episodes.jsonl", "a") as lines:
                lines.write(json.dumps({"episode_index": number, "length": STEPS}) + "\n")
            acknowledge(number, COMMITTED)

    def check(self, path: Path, acknowledged: int, steps: int) -> Outcome:
        result = Outcome(acknowledged)
        try:
            total = json.loads((path / "meta" / "info.json").read_text())["total_episodes"]
            listed = [json.loads(line) for line in (path / "meta" / "episodes.jsonl").read_text().splitlines()]
            whole = [self._is_whole(path, line["episode_index"]) for line in listed]
            result.lost = acknowledged - sum(whole[:acknowledged])
            if not all(whole):
                result.torn = f"episodes {[i for i, ok in enumerate(whole) if not ok]} differ from what was written"
            elif total != len(listed):
                result.torn = f"info.json has {total} episodes, episodes.jsonl {len(listed)}"
        except Exception as error:  # whatever a reader's user would see
            result.torn, result.lost = f"{type(error).__name__}: {error}", acknowledged
        return result

    def _file(self, path: Path, number: int) -> Path:
        return path / "data" / f"episode_{number:06d}.parquet"

    def _write_info(self, path: Path, episodes: int) -> None:
        info = {"codebase_version": "v2.1", "fps": 50, "total_episodes": episodes, "total_frames": episodes * STEPS}
        with open(path / "meta" / "info.json", "w") as file:
            json.dump(info, file, indent=4)

    def _is_whole(self, path: Path, number: int) -> bool:
        import pyarrow.parquet as pq

        table, given = pq.read_table(self._file(path, number), use_threads=False), episode(number)
        frames = [np.frombuffer(data, np.uint8) for data in table["observation.images.front"].to_pylist()]
        return (
            np.array_equal(np.stack(table["observation.state"].to_numpy()), given["state"])
            and np.array_equal(np.stack(table["action"].to_numpy()), given["action"])
            and np.array_equal(table["timestamp"].to_numpy(), given["timestamp"])
            and np.array_equal(np.stack(frames), given["front"].reshape(STEPS, -1))
        )


WRITERS: dict[str, type[Writer]] = {"ours": Ours, "zarr": PlainZarr, "lerobot": LeRobotStyle}
