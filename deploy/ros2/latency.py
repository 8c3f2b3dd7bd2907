"""From sensor to command, jitter and processor time of the policy node beside a bare rclpy loop, idle and loaded.

The observer publishes odometry whose x is a step between two speeds; the policy `echo` commands what x says, and so does the bare
loop. From the publishing of a step to the arrival of the first command that has it: both by the observer's clock.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from nav_msgs.msg import Odometry

from kineflow.config import CONFIG_ROOT
from kineflow.deploy.ros2.messages import to_time
from kineflow.deploy.ros2.promises import Measured, interval_errors
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import PRIORITY, Rig, hurry, wait_for
from kineflow.deploy.ros2.session import Session

LOW, HIGH = 0.2, 0.202  # m/s; a step that acceleration and jerk let through in one tick
SOURCE_S = 0.01  # period of the odometry
_BUSY = "import numpy as np\na = np.ones((200, 200))\nwhile True:\n    a @ a\n    sum(range(2000))"


@dataclass(frozen=True)
class Loop:
    """One loop over a while: ms of each step from sensor to command, |interval - 20 ms| of the commands, share of a core."""

    latencies_ms: np.ndarray
    errors_ms: np.ndarray
    longest_gap_ms: float
    core: float


class Steps:
    """Publishes the odometry in a thread; remembers when x stepped."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._ending = rig, threading.Event()
        self._publisher = rig.node.create_publisher(Odometry, "odom", profile(Quality(True)))
        self.stepped: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def __enter__(self) -> Steps:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join(1.0)
        self._rig.node.destroy_publisher(self._publisher)

    def _publish(self) -> None:
        random_s, value, next_s = random.Random(0), LOW, time.monotonic() + 0.2
        message = Odometry(child_frame_id="base_link")
        message.header.frame_id, message.pose.pose.orientation.w = "odom", 1.0
        while not self._ending.wait(SOURCE_S):
            now = time.monotonic()
            if now >= next_s:
                value = HIGH if value == LOW else LOW
                next_s = now + random_s.uniform(0.08, 0.13)
                self.stepped.append((now, value))
            message.header.stamp, message.pose.pose.position.x = to_time(time.time()), value
            self._publisher.publish(message)


def compared(seconds: float, loads: tuple[int, ...] = (0, 2)) -> Iterator[Measured]:
    """Rows: jitter and processor time with 640 x 480 pictures, then latency, of both loops under each load (busy processes)."""
    how = {load: f"{load} busy processes" if load else "idle" for load in loads}
    with Rig() as rig:
        session = Session(rig, guarded=False)
        session.up()
        node, report = _under(rig, "node", seconds, loads), rig.report()
        took = 1e3 * float(report.values["tick_took_p99_s"]) if report else math.inf
        yield Measured(0, "executor and governor in a tick, p99", took, 1.0, "ms", took <= 1.0, "in the output thread, last 20 s")
        rig.kill("node")
        _start_bare(rig)
        bare = _under(rig, "bare", seconds, loads)
        for load in loads:
            yield _jitter(node[load], bare[load], how[load], seconds)
    with Rig() as rig:
        config = rig.folder / "echo.yaml"
        shipped = (CONFIG_ROOT / "nodes" / "wheeled.yaml").read_text()
        config.write_text("".join(line for line in shipped.splitlines(True) if not line.startswith(("cameras:", "  front:"))))
        session = Session(rig, policy="echo", guarded=False, config=str(config))
        session.up()
        rig.fault("odom off")
        with Steps(rig) as steps:
            time.sleep(1.0)
            node = _under(rig, "node", seconds, loads, steps)
            rig.kill("node")
            _start_bare(rig)
            bare = _under(rig, "bare", seconds, loads, steps)
        for load in loads:
            yield _latency(node[load], bare[load], how[load])


def _start_bare(rig: Rig) -> None:
    rig.start("bare", "bare")
    begin = time.monotonic()
    wait_for(lambda: len(rig.since(begin)) > 50, 20.0)


def _under(rig: Rig, process: str, seconds: float, loads: tuple[int, ...], steps: Steps | None = None) -> dict[int, Loop]:
    found = {}
    for load in loads:
        with busy(load):
            found[load] = _observed(rig, steps.stepped if steps else [], process, seconds)
    return found


def _latency(node: Loop, bare: Loop, how: str) -> Measured:
    ours, theirs = (float(np.percentile(loop.latencies_ms, 99)) for loop in (node, bare))
    note = f"node {_percentiles(node.latencies_ms)}; bare {_percentiles(bare.latencies_ms)}; {len(node.latencies_ms)} steps"
    # A policy answers beside the ticks: what was there at one tick is commanded from the next one on.
    limit = theirs + 1e3 / 50 + 1.0
    return Measured(
        0, f"sensor to command, p99, {how}; at most bare loop, one tick and 1 ms", ours, limit, "ms", ours <= limit, note
    )


def _jitter(node: Loop, bare: Loop, how: str, seconds: float) -> Measured:
    """Idle the p99 of the interval's error counts, as promise 1 says; loaded the longest gap."""
    note = f"node {_percentiles(node.errors_ms)}, longest gap {node.longest_gap_ms:.0f} ms, {node.core:.2f} of a core; bare "
    note += f"{_percentiles(bare.errors_ms)}, {bare.longest_gap_ms:.0f} ms, {bare.core:.2f} of a core; {seconds:g} s each"
    if how != "idle":
        gap = node.longest_gap_ms
        return Measured(0, f"commands at 50 Hz, {how}: longest gap", gap, 100, "ms", gap <= 100, note)
    p99 = float(np.percentile(node.errors_ms, 99))
    return Measured(0, "jitter of commands at 50 Hz, idle, p99", p99, 5.0, "ms", p99 <= 5.0, note)


def _percentiles(values: np.ndarray) -> str:
    p50, p99, p999 = np.percentile(values, [50, 99, 99.9]) if len(values) else (math.nan,) * 3
    return f"p50 {p50:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f} ms"


def _observed(rig: Rig, stepped: list[tuple[float, float]], process: str, seconds: float) -> Loop:
    pid = rig.processes[process].pid
    begin, used = time.monotonic(), _processor_s(pid)
    time.sleep(seconds)
    end, used = time.monotonic(), _processor_s(pid) - used
    time.sleep(0.2)
    heard = rig.since(begin)
    latencies, place = [], 0
    for (at, value), (until, _) in zip(stepped, [*stepped[1:], (end, 0.0)]):
        if not begin <= at < end - 0.2:
            continue
        while place < len(heard) and heard[place].received_s < at:
            place += 1
        middle = (LOW + HIGH) / 2
        for command in heard[place:]:
            if command.received_s >= until:
                break
            if (command.vx > middle) == (value > middle):
                latencies.append(1e3 * (command.received_s - at))
                break
    errors, gap = interval_errors([command for command in heard if command.received_s < end])
    return Loop(np.array(latencies), errors, gap, used / (end - begin))


def _processor_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute all the time, as urgent as the rig's own."""
    command = [sys.executable, "-c", _BUSY]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=settings, start_new_session=True, preexec_fn=lambda: hurry(PRIORITY)) for _ in range(count)
    ]
    try:
        time.sleep(1.0 if count else 0.0)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait(5.0)
