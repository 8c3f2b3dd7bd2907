"""A policy that needs no torch behind a policy server: as a process (`python serving.py PORT TOKEN`), or in a thread here.

What it saw is in what it says: action k of a row is (count seen last + goal told, seed of the row + k), so an answer that belongs
to another client, or to another question, shows.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a process it is started by path

from kineflow.contracts import (  # noqa: E402
    ActionChunk,
    CameraSpec,
    FeatureSpec,
    FeatureStatistics,
    GoalSpec,
    GoldenPair,
    Horizons,
    Interface,
    Observation,
    PolicyContract,
    SamplerSpec,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.client import ClientConfig, PolicyClient  # noqa: E402
from kineflow.deploy.server.config import ServerConfig  # noqa: E402
from kineflow.deploy.server.process import serve  # noqa: E402
from kineflow.deploy.server.serving import PolicyServer  # noqa: E402
from kineflow.deploy.server.session import Served  # noqa: E402

TOKEN = "a token that is long enough"
HORIZON, STEP_S = 8, 0.1
HELD = 8888  # the state at which the toy waits to be told to go on
START_S = 60.0  # for a process to begin on a machine that does other things


def contract(prediction: int = HORIZON) -> PolicyContract:
    """State "count" [1], camera "front" of 4 x 6, goals: a point or a clip; an action of two numbers, all at 10 Hz."""
    count = VectorSpec(("count",), ("1",), "none", (-1e6,), (1e6,))
    action = VectorSpec(("seen", "index"), ("1", "1"), "none", (-1e6, -1e6), (1e6, float("inf")))
    goals = {"point": GoalSpec("point"), "video": GoalSpec("video", 4, 6, 3, 5.0)}
    cameras = {"front": CameraSpec(4, 6, 10.0)}
    interface = Interface({"count": FeatureSpec(count, 10.0)}, FeatureSpec(action, 10.0), cameras, goals)
    statistics = {
        name: FeatureStatistics(1, *((float(i == 1),) * spec.vector.size for i in range(6)))
        for name, spec in {**interface.features, "action": interface.action}.items()
    }
    golden = GoldenPair(((0.0,),), 0, ((0.0, 0.0),))
    return PolicyContract(
        interface, Horizons(2, prediction, 4), SamplerSpec("none", "none", "none", 1), statistics, "", {}, golden
    )


class Toy:
    """See the module. A state of 666 makes it fail; of 7000 + n it takes n ms; of 8888 it takes until `go_on` is set, and
    `is_held` says that it is there: what comes meanwhile comes while the policy computes, on a busy machine as well."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.slow_s, self.batches = slow_s, list[int]()
        self.is_held, self.go_on = threading.Event(), threading.Event()

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        seen = observation.state[:, -1, 0]
        if (seen == 666).any():
            raise RuntimeError("the policy broke")
        self.batches.append(len(seen))
        extra = [float(s) - 7000 for s in seen if 7000 <= s < 8000]
        time.sleep(self.slow_s + max(extra, default=0.0) / 1e3)
        if (seen == HELD).any():
            self.is_held.set()
            assert self.go_on.wait(START_S)
        point = observation.goal.get("point", np.zeros((len(seen), 3), np.float32))[:, 0]
        clip = observation.goal.get("video", np.zeros((len(seen), 1, 1, 1, 1), np.uint8))[:, 0, 0, 0, 0]
        index = np.asarray(request.seeds)[:, None] + np.arange(HORIZON)
        first = np.repeat((seen + point + clip)[:, None], HORIZON, axis=1)
        stops = np.where(seen >= 900, 1.0, 0.0).astype(np.float32)
        actions = np.stack([first, index], axis=-1).astype(np.float32)
        return ActionChunk(actions, STEP_S, np.asarray(observation.stamp_s)[:, -1], stops, np.full(len(seen), 0.2, np.float32))


