"""`kineflow collect`: the expert drives, the episode store keeps it. Processes draw, drive and commit; the driver counts.

    worker    a world at a time: draws trips, drives each cleanly (its pictures are the clip) and then disturbed, commits the
              world's episodes as one segment; several write to one store (compare-and-swap of its manifest)
    driver    hands out worlds that the store does not hold yet, shows how far it is

Each episode's seed is `world * 10000 + trip * 100 + run`; run 0 is the clean one. A world is in the store as a whole or not at
all, so that a collection that was stopped goes on where it was, and a seed's episode is the same whoever drives it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kineflow.config import load_config
from kineflow.contracts import CameraSpec, Episode, FeatureSpec, Goal, Interface, KineflowError, Stream, VectorSpec, to_plain
from kineflow.datasets.codecs import FrameCodec
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import CameraRecord
from kineflow.envs.navigation.demonstrate import Demonstration, Disturbance, Recording, record
from kineflow.envs.navigation.navigation import sized
from kineflow.envs.navigation.randomise import RandomisationRanges
from kineflow.envs.navigation.stage import Picture, Stage, embodiment_of
from kineflow.envs.navigation.tasks import KINDS, Kind, Task, draw_trip
from kineflow.envs.navigation.values import CONTROL_HZ, FRONT
from kineflow.envs.navigation.world import generate_world

MAX_TRIPS, MAX_RUNS = 100, 100  # of a world, and of a trip: the digits that they have in a seed
STEP_NS = round(1e9 / CONTROL_HZ)
_MADE_BY = "kineflow collect "  # how the provenance of a collected store begins
PATIENCE_S = 5.0  # for workers to end by themselves
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CollectConfig:
    """What is collected: `worlds` worlds from number `first_world` on, in each `trips_per_world` trips, each driven once cleanly
    and `runs_per_trip` times disturbed. Trip i is of kind `tasks[i % len(tasks)]`. `codec`: of pictures in the store."""

    embodiment: str = "wheeled"
    tasks: tuple[Kind, ...] = ("video", "language")
    world: Literal["indoor", "outdoor", "mixed"] = "mixed"
    first_world: int = 0
    worlds: int = 50
    trips_per_world: int = 4
    runs_per_trip: int = 3
    movers: int = 0
    density: float = 0.5
    disturbance: Disturbance = field(default_factory=Disturbance)
    randomisation: RandomisationRanges | None = field(default_factory=RandomisationRanges)
    recording: Recording = field(default_factory=Recording)
    picture: Picture = field(default_factory=Picture)
    codec: str = "auto"
    split: str = ""

    def __post_init__(self) -> None:
        if not self.tasks or any(kind not in KINDS for kind in self.tasks):
            raise KineflowError(f"collect: tasks are {self.tasks}; name some of {KINDS}")
        if not (1 <= self.trips_per_world <= MAX_TRIPS and 0 <= self.runs_per_trip < MAX_RUNS):
            raise KineflowError(
                f"collect: trips_per_world is {self.trips_per_world} (1 to {MAX_TRIPS}), runs_per_trip is {self.runs_per_trip} "
                f"(0 to {MAX_RUNS - 1}); for more episodes take more worlds"
            )
        if self.worlds < 1 or self.first_world < 0:
            raise KineflowError(f"collect: worlds is {self.worlds} (at least 1), first_world is {self.first_world} (at least 0)")

    @property
    def episodes_per_world(self) -> int:
        return self.trips_per_world * (1 + self.runs_per_trip)

    def task(self, trip: int) -> Task:
        """The task of a world's trip of that number."""
        return Task(self.tasks[trip % len(self.tasks)], self.world, movers=self.movers, density=self.density)


@dataclass(frozen=True)
class WorldDone:
    """What one world gave. `skipped`: trips that could not be drawn or driven cleanly; `cpu_s`: processor time it took."""

    world: int
    episodes: int
    steps: int
    successes: int
    touched: int
    skipped: int
    cpu_s: float


@dataclass(frozen=True)
class CollectReport:
    """What a call collected, without what the store held before."""

    store: str
    worlds: int
    episodes: int
    steps: int
    successes: int
    touched: int  # episodes with a contact
    skipped: int  # trips
    wall_s: float
    cpu_s: float

    @property
    def episodes_per_minute(self) -> float:
        return 60 * self.episodes / self.wall_s if self.wall_s else 0.0

    @property
    def episodes_per_cpu_minute(self) -> float:
        """Per core that does nothing else."""
        return 60 * self.episodes / self.cpu_s if self.cpu_s else 0.0

    def text(self) -> str:
        """For people."""
        if not self.episodes:
            return f"{self.store}: nothing to drive, it holds all of these worlds"
        return (
            f"{self.store}: {self.episodes} episodes more ({self.steps} steps) from {self.worlds} worlds, {self.successes} "
            f"successful, {self.touched} with a touch, {self.skipped} trips skipped; {self.episodes_per_minute:.0f} a minute, "
            f"{self.episodes_per_cpu_minute:.0f} a minute of one core"
        )

    def to_json(self) -> dict[str, Any]:
        rates = {"episodes_per_minute": self.episodes_per_minute, "episodes_per_cpu_minute": self.episodes_per_cpu_minute}
        return {**to_plain(self), **rates}


