"""`kineflow bench data`: CPU time of a training window, ours beside others' layouts and packages on the same frames.

A window is 2 frames and 16 actions at a random step; 64 a batch; the page cache is warm unless it says cold. CPU time is that
of all threads of the process. Ours and its reference take turns in one process, and the ratio is the median over turns. What
opening costs, what is held in memory and the speed from a cold disk come from a process for each reader.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from kineflow.bench_row import Row
from kineflow.contracts import KineflowError
from kineflow.datasets.bench.data_lerobot import measure_lerobot
from kineflow.datasets.bench.data_process import Process, anonymous_mb, in_own_process
from kineflow.datasets.bench.data_readers import BATCH, Contestant, MemmapWindows, Read, contestants, window_reader
from kineflow.datasets.bench.data_sets import DataSet, donkeycar, natural, pusht, size_mb
from kineflow.datasets.loader import StreamLoader
from kineflow.datasets.window_images import Images
from kineflow.datasets.window_sampler import WindowSampler

TURNS = {True: 5, False: 9}  # quick, full
SECONDS = 0.04  # of the reference in one turn, at least
SAMPLES_HELD = {True: 100_000, False: 1_000_000}
_TUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "donkeycar_tub" / "tub.tar.gz"
_REFERENCES = ("memmap", "jpeg_decode")
_QUICK_PROCESSES = ("ours_lz4hc_native", "ours_jpeg_native", "memmap")

# Most of the reference's CPU time, by data set and reader; LeRobot and robomimic are references of their own rows.
GOALS: Mapping[tuple[str, str], float] = {
    ("pusht_96", "ours_lz4hc_native"): 1.0,
    ("pusht_96", "ours_lz4hc_pure"): 3.0,
    **{(name, "ours_jpeg_native"): 1.2 for name in ("natural_96", "donkeycar_160x120")},
    **{(name, "ours_cache"): 1.2 for name in ("natural_96", "donkeycar_160x120")},
}
PEERS = {"lerobot": 40, "robomimic": 8}  # times fewer CPU microseconds
PUSHT_MB, LOADER_SHARE, HELD_MB = 25.0, 0.85, 50.0


def bench_data(*, quick: bool) -> Iterator[Row]:
    """Quick: 30 episodes of PushT and natural frames of 96 px only, and no process of its own for others' readers."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        for name, make in _data_sets(Path(folder), quick).items():
            (Path(folder) / name).mkdir()
            data = make()
            yield from rows(data, quick)
            if data.name == "pusht_96":
                yield _disk_row(data, quick)
                yield _loader_row(data, quick)
                yield _held_row(data, quick)


def _data_sets(folder: Path, quick: bool) -> dict[str, Callable[[], DataSet]]:
    made: dict[str, Callable[[], DataSet]] = {
        "pusht": lambda: pusht(folder / "pusht", 30 if quick else None),
        "natural_96": lambda: natural(folder / "natural_96", 96, 8 if quick else 24, 150),
    }
    if _TUB.is_file():
        made["donkeycar"] = lambda: donkeycar(folder / "donkeycar", _TUB)
    if not quick:
        made["natural_224"] = lambda: natural(folder / "natural_224", 224, 8, 100)
        made["natural_256"] = lambda: natural(folder / "natural_256", 256, 8, 100)
    return made


@dataclass(frozen=True)
class _Cost:
    cpu_us: float
    reference_us: float
    ratio: float
    samples_per_s: float


