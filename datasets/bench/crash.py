"""`kineflow bench crash`: writers killed with SIGKILL at random instants; what was acknowledged must be there afterwards.

Each writer (datasets/bench/crash_writers.py) is forked from a process that has imported everything, killed 0 to 500 ms later,
and its store is read by another process. A new store for each kill, the same episodes for each writer. An episode counts as
acknowledged when its number has come through a pipe. SIGKILL is the death of a process, not of the machine: what the kernel
has is not lost.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from kineflow.bench_row import Row
from kineflow.contracts import KineflowError

KILLS, QUICK_KILLS = 1000, 20
LONGEST_S = 0.5
_MODULE = "kineflow.datasets.bench.crash"
_ACKNOWLEDGED = struct.Struct("<ii")
_NAMES = {"ours": "kineflow", "zarr": "plain zarr append", "lerobot": "LeRobot v2.1 style"}
_GOAL = 0


def bench_crash(*, quick: bool, kills: int | None = None) -> Iterator[Row]:
    """Quick: 20 kills of each writer instead of 1000. Writers run side by side."""
    kills = kills or (QUICK_KILLS if quick else KILLS)
    kinds = [kind for kind in _NAMES if kind != "lerobot" or importlib.util.find_spec("pyarrow")]
    with tempfile.TemporaryDirectory(prefix="bench-crash-") as folder:
        command = [sys.executable, "-m", _MODULE]
        running = {
            kind: subprocess.Popen([*command, kind, str(Path(folder) / kind), str(kills)], stdout=subprocess.PIPE)
            for kind in kinds
        }
        for kind, process in running.items():
            output, _ = process.communicate()
            if process.returncode:
                raise KineflowError(f"bench crash: the process that kills '{kind}' writers failed; see its message above")
            yield from rows(kind, [json.loads(line) for line in output.splitlines()])


def rows(kind: str, outcomes: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """The rows of one writer from its outcomes (`crash_writers.Outcome`), one for each kill."""
    acknowledged, torn = sum(o["acknowledged"] for o in outcomes), [o["torn"] for o in outcomes if o["torn"]]
    yield _row(
        kind, "acknowledged episodes lost", "episodes", sum(o["lost"] for o in outcomes), len(outcomes), f"of {acknowledged}"
    )
    example = f"; e.g. {torn[0][:100]}" if torn else ""
    yield _row(kind, "kills that leave a torn store", "stores", len(torn), len(outcomes), f"of {len(outcomes)}{example}")
    if kind == "ours":
        steps, salvaged = sum(o["steps_acknowledged"] for o in outcomes), sum(o["salvaged"] for o in outcomes)
        note = f"of {steps} in recordings that were not committed; repair salvaged {salvaged} recordings"
        yield _row(kind, "recorded steps lost", "steps", sum(o["steps_lost"] for o in outcomes), len(outcomes), note)
        opened = [o["open_ms"] for o in outcomes]
        note = f"median; slowest {max(opened):.1f} ms"
        yield Row("crash/ours: open after a kill", median(opened), "ms", "lower", None, "", None, None, None, len(opened), note)


def _row(kind: str, what: str, unit: str, value: float, n: int, note: str) -> Row:
    goal, holds = ("0", value == _GOAL) if kind == "ours" else (None, None)
    return Row(f"crash/{kind}: {what}", value, unit, "lower", None, _NAMES[kind], None, goal, holds, n, note)


def kill_writers(kind: str, folder: Path, kills: int) -> Iterator[dict[str, Any]]:
    """Fork, kill, check, again; this process itself only forks, so that each child begins with the same warm memory."""
    from kineflow.datasets.bench.crash_writers import COMMITTED, WRITERS, episode

    writer, rng = WRITERS[kind](), random.Random(kind)
    episode(0)
    for number in range(kills):
        path = folder / f"{number}.eps"
        path.parent.mkdir(parents=True, exist_ok=True)
        _in_child(lambda: writer.create(path))  # noqa: B023
        acknowledged, steps = _killed(lambda acknowledge: writer.write(path, acknowledge), rng.uniform(0, LONGEST_S), COMMITTED)  # noqa: B023
        yield _in_child(lambda: asdict(writer.check(path, acknowledged, steps)))  # noqa: B023
        shutil.rmtree(path)


def _killed(write: Callable[[Callable[[int, int], None]], None], after_s: float, committed: int) -> tuple[int, int]:
    """Episodes acknowledged, and steps of the next one, by a writer that was killed `after_s` after it was forked."""
    receive, send = os.pipe()
    writer = os.fork()
    if writer == 0:
        try:
            write(lambda number, steps: (os.write(send, _ACKNOWLEDGED.pack(number, steps)), None)[1])
        finally:
            os._exit(1)
    os.close(send)
    time.sleep(after_s)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    with os.fdopen(receive, "rb") as pipe:
        messages = list(_ACKNOWLEDGED.iter_unpack(pipe.read()))
    episodes = sum(steps == committed for _, steps in messages)
    return episodes, max((steps for number, steps in messages if number == episodes), default=0)


def _in_child(work: Callable[[], Any]) -> Any:
    """The result of `work`, through JSON, run in a forked process."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with os.fdopen(send, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise KineflowError("bench crash: a process that makes or reads a store failed; see its message above")
    return json.loads(text)


if __name__ == "__main__":
    for outcome in kill_writers(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps(outcome), flush=True)