def collect(config: CollectConfig, path: Path, workers: int = 1, progress: Progress = lambda done, total: None) -> CollectReport:
    """Fill the store at `path` (made if it is not there) with what `config` says and it does not hold yet.

    Raises:
        KineflowError: the store was collected with another configuration, or a worker failed; what was committed stays.
    """
    if workers < 1:
        raise KineflowError(f"workers is {workers}; it must be at least 1")
    store = open_store(config, path)
    todo = [w for w in range(config.first_world, config.first_world + config.worlds) if w not in worlds_held(store)]
    total, counted, done, started = len(todo) * config.episodes_per_world, 0, list[WorldDone](), time.perf_counter()
    progress(0, total)
    happenings = _here(config, path, todo) if workers == 1 else _in_processes(config, path, todo, min(workers, len(todo)))
    for happening in happenings:
        if isinstance(happening, WorldDone):
            done.append(happening)
            counted = sum(w.episodes + w.skipped * (1 + config.runs_per_trip) for w in done)
        else:
            counted += 1
        progress(min(counted, total), total)
    counts = {n: sum(getattr(w, n) for w in done) for n in ("episodes", "steps", "successes", "touched", "skipped", "cpu_s")}
    return CollectReport(str(path), len(done), wall_s=time.perf_counter() - started, **counts)


def collect_world(config: CollectConfig, number: int) -> Iterator[Episode | None]:
    """The episodes of one world, trip after trip, the clean run first; None for a trip that gave none."""
    ranges = config.randomisation
    textures = None if ranges is None else ranges.draw(number).texture_seed
    world = generate_world(config.task(0).world_config(number))
    stage = Stage(world, embodiment_of(config.embodiment), config.picture, textures)
    about = {"world": number, "kind": world.config.kind, "density": config.density, "movers": config.movers}
    try:
        for trip_number in range(config.trips_per_world):
            seed = number * MAX_TRIPS * MAX_RUNS + trip_number * MAX_RUNS
            task = config.task(trip_number)
            try:
                trip = draw_trip(task, world, stage.planner, np.random.default_rng([number, trip_number, 0xC011EC7]))
            except KineflowError:
                yield None  # e.g. no named thing of this world is in sight of any place
                continue
            clean = record(stage, trip, config.recording, look=_look(ranges, seed), seed=seed)
            if not clean.success or clean.touches:
                yield None
                continue
            facts = {**about, "task": task.kind, "path_m": round(trip.path.length, 2)}
            yield _episode(clean, config, seed, {**facts, "run": "clean"})
            for run in range(1, config.runs_per_trip + 1):
                look = None if ranges is None else ranges.draw(seed + run)
                driven = record(stage, trip, config.recording, clean.clip, config.disturbance, look, seed + run)
                yield _episode(driven, config, seed + run, {**facts, "run": "disturbed"})
    finally:
        stage.close()


def recorded_interface(config: CollectConfig) -> Interface:
    """The schema of the store: that of `interfaces/navigation`, and what is recorded for training."""
    interface = sized(load_config(Interface, "interfaces/navigation"), config.picture)
    rate = interface.cameras[FRONT].rate_hz
    cursor = VectorSpec(("frame",), ("1",), "clip", (0.0,), (float("inf"),))
    stop = VectorSpec(("stop",), ("1",), "base", (0.0,), (1.0,))
    features = {**interface.features, "cursor": FeatureSpec(cursor, rate), "stop": FeatureSpec(stop, rate)}
    more = ["front_depth"] * config.recording.depth + ["flow_x", "flow_y"] * config.recording.flow
    size = config.picture
    cameras = {**interface.cameras, **{name: CameraSpec(size.height, size.width, rate, "depth") for name in more}}
    return replace(interface, features=features, cameras=cameras)


def open_store(config: CollectConfig, path: Path) -> EpisodeStore:
    """The store of this collection, new or as it was left.

    Raises:
        KineflowError: what is there was collected otherwise.
    """
    fixed = {name: value for name, value in to_plain(config).items() if name not in ("worlds", "first_world")}
    provenance = _MADE_BY + json.dumps(fixed, sort_keys=True)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        cameras = {FRONT: CameraRecord(codec=config.codec)}
        return EpisodeStore.create(path, recorded_interface(config), "nominal_10hz", provenance, cameras=cameras)
    store = EpisodeStore.open(path)
    held = store.manifest.provenance
    if held != provenance:
        before = json.loads(held.removeprefix(_MADE_BY)) if held.startswith(_MADE_BY) else {}
        changed = [f"{n} is {fixed[n]}, was {before.get(n)}" for n in fixed if before.get(n) != fixed[n]]
        raise KineflowError(
            f"{path} was {'collected otherwise: ' + '; '.join(changed) if before else f'not collected: {held!r}'}. Choose "
            "another path, or the configuration that it was made with; only worlds and first_world may change between runs"
        )
    return store