def rows(data: DataSet, quick: bool) -> Iterator[Row]:
    """One row for each reader of `data`, and one for each real package that a goal is about."""
    known = contestants(data)
    processes = {name: _process(data, name) for name in known if not quick or name in _QUICK_PROCESSES}  # before any mapping here
    total = len(np.load(data.folder / "raw" / "state.npy", mmap_mode="r", allow_pickle=False))
    references = {name: known[name].open(data) for name in _REFERENCES}
    for read in references.values():
        _go_through(read, total)
    costs: dict[str, _Cost] = {}
    for name, contestant in known.items():
        reference = "jpeg_decode" if name.startswith("ours_jpeg") else "memmap"
        try:
            read = references.get(name) or contestant.open(data)
            costs[name] = alternate_cpu(read, references[reference], total, TURNS[quick])
        except (KineflowError, ModuleNotFoundError) as error:
            yield _absent(f"data.{data.name}.{name}", contestant.words, str(error))
            continue
        yield _row(data, name, known, reference, costs[name], processes.get(name), quick)
    if "robomimic" not in known:
        return
    ours = ("ours_lz4hc_native",) if data.name == "pusht_96" else ("ours_jpeg_native", "ours_cache")
    mine = {name: costs[name].cpu_us for name in ours if name in costs}
    yield from _lerobot_rows(data, mine, quick)
    if "robomimic" in costs:
        for name, cost in mine.items():
            yield _peer_row(data, name, cost, costs["robomimic"].cpu_us, "robomimic", known["robomimic"].words, TURNS[quick])


def alternate_cpu(ours: Read, reference: Read, windows: int, turns: int) -> _Cost:
    """Both on the same random windows in turn; as many batches in a turn as the reference needs for `SECONDS`, at least one."""
    rng = np.random.default_rng(0)
    _go_through(ours, windows)
    repeats = _repeats(reference, windows), _repeats(ours, windows)
    found = []
    for _ in range(turns):
        indices = rng.integers(0, windows, (max(repeats), BATCH))
        found.append((*_timed(ours, indices[: repeats[1]]), *_timed(reference, indices[: repeats[0]])))
    mine, wall, theirs, _ = (np.array(column) for column in zip(*found))
    return _Cost(float(np.median(mine)), float(np.median(theirs)), float(np.median(mine / theirs)), 1e6 / float(np.median(wall)))


def _go_through(read: Read, windows: int) -> None:
    """Touch every page once, as far as that goes in a second: the first touch of a mapping is dearer than all later ones."""
    start_s = time.process_time()
    for first in range(0, windows, BATCH):
        read(np.arange(first, first + BATCH) % windows)
        if time.process_time() - start_s > 1:
            return


def _repeats(read: Read, windows: int) -> int:
    rng, start_s, count = np.random.default_rng(1), time.process_time(), 0
    while time.process_time() - start_s < SECONDS:
        read(rng.integers(0, windows, BATCH))
        count += 1
    return count


