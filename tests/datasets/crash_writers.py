"""Process that the crash tests start: forks writers from a warm parent, and kills them when asked.

    crash_writers.py kill FOLDER SEED...    one store per seed; its writer is killed (SIGKILL) at a random instant
    crash_writers.py race STORE WRITERS     several processes append 4 episodes each to one store at the same time

A writer appends the number of each acknowledged episode to `<store>.ack` after `add` has returned.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from kineflow.datasets.episode_store import EpisodeStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.datasets.sample_episodes import INTERFACE, sample_episode

MOST = 200


def write_until_killed(path: Path) -> None:
    store = EpisodeStore.create(path, INTERFACE)
    acknowledged = os.open(path.with_suffix(".ack"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    with store.writer() as writer:
        for number in range(MOST):
            writer.add(sample_episode(number))
            os.write(acknowledged, f"{number}\n".encode())


def append(path: Path, writer_number: int) -> None:
    with EpisodeStore.open(path).writer() as writer:
        for number in range(4):
            writer.add(sample_episode(10 * writer_number + number))


def child(work: object, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        work(*arguments)  # type: ignore[operator]
        os._exit(0)
    return pid


def main(mode: str, folder: str, *rest: str) -> None:
    if mode == "race":
        for pid in [child(append, Path(folder), number) for number in range(int(rest[0]))]:
            assert os.waitpid(pid, 0)[1] == 0
        return
    for seed in rest:
        path = Path(folder) / f"{seed}.eps"
        pid = child(write_until_killed, path)
        while not path.with_suffix(".ack").exists():
            time.sleep(0.005)
        time.sleep(random.Random(int(seed)).uniform(0.0, 0.6))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