def worlds_held(store: EpisodeStore) -> set[int]:
    """Numbers of the worlds of which the store has episodes."""
    seeds = np.concatenate([np.zeros(0, np.int64), *(segment.column("seed") for segment in store.segments)])
    return set((seeds // (MAX_TRIPS * MAX_RUNS)).tolist())


def _look(ranges: RandomisationRanges | None, seed: int) -> Any:
    """Of a clean run: its own light and camera, but nothing between the expert and the body."""
    return None if ranges is None else replace(ranges.draw(seed), delay_steps=0, command_noise=0.0)


def _episode(driven: Demonstration, config: CollectConfig, seed: int, facts: dict[str, Any]) -> Episode:
    stamps = np.arange(len(driven.streams["action"]), dtype=np.int64) * STEP_NS
    x, y = driven.trip.goal
    return Episode(
        streams={name: Stream(values, stamps) for name, values in driven.streams.items()},
        instruction=driven.trip.instruction,
        language="en" if driven.trip.instruction else "und",
        success=driven.success,
        source="kineflow.navigation " + json.dumps({**facts, "touches": driven.touches}),
        clock="nominal_10hz",
        goals={
            "video": Goal("video", driven.clip.frames, FRONT),
            "image": Goal("image", driven.clip.image, FRONT),
            "point": Goal("point", np.array([x, y, driven.streams["pose"][-1, 2]], np.float32), "world"),
        },
        split=config.split,
        seed=seed,
        operator="expert",
    )


class _WorldWriter:
    """Worlds into the store, each in one commit; the codecs of pictures are chosen once."""

    def __init__(self, config: CollectConfig, path: Path) -> None:
        self._config, self._store, self._codecs = config, EpisodeStore.open(path), dict[str, FrameCodec]()

    def write(self, number: int) -> Iterator[int | WorldDone]:
        """1 for each episode that is driven, then what the world gave, which is then committed."""
        started, steps, successes, touched, episodes, skipped = time.process_time(), 0, 0, 0, 0, 0
        with self._store.writer(self._config.episodes_per_world + 1, codecs=self._codecs) as writer:
            for episode in collect_world(self._config, number):
                if episode is None:
                    skipped += 1
                    continue
                if not self._codecs:
                    self._codecs |= writer.codecs_of(episode)
                writer.add(episode)
                episodes, steps = episodes + 1, steps + len(episode.streams["action"].values)
                successes, touched = successes + bool(episode.success), touched + ('"touches": 0' not in episode.source)
                yield 1
        yield WorldDone(number, episodes, steps, successes, touched, skipped, time.process_time() - started)


def _here(config: CollectConfig, path: Path, worlds: Sequence[int]) -> Iterator[int | WorldDone]:
    writer = _WorldWriter(config, path)
    for number in worlds:
        yield from writer.write(number)


def _in_processes(config: CollectConfig, path: Path, worlds: Sequence[int], workers: int) -> Iterator[int | WorldDone]:
    """What `workers` processes report; they are gone when this ends, however it ends."""
    context = multiprocessing.get_context("spawn")  # fork would copy OpenGL's context and threads' locks
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # they are as many as there are cores
    waiting, running = list(reversed(worlds)), dict[Connection, tuple[Any, int]]()
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, config, path), daemon=True)
            process.start()
            theirs.close()  # else its end would stay open here, and its death unseen
            running[ours] = (process, waiting.pop())
            ours.send(running[ours][1])
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, number = running[connection]
                try:
                    said = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    raise KineflowError(
                        f"the worker that drove in world {number} died (exit code {process.exitcode}); what was committed stays. "
                        "Usually memory ran out: use fewer workers, and run the command again to go on"
                    ) from None
                if isinstance(said, str):
                    raise KineflowError(f"world {number}: {said}")
                yield said
                if isinstance(said, WorldDone):
                    if waiting:
                        running[connection] = (process, waiting.pop())
                        connection.send(running[connection][1])
                    else:
                        connection.send(None)
                        process.join()
                        del running[connection]
                        connection.close()
    finally:
        for connection in running:
            connection.close()  # a worker ends when it next speaks, between commits
        deadline = time.monotonic() + PATIENCE_S
        for process, _ in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def _serve(connection: Connection, config: CollectConfig, path: Path) -> None:
    """Body of a worker: numbers of worlds come, what was done goes back, until None or the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its workers
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            writer = _WorldWriter(config, path)
            while (number := connection.recv()) is not None:
                for happening in writer.write(number):
                    connection.send(happening)
        except KineflowError as error:
            connection.send(str(error))