def _timed(read: Read, batches: np.ndarray) -> tuple[float, float]:
    """CPU and wall microseconds of one window."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for indices in batches:
        read(indices)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return cpu_s / batches.size * 1e6, wall_s / batches.size * 1e6


def _process(data: DataSet, name: str) -> Process | None:
    try:
        return in_own_process(data, name)
    except KineflowError:
        return None  # the row of the reader says why


def _row(
    data: DataSet, name: str, known: Mapping[str, Contestant], reference: str, cost: _Cost, process: Process | None, quick: bool
) -> Row:
    limit, contestant = GOALS.get((data.name, name)), known[name]
    note = f"{contestant.words}; {cost.samples_per_s:,.0f} samples/s, {size_mb(data.folder / contestant.file):.1f} MB on disk"
    if process:
        note += f", cold {process.cold_samples_per_s:,.0f} samples/s"
        note += f", holds {process.held_mb:.0f} MB, opens in {process.open_s:.2f} CPU s"
    return Row(
        f"data.{data.name}.{name}",
        cost.cpu_us,
        "us CPU",
        "lower",
        cost.reference_us,
        known[reference].words,
        cost.ratio,
        None if limit is None else f"ratio <= {limit}",
        None if limit is None else cost.ratio <= limit,
        TURNS[quick],
        note,
    )


def _absent(name: str, words: str, problem: str) -> Row:
    return Row(name, 0.0, "us CPU", "lower", None, "", None, None, None, 0, f"{words}: not measured, {problem}")


def _lerobot_rows(data: DataSet, ours: Mapping[str, float], quick: bool) -> Iterator[Row]:
    try:
        cpu_s, _, version = measure_lerobot(data, 20 if quick else 100)
    except KineflowError as error:
        yield _absent(f"data.{data.name}.vs_lerobot", "LeRobotDataset on its v3 layout", str(error))
        return
    words = f"{version}: LeRobotDataset[i] with delta_timestamps, h264, 1 thread, in its own Python"
    for name, cost_us in ours.items():
        yield _peer_row(data, name, cost_us, cpu_s * 1e6, "lerobot", words, 5)


def _peer_row(data: DataSet, ours: str, ours_us: float, theirs_us: float, peer: str, words: str, turns: int) -> Row:
    ratio, times = ours_us / theirs_us, PEERS[peer]
    name = f"data.{data.name}.{ours}.vs_{peer}"
    note = f"1/{1 / ratio:.3g}"
    if ours == "ours_jpeg_native" and data.name != "natural_96":  # goals are about 96 px; above, the JPEG alone costs more
        note += "; first epoch, without the decoded cache: no goal at this size, see jpeg_decode"
        return Row(name, ours_us, "us CPU", "lower", theirs_us, words, ratio, None, None, turns, note)
    goal = f"ratio <= 1/{times}"
    return Row(name, ours_us, "us CPU", "lower", theirs_us, words, ratio, goal, ratio <= 1 / times, turns, note)


def _disk_row(data: DataSet, quick: bool) -> Row:
    size, raw = size_mb(data.folder / "lossless.eps"), size_mb(data.folder / "raw")
    goal = None if quick else f"<= {PUSHT_MB:g} MB"
    holds = None if quick else size <= PUSHT_MB
    note = "our lossless store, checksums included" + (
        "; the first 30 of 206 episodes, so the goal is not judged" if quick else ""
    )
    return Row(f"data.{data.name}.disk", size, "MB", "lower", raw, "plain .npy arrays", size / raw, goal, holds, 1, note)


def _loader_row(data: DataSet, quick: bool) -> Row:
    ours, plain = window_reader(data, "lossless.eps", Images("disk")), MemmapWindows(data)
    batches = 100 if quick else 300
    with (
        StreamLoader(ours, WindowSampler(len(ours), BATCH, 0), 1) as mine,
        StreamLoader(plain, WindowSampler(len(plain), BATCH, 0), 1) as theirs,
    ):

        def speed(loader: StreamLoader) -> float:  # type: ignore[type-arg]
            start_s = time.perf_counter()
            for _ in range(batches):
                next(loader)
            return batches * BATCH / (time.perf_counter() - start_s)

        speed(mine), speed(theirs)
        found = [(speed(mine), speed(theirs)) for _ in range(TURNS[quick])]
    ratio = median(a / b for a, b in found)
    return Row(
        f"data.{data.name}.loader",
        median(a for a, _ in found),
        "samples/s",
        "higher",
        median(b for _, b in found),
        "the same StreamLoader over memory-mapped .npy",
        ratio,
        f"ratio >= {LOADER_SHARE}",
        ratio >= LOADER_SHARE,
        len(found),
        "lossless store, native if built, 1 thread, a consumer that does nothing else",
    )


def _held_row(data: DataSet, quick: bool) -> Row:
    """Growth of anonymous memory while samples go through the loader, after the first tenth."""
    reader, samples = window_reader(data, "lossless.eps", Images("disk")), SAMPLES_HELD[quick]
    held: list[float] = []
    with StreamLoader(reader, WindowSampler(len(reader), BATCH, 0), 1) as loader:
        for number in range(samples // BATCH):
            next(loader)
            if number % 100 == 0:
                held.append(anonymous_mb())
    settled = held[len(held) // 10 :]
    growth = max(settled) - settled[0]
    name, goal = f"data.{data.name}.memory_growth", f"<= {HELD_MB:g} MB"
    note = f"anonymous memory over {samples:,} samples through the loader, lossless store"
    return Row(name, growth, "MB", "lower", None, "", None, goal, growth <= HELD_MB, 1, note)