class ToyTold:
    """Follows a clip by what was carried out: one frame for two actions, and what an answer says is ahead."""

    def __init__(self, goal: Mapping[str, Any], clip_rate_hz: float, stop: tuple[float, int]) -> None:
        self.instruction, self._goal, self._stop = "", dict(goal), stop
        self._at, self._hits = 0.0, 0

    def goal(self) -> dict[str, np.ndarray]:
        shown = dict(self._goal)
        if "video" in shown:
            clip = shown["video"]
            shown["video"] = clip[np.minimum(self.cursor + np.arange(3), len(clip) - 1)]
        return shown

    def answered(self, chunk: ActionChunk, row: int) -> None:
        assert chunk.stop_probability is not None
        self._hits = self._hits + 1 if chunk.stop_probability[row] >= self._stop[0] else 0

    def executed(self) -> None:
        self._at += 0.5

    def believe(self, frame: int) -> None:
        self._at = float(frame)

    @property
    def cursor(self) -> int:
        return int(self._at)

    @property
    def has_arrived(self) -> bool:
        return self._hits >= self._stop[1]


def tell(goal: Mapping[str, Any], clip_rate_hz: float = 0.0, stop: tuple[float, int] = (0.5, 3)) -> ToyTold:
    return ToyTold(goal, clip_rate_hz, stop)


def served(toy: Toy | None = None, made: PolicyContract | None = None) -> Served:
    return Served(made or contract(), (toy or Toy()).predict, tell)


def observation(count: float, point: float | None = 0.0, rows: int = 1) -> Observation:
    """Rows that count on from `count`."""
    state = np.repeat((count + np.arange(rows, dtype=np.float32))[:, None, None], 2, axis=1)
    images = {"front": np.full((rows, 2, 4, 6, 3), int(np.nan_to_num(count)) % 256, np.uint8)}
    goal = {} if point is None else {"point": np.full((rows, 3), point, np.float32)}
    return Observation(state, np.full((rows, 2), np.nan_to_num(count)), images, goal)


def request(*seeds: int, **others: Any) -> SamplingRequest:
    return SamplingRequest(np.array(seeds, np.int64), **others)


def wait_until(condition: Callable[[], Any], within_s: float = START_S) -> None:
    """Raises AssertionError: it did not come true."""
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, "did not come true"
        time.sleep(0.005)


class Running:
    """A server in a thread of this process."""

    def __init__(self, server: PolicyServer) -> None:
        self.server, self.port, self.drained = server, 0, False
        self._ready, self._loop, self._stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.drained = self._loop.run_until_complete(self.server.run(self._stop, self._is_bound, self._ready.set))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _is_bound(self, port: int) -> None:
        self.port = port
        self._bound.set()

    def wait(self, ready: bool = True) -> Running:
        assert (self._ready if ready else self._bound).wait(START_S)
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def stop(self) -> bool:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_S)
        return self.drained


@contextmanager
def held(toy: Toy) -> Iterator[None]:
    """A policy that computes since before the block, and until its end."""
    assert toy.is_held.wait(START_S)
    try:
        yield
    finally:
        toy.go_on.set()


@contextmanager
def running(toy: Toy | None = None, load: Callable[[], Served] | None = None, **config: Any) -> Iterator[Running]:
    server = PolicyServer(load or (lambda: served(toy)), ServerConfig(port=0, **config), TOKEN)
    made = Running(server)
    try:
        yield made.wait()
    finally:
        made.stop()


@contextmanager
def client(url: str, timeout_s: float = 20.0, token: str = TOKEN, **config: Any) -> Iterator[PolicyClient]:
    made = PolicyClient(ClientConfig(url, token, timeout_s, **config))
    try:
        yield made
    finally:
        made.close()


class Process:
    """A server as a process; `port` 0: one that is free."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, __file__, str(port), TOKEN]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on ws://"), line
        self.url = line.split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    port, token = int(sys.argv[1]), sys.argv[2]
    sys.exit(serve(served, ServerConfig(port=port), token, "toy"))
