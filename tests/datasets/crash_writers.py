"""Process that the crash tests start: forks writers from a warm parent, and kills them when asked.

    crash_writers.py kill FOLDER SEED...    one store per seed; its writer is killed (SIGKILL) at a random instant
    crash_writers.py race STORE WRITERS     several processes append 4 episodes each to one store at the same time
    crash_writers.py read STORE READERS     one process appends, records, compacts and deletes while others open and read it

A writer appends the number of each acknowledged episode to `<store>.ack` after `add` has returned.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from kineflow.datasets.doctor import check_store
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.upkeep import compact, delete

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.datasets.recordings import record
from tests.datasets.sample_episodes import INTERFACE, assert_equal_episodes, sample_episode

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


READ = 6  # episodes that stay in the store, numbered from 0


def keep_busy(path: Path) -> None:
    """Commits, recordings, compactions and deletions; episodes 0 to READ - 1 stay the first."""
    for number in range(READ, READ + 6):
        store = EpisodeStore.open(path)
        if number % 2:
            with store.writer() as writer:
                writer.add(sample_episode(number))
        else:
            record(store, sample_episode(number))
        if number % 3 == 0:
            compact(path)
        if number % 4 == 0:
            delete(path, [READ])


def read_until(path: Path, stop: Path) -> None:
    """Open and verify again and again; every state must be a whole one, and never an older one."""
    rounds = generation = 0
    while not stop.exists() or rounds < 3:
        store = EpisodeStore.open(path)
        assert store.manifest.generation >= generation
        generation, rounds = store.manifest.generation, rounds + 1
        for index in range(store.num_episodes):
            found = store.episode(index)
            assert_equal_episodes(found, sample_episode(int(found.source.removeprefix("log "))))
        assert [store.episode(index).source for index in range(READ)] == [f"log {number}" for number in range(READ)]
        assert store.low_dim("pose").shape[0] == store.lengths.sum() == store.manifest.stats["pose"].count
        assert [f for f in check_store(path) if f.severity == "error"] == []
    stop.with_name(f"read-{os.getpid()}").write_text(str(rounds))


def child(work: object, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)  # type: ignore[operator]
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return pid


def main(mode: str, folder: str, *rest: str) -> None:
    if mode == "race":
        for pid in [child(append, Path(folder), number) for number in range(int(rest[0]))]:
            assert os.waitpid(pid, 0)[1] == 0
        return
    if mode == "read":
        path = Path(folder)
        stop = path.with_name("stop")
        readers = [child(read_until, path, stop) for _ in range(int(rest[0]))]
        writer = child(keep_busy, path)
        assert os.waitpid(writer, 0)[1] == 0
        stop.touch()
        assert [os.waitpid(pid, 0)[1] for pid in readers] == [0] * len(readers)
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
