"""One contestant of `bench data` in a process of its own: what opening costs, what it holds, and how fast it is from a cold disk.

The page cache is emptied of its files first (posix_fadvise), where the system can do that. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.datasets.bench.data_readers import BATCH, contestants
from kineflow.datasets.bench.data_sets import DataSet, files_of

COLD_BATCHES, WARM_BATCHES = 10, 30


@dataclass(frozen=True)
class Process:
    """`open_s` is CPU time, imports included; `held_mb` anonymous memory that came since the start."""

    open_s: float
    held_mb: float
    cold_samples_per_s: float


def in_own_process(data: DataSet, name: str) -> Process:
    """Measure contestant `name` of `data` in a new process.

    Raises:
        KineflowError: it failed; with the last line it wrote.
    """
    facts = json.dumps({**asdict(data), "folder": str(data.folder)})
    command = [sys.executable, "-m", "kineflow.datasets.bench.data_process", facts, name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KineflowError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Process(**json.loads(done.stdout.splitlines()[-1]))


def anonymous_mb() -> float:
    """Memory of this process that is no file's; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("RssAnon:"))
    except (OSError, StopIteration):
        return 0.0


def drop_from_page_cache(path: Path) -> None:
    """Ask the kernel to forget the pages of a file or of all files below a folder; pages that somebody has mapped stay."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(data: DataSet, name: str) -> Process:
    contestant = contestants(data)[name]
    rows = len(np.load(data.folder / "raw" / "state.npy", mmap_mode="r", allow_pickle=False))
    rng = np.random.default_rng(0)
    drop_from_page_cache(data.folder / contestant.file)
    before_mb, start_s = anonymous_mb(), time.process_time()
    read = contestant.open(data)
    open_s = time.process_time() - start_s
    start_s = time.perf_counter()
    for _ in range(COLD_BATCHES):
        read(rng.integers(0, rows, BATCH))
    cold_s = time.perf_counter() - start_s
    for _ in range(WARM_BATCHES):
        read(rng.integers(0, rows, BATCH))
    return Process(open_s, anonymous_mb() - before_mb, COLD_BATCHES * BATCH / cold_s)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(asdict(measured(DataSet(**{**given, "folder": Path(given["folder"])}), sys.argv[2]))))
